//! A tale: who, where and what for are drawn first, then a plot lets things happen and has them told.

use super::plots;
use super::teller::{Teller, with_article};
use super::world::{CLOTHES, COLOURS, DOINGS, MEN, PLACES, Place, ROLES, SIGHTS, TRAITS, WOMEN};
use super::{Combination, Split, held_out, invented_name};

/// One person or animal of a tale.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) name: String,
    pub(crate) she: bool,
    /// With trait, without article: `young baker`.
    pub(crate) role: String,
}

/// What can be asked about a finished tale, with the answer.
#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) question: String,
    pub(crate) answer: String,
}

/// A tale in the making. Plots speak through `t` and move the world through the methods here.
pub(crate) struct Tale {
    pub(crate) t: Teller,
    pub(crate) main: Person,
    /// The number of the main character in the hold-out.
    index: usize,
    pub(crate) guide: Person,
    pub(crate) here: usize,
    /// The number of the goal, which is that of its plot.
    pub(crate) goal: usize,
    pub(crate) facts: Vec<Fact>,
    /// The tale in one sentence.
    pub(crate) summary: String,
    /// Combinations told so far; more than one where a tale has more episodes.
    pub(crate) told: Vec<Combination>,
    /// The opening must say what the main character is, as somebody has asked for it.
    pub(crate) introduce: bool,
    /// The guide has been met in this tale.
    met: bool,
}

impl Tale {
    /// Draws the people, the place and the goal; nothing is told yet.
    pub(crate) fn draw(mut t: Teller, split: Split) -> Self {
        t.present = t.chance(0.1);
        let (main_index, mut main) = person(&mut t, None);
        let here = t.choose(PLACES.len());
        let allowed: Vec<usize> = (0..plots::PLOTS.len())
            .filter(|&goal| held_out(main_index, here, goal) == (split == Split::HeldOut))
            .collect();
        // A few pairs of character and place have no held-out goal; such a tale would leak, so another goal list is needed.
        let goal = if allowed.is_empty() {
            return Self::draw(t, split);
        } else {
            allowed[t.choose(allowed.len())]
        };
        // An invented name teaches that names are copied; it stands for no held-out combination.
        if split == Split::Train && t.chance(0.12) {
            main.name = invented_name(&mut t);
        }
        let (_, guide) = person(&mut t, Some(&main.name));
        t.same_pronoun = main.she == guide.she;
        let mut tale = Self {
            t,
            main,
            index: main_index,
            guide,
            here,
            goal,
            facts: Vec::new(),
            summary: String::new(),
            told: Vec::new(),
            introduce: false,
            met: false,
        };
        tale.fill();
        tale
    }

    fn fill(&mut self) {
        let (main, guide) = (self.main.clone(), self.guide.clone());
        let words = |she| if she { ("she", "her", "her") } else { ("he", "him", "his") };
        let (he, him, his) = words(main.she);
        for (k, v) in [("N", main.name.as_str()), ("he", he), ("him", him), ("his", his)] {
            self.t.put(k, v);
        }
        self.t.put("role", main.role.clone());
        self.t.put("arole", with_article(&main.role));
        let (fhe, fhim, fhis) = words(guide.she);
        for (k, v) in [("F", guide.name.as_str()), ("fhe", fhe), ("fhim", fhim), ("fhis", fhis)] {
            self.t.put(k, v);
        }
        self.t.put("frole", guide.role.clone());
        self.t.put("afrole", with_article(&guide.role));
        self.stand("P", self.here);
    }

    /// Puts a place into the slots `P`, `inP` (or `Q`, `inQ`; `R`, `inR`).
    pub(crate) fn stand(&mut self, key: &'static str, place: usize) {
        let place = &PLACES[place];
        let inside = match key {
            "P" => "inP",
            "Q" => "inQ",
            _ => "inR",
        };
        self.t.put(key, place.name);
        self.t.put(inside, format!("{} {}", place.prep, place.name));
    }

    /// Another place than those given.
    pub(crate) fn elsewhere(&mut self, not: &[usize]) -> usize {
        let rest: Vec<usize> = (0..PLACES.len()).filter(|i| !not.contains(i)).collect();
        rest[self.t.choose(rest.len())]
    }

    /// Tells the tale.
    pub(crate) fn tell(&mut self) {
        self.told.push(Combination {
            character: self.main.name.clone(),
            place: PLACES[self.here].name,
            goal: self.goal,
        });
        let plot = plots::PLOTS[self.goal];
        plot(self);
    }

    /// Tells another episode with the same people at another place.
    pub(crate) fn tell_on(&mut self, split: Split) {
        self.here = self.elsewhere(&[self.here]);
        let allowed: Vec<usize> = (0..plots::PLOTS.len())
            .filter(|&goal| goal != self.goal && held_out(self.index, self.here, goal) == (split == Split::HeldOut))
            .collect();
        if allowed.is_empty() {
            return;
        }
        self.goal = allowed[self.t.choose(allowed.len())];
        self.stand("P", self.here);
        self.t.raw("\n");
        self.t.forget();
        self.tell();
    }

    /// The main character, the place and perhaps the weather.
    pub(crate) fn opening(&mut self) {
        let here = &PLACES[self.here];
        if self.told.len() > 1 {
            self.t.say_one(&[
                "[A week|A month|Two days|Some days|A year] later {N} <be> {inP}.",
                "The next [day|morning|week], {N} [<walk>|<go>] to {P}.",
                "[But that was not all|That was not the end]. Soon [after|afterwards] {N} <come> to {P}.",
            ]);
            return;
        }
        let t = &mut self.t;
        // Nothing is long ago that is told in the present tense.
        let long_ago = if t.present { 0.0 } else { 0.25 };
        let bare = if self.introduce { 0.0 } else { 1.0 };
        match t.weighted(&[long_ago, 0.15 * bare, 0.19, 0.17, 0.13, 0.11 * bare]) {
            0 => {
                t.say_one(&[
                    "Once upon a time[,|] there [<be>|<live>] {arole} [named|called] {N}.",
                    "Once upon a time[,|] {arole} [named|called] {N} <live> [in a small house|in a village by the sea|at the edge of a forest|in a little town|on a farm|with {his} grandmother|with two brothers|all alone].",
                    "Once[, long ago,|] there <be> {arole} [named|called] {N}.",
                    "[Long ago|Many years ago|In a small village|In a village by the sea|Far away in the hills], there <live> {arole} [named|called] {N}.",
                ]);
                t.say_one(&[
                    "[One day|One morning|One evening|One afternoon], {S} [<walk>|<go>|<come>] to {P}.",
                    "Every day {S} <walk> to {P}.",
                    "{S} [often|always] <work> {inP}.",
                    "{S} <live> close to {P}[| and <know> every stone there].",
                ]);
            }
            1 => t.say_one(&[
                "{N} [<walk>|<go>|<hurry>|<wander>|<run>] to {P}[| early in the morning| before breakfast| after lunch| late in the day| with a happy heart].",
                "{N} <be> [on the way|walking] to {P}[| when the sun <rise>| all alone].",
                "[Late in the evening|Early in the morning|On Monday|On Sunday|One summer day|On a cold winter day|At noon], {N} [<walk>|<go>|<come>] to {P}.",
                "{N} <be> {inP}[| again| with {his} friends| before sunrise].",
                "{N} [<love>|<know>] {P}[, for {he} had grown up there| better than anyone else|].",
            ]),
            // The tale begins with what it is about.
            5 => {}
            2 => {
                t.say_one(&[
                    "{N} <be> {arole} who <live> [near|not far from|close to] {P}.",
                    "{N}, {arole}, <live> [near|not far from|close to] {P}.",
                    "There <be> {arole} {inP}, and {his} name <be> {N}.",
                ]);
                t.maybe(0.5, &["[Everybody|Everyone in the village|All the neighbours] <like> {him}.", "{S} [seldom|rarely|never] <speak> [much|of it|loudly], but {he} <think> a lot."]);
            }
            3 => {
                t.say_one(&[
                    "It <be> a [cold|warm|windy|rainy|bright|foggy|quiet|golden] [morning|day|evening|afternoon] {inP}[.|, and {N} <be> already awake.]",
                    "[The rain had stopped|The sun had just risen|Snow lay on the roofs|Mist lay over the fields|The wind blew hard|It was market day], and {N} <walk> to {P}.",
                    "[It was raining|It was snowing|It was getting dark|It was very hot], and {N} <be> {inP}.",
                ][..if t.present { 1 } else { 3 }]);
                t.say("{N} <be> {arole}.");
            }
            _ => t.say_one(&[
                "[The|A] {role} [named|called] {N} <come> to {P} [one morning|one day|one evening|in the spring|in the autumn|at noon].",
                "[One morning|One day|One evening|In the spring|In the autumn|Last winter], {arole} [named|called] {N} <come> to {P}.",
            ]),
        }
        if !self.t.present && !self.t.text().is_empty() && self.t.chance(0.35) {
            let sight = self.t.pick(here.sight);
            let link = self.t.expand("[||There, |As always, |That day ]");
            self.t.say(&format!("{link}{sight}."));
        }
    }

    /// An opening that is never empty, for plots that begin with a meeting.
    pub(crate) fn scene(&mut self) {
        let before = self.t.text().len();
        self.opening();
        if self.t.text().len() == before {
            self.t.say_one(&["{N} <be> {inP}.", "{N} [<sit>|<stand>|<wait>] {inP}."]);
        }
    }

    /// The guide comes into the tale.
    pub(crate) fn meet(&mut self, inside: &'static str) {
        self.t.put("at", self.t.get(inside).to_owned());
        let doing = self.t.pick(DOINGS);
        self.t.put("doing", doing);
        if self.met {
            self.t.say_one(&[
                "{at} {S} <meet> {F} again.",
                "{F} <be> {at} [too|as well], {doing}.",
                "There <be> {F}, {doing}.",
                "Just then {F} <come> along.",
            ]);
            self.t.forget();
            return;
        }
        self.met = true;
        self.t.say_one(&[
            "{at} {S} <meet> {F}, {afrole}.",
            "There {he} <meet> {afrole} [named|called] {F}.",
            "[Soon|After a while|Before long] {S} <meet> {F}, {afrole}.",
            "{F}, {afrole}, <be> {at} [too|as well|that day].",
            "{F} the {frole} <come> by and <stop>.",
            "Just then {F}, {afrole}, <come> along.",
            "{at} {afrole} <be> {doing}. {fhis} name <be> {F}.",
            "There <be> {F}, {afrole}, {doing}.",
            "{F}, {afrole}, <be> {at}, {doing}.",
        ]);
        if self.t.chance(0.25) {
            let (colour, cloth) = (self.t.pick(COLOURS), self.t.pick(CLOTHES));
            self.t.put("cloth", format!("{} {cloth}", with_article(colour)));
            self.t.say_one(&[
                "{F} <have> {cloth}[| and a kind face| and bright eyes| and big hands].",
                "{F} [<wear>|<carry>] {cloth}.",
            ]);
        }
        self.t.forget();
    }

    /// The main character goes to the place in slot `Q` or `R`; something may happen on the way.
    pub(crate) fn travel(&mut self, to: &'static str) {
        self.t.put("to", self.t.get(to).to_owned());
        self.t.say_one(&[
            "{S} <walk> [all the way |slowly |quickly |straight |]to {to}.",
            "So {S} <go> to {to}.",
            "[Then|At once|Without waiting|After that], {S} <set> off for {to}.",
            "{S} <run> to {to} as fast as {he} <can>.",
            "The way to {to} <be> [long|steep|muddy|short|easy], [but {S} <do> not mind|and {S} <hum> a song].",
        ]);
        if self.t.chance(0.3) {
            let sight = self.t.pick(SIGHTS);
            self.t.put("sight", sight);
            self.t.say_one(&[
                "On the way {he} <see> {sight}.",
                "{S} <pass> {sight}[| and <smile>| and <stop> for a moment].",
                "By the roadside {he} <notice> {sight}, but {he} <do> not stop.",
                "Behind a hedge {he} <see> {sight}.",
            ]);
        } else if self.t.chance(0.35) {
            self.t.say_one(&[
                "On the way it [<begin> to rain|<begin> to snow|<grow> dark|<become> foggy], [but {he} <keep> going|so {he} <walk> faster|and {he} <hold> {his} coat tight].",
                "{S} <have> to cross a [stream|muddy field|narrow bridge|dark lane], [and {his} shoes <get> wet|but {he} <do> it bravely|and it <take> a while].",
                "Halfway there {S} <stop> to [rest|drink some water|look at the clouds|tie {his} shoe].",
                "{S} <lose> the path once, but {he} <find> it again.",
            ]);
        }
    }

    /// A feeling, for a reason that was told.
    pub(crate) fn feel(&mut self, glad: bool) {
        if glad {
            self.t.say_one(&[
                "{S} <be> [very |so |][happy|glad|proud|pleased|relieved|joyful].",
                "{S} <smile>[| from ear to ear| and <clap> {his} hands].",
                "{S} <feel> [happy|glad|proud] [all day|again|at last].",
                "{S} <can> [hardly|not] believe it.",
            ]);
        } else {
            self.t.say_one(&[
                "{S} <be> [very |so |][sad|worried|upset|unhappy|afraid|troubled].",
                "{S} <feel> [sad|worried|lost|troubled].",
                "{S} <sit> down and <sigh>.",
                "[{N}'s heart <be> heavy|{S} <do> not know what to do].",
            ]);
        }
    }

    /// The main character's thanks to the guide.
    pub(crate) fn thanks(&mut self) {
        self.t.say_one(&[
            "\"Thank you[|, {F}| so much| very much]!\" <say> {N}.",
            "{N} <thank> {F} [with all {his} heart|again and again|warmly].",
            "\"[I will never forget this|You are a true friend|How kind you are],\" <say> {N}.",
            "{N} <give> {F} a [big |warm |long |]hug.",
        ]);
        if self.t.chance(0.4) {
            self.t.say_one(&[
                "\"[It was nothing|You are welcome|That is what friends are for|Any time],\" <say> {F}.",
                "{F} [only <smile>|<smile> and <nod>|<laugh> kindly].",
            ]);
        }
        self.t.forget();
    }

    /// The last words of a tale.
    pub(crate) fn ending(&mut self, together: bool) {
        if together && self.t.chance(0.5) {
            self.t.say_one(&[
                "From that day on, {N} and {F} <be+> [good |best |close |]friends.",
                "Then {N} and {F} <walk+> home together.",
                "That evening {N} and {F} <eat+> [soup|bread and honey|apple pie|warm cake] and <tell+> each other stories.",
                "And {N} and {F} <laugh+> about it for [many years|a long time|days].",
                "{N} and {F} <sit+> [in the sun|by the fire|under the stars] until it <be> late.",
            ]);
            return;
        }
        self.t.say_one(&[
            "That [night|evening] {N} <sleep> [well|deeply|without a worry|like a stone].",
            "And {N} never <forget> that day.",
            "{N} <go> home with a [light heart|smile|song].",
            "From that day on, {N} <be> never [sad|lonely|bored] again.",
            "And so the day <end> well for {N}.",
            "It <be> the best day of the whole [year|summer|winter|month].",
            "When {N} <come> home, the [moon|first star|sun] <stand> over {P}.",
        ]);
    }

    /// Notes what may be asked later.
    pub(crate) fn fact(&mut self, question: &str, answer: &str) {
        let was = std::mem::replace(&mut self.t.present, false);
        let bits = |t: &mut Teller, s: &str| t.expand(s);
        let question = super::teller::capitalized(&bits(&mut self.t, question));
        let answer = super::teller::capitalized(&bits(&mut self.t, answer));
        self.t.present = was;
        self.facts.push(Fact { question, answer });
    }

    /// Sets the one-sentence summary; it must offer no choice, as it may stay untold.
    pub(crate) fn sum_up(&mut self, template: &str) {
        debug_assert!(!template.contains('['), "a summary offers no choice");
        let was = std::mem::replace(&mut self.t.present, false);
        self.summary = super::teller::capitalized(&self.t.expand(template));
        self.t.present = was;
    }
}

/// Draws a person; `not` is a name already taken. Returns the index of the name as well, women first.
fn person(t: &mut Teller, not: Option<&str>) -> (usize, Person) {
    let names: Vec<&str> = WOMEN.iter().chain(MEN).copied().collect();
    let mut index = t.choose(names.len() - usize::from(not.is_some_and(|n| names.contains(&n))));
    if let Some(taken) = not.and_then(|n| names.iter().position(|m| *m == n))
        && index >= taken
    {
        index += 1;
    }
    let role = t.choose(ROLES.len());
    let role_text = if t.chance(0.7) { format!("{} {}", t.pick(TRAITS), ROLES[role]) } else { ROLES[role].to_owned() };
    (index, Person { name: names[index].to_owned(), she: index < WOMEN.len(), role: role_text })
}

/// The place of a number.
pub(crate) fn place(index: usize) -> &'static Place {
    &PLACES[index]
}
