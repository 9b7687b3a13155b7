//! Plots about what people do to one another, and what they learn from it.

use super::{second_place, thing};
use crate::corpus::story::{Tale, place};
use crate::corpus::teller::with_article;
use crate::corpus::world::{BEASTS, FOODS};

pub(super) fn rescue(w: &mut Tale) {
    let means = w.t.choose(4);
    // A calf does not climb trees, and a goat fits into no net.
    let beast = w
        .t
        .pick([&["kitten", "squirrel", "hen", "cat"], &["sparrow", "swan", "hare", "duckling"], BEASTS, BEASTS][means]);
    w.t.put("X", beast);
    w.t.put("aX", with_article(beast));
    w.opening();
    w.t.say_one(&[
        "Suddenly {S} <hear> a [small|thin|sad|loud] cry.",
        "Then {S} <hear> something [crying|calling][| nearby].",
        "There {S} <see> {aX} in trouble.",
    ]);
    let (trouble, help, deed) = [
        ("stuck in a [high |tall |]tree", "ladder", "<climb> up and <carry> the {X} down"),
        ("caught in an old net", "knife", "<cut> the net, and the {X} <be> free"),
        ("sitting in a deep [hole|pit]", "rope", "<let> down the rope and <pull> the {X} out"),
        ("lying on a [small rock|floating log] in the water", "boat", "<row> out and <bring> the {X} back to land"),
    ][means];
    w.t.put("T", help);
    w.t.say(&format!("{{aX}} <be> {trouble}."));
    w.t.maybe(
        0.6,
        &[
            "\"Do not be afraid,\" {saysN}. \"I will help you.\"",
            "The poor {X} <tremble>[| with fear| with cold].",
            "\"[Poor thing|Oh dear|Hold on]!\" {saysN}.",
        ],
    );
    w.t.say_one(&[
        "But {he} <can> not reach it. {N} <need> a {T}.",
        "{S} <try> to reach it, but it <be> too far. \"I need a {T},\" {he} <think>.",
        "Without a {T} nobody <can> help it.",
    ]);
    second_place(w);
    w.travel("Q");
    w.meet("inQ");
    w.t.say_one(&[
        "\"Quick, lend me your {T}!\" <cry> {N}. \"The {X} is in danger.\"",
        "\"There is {aX} {inP}, and it needs help,\" {saysN}.",
        "{N} <ask> for a {T} and <tell> {F} about the {X}.",
    ]);
    w.t.say_one(&[
        "{F} <take> the {T} and <come> at once.",
        "\"I have a {T},\" {saysF}. \"[Come|Let us go|Hurry]!\"",
        "\"Take my {T},\" {saysF}, \"and I will come with you.\"",
    ]);
    w.t.forget();
    w.t.say(&format!("Back {{inP}}, {{N}} {deed}."));
    w.t.say_one(&[
        "The {X} <lick> {his} hand.",
        "The {X} <be> [tired|wet|hungry], but safe.",
        "The {X} <shake> itself and <look> at {him} with [big|thankful|bright] eyes.",
    ]);
    w.t.maybe(
        0.6,
        &[
            "{N} <give> it [some milk|some bread|a warm blanket] and a name: [Star|Button|Pebble|Cloud|Pepper|Clover].",
            "Then it <run> [home|to its mother|away over the grass].",
            "From then on the {X} <follow> {N} everywhere.",
        ],
    );
    w.ending(true);
    w.fact("Which animal was in trouble?", "{aX} was in trouble.");
    w.fact("What did {F} bring?", "{F} brought a {T}.");
    w.sum_up("{N} saved {aX} with a {T} that {F} brought.");
}

pub(super) fn learn(w: &mut Tale) {
    let (skill, fail, show) = [
        ("swim", "<swallow> a lot of water", "<swim> to the other side and back"),
        ("whistle", "only <blow> air", "<whistle> a whole song"),
        ("ride a horse", "<fall> into the hay", "<ride> once around {P}"),
        ("read", "<mix> up all the letters", "<read> a whole page aloud"),
        ("play the flute", "<make> a terrible noise", "<play> a tune for everyone"),
        ("juggle", "<drop> all the balls", "<juggle> three apples"),
        ("skate", "<sit> down hard on the ice", "<skate> in a big circle"),
        ("dance", "<step> on every foot", "<dance> until midnight"),
        ("sail a boat", "<turn> in circles", "<sail> out and home again"),
        ("bake bread", "<burn> the loaf", "<bake> a golden loaf"),
    ][w.t.choose(10)];
    w.t.put("K", skill);
    w.opening();
    w.t.say_one(&[
        "{S} <want> to learn to {K}.",
        "{S} <have> one [great |secret |]wish: to learn to {K}.",
        "Everybody <can> {K}, only {N} <can> not.",
        "\"I wish I could {K},\" {he} often <say>.",
    ]);
    w.meet("inP");
    w.t.say_one(&[
        "\"I can teach you,\" {saysF}.",
        "\"Will you teach me to {K}?\" {asksN}. \"[Yes|Gladly|Why not]!\" {saysF}.",
        "{F} <can> {K} very well. \"Watch me,\" {fhe} <say>.",
    ]);
    w.t.forget();
    w.t.say(&format!("[The first time|At first|On the first day], {{N}} {fail}."));
    w.t.maybe(
        0.6,
        &[
            "\"I will never learn it,\" {saysN}.",
            "[Some children|Two crows|The people nearby] <laugh+>.",
            "{N} <want> to give up.",
        ],
    );
    w.t.say_one(&[
        "\"[Try again|Do not give up|Nobody is born a master|Slowly, slowly],\" {saysF}.",
        "But {F} <be> patient. \"Once more,\" {fhe} <say>.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{N} <practise> every day[| for a week| for a month| all summer].",
        "So {N} <try> again, and again, and again.",
        "{N} <shut> {his} eyes, <take> a deep breath and <try> once more.",
    ]);
    w.t.say(&format!("[Then, one morning,|At last|And then] {{N}} {show}."));
    w.t.maybe(
        0.5,
        &["\"You can do it!\" <cry> {F}.", "{F} <clap> and <laugh>.", "\"Now you are better than I am,\" {saysF}."],
    );
    w.t.forget();
    if w.t.chance(0.5) {
        w.feel(true);
    }
    w.ending(true);
    w.fact("What did {N} want to learn?", "{N} wanted to learn to {K}.");
    w.fact("Who taught {N}?", "{F}, {afrole}, taught {N}.");
    w.sum_up("{F} taught {N} to {K}.");
}

pub(super) fn afraid(w: &mut Tale) {
    let (fear, truth) = [
        ("the dark", "The dark is only the night's blanket"),
        ("thunder", "Thunder is only a big noise"),
        ("deep water", "The water carries those who lie still"),
        ("the big dog", "It only wants to play"),
        ("high places", "Look at the sky and not at your feet"),
        ("the old house", "Only mice live there"),
        ("strangers", "A stranger is a friend you do not know yet"),
        ("the wind", "The wind is only in a hurry"),
    ][w.t.choose(8)];
    w.t.put("Z", fear);
    w.opening();
    w.t.say_one(&[
        "{S} <be> afraid of {Z}.",
        "There <be> only one thing that {S} <fear>: {Z}.",
        "{S} <be> not afraid of anything, only of {Z}.",
    ]);
    w.t.maybe(
        0.5,
        &["[Nobody|No one] <know> about it.", "{S} never <talk> about it.", "The others sometimes <laugh+> at {him}."],
    );
    w.meet("inP");
    w.t.say_one(&["\"Why do you tremble?\" {asksF}. \"I am afraid of {Z},\" {saysN}.", "{N} <tell> {F} the secret."]);
    w.t.say(&format!("\"[Do you know what|I was afraid of it too|Listen|Take my hand],\" <say> {{F}}. \"{truth}.\""));
    w.t.forget();
    second_place(w);
    w.t.say_one(&["That [evening|day|week] {N} and {F} <go+> to {Q} together.", "Together {they} <go+> to {Q}."]);
    w.t.say_one(&[
        "{N} <hold> {F}'s hand very tight.",
        "{N} <want> to run away, but {he} <stay>.",
        "{his} knees <shake+>, but {N} <take> one step, and then another.",
    ]);
    w.t.say_one(&[
        "After a while it <be> not so bad.",
        "And nothing bad <happen>.",
        "\"It is not so bad,\" {he} <whisper>.",
        "Then {he} <begin> to laugh.",
    ]);
    w.t.maybe(0.6, &["\"You see?\" {saysF}.", "\"You were very brave,\" {saysF}."]);
    w.t.forget();
    if w.t.chance(0.5) {
        w.thanks();
    }
    w.ending(true);
    w.fact("What was {N} afraid of?", "{N} was afraid of {Z}.");
    w.fact("Who helped {N}?", "{F}, {afrole}, helped {N}.");
    w.sum_up("{N} was afraid of {Z}, but {F} helped {him} to be brave.");
}

pub(super) fn quarrel(w: &mut Tale) {
    thing(w);
    w.scene();
    w.meet("inP");
    let spot = w.t.pick(place(w.here).spots);
    w.t.put("spot", spot);
    w.t.say_one(&[
        "{they} <find+> {aO} {spot}.",
        "{spot} {they} <see+> {aO}.",
        "\"Look!\" {saysN}. {aO} <lie> {spot}.",
    ]);
    w.t.say_one(&[
        "\"It is mine! I saw it first,\" {saysN}. \"No, it is mine,\" {saysF}.",
        "Both <want+> to have it, and {they} <begin+> to quarrel.",
        "{N} <pull> on one side and {F} on the other.",
    ]);
    let breaks = w.t.chance(0.4);
    if breaks {
        w.t.say_one(&["Then the {O} <fall> and <break> in two.", "Crack! Now the {O} <be> broken."]);
        w.t.say_one(&["{they} <look+> at the pieces and <be+> ashamed.", "Nobody <say> a word."]);
        w.t.say_one(&[
            "\"I am sorry,\" {saysN}. \"[I am sorry too|It was my fault as well],\" {saysF}.",
            "At last {N} <say>: \"It was my fault.\" {F} <shake> {fhis} head. \"No, it was mine.\"",
        ]);
        w.t.say_one(&[
            "{they} <mend+> the {O} together, and it <look> nicer than before.",
            "With some glue {they} <put+> it together again.",
        ]);
    } else {
        w.t.say_one(&[
            "{they} <do+> not speak for [three days|a whole week|an hour].",
            "{N} <go> home alone, and {F} <go> home alone.",
        ]);
        w.t.say_one(&[
            "But playing alone <be> no fun.",
            "But the {O} <be> no fun without a friend.",
            "{N} <think> about it all night.",
        ]);
        w.t.say_one(&["\"You may have it,\" {saysN}. \"A friend is worth more than {aO}.\"", "\"[Let us share it|We can take turns],\" {saysN}. \"[You today, I tomorrow|One week for you, one week for me].\""]);
        w.t.say_one(&["\"[That is a good idea|You are right|I was foolish too],\" {saysF}.", "{F} <smile> and <nod>."]);
    }
    w.t.forget();
    w.ending(true);
    w.fact("What did {N} and {F} find?", "{N} and {F} found {aO}.");
    w.fact("Where did they find the {O}?", "They found the {O} {inP}.");
    w.sum_up("{N} and {F} quarrelled about {aO} and made peace again.");
}

pub(super) fn kindness(w: &mut Tale) {
    let beast = w.t.pick(BEASTS);
    w.t.put("X", beast);
    w.t.put("aX", with_article(beast));
    let food = w.t.pick(FOODS);
    w.t.put("food", food);
    w.opening();
    w.t.say_one(&[
        "{S} <have> {food} with {him}.",
        "{S} <carry> {food} in {his} bag, and {he} <be> hungry.",
        "{S} <want> to eat {food}.",
    ]);
    w.t.say_one(&[
        "Then {he} <see> {aX}. It <be> thin and hungry.",
        "{aX} <come> out of the bushes and <look> at {him}.",
    ]);
    w.t.say_one(&[
        "\"You are hungrier than I am,\" {saysN}, and <give> it everything.",
        "{S} <give> half of it to the {X}.",
        "{S} <think> for a moment, and then {he} <share> the food with the {X}.",
    ]);
    second_place(w);
    let trouble = w.t.choose(3);
    w.t.say_one(
        &[
            ["[Some days later|The next winter|A week later|Later that day], {N} <get> lost {inQ}."],
            ["[Some days later|That same evening|A month later], {N} <fall> into a ditch {inQ} and <can> not get out."],
            ["[Soon after|One night], {N} <be> {inQ} when a great storm <come>."],
        ][trouble],
    );
    w.feel(false);
    w.t.say_one(&[
        "Then {he} <hear> a sound. It <be> the {X}!",
        "Suddenly the {X} <stand> before {him}.",
        "And who <come>? The {X}!",
    ]);
    match trouble {
        0 => w.t.say_one(&[
            "It <know> the way and <lead> {him} home.",
            "It <run> ahead, <stop> and <look> back, until {N} <see> the lights of {P}.",
        ]),
        1 => w.t.say_one(&[
            "It <run> to {F}, {afrole}, and <pull> at {fhis} coat until {fhe} <follow>. {F} <pull> {N} out.",
            "It <call> so loudly that {F}, {afrole}, <come> with a rope.",
        ]),
        _ => w.t.say_one(&[
            "It <show> {him} a dry [cave|hut|barn], and there {they} <wait+> until morning.",
            "It <lie> down beside {him} and <keep> {him} warm.",
        ]),
    }
    w.t.forget();
    w.t.say_one(&[
        "\"You did not forget me,\" {saysN}.",
        "One good deed had brought another.",
        "\"Now you have helped me,\" {saysN}.",
    ]);
    w.ending(false);
    w.fact("Which animal was hungry?", "{aX} was hungry.");
    w.fact("What did {N} give to the {X}?", "{N} gave {food} to the {X}.");
    w.sum_up("{N} gave {food} to {aX}, and later the {X} helped {him}.");
}

pub(super) fn honest(w: &mut Tale) {
    let broken =
        w.t.pick(&["vase", "jug", "window", "plate", "mirror", "lamp", "teapot", "flower pot", "bowl", "clock"]);
    w.t.put("B", broken);
    w.t.put("aB", with_article(broken));
    w.opening();
    w.t.say_one(&[
        "{S} <play> with a ball, although it <be> forbidden.",
        "{S} <be> in a hurry and <do> not look.",
        "{S} <dance> around the room.",
    ]);
    w.t.say_one(&[
        "Crash! The {B} of {F}, the {frole}, <fall> down and <break>.",
        "Then there <be> a loud crash: the {B} <be> broken. It <belong> to {F}, {afrole}.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "Nobody had seen it.",
        "{N} <hide> the pieces [under a cloth|in a corner|behind a box].",
        "{N} <run> away.",
    ]);
    w.t.say_one(&[
        "\"Who has broken my {B}?\" {asksF}. \"[It was the wind|It was the cat|I do not know],\" {saysN}.",
        "\"Where is my {B}?\" {asksF}. {N} <say> nothing.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "But that night {N} <can> not sleep.",
        "But it <lie> on {his} heart like a stone.",
        "All day {N} <think> about it, and the food <taste> of nothing.",
    ]);
    w.t.say_one(&[
        "In the morning {he} <go> to {F}. \"It was me,\" {he} <say>. \"I am sorry.\"",
        "At last {N} <tell> the truth. \"I broke your {B},\" {he} <say>.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{F} <be> silent for a while. \"Thank you for telling me,\" {fhe} <say>.",
        "\"{aB} can be replaced,\" {saysF}, \"but not a friend who tells the truth.\"",
        "\"I am glad that you told me,\" {saysF}.",
    ]);
    w.t.forget();
    w.t.maybe(
        0.6,
        &[
            "{N} <work> [for a week|for three days] and <buy> {fhim} a new {B}.",
            "Together {they} <glue+> the pieces.",
            "{N} <give> {F} {his} own {B}.",
        ],
    );
    w.ending(true);
    w.fact("What did {N} break?", "{N} broke the {B} of {F}.");
    w.fact("Why could {N} not sleep?", "{N} had not told the truth.");
    w.sum_up("{N} broke the {B} of {F} and told the truth in the end.");
}
