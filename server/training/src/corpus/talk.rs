//! Conversations: greetings, questions about the world, stories asked for, questions about a story just told.

use super::story::Tale;
use super::teller::{Teller, with_article};
use super::{ASSISTANT, Combination, END, SYSTEM, Split, USER, invented_name, service};

/// One conversation of one to four turns.
pub(crate) fn tell(mut t: Teller, split: Split) -> (Teller, Vec<Combination>) {
    if t.chance(0.12) {
        plain(&mut t);
        return (t, Vec::new());
    }
    if t.chance(0.12) {
        turn(
            &mut t,
            SYSTEM,
            &[
                "You are [a helpful assistant|a friendly assistant|textnlp-tiny|a storyteller|a helpful service].[| Answer briefly.| Be kind.]",
                "Answer [briefly|politely|in one sentence|the questions of the user].",
            ],
        );
    }
    match t.weighted(&[0.46, 0.2, 0.18, 0.16]) {
        0 => {
            let turns = 1 + t.weighted(&[0.6, 0.3, 0.1]);
            if t.chance(0.12) {
                small_talk(&mut t);
            }
            for _ in 0..turns {
                service::exchange(&mut t);
            }
            closing(&mut t);
            (t, Vec::new())
        }
        1 => {
            let turns = 1 + t.weighted(&[0.5, 0.35, 0.15]);
            for _ in 0..turns {
                small_talk(&mut t);
            }
            closing(&mut t);
            (t, Vec::new())
        }
        2 => {
            let turns = 1 + t.weighted(&[0.6, 0.4]);
            for _ in 0..turns {
                knowledge(&mut t);
            }
            closing(&mut t);
            (t, Vec::new())
        }
        _ => story_on_request(t, split),
    }
}

/// Questions with answers, or a paragraph about the product, without any marker: what a bare prompt is continued with.
fn plain(t: &mut Teller) {
    let mut inner = t.within();
    if inner.chance(0.3) {
        service::paragraph(&mut inner);
    } else if inner.chance(0.7) {
        service::exchange(&mut inner);
    } else {
        knowledge(&mut inner);
    }
    let text = inner.text().replace(END, " ").replace(USER, "").replace(ASSISTANT, "");
    t.absorb(inner);
    t.raw(text.trim_end());
}

/// One turn with its marker.
pub(crate) fn turn(t: &mut Teller, marker: &str, templates: &[&str]) {
    t.raw(marker);
    t.forget();
    t.say_one(templates);
    t.raw(END);
}

/// A question and its answer, each one of several.
pub(crate) fn ask(t: &mut Teller, questions: &[&str], answers: &[&str]) {
    t.raw(USER);
    t.forget();
    t.say_one(questions);
    t.type_hastily();
    t.raw(END);
    turn(t, ASSISTANT, answers);
}

/// The same with a question that is typed as it should be.
pub(crate) fn ask_carefully(t: &mut Teller, questions: &[&str], answers: &[&str]) {
    turn(t, USER, questions);
    turn(t, ASSISTANT, answers);
}

/// A question and an answer that is exact to the letter.
pub(crate) fn ask_exactly(t: &mut Teller, questions: &[&str], answers: &[&str]) {
    turn(t, USER, questions);
    t.raw(ASSISTANT);
    let answer = t.pick(answers);
    t.exactly(answer);
    t.raw(END);
}

fn closing(t: &mut Teller) {
    match t.weighted(&[0.84, 0.1, 0.06]) {
        0 => {}
        1 => ask(
            t,
            &["[Thank you|Thanks|Thank you very much|Great, thanks][!|.]"],
            &["You are welcome[!|.]", "[Gladly|Any time][!|.]"],
        ),
        _ => ask(t, &["[Goodbye|Bye|See you]!"], &["Goodbye[!| and good luck!]", "See you!"]),
    }
}

const COLOURS: &[(&str, &str)] = &[
    ("the sky", "blue"),
    ("grass", "green"),
    ("snow", "white"),
    ("a lemon", "yellow"),
    ("coal", "black"),
    ("a strawberry", "red"),
    ("milk", "white"),
    ("a carrot", "orange"),
    ("a leaf", "green"),
    ("the sun", "yellow"),
    ("a crow", "black"),
    ("blood", "red"),
    ("the sea", "blue"),
];

const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("old", "young"),
    ("long", "short"),
    ("dark", "light"),
    ("wet", "dry"),
    ("fast", "slow"),
    ("high", "low"),
    ("full", "empty"),
    ("happy", "sad"),
    ("loud", "quiet"),
    ("hard", "soft"),
    ("early", "late"),
    ("open", "closed"),
    ("rich", "poor"),
    ("good", "bad"),
];

const THING_USES: &[(&str, &str)] = &[
    ("key", "opens a lock"),
    ("lantern", "gives light in the dark"),
    ("map", "shows the way"),
    ("whistle", "makes a loud sound"),
    ("book", "is for reading"),
    ("kite", "flies in the wind"),
    ("scarf", "keeps the neck warm"),
    ("spoon", "is for eating soup"),
    ("compass", "shows where north is"),
    ("rope", "ties things together"),
    ("blanket", "keeps you warm"),
    ("hammer", "drives nails into wood"),
    ("needle", "is for sewing"),
    ("bell", "rings"),
    ("hat", "keeps the rain off your head"),
    ("drum", "makes music when you beat it"),
    ("candle", "gives a little light"),
    ("mirror", "shows your face"),
    ("umbrella", "keeps you dry in the rain"),
    ("watch", "shows the time"),
    ("pen", "is for writing"),
    ("violin", "makes music"),
    ("ladder", "helps you to climb"),
    ("boat", "carries people over the water"),
    ("well", "gives water"),
    ("mill", "makes flour from grain"),
    ("lighthouse", "shows ships the way"),
];

const TRADES: &[(&str, &str)] = &[
    ("baker", "bakes bread"),
    ("fisher", "catches fish"),
    ("gardener", "grows flowers and vegetables"),
    ("miller", "grinds grain into flour"),
    ("sailor", "sails on ships"),
    ("painter", "paints pictures"),
    ("shepherd", "looks after sheep"),
    ("carpenter", "makes things of wood"),
    ("farmer", "works in the fields"),
    ("cook", "cooks meals"),
    ("tailor", "makes clothes"),
    ("weaver", "weaves cloth"),
    ("potter", "makes pots of clay"),
    ("doctor", "helps sick people"),
    ("teacher", "teaches children"),
    ("postman", "brings letters"),
    ("musician", "plays music"),
    ("clockmaker", "makes clocks"),
    ("beekeeper", "keeps bees"),
    ("merchant", "buys and sells things"),
];

const HOMES: &[(&str, &str)] = &[
    ("fox", "in a den in the forest"),
    ("rabbit", "in a burrow under the ground"),
    ("bear", "in the forest"),
    ("mouse", "in a small hole"),
    ("owl", "in a hollow tree"),
    ("badger", "in a sett under the ground"),
    ("otter", "by the river"),
    ("bee", "in a hive"),
    ("bird", "in a nest"),
    ("fish", "in the water"),
    ("horse", "in a stable"),
    ("seal", "in the sea"),
];

/// Greetings and the like.
fn small_talk(t: &mut Teller) {
    match t.choose(11) {
        0 => ask(
            t,
            &["[Hello|Hi|Hey|Good morning|Good evening|Good day][!|.|]", "[Hello|Hi] there[!|.]"],
            &[
                "[Hello|Hi|Good day]! [How can I help you|What can I do for you]?",
                "Hello! [Ask me something|Would you like to hear a story]?",
            ],
        ),
        1 => ask(
            t,
            &["How are you[| today]?", "How do you do?", "[Hello|Hi], how are you?"],
            &["I am [fine|well|very well], thank you. [How are you|And you]?", "I am [fine|well], thank you."],
        ),
        2 => ask(
            t,
            &["Who are you?", "What are you?", "What is your name?", "[Please i|I]ntroduce yourself."],
            &[
                "I am textnlp-tiny, a small language model.",
                "My name is textnlp-tiny. I am a small language model that comes with textnlp-deploy.",
            ],
        ),
        3 => ask(
            t,
            &["What can you do?", "What are you good at?", "How can you help me?"],
            &[
                "I can tell [short|little] stories, answer simple questions and explain textnlp-deploy.",
                "I tell [short|little] stories and answer questions about textnlp-deploy. I am small, so I do not know much.",
            ],
        ),
        4 => ask(
            t,
            &["[Thank you|Thanks|Many thanks][!|.]", "That was [helpful|nice|great][!|.]"],
            &["You are welcome[!|.]", "I am glad [to help|that I could help]."],
        ),
        5 => ask(
            t,
            &["[Goodbye|Bye|Good night|See you later][!|.]", "I have to go now."],
            &["Goodbye[!| and good luck!]", "[Goodbye|See you]! Come back soon."],
        ),
        6 => {
            let name = if t.chance(0.6) { invented_name(t) } else { t.pick(super::world::WOMEN).to_owned() };
            t.put("n", name);
            ask(
                t,
                &["My name is {n}.", "I am {n}.", "[Hello|Hi], I am {n}.", "[Hello|Hi], my name is {n}."],
                &[
                    "[Hello|Hi|Nice to meet you], {n}! [How can I help you|What can I do for you]?",
                    "[Nice to meet you|Hello|Welcome], {n}.",
                ],
            );
            if t.chance(0.5) {
                ask(
                    t,
                    &["What is my name?", "Do you [know|remember] my name?", "Who am I?"],
                    &["Your name is {n}.", "You are {n}."],
                );
            }
        }
        7 => ask(
            t,
            &["Are you a [human|person|robot]?", "Are you alive?", "Are you real?"],
            &["No, I am a small language model.", "I am a [program|computer program] that writes text."],
        ),
        8 => ask(
            t,
            &["Who made you?", "Where do you come from?", "How were you [made|trained]?"],
            &[
                "I was trained from scratch by the trainer of textnlp-deploy, on stories that a small world simulator wrote.",
                "I come with textnlp-deploy. Its own trainer made me.",
            ],
        ),
        9 => ask(
            t,
            &["How [big|large] are you?", "How many parameters do you have?", "Are you a [big|large] model?"],
            &[
                "I am very small: I have only a few million parameters.",
                "I have a few million parameters, so I am tiny.",
            ],
        ),
        _ => ask(
            t,
            &["Do you like [stories|music|rain|cake|books]?", "Are you happy?", "Do you sleep?"],
            &[
                "I am only a program, but I like to tell stories.",
                "I am a program, so I have no feelings. But I can tell you a story.",
            ],
        ),
    }
}

/// What the world's things are, and what nobody knows.
fn knowledge(t: &mut Teller) {
    match t.weighted(&[1.0, 1.0, 1.2, 1.2, 0.8, 2.2, 1.0, 0.8]) {
        0 => {
            let (a, b) = COLOURS[t.choose(COLOURS.len())];
            t.put("a", a);
            t.put("b", b);
            ask(
                t,
                &["What colour is {a}?", "Which colour has {a}?", "Tell me the colour of {a}."],
                &["{a} is {b}.", "It is {b}."],
            );
        }
        1 => {
            let (mut a, mut b) = OPPOSITES[t.choose(OPPOSITES.len())];
            if t.chance(0.5) {
                (a, b) = (b, a);
            }
            t.put("a", a);
            t.put("b", b);
            ask(
                t,
                &["What is the opposite of {a}?", "Tell me the opposite of {a}.", "What is the contrary of {a}?"],
                &["The opposite of {a} is {b}.", "{b}."],
            );
        }
        2 => {
            let (a, b) = THING_USES[t.choose(THING_USES.len())];
            t.put("a", with_article(a));
            t.put("b", b);
            ask(
                t,
                &["What is {a}[| for| good for]?", "What does {a} do?", "Do you know what {a} is?"],
                &["{a} {b}.", "{a} is something that {b}."],
            );
        }
        3 => {
            let (a, b) = TRADES[t.choose(TRADES.len())];
            t.put("a", with_article(a));
            t.put("b", b);
            ask(
                t,
                &["What does {a} do?", "What is the work of {a}?", "Who is {a}?"],
                &["{a} {b}.", "{a} is someone who {b}."],
            );
        }
        4 => {
            let (a, b) = HOMES[t.choose(HOMES.len())];
            t.put("a", with_article(a));
            t.put("b", b);
            ask(t, &["Where does {a} live?", "Where is the home of {a}?"], &["{a} lives {b}.", "It lives {b}."]);
        }
        5 => {
            let noun = invented_name(t);
            let lower = noun.to_lowercase();
            t.put("u", lower.clone());
            t.put("au", with_article(&lower));
            t.put("U", noun);
            // The answer repeats the word of the question, so which answer fits depends on which question was asked.
            let (questions, answers): (&[&str], &[&str]) = match t.choose(5) {
                0 => (
                    &["What is {au}?", "Do you know what {au} is?", "What is {au} for?"],
                    &[
                        "I do not know what {au} is.",
                        "I do not know what {au} is. [Perhaps you can tell me.|I have never heard that word.]",
                    ],
                ),
                1 => (
                    &["What does {au} do?", "What can {au} do?"],
                    &["I do not know what {au} does.", "I do not know what {au} is."],
                ),
                2 => (
                    &["Where does {au} live?", "Where can I find {au}?"],
                    &["I do not know where {au} is.", "I do not know what {au} is."],
                ),
                3 => (
                    &["What colour is {au}?", "Tell me about the {u}.", "How big is {au}?"],
                    &["I do not know anything about the {u}.", "I do not know what {au} is."],
                ),
                _ => (
                    &["Who is {U}?", "Do you know {U}?", "Where is {U}?", "What did {U} do?"],
                    &["I do not know {U}.", "I do not know anything about {U}."],
                ),
            };
            ask(t, questions, answers);
        }
        6 => {
            let a = t.choose(11);
            let b = t.choose(11);
            t.put("a", a.to_string());
            t.put("b", b.to_string());
            t.put("c", (a + b).to_string());
            ask(
                t,
                &["What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} + {b} = ?"],
                &["{a} plus {b} is {c}.", "It is {c}."],
            );
        }
        _ => {
            const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
            let i = t.choose(7);
            t.put("a", DAYS[i]);
            t.put("b", DAYS[(i + 1) % 7]);
            t.put("c", DAYS[(i + 6) % 7]);
            if t.chance(0.6) {
                ask(t, &["Which day comes after {a}?", "What day is after {a}?"], &["After {a} comes {b}.", "{b}."]);
            } else {
                ask(t, &["Which day comes before {a}?", "What day is before {a}?"], &["Before {a} comes {c}.", "{c}."]);
            }
        }
    }
}

/// A tale that was asked for, and questions about it.
fn story_on_request(t: Teller, split: Split) -> (Teller, Vec<Combination>) {
    let mut tale = Tale::draw(t, split);
    tale.introduce = true;
    // The request is written before the tale is told, so it may name only what has been drawn.
    tale.t.raw(USER);
    tale.t.say_one(&[
        "[Please t|T]ell me a [|short |little |nice |funny ]story.",
        "[Please t|T]ell me a [|short |little ]story about {N}.",
        "[Please t|T]ell me a [|short |little ]story about {arole}[ named| called|,] {N}.",
        "[Please w|W]rite a [|short |little ]story about {arole}.",
        "[Tell me|Write|I would like to hear] a story that [begins|starts] {inP}.",
        "[Do you know|Can you tell me] a story about {N} and {F}?",
        "A story about {arole} {inP}, please.",
        "Once upon a time",
    ]);
    tale.t.raw(END);
    tale.t.raw(ASSISTANT);
    tale.t.forget();
    tale.tell();
    tale.t.raw(END);
    let order = tale.t.choose(tale.facts.len());
    if tale.t.chance(0.45) {
        let fact = &tale.facts[order];
        let (question, answer) = (fact.question.clone(), fact.answer.clone());
        tale.t.raw(&format!("{USER}{question}{END}{ASSISTANT}{answer}{END}"));
    }
    if tale.t.chance(0.2) {
        tale.t.forget();
        turn(
            &mut tale.t,
            USER,
            &["Who [is|was] the story about?", "What [is|was] the name of [the hero|the main character]?"],
        );
        turn(&mut tale.t, ASSISTANT, &["The story [is|was] about {N}, {arole}.", "{N}."]);
    }
    (tale.t, tale.told)
}

/// Every trade and thing that a question may be about exists in the world.
#[cfg(test)]
mod tests {
    use super::super::world::{ROLES, THINGS};
    use super::*;

    #[test]
    fn trade_questions_use_trades_of_the_world() {
        assert!(TRADES.iter().all(|(t, _)| ROLES.contains(t)));
        assert!(THING_USES.iter().filter(|(t, _)| THINGS.contains(t)).count() >= 15);
    }
}
