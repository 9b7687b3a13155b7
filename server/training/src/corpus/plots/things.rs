//! Plots about what is lost, made, carried or traded.

use super::{second_place, thing};
use crate::corpus::story::{Tale, place};
use crate::corpus::teller::with_article;
use crate::corpus::world::FOODS;

pub(super) fn lost(w: &mut Tale) {
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

pub(super) fn deliver(w: &mut Tale) {
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

pub(super) fn mend(w: &mut Tale) {
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

pub(super) fn bake(w: &mut Tale) {
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

pub(super) fn trade(w: &mut Tale) {
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

pub(super) fn lamp(w: &mut Tale) {
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

pub(super) fn borrow(w: &mut Tale) {
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

pub(super) fn treasure(w: &mut Tale) {
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
