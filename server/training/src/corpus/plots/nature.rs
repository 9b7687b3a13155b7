//! Plots about what weather, light and growing things bring.

use super::second_place;
use crate::corpus::story::Tale;
use crate::corpus::teller::with_article;
use crate::corpus::world::FOODS;

pub(super) fn sunrise(w: &mut Tale) {
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

pub(super) fn noise(w: &mut Tale) {
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

pub(super) fn plant(w: &mut Tale) {
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

pub(super) fn storm(w: &mut Tale) {
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
