//! The paraphrase grammar: templates with alternatives, slots and verbs, and an account of every choice made.
//!
//! `[a|b|c]` is one of three, `{slot}` is a word of the tale, `<walk>` is the verb in the tale's tense (`<walk+>` for a plural
//! subject). `{S}` and `{G}` name the main character and the guide, by name or by pronoun, whichever cannot be misunderstood.

use crate::rng::Rng;

/// Whom a sentence spoke of last; a pronoun may stand for nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Nobody,
    Main,
    Guide,
    Both,
}

/// Writes one document and counts the bits of choice that went into it.
#[derive(Debug)]
pub(crate) struct Teller {
    rng: Rng,
    bits: f64,
    out: String,
    slots: Vec<(&'static str, String)>,
    last: Last,
    /// Told in the present tense.
    pub(crate) present: bool,
    /// The main character and the guide share a pronoun, so after a sentence about one the other must be named.
    pub(crate) same_pronoun: bool,
}

impl Teller {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            bits: 0.0,
            out: String::new(),
            slots: Vec::new(),
            last: Last::Nobody,
            present: false,
            same_pronoun: false,
        }
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.out
    }

    /// The bits of choice so far: an upper bound of the text's information, as two choices may give one text.
    pub(crate) fn bits(&self) -> f64 {
        self.bits
    }

    /// One of `n`, all alike.
    pub(crate) fn choose(&mut self, n: usize) -> usize {
        if n < 2 {
            return 0;
        }
        self.bits += (n as f64).log2();
        self.rng.below(n)
    }

    /// One of a list.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.choose(list.len())]
    }

    /// Yes with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        let yes = self.rng.unit() < p;
        self.bits -= if yes { p.log2() } else { (1.0 - p).log2() };
        yes
    }

    /// An index drawn by weight.
    pub(crate) fn weighted(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut at = self.rng.unit() * total;
        let mut chosen = weights.len() - 1;
        for (i, w) in weights.iter().enumerate() {
            if at < *w {
                chosen = i;
                break;
            }
            at -= w;
        }
        self.bits -= (weights[chosen] / total).log2();
        chosen
    }

    /// Gives a slot its words.
    pub(crate) fn put(&mut self, key: &'static str, value: impl Into<String>) {
        let value = value.into();
        match self.slots.iter_mut().find(|(k, _)| *k == key) {
            Some(slot) => slot.1 = value,
            None => self.slots.push((key, value)),
        }
    }

    /// The words of a slot.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.slots.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v.as_str())
    }

    /// Appends raw text: markers, line ends.
    pub(crate) fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Forgets whom the text spoke of, as at the start of a paragraph.
    pub(crate) fn forget(&mut self) {
        self.last = Last::Nobody;
    }

    /// Expands a template into a sentence of the text.
    pub(crate) fn say(&mut self, template: &str) {
        let sentence = sentences(&self.expand(template));
        if !(self.out.is_empty() || self.out.ends_with(['\n', '>'])) {
            self.out.push(' ');
        }
        self.out.push_str(&sentence);
    }

    /// A teller of a text that will be put into this one: it goes on with the same choices.
    pub(crate) fn within(&self) -> Self {
        Self { out: String::new(), slots: Vec::new(), rng: self.rng.clone(), ..*self }
    }

    /// Takes over the choices of a teller that was made by `within`, but not its text.
    pub(crate) fn absorb(&mut self, inner: Self) {
        self.rng = inner.rng;
        self.bits = inner.bits;
    }

    /// Sometimes spoils the end of the text as people do who type in a hurry: no stop, small letters.
    pub(crate) fn type_hastily(&mut self) {
        if self.chance(0.88) {
            return;
        }
        let start = self.out.rfind('>').map_or(0, |at| at + 1);
        let said = self.out[start..].trim_end_matches(['.', '?', '!', ' ']).to_owned();
        let small = self.chance(0.5);
        self.out.truncate(start);
        self.out.push_str(&if small { said.to_lowercase() } else { said });
    }

    /// Expands a template and appends it letter by letter as it is.
    pub(crate) fn exactly(&mut self, template: &str) {
        let text = self.expand(template);
        self.out.push_str(&text);
    }

    /// Says one of several templates.
    pub(crate) fn say_one(&mut self, templates: &[&str]) {
        let template = self.pick(templates);
        self.say(template);
    }

    /// Says one of several templates with probability `p`.
    pub(crate) fn maybe(&mut self, p: f64, templates: &[&str]) {
        if self.chance(p) {
            self.say_one(templates);
        }
    }

    /// Expands a template to text without saying it.
    pub(crate) fn expand(&mut self, template: &str) -> String {
        let mut out = String::with_capacity(template.len() + 32);
        self.expand_into(template, &mut out);
        out
    }

    fn expand_into(&mut self, template: &str, out: &mut String) {
        let mut rest = template;
        while let Some(at) = rest.find(['[', '{', '<']) {
            out.push_str(&rest[..at]);
            let open = rest.as_bytes()[at];
            let body = &rest[at + 1..];
            match open {
                b'[' => {
                    let (options, after) = alternatives(body);
                    let chosen = options[self.choose(options.len())];
                    self.expand_into(chosen, out);
                    rest = after;
                }
                b'{' => {
                    let end = body.find('}').unwrap_or(body.len());
                    let word = self.slot(&body[..end]);
                    out.push_str(&word);
                    rest = body.get(end + 1..).unwrap_or("");
                }
                // `<|user|>` and the like are markers of the chat, not verbs.
                _ if body.starts_with('|') => {
                    out.push('<');
                    rest = body;
                }
                _ => {
                    let end = body.find('>').unwrap_or(body.len());
                    out.push_str(&conjugate(&body[..end], self.present));
                    rest = body.get(end + 1..).unwrap_or("");
                }
            }
        }
        out.push_str(rest);
    }

    fn slot(&mut self, key: &str) -> String {
        match key {
            "S" => self.mention(Last::Main, "N", "he"),
            "G" => self.mention(Last::Guide, "F", "fhe"),
            "N" => self.named(Last::Main, "N"),
            "F" => self.named(Last::Guide, "F"),
            "saysF" => self.speech("<say>", Last::Guide, "F"),
            "saysN" => self.speech("<say>", Last::Main, "N"),
            "asksF" => self.speech("<ask>", Last::Guide, "F"),
            "asksN" => self.speech("<ask>", Last::Main, "N"),
            // Two people were spoken of: the next sentence must say which it means.
            "they" => {
                self.last = Last::Both;
                "they".to_owned()
            }
            _ => {
                debug_assert!(self.slots.iter().any(|(k, _)| *k == key), "no slot {key}");
                self.get(key).to_owned()
            }
        }
    }

    /// Who speaks, and sometimes how.
    fn speech(&mut self, verb: &str, who: Last, name: &str) -> String {
        let name = self.named(who, name);
        let how = if self.chance(0.3) {
            self.pick(&[
                " softly",
                " quietly",
                " kindly",
                " cheerfully",
                " at once",
                " after a while",
                " with a smile",
                " in a low voice",
                " in surprise",
                " and <laugh>",
                " and <nod>",
                " and <look> up",
                " and <wave>",
            ])
        } else {
            ""
        };
        self.expand(&format!("{verb} {name}{how}"))
    }

    fn named(&mut self, who: Last, name: &str) -> String {
        self.last = match (self.last, self.same_pronoun) {
            (Last::Nobody, _) | (_, false) => who,
            (last, true) if last == who => who,
            (_, true) => Last::Both,
        };
        self.get(name).to_owned()
    }

    /// A pronoun where nobody else can be meant by it, else the name.
    fn mention(&mut self, who: Last, name: &str, pronoun: &str) -> String {
        let clear = self.last == who;
        self.last = who;
        if clear && self.chance(0.7) { self.get(pronoun).to_owned() } else { self.get(name).to_owned() }
    }
}

/// Splits the alternatives of a bracket whose opening was already read; returns what follows the closing bracket.
fn alternatives(body: &str) -> (Vec<&str>, &str) {
    let mut depth = 0usize;
    let mut start = 0;
    let mut options = Vec::new();
    for (i, byte) in body.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' if depth > 0 => depth -= 1,
            b']' => {
                options.push(&body[start..i]);
                return (options, &body[i + 1..]);
            }
            // `<|user|>` inside a bracket is not supported: markers are written with `raw`.
            b'|' if depth == 0 => {
                options.push(&body[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    options.push(&body[start..]);
    (options, "")
}

/// The sentence with its first letter large.
pub(crate) fn capitalized(text: &str) -> String {
    let at = usize::from(text.starts_with('"'));
    let mut out = text.to_owned();
    // The product's name is written small everywhere.
    if text.starts_with("textnlp") {
        return out;
    }
    if let Some(first) = text[at..].chars().next() {
        out.replace_range(at..at + first.len_utf8(), &first.to_uppercase().to_string());
    }
    out
}

/// Large letters where sentences begin: at the start and after a full stop. A question or a call inside a speech may go on in
/// small letters (`"Where?" she asks`), so only those outside of quotation marks count.
fn sentences(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find([' ', '\n']) {
        let (word, after) = rest.split_at(at + 1);
        out.push_str(&if ends_sentence(&out) { capitalized(word) } else { word.to_owned() });
        rest = after;
    }
    out.push_str(&if ends_sentence(&out) { capitalized(rest) } else { rest.to_owned() });
    out
}

fn ends_sentence(so_far: &str) -> bool {
    let so_far = so_far.trim_end();
    so_far.is_empty() || so_far.ends_with(['.', '!', '?']) || so_far.ends_with(".\"")
}

/// `a` or `an`, by the first letter of what follows.
pub(crate) fn with_article(noun: &str) -> String {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { format!("an {noun}") } else { format!("a {noun}") }
}

/// The third person of a verb, past or present; `walk+` is the plural.
fn conjugate(verb: &str, present: bool) -> String {
    let (verb, plural) = verb.strip_suffix('+').map_or((verb, false), |v| (v, true));
    if verb == "be" {
        return match (present, plural) {
            (true, true) => "are",
            (true, false) => "is",
            (false, true) => "were",
            (false, false) => "was",
        }
        .to_owned();
    }
    if present && plural {
        return verb.to_owned();
    }
    if present {
        return match verb {
            "have" => "has".to_owned(),
            "can" => "can".to_owned(),
            _ if verb.ends_with("ch") || verb.ends_with("sh") || verb.ends_with(['s', 'x', 'o']) => format!("{verb}es"),
            _ if consonant_y(verb) => format!("{}ies", &verb[..verb.len() - 1]),
            _ => format!("{verb}s"),
        };
    }
    if let Some((_, past)) = IRREGULAR.iter().find(|(v, _)| *v == verb) {
        return (*past).to_owned();
    }
    match verb {
        _ if verb.ends_with('e') => format!("{verb}d"),
        _ if consonant_y(verb) => format!("{}ied", &verb[..verb.len() - 1]),
        _ if DOUBLED.contains(&verb) => format!("{verb}{}ed", &verb[verb.len() - 1..]),
        _ => format!("{verb}ed"),
    }
}

fn consonant_y(verb: &str) -> bool {
    verb.ends_with('y') && !verb.ends_with("ay") && !verb.ends_with("ey") && !verb.ends_with("oy")
}

const DOUBLED: &[&str] = &[
    "stop", "nod", "hop", "grab", "drop", "hug", "tap", "plan", "rub", "clap", "slip", "trot", "skip", "wrap", "beg",
    "hum", "shrug", "step", "tug", "rip", "chat", "dig", "pat", "ship", "stir",
];

const IRREGULAR: &[(&str, &str)] = &[
    ("have", "had"),
    ("can", "could"),
    ("go", "went"),
    ("come", "came"),
    ("see", "saw"),
    ("say", "said"),
    ("find", "found"),
    ("lose", "lost"),
    ("take", "took"),
    ("give", "gave"),
    ("get", "got"),
    ("make", "made"),
    ("think", "thought"),
    ("know", "knew"),
    ("feel", "felt"),
    ("tell", "told"),
    ("bring", "brought"),
    ("buy", "bought"),
    ("hold", "held"),
    ("hear", "heard"),
    ("run", "ran"),
    ("sit", "sat"),
    ("stand", "stood"),
    ("begin", "began"),
    ("keep", "kept"),
    ("leave", "left"),
    ("meet", "met"),
    ("put", "put"),
    ("set", "set"),
    ("shut", "shut"),
    ("cut", "cut"),
    ("let", "let"),
    ("hurt", "hurt"),
    ("eat", "ate"),
    ("drink", "drank"),
    ("sleep", "slept"),
    ("swim", "swam"),
    ("sing", "sang"),
    ("blow", "blew"),
    ("break", "broke"),
    ("fall", "fell"),
    ("grow", "grew"),
    ("throw", "threw"),
    ("catch", "caught"),
    ("teach", "taught"),
    ("light", "lit"),
    ("ride", "rode"),
    ("rise", "rose"),
    ("shine", "shone"),
    ("fly", "flew"),
    ("become", "became"),
    ("lie", "lay"),
    ("lead", "led"),
    ("win", "won"),
    ("build", "built"),
    ("send", "sent"),
    ("spend", "spent"),
    ("speak", "spoke"),
    ("wake", "woke"),
    ("write", "wrote"),
    ("read", "read"),
    ("draw", "drew"),
    ("climb", "climbed"),
    ("dig", "dug"),
    ("hide", "hid"),
    ("shake", "shook"),
    ("mean", "meant"),
    ("understand", "understood"),
    ("forget", "forgot"),
    ("creep", "crept"),
    ("sweep", "swept"),
    ("ring", "rang"),
    ("pay", "paid"),
    ("lay", "laid"),
    ("hang", "hung"),
    ("stick", "stuck"),
    ("do", "did"),
    ("bend", "bent"),
    ("slide", "slid"),
    ("freeze", "froze"),
    ("steal", "stole"),
    ("wear", "wore"),
    ("strike", "struck"),
    ("beat", "beat"),
    ("feed", "fed"),
    ("sell", "sold"),
    ("swing", "swung"),
    ("bite", "bit"),
    ("lend", "lent"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn teller() -> Teller {
        let mut t = Teller::new(Rng::new(1, 1));
        for (k, v) in [("N", "Mira"), ("he", "she"), ("F", "Tom"), ("fhe", "he")] {
            t.put(k, v);
        }
        t
    }

    #[test]
    fn choices_are_counted_in_bits() {
        let mut t = teller();
        t.say("[a|b|c|d] [e|[f|g]]");
        assert!((2.99..=4.01).contains(&t.bits()), "{}", t.bits());
        assert!(t.text().len() == 3);
    }

    #[test]
    fn verbs_follow_the_tense_of_the_story() {
        let told = |present| {
            let mut t = teller();
            t.present = present;
            t.expand("<walk> <carry> <stop> <go> <be> <be+> <watch> <hope> <run+>")
        };
        assert_eq!(told(false), "walked carried stopped went was were watched hoped ran");
        assert_eq!(told(true), "walks carries stops goes is are watches hopes run");
    }

    #[test]
    fn pronoun_is_never_ambiguous() {
        for seed in 0..200 {
            let mut t = Teller::new(Rng::new(seed, 0));
            for (k, v) in [("N", "Mira"), ("he", "she"), ("F", "Ada"), ("fhe", "she")] {
                t.put(k, v);
            }
            t.same_pronoun = true;
            assert_eq!(t.expand("{S} and {F}."), "Mira and Ada.");
            assert_eq!(t.expand("{S} ran."), "Mira ran.");
        }
    }
}
