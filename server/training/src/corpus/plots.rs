//! The plots: each lets a goal meet the world and tells what follows from what.

use super::story::{Tale, place};
use super::teller::with_article;
use super::world::{BEASTS, FOODS, LOOKS, THINGS};

/// A plot tells a whole tale; its number is the number of the goal.
pub(crate) type Plot = fn(&mut Tale);

/// All plots. Their order is part of the corpus: the hold-out depends on it.
pub(crate) const PLOTS: &[Plot] = &[
    lost, deliver, mend, bake, rescue, learn, afraid, quarrel, sunrise, noise, plant, trade, kindness, honest, lamp,
    storm, borrow, treasure,
];

/// A thing into the slots `O` (noun), `aO` (with look and article) and `lO` (with look).
fn thing(w: &mut Tale) {
    let noun = w.t.pick(THINGS);
    let look = w.t.pick(LOOKS);
    let full = if w.t.chance(0.75) { format!("{look} {noun}") } else { noun.to_owned() };
    w.t.put("O", noun);
    w.t.put("aO", with_article(&full));
    w.t.put("lO", full);
}

fn second_place(w: &mut Tale) -> usize {
    let q = w.elsewhere(&[w.here]);
    w.stand("Q", q);
    q
}

fn lost(w: &mut Tale) {
    thing(w);
    w.opening();
    w.t.say_one(&[
        "[But that day|Suddenly|Then|There] {S} <see> that {his} {lO} <be> gone.",
        "{S} <have> {aO}, [a gift from {his} mother|which {he} <love>|and {he} never <go> anywhere without it]. [One day|Now|But suddenly] it <be> gone.",
        "{S} <put> a hand into {his} [pocket|bag], but the {O} <be> not there.",
        "{S} <want> to use {his} {lO}, but {he} <can> not find it.",
        "{S} <lose> {his} {lO}[| on the way| somewhere].",
        "{S} <have> lost {his} {lO}.",
    ]);
    w.t.maybe(
        0.5,
        &[
            "\"Where is my {O}?\" {he} <ask>.",
            "\"Oh no, my {lO}!\" <cry> {N}.",
            "\"I must find it [before dark|today|soon],\" {he} <say>.",
        ],
    );
    if w.t.chance(0.6) {
        w.feel(false);
    }
    let tries = 1 + w.t.choose(2);
    for i in 0..tries {
        let spot = w.t.pick(place(w.here).spots);
        w.t.put("spot", spot);
        w.t.say_one(if i == 0 {
            &[
                "{S} <look> {spot}, but there <be> nothing.",
                "[First|At first], {S} <look> {spot}[, but in vain|, but it <be> not there].",
                "{S} <search> {spot} and <find> only [dust|a dry leaf|a button|a spider].",
            ]
        } else {
            &["Then {he} <look> {spot}, but the {O} <be> not there[ either|].", "Next {he} <search> {spot}. Nothing!"]
        });
    }
    w.meet("inP");
    let q = second_place(w);
    let spot = w.t.pick(place(q).spots);
    w.t.put("spot", spot);
    w.t.say_one(&[
        "\"[What are you looking for|Why are you so sad|What is wrong|Have you lost something]?\" {asksF}. \"I have lost my {O},\" {saysN}.",
        "\"Have you seen {aO}?\" {asksN}.",
        "{N} <tell> {F} about the {O}.",
    ]);
    w.t.say_one(&[
        "\"[Yes, |Oh, |]I saw {aO} {inQ} [yesterday|this morning|an hour ago],\" {saysF}.",
        "\"[You were {inQ} yesterday|Did you not go to {Q} yesterday]?\" {saysF}. \"[Perhaps it is there|Let us look there].\"",
        "{F} <think> for a moment. \"[Try|Go and look|You should look] {inQ},\" {fhe} <say>.",
    ]);
    let together = w.t.chance(0.4);
    if together {
        w.t.say_one(&[
            "So {N} and {F} <go+> to {Q} together.",
            "\"I will help you,\" {saysF}, and {they} <go+> to {Q}.",
        ]);
    } else {
        w.travel("Q");
    }
    w.t.say_one(&[
        "[There|And there], {spot}, <lie> the {O}!",
        "{N} <look> {spot}, and there <be> the {lO}.",
        "The {lO} <be> {spot}.",
        "{N} <find> the {O} {spot}.",
    ]);
    w.feel(true);
    if together || w.t.chance(0.5) {
        w.thanks();
    }
    w.ending(together);
    w.fact("What did {N} lose?", "{N} lost {aO}.");
    w.fact("Where was the {O}?", "The {O} was {inQ}.");
    w.fact("Who helped {N}?", "{F}, {afrole}, helped {N}.");
    w.sum_up("{N} lost {aO} and found it {inQ} with the help of {F}.");
}

fn deliver(w: &mut Tale) {
    thing(w);
    w.opening();
    second_place(w);
    w.t.say_one(&[
        "{S} <have> to bring {aO} to {F}, {afrole}, who <be> {inQ}.",
        "That day {S} <want> to give {aO} to {his} friend {F}, {afrole}. {F} <be> {inQ}.",
    ]);
    w.t.maybe(
        0.5,
        &[
            "{S} <wrap> the {O} in [a cloth|brown paper|a soft scarf].",
            "{S} <put> the {O} into {his} [bag|pocket|basket].",
            "\"I must be careful with it,\" {he} <say>.",
        ],
    );
    w.travel("Q");
    let way = w.t.choose(5);
    match way {
        0 => w.t.say_one(&["But the bridge <be> broken, and the water <be> deep. {S} <find> [a long plank|a fallen tree|an old boat] and <get> across.", "But the river <be> too high. {S} <wait> until [a ferry <come>|the water <fall>] and then <cross> it."]),
        1 => w.t.say_one(&["A big dog <stand> in the way and <bark>. {S} <give> it a piece of [bread|cheese|sausage], and the dog <let> {him} pass.", "Then a goose <block> the path. {S} <speak> to it softly, and it <step> aside."]),
        2 => w.t.say_one(&["But fog <come> up, and {S} <can> not see the way. {he} <follow> the sound of a bell.", "But it <grow> so dark that {S} <have> to light a lantern."]),
        3 => w.t.say_one(&["{S} <slip> on a wet stone, and the {O} <fall> into the grass. Luckily it <be> not broken.", "Suddenly the wind <take> the {O} away. {S} <run> after it and <catch> it."]),
        _ => w.t.say_one(&["The way <be> long, and {S} <sing> to [keep up {his} spirits|pass the time].", "Nobody <be> on the road, only [a hare|two crows|an old cat]."]),
    }
    w.t.forget();
    w.t.say_one(&[
        "At last {N} <reach> {Q}. {F} <be> [already waiting|there] and <open> {fhis} arms.",
        "{F} <see> {N} from far away and <wave>.",
        "{inQ} {F} <be> [sitting on a stool|sitting in the sun|working hard] when {N} <come>.",
    ]);
    w.t.say_one(&[
        "\"This is for you,\" {saysN}, and <give> {fhim} the {O}.",
        "\"Look what I have brought,\" {saysN}, and <hold> out the {lO}.",
        "{N} <lay> the {lO} into {fhis} hands.",
    ]);
    w.t.forget();
    w.t.say_one(&["\"[What a beautiful {O}|I have waited for it so long|This is just what I need|You came all this way for me]!\" {saysF}.", "{F} <be> so happy that {fhe} <dance>.", "{F} <hold> the {O} up to the light and <laugh>."]);
    w.t.maybe(
        0.5,
        &[
            "Then {F} <give> {N} [a honey cake|a cup of tea|a bowl of soup|a warm bun].",
            "\"[Stay for supper|Come in and rest|Sit down by the fire],\" {saysF}.",
        ],
    );
    w.ending(true);
    w.fact("What did {N} bring to {F}?", "{N} brought {aO} to {F}.");
    w.fact("Where was {F}?", "{F} was {inQ}.");
    w.sum_up("{N} brought {aO} to {F}, who was {inQ}.");
}

fn mend(w: &mut Tale) {
    w.opening();
    let broken = w.t.pick(&[
        "boat", "cart", "clock", "gate", "roof", "bell", "chair", "fence", "wheel", "door", "pump", "ladder", "sail",
        "stove",
    ]);
    let tool = w.t.pick(&[
        "hammer",
        "saw",
        "rope",
        "ladder and nails",
        "needle and thread",
        "pot of glue",
        "new plank",
        "box of nails",
        "pair of pliers",
        "screwdriver",
    ]);
    w.t.put("B", broken);
    w.t.put("T", tool);
    w.t.put("aT", if tool.starts_with("ladder and") { "a ladder and nails".to_owned() } else { with_article(tool) });
    w.t.say_one(&[
        "In the night [the wind|a storm|a runaway goat|a falling branch] had broken the {B}.",
        "But the old {B} {inP} <be> broken.",
        "{S} <see> that the {B} <be> broken.",
        "\"Who has broken the {B}?\" {asksN}. [Nobody <know>|It <be> only old].",
    ]);
    w.t.maybe(
        0.6,
        &[
            "Without the {B}, [nobody <can> work|the people <can> not go on|it <be> no use staying].",
            "\"We need it [tomorrow|before winter|for the feast],\" the people <say>.",
            "[Everybody|The whole village] <be> worried.",
        ],
    );
    w.t.say_one(&[
        "{S} <want> to mend it, but {he} <have> no {T}.",
        "\"I can mend it,\" {saysN}, \"but I need {aT}.\"",
        "{S} <try> with {his} bare hands, but it <do> not work. {N} <need> {aT}.",
    ]);
    second_place(w);
    w.travel("Q");
    w.meet("inQ");
    w.t.say_one(&[
        "\"May I borrow {aT}?\" {asksN}.",
        "\"I need {aT} for the broken {B},\" {saysN}.",
        "{N} <ask> {F} for {aT}.",
    ]);
    let price = w.t.chance(0.45);
    if price {
        w.t.say_one(&[
            "\"[Yes|Gladly], if you help me first,\" {saysF}. So {N} [<sweep> the floor|<carry> the water|<feed> the hens|<chop> the wood|<peel> the potatoes].",
            "\"First you must [carry my basket|water my flowers|catch my goat|find my hat],\" {saysF}, and {N} <do> it.",
        ]);
        w.t.say_one(&["Then {F} <give> {him} what {he} <need>.", "\"Well done,\" {saysF}. \"Here you are.\""]);
    } else {
        w.t.say_one(&[
            "\"Of course,\" {saysF}. \"[Take it|Bring it back when you are done|Good luck].\"",
            "{F} <go> to the shed and <come> back with it.",
        ]);
    }
    w.t.forget();
    w.t.say_one(&[
        "{N} <hurry> back and <work> [all day|until evening|for an hour|until {his} hands <hurt>].",
        "Back {inP}, {N} <begin> to work.",
        "{N} <work> slowly and with care.",
    ]);
    w.t.say_one(&[
        "At last the {B} <be> as good as new.",
        "When the sun <go> down, the {B} <be> mended.",
        "Then {he} <try> the {B}, and it <work>!",
    ]);
    w.t.maybe(0.6, &["Everybody <cheer>.", "\"[Hurrah for {N}|Well done, {N}]!\" the people <cry+>."]);
    if w.t.chance(0.4) {
        w.feel(true);
    }
    w.ending(false);
    w.fact("What was broken?", "The {B} was broken.");
    w.fact("What did {N} borrow?", "{N} borrowed {aT} from {F}.");
    w.sum_up("{N} mended the broken {B} with {aT} from {F}.");
}

fn bake(w: &mut Tale) {
    let (dish, a, b) = [
        ("apple pie", "apples", "flour"),
        ("berry cake", "berries", "butter"),
        ("vegetable soup", "carrots", "onions"),
        ("honey bread", "honey", "flour"),
        ("mushroom stew", "mushrooms", "cream"),
        ("plum tart", "plums", "sugar"),
        ("pumpkin soup", "a pumpkin", "milk"),
        ("fish soup", "fish", "potatoes"),
        ("nut cake", "nuts", "eggs"),
        ("cherry jam", "cherries", "sugar"),
    ][w.t.choose(10)];
    w.t.put("D", dish);
    w.t.put(
        "aD",
        if dish.ends_with("jam") || dish.ends_with("bread") || dish.ends_with("soup") {
            format!("some {dish}")
        } else {
            with_article(dish)
        },
    );
    w.t.put("A", a);
    w.t.put("Bb", b);
    w.opening();
    w.t.say_one(&[
        "{S} <want> to make {aD}[| for the feast| for {his} friend {F}| for {his} grandmother| for supper].",
        "\"Today I will make {aD},\" {saysN}.",
        "It <be> [a holiday|{his} birthday|nearly winter], and {S} <wish> to make {aD}.",
    ]);
    w.t.put("noA", a.trim_start_matches("a ").to_owned());
    w.t.say_one(&[
        "But {he} <have> no {noA} and no {Bb}.",
        "For that {he} <need> {A} and {Bb}.",
        "{S} <look> into the cupboard and <find> no {noA} and no {Bb}.",
    ]);
    let q = second_place(w);
    w.travel("Q");
    w.t.say_one(&[
        "There {he} <find> {A}.",
        "There {he} <buy> {A} [for two coins|for a song|from an old woman|from a farmer].",
    ]);
    let r = w.elsewhere(&[w.here, q]);
    w.stand("R", r);
    w.t.say_one(&["Now {he} only <need> {Bb}.", "\"Now I need {Bb},\" {saysN}.", "But {S} <have> no {Bb} yet."]);
    w.travel("R");
    w.meet("inR");
    w.t.say_one(&[
        "\"I have {Bb} [for you|enough],\" {saysF}, \"if you give me a piece of your {D}.\" \"[Gladly|Of course|I promise],\" {saysN}.",
        "{F} <give> {N} {Bb} and <ask> for nothing.",
        "{N} <help> {F} [carry a heavy sack|find a lost hen|wash the pots], and {F} <give> {him} {Bb}.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "At home {N} <stir> and <cook>, and soon it <smell> wonderful.",
        "Then {N} <go> home and <light> the fire.",
        "{N} <run> home and <make> the {D}.",
    ]);
    w.t.say_one(&[
        "The {D} <be> [delicious|warm and sweet|the best in the village].",
        "When the {D} <be> ready, {N} <call> {F}.",
    ]);
    w.t.say_one(&[
        "{N} and {F} <eat+> it together.",
        "{N} <give> the first [piece|bit] to {F}.",
        "{N} <share> it with {F}, and nothing <be> left.",
    ]);
    w.ending(true);
    w.fact("What did {N} make?", "{N} made {aD}.");
    w.fact("What did {N} need?", "{N} needed {A} and {Bb}.");
    w.sum_up("{N} needed {A} and {Bb}, made {aD} and shared it with {F}.");
}

fn rescue(w: &mut Tale) {
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

fn learn(w: &mut Tale) {
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

fn afraid(w: &mut Tale) {
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

fn quarrel(w: &mut Tale) {
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

fn sunrise(w: &mut Tale) {
    let sight = w.t.pick(&[
        "the sunrise",
        "the whales",
        "a falling star",
        "the first snow",
        "the big ships",
        "the full moon",
        "the northern lights",
        "the wild geese",
        "the fireworks",
        "a double rainbow",
    ]);
    w.t.put("V", sight);
    w.opening();
    w.t.say_one(&[
        "{S} had never seen {V}.",
        "{S} <want> to see {V} [once in {his} life|more than anything].",
        "\"I would love to see {V},\" {saysN}.",
    ]);
    second_place(w);
    w.meet("inP");
    w.t.say_one(&[
        "\"The best place for that is {Q},\" {saysF}.",
        "\"You must go to {Q},\" {saysF}. \"From there you can see {V}.\"",
        "\"I saw {V} {inQ} [last year|once|when I was small],\" {saysF}.",
    ]);
    w.t.forget();
    w.travel("Q");
    w.t.say_one(&[
        "{S} <wait> and <wait>.",
        "It <be> cold, and nothing <happen>.",
        "For a long time {he} <see> only clouds.",
    ]);
    let food = w.t.pick(FOODS);
    w.t.put("food", food);
    w.t.maybe(
        0.5,
        &[
            "{S} <eat> {food} and <look> at the sky.",
            "{S} almost <fall> asleep.",
            "\"Perhaps I am too late,\" {he} <think>.",
        ],
    );
    w.t.say_one(&[
        "And then, suddenly, there {he} <see> {V}!",
        "Then {he} <see> {V}, more beautiful than any dream.",
        "All at once {he} <hold> {his} breath: {V}!",
    ]);
    w.t.say_one(&["{S} <stand> quite still.", "{S} <laugh> out loud.", "{S} <think>: I will remember this forever."]);
    w.t.maybe(
        0.6,
        &["Later {he} <tell> {F} all about it.", "At home {he} <draw> a picture of it and <give> it to {F}."],
    );
    w.t.forget();
    w.ending(false);
    w.fact("What did {N} want to see?", "{N} wanted to see {V}.");
    w.fact("Where did {N} go?", "{N} went to {Q}.");
    w.sum_up("{N} went to {Q} and saw {V}.");
}

fn noise(w: &mut Tale) {
    let (sound, cause, does) = [
        ("a knocking", "a loose shutter", "<move> in the wind"),
        ("a scratching", "a hedgehog", "<look> for food"),
        ("a soft singing", "an old kettle", "<sing> on the fire"),
        ("a deep humming", "a swarm of bees", "<rest> in a hollow wall"),
        ("a strange howling", "a puppy", "<miss> its mother"),
        ("a rattling", "a mouse in a tin box", "<look> for a way out"),
        ("a ringing", "a goat with a bell", "<eat> the cabbage"),
        ("a tapping", "a woodpecker", "<work> on the door"),
    ][w.t.choose(8)];
    w.t.put("Y", sound);
    w.t.put("C", cause);
    w.opening();
    w.t.say_one(&[
        "In the night {S} <wake> up. There <be> {Y}!",
        "Suddenly {S} <hear> {Y}.",
        "Every [night|evening] there <be> {Y}, and nobody <know> why.",
    ]);
    w.t.say_one(&[
        "\"[Who is there|What is that|Is it a ghost]?\" {he} <whisper>.",
        "Nobody <answer>.",
        "{S} <pull> the blanket over {his} head.",
    ]);
    w.t.maybe(
        0.6,
        &[
            "But {S} <be> curious.",
            "\"I want to know what it is,\" {he} <say>.",
            "At last {he} <take> a [candle|lantern] and all {his} courage.",
        ],
    );
    w.meet("inP");
    w.t.say_one(&[
        "\"Do you hear it too?\" {asksF}. \"[Yes|I do],\" {saysN}. \"[Let us look|Come with me].\"",
        "\"Perhaps it is a [ghost|giant|thief|dragon],\" {saysF}.",
        "{F} had heard it as well.",
    ]);
    second_place(w);
    w.t.say_one(&[
        "{they} <follow+> the sound to {Q}.",
        "Step by step {they} <creep+> to {Q}.",
        "The sound <come> from {Q}, so {they} <go+> there.",
    ]);
    w.t.say(&format!("There {{they}} <see+> it: it <be> only {{C}}! It {does}."));
    w.t.say_one(&[
        "{they} <laugh+> until {they} <be+> tired.",
        "\"What a ghost!\" {saysF}, and {N} <laugh>.",
        "\"And I was so afraid,\" {saysN}.",
        "{N} <help> at once, and then it <be> quiet.",
    ]);
    w.t.forget();
    w.ending(true);
    w.fact("What did {N} hear?", "{N} heard {Y}.");
    w.fact("What was it?", "It was only {C}.");
    w.sum_up("{N} heard {Y}, but it was only {C}.");
}

fn plant(w: &mut Tale) {
    let flower = w.t.pick(&[
        "rose",
        "sunflower",
        "apple tree",
        "pumpkin",
        "bean",
        "cherry tree",
        "tulip",
        "vine",
        "pear tree",
        "lily",
    ]);
    w.t.put("L", flower);
    w.t.put("aL", with_article(flower));
    w.scene();
    w.meet("inP");
    w.t.say_one(&[
        "{F} <give> {N} a [tiny|small|brown|strange] seed. \"[Take good care of it|It will be {aL}],\" {fhe} <say>.",
        "\"This is the seed of {aL},\" {saysF}. \"It is for you.\"",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{N} <dig> a [small |little |]hole and <lay> the seed in it.",
        "{N} <put> the seed into the ground {inP}.",
        "{N} <plant> it in a pot of earth.",
    ]);
    w.t.say_one(&["{S} <water> it every [morning|evening|day].", "Every day {he} <look> at it, but nothing <happen>."]);
    w.t.say_one(&[
        "Then [a dry summer|a long drought] <come>, and the [well|stream] <be> empty.",
        "Then [hungry snails|greedy crows|two hares] <come+> and <want+> to eat it.",
        "But one night there <be> a frost.",
    ]);
    let cause = w.t.text().to_owned();
    let fix: &[&str] = if cause.ends_with("empty.") {
        &[
            "So {N} <carry> water from far away, one bucket after another.",
            "{N} <give> it the water from {his} own cup.",
        ]
    } else if cause.ends_with("frost.") {
        &[
            "So {N} <cover> it with {his} [coat|blanket|scarf].",
            "All night {N} <sit> beside it and <keep> it warm with a lantern.",
        ]
    } else {
        &[
            "So {N} <build> a little fence around it.",
            "{N} <stay> awake and <chase> them away.",
            "{N} <give> them some cabbage, and they <go+> away.",
        ]
    };
    w.t.say_one(fix);
    w.t.maybe(0.4, &["\"Please grow,\" {he} <say>.", "{S} <sing> to it, for plants like songs."]);
    w.t.say_one(&[
        "At last a green leaf <come> out of the earth.",
        "In the spring there <be> a green tip, then a leaf, then two.",
    ]);
    w.t.say_one(&[
        "It <grow> and <grow>, and it <become> the most beautiful {L} of all.",
        "And one day there <be> a wonderful {L} {inP}.",
    ]);
    w.t.maybe(
        0.7,
        &[
            "{N} <run> to {F}. \"[Come and see|It has grown]!\"",
            "\"You have a good hand for plants,\" {saysF}.",
            "{N} <give> the first seed of it to {F}.",
        ],
    );
    w.t.forget();
    w.ending(true);
    w.fact("What did {N} plant?", "{N} planted {aL}.");
    w.fact("Who gave {N} the seed?", "{F}, {afrole}, gave {N} the seed.");
    w.sum_up("{N} planted {aL} from a seed that {F} gave {him}.");
}

fn trade(w: &mut Tale) {
    thing(w);
    w.opening();
    w.t.say_one(&[
        "{S} <want> {aO} very much.",
        "In a window {S} <see> {aO}. {he} <wish> for nothing else.",
        "{S} <need> {aO}, but {he} <have> no money.",
    ]);
    w.meet("inP");
    let food = w.t.pick(FOODS);
    w.t.put("food", food);
    w.t.say_one(&[
        "{F} <have> {aO}. \"You can have it,\" {fhe} <say>, \"if you bring me {food}.\"",
        "\"I will give you my {O} for {food},\" {saysF}.",
    ]);
    w.t.forget();
    second_place(w);
    w.travel("Q");
    let owner = w.t.pick(&[
        "an old woman",
        "an old man",
        "a girl",
        "a boy",
        "a monk",
        "a tall woman",
        "a merchant",
        "a soldier",
    ]);
    w.t.put("owner", owner);
    w.t.put("theowner", owner.replacen("an ", "the ", 1).replacen("a ", "the ", 1));
    w.t.say_one(&["There {owner} <have> {food}.", "{owner} <sit> there with {food}."]);
    let job = w.t.pick(&[
        "sweep the yard",
        "hold the ladder",
        "carry the wood",
        "sing a song",
        "tell a story",
        "count the sheep",
        "wash the windows",
        "look after the baby",
    ]);
    w.t.put("job", job);
    w.t.say_one(&[
        "\"I will give it to you if you {job},\" <say> {theowner}.",
        "\"What must I do for it?\" {asksN}. \"Only {job},\" <say> {theowner}.",
    ]);
    w.t.say_one(&[
        "{N} <do> it gladly and <get> {food}.",
        "It <take> [an hour|all afternoon|not long], and then {N} <have> {food}.",
        "So {N} <do> what {theowner} <ask>.",
    ]);
    w.t.say_one(&["{S} <run> back to {F}.", "Then {he} <go> back to {P}.", "With {food} {he} <come> back to {F}."]);
    w.t.say_one(&[
        "\"Here is what you wanted,\" {saysN}, and {F} <give> {him} the {lO}.",
        "{F} <take> it and <laugh>. \"A promise is a promise. The {O} is yours.\"",
        "{F} <be> hungry and glad, and now the {lO} <belong> to {N}.",
    ]);
    w.t.forget();
    w.feel(true);
    w.ending(true);
    w.fact("What did {N} want?", "{N} wanted {aO}.");
    w.fact("What did {F} want for the {O}?", "{F} wanted {food}.");
    w.sum_up("{N} got {aO} from {F} for {food}.");
}

fn kindness(w: &mut Tale) {
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

fn honest(w: &mut Tale) {
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

fn lamp(w: &mut Tale) {
    w.opening();
    let vessel = w.t.pick(&["ship", "boat", "ferry", "fishing boat", "train", "coach"]);
    w.t.put("V", vessel);
    w.t.say_one(&[
        "That night the [big |great |]lamp {inP} <go> out.",
        "At dusk {S} <see> that the signal lamp <be> dark.",
        "It <grow> dark, but nobody had lit the lamp {inP}.",
    ]);
    w.t.say_one(&[
        "And a {V} <be> on its way!",
        "\"A {V} will come tonight,\" {saysN}. \"Without a light it will be lost.\"",
        "Far away {he} <see> a {V} that <do> not know the way.",
    ]);
    w.t.say_one(&["But there <be> no oil left.", "The lamp <need> oil, and the can <be> empty."]);
    second_place(w);
    w.travel("Q");
    w.meet("inQ");
    w.t.say_one(&[
        "\"Please, I need oil for the lamp,\" {saysN}.",
        "\"The lamp is dark, and a {V} is coming!\" <cry> {N}.",
    ]);
    w.t.say_one(&[
        "{F} <fill> a can and <come> along.",
        "\"Take all I have,\" {saysF}.",
        "{F} <give> {him} a full can. \"Run!\" {fhe} <say>.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{N} <run> back and <light> the lamp with [a shaking hand|the last match|a candle].",
        "Back {inP}, {N} <pour> in the oil and <strike> a match.",
    ]);
    w.t.say_one(&[
        "The light <shine> far into the night, and the {V} <find> its way.",
        "Just in time! The {V} <turn> and <come> in safely.",
    ]);
    w.t.maybe(
        0.6,
        &[
            "An old passenger <shake> {his} hand.",
            "\"You have saved us all,\" the people on the {V} <say+>.",
            "[Twenty|Thirty|Forty] people <be+> safe.",
        ],
    );
    w.ending(false);
    w.fact("What was missing for the lamp?", "The lamp needed oil.");
    w.fact("Who gave {N} the oil?", "{F}, {afrole}, gave {N} the oil.");
    w.sum_up("{N} lit the lamp with oil from {F} and saved a {V}.");
}

fn storm(w: &mut Tale) {
    w.opening();
    w.t.say_one(&[
        "Black clouds <come+> up, and the wind <begin> to howl.",
        "Then {S} <feel> the first drops of rain. A storm <be> coming.",
        "The sky <turn> dark, and thunder <roll> over the hills.",
    ]);
    w.t.say_one(&[
        "\"I must find shelter,\" <think> {N}.",
        "{S} <look> for a roof, but there <be> none.",
        "{S} <pull> {his} hat down and <run>.",
    ]);
    second_place(w);
    w.travel("Q");
    w.t.say_one(&[
        "There a light <burn> in a window, and {he} <knock> at the door.",
        "There <be> a small door. {S} <knock> three times.",
    ]);
    w.t.say_one(&[
        "{F}, {afrole}, <open> the door. \"[Come in|You are wet through|Quick, come inside]!\" {fhe} <say>.",
        "\"Who is out in such weather?\" <ask> a voice. It <be> {F}, {afrole}.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{F} <give> {N} a blanket and [hot soup|a cup of tea|warm milk|a piece of cake].",
        "By the fire it <be> warm and dry, and {F} <put> a kettle on.",
    ]);
    w.t.say_one(&[
        "All night the storm <shake> the roof, and {they} <tell+> each other stories.",
        "{they} <play+> cards until the thunder <be> far away.",
        "\"Are you afraid?\" {asksF}. \"Not any more,\" {saysN}.",
    ]);
    w.t.say_one(&[
        "In the morning the sky <be> blue[ again|].",
        "When the sun <rise>, everything <be> bright and clean.",
    ]);
    w.t.forget();
    w.thanks();
    w.ending(true);
    w.fact("Where did {N} find shelter?", "{N} found shelter {inQ}.");
    w.fact("Who opened the door?", "{F}, {afrole}, opened the door.");
    w.sum_up("{N} found shelter from a storm {inQ}, where {F} opened the door.");
}

fn borrow(w: &mut Tale) {
    thing(w);
    w.scene();
    w.meet("inP");
    w.t.say_one(&[
        "{F} <lend> {N} {aO}. \"[Bring it back on Sunday|Please be careful with it|It was my father's],\" {fhe} <say>.",
        "\"May I borrow your {lO}?\" {asksN}. \"Yes, but only until [tomorrow|Sunday|tonight],\" {saysF}.",
    ]);
    w.t.forget();
    let q = second_place(w);
    w.t.say_one(&["{N} <take> the {O} to {Q}.", "With the {O} in {his} hand, {N} <go> to {Q}."]);
    w.t.say_one(&[
        "There {he} <meet> some children and <play> all day.",
        "There {he} <see> a parade and <forget> everything else.",
        "There it <be> so [warm|quiet] that {he} <fall> asleep.",
    ]);
    w.t.say_one(&[
        "When {he} <come> home, the {O} <be> not with {him}.",
        "Only at night {he} <remember> the {O}. {he} had left it {inQ}!",
    ]);
    w.t.say_one(&["\"What will {F} say?\" <think> {N}.", "{N} <turn> pale."]);
    w.t.say_one(&[
        "In the dark {he} <go> back to {Q}.",
        "{he} <take> a lantern and <run> back to {Q}.",
        "{he} <do> not wait until morning, but <go> back to {Q}.",
    ]);
    let spot = w.t.pick(place(q).spots);
    w.t.put("spot", spot);
    w.t.say_one(&[
        "{spot} something <shine> in the moonlight: the {O}!",
        "The {O} <be> still there, {spot}.",
        "[An owl|A hedgehog|A cat] <sit> {spot}, and beside it <lie> the {O}.",
    ]);
    w.t.say_one(&["The next day {N} <give> it back to {F}.", "In the morning {he} <bring> the {lO} to {F}."]);
    w.t.say_one(&[
        "\"I knew I could trust you,\" {saysF}.",
        "{F} never <hear> how close it had been.",
        "{N} <tell> {F} everything, and {F} <laugh>.",
    ]);
    w.t.forget();
    w.ending(true);
    w.fact("What did {N} borrow?", "{N} borrowed {aO}.");
    w.fact("Where did {N} leave the {O}?", "{N} left the {O} {inQ}.");
    w.sum_up("{N} borrowed {aO} from {F}, left it {inQ} and got it back.");
}

fn treasure(w: &mut Tale) {
    thing(w);
    w.opening();
    let spot = w.t.pick(place(w.here).spots);
    w.t.put("spot", spot);
    w.t.say_one(&["{spot} {he} <find> an old map.", "{S} <find> a piece of paper {spot}. It <be> a map!"]);
    let q = second_place(w);
    let spot2 = w.t.pick(place(q).spots);
    w.t.put("dig", spot2);
    w.t.say_one(&[
        "A red cross <be> drawn on it, and beside it <stand> the word for {Q}.",
        "The map <show> the way to {Q}.",
    ]);
    w.meet("inP");
    w.t.say_one(&[
        "\"Let us go there together,\" {saysF}.",
        "{N} <show> {F} the map. \"A treasure!\" {fhe} <cry>.",
        "\"Shall we look for it?\" {asksN}. \"[Yes|Of course|At once]!\" {saysF}.",
    ]);
    w.t.say_one(&[
        "{N} and {F} <walk+> to {Q} [the same day|at sunrise|with a shovel and some bread].",
        "{they} <take+> [a shovel|a lantern and a shovel] and <go+> to {Q}.",
    ]);
    w.t.say_one(&[
        "{they} <search+> everywhere. {dig} {they} <see+> a small box.",
        "{they} <dig+> and <dig+>. {dig} there <be> a box.",
        "\"Look, {dig}!\" <cry> {F}. There <be> a box.",
    ]);
    w.t.say_one(&["Inside there <be> no gold, only {aO}.", "{N} <open> it. In it <lie> {aO}."]);
    w.t.say_one(&[
        "\"It is more beautiful than gold,\" {saysN}.",
        "\"Whose was it?\" {asksF}. Nobody <know>.",
        "A note <lie> beside it: \"For those who look together.\"",
        "{they} <look+> at each other and <laugh+>.",
    ]);
    w.t.forget();
    w.t.say_one(&[
        "{they} <hang+> it over the door {inP}, where everybody <can> see it.",
        "{N} <keep> it one week and {F} the next.",
        "{N} <give> it to {F}, and {F} <give> {N} the map.",
    ]);
    w.ending(true);
    w.fact("What was in the box?", "There was {aO} in the box.");
    w.fact("Where did the map lead?", "The map led to {Q}.");
    w.sum_up("{N} and {F} followed a map to {Q} and found {aO}.");
}
