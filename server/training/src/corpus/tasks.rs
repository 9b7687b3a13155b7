//! Copying, extracting and summarizing: answers that stand in the question, with names that the model cannot know.

use super::story::Tale;
use super::talk::{ask_carefully, ask_exactly};
use super::teller::{Teller, with_article};
use super::world::{FOODS, LOOKS, MEN, PLACES, ROLES, THINGS, WOMEN};
use super::{ASSISTANT, Combination, END, Split, USER, invented_name};

/// One task.
pub(crate) fn tell(mut t: Teller, split: Split) -> (Teller, Vec<Combination>) {
    match t.weighted(&[0.25, 0.3, 0.13, 0.12, 0.2]) {
        0 => copy(&mut t),
        1 => extract(&mut t),
        2 => list(&mut t),
        3 => spell(&mut t),
        _ => return summarize(t, split),
    }
    (t, Vec::new())
}

/// Copies words, invented names and short sentences.
fn copy(t: &mut Teller) {
    let count = 1 + t.choose(5);
    let words: Vec<String> = (0..count)
        .map(|_| match t.choose(3) {
            0 => invented_name(t),
            1 => t.pick(THINGS).to_owned(),
            _ => invented_name(t).to_lowercase(),
        })
        .collect();
    let text = if t.chance(0.3) {
        let name = invented_name(t);
        let thing = t.pick(THINGS);
        let place = &PLACES[t.choose(PLACES.len())];
        format!("{name} found {} {} {}.", with_article(thing), place.prep, place.name)
    } else {
        words.join(t.pick(&[" ", ", "]))
    };
    t.put("text", text);
    t.raw(USER);
    let question = t.pick(&[
        "[Please c|C]opy: {text}",
        "[Please r|R]epeat: {text}",
        "Say this again: {text}",
        "Copy this text: {text}",
        "Write exactly this: {text}",
    ]);
    t.exactly(question);
    t.raw(&format!("{END}{ASSISTANT}{}{END}", t.get("text").to_owned()));
}

struct Person {
    name: String,
    role: &'static str,
}

fn people(t: &mut Teller, count: usize) -> Vec<Person> {
    let mut people: Vec<Person> = Vec::new();
    while people.len() < count {
        let name = match t.choose(3) {
            0 => t.pick(WOMEN).to_owned(),
            1 => t.pick(MEN).to_owned(),
            _ => invented_name(t),
        };
        let role = t.pick(ROLES);
        if people.iter().all(|p| p.name != name && p.role != role) {
            people.push(Person { name, role });
        }
    }
    people
}

/// A short text with several people, and questions about one of them.
fn extract(t: &mut Teller) {
    let count = 1 + t.choose(3);
    let people = people(t, count);
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut sentences: Vec<String> = Vec::new();
    for p in &people {
        t.put("n", p.name.clone());
        t.put("r", p.role);
        let place = &PLACES[t.choose(PLACES.len())];
        t.put("in", format!("{} {}", place.prep, place.name));
        let thing = t.pick(THINGS);
        let look = t.pick(LOOKS);
        t.put("o", with_article(&format!("{look} {thing}")));
        let food = t.pick(FOODS);
        t.put("f", food);
        let (sentence, question, answer) = [
            ("{n} the {r} lives {in}.", "Where does {n} live?", "{n} lives {in}."),
            ("{n} has {o}.", "What does {n} have?", "{n} has {o}."),
            ("{n} works as a {r} {in}.", "Where does {n} work?", "{n} works {in}."),
            ("{n} lost {o} {in}.", "What did {n} lose?", "{n} lost {o}."),
            ("{n} lost {o} {in}.", "Where did {n} lose it?", "{n} lost it {in}."),
            ("{n} bought {f} {in}.", "What did {n} buy?", "{n} bought {f}."),
            ("{n} met a {r} {in}.", "Whom did {n} meet?", "{n} met a {r}."),
            ("{n} gave {o} to the {r}.", "What did {n} give to the {r}?", "{n} gave {o} to the {r}."),
            ("The {r} is called {n}.", "What is the name of the {r}?", "The {r} is called {n}."),
            ("{n} likes {f}.", "What does {n} like?", "{n} likes {f}."),
        ][t.choose(10)];
        let sentence = t.expand(&sentence.replace(" a {r}", &format!(" {}", with_article(p.role))));
        sentences.push(sentence);
        let answer = answer.replace(" a {r}", &format!(" {}", with_article(p.role)));
        facts.push((t.expand(question), t.expand(&answer)));
    }
    let text = sentences.join(" ");
    t.put("text", text);
    let (question, answer) = facts[t.choose(facts.len())].clone();
    t.put("q", question);
    t.put("a", answer);
    ask_carefully(t, &["{text} {q}", "Text: {text} Question: {q}", "Read this: {text} {q}", "{q} {text}"], &["{a}"]);
    if facts.len() > 1 && t.chance(0.3) {
        let (question, answer) = facts[t.choose(facts.len())].clone();
        t.put("q", question);
        t.put("a", answer);
        ask_carefully(t, &["{q}", "And now: {q}"], &["{a}"]);
    }
}

/// Names out of a sentence, the first or last of a list.
fn list(t: &mut Teller) {
    let count = 2 + t.choose(4);
    let mut names: Vec<String> = Vec::new();
    while names.len() < count {
        let name = match t.choose(3) {
            0 => t.pick(WOMEN).to_owned(),
            1 => t.pick(MEN).to_owned(),
            _ => invented_name(t),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let joined = format!("{} and {}", names[..count - 1].join(", "), names[count - 1]);
    let place = &PLACES[t.choose(PLACES.len())];
    let at = format!("{} {}", place.prep, place.name);
    t.put("names", joined);
    t.put("comma", names.join(", "));
    t.put("at", at);
    t.put("first", names[0].clone());
    t.put("last", names[count - 1].clone());
    t.put("count", count.to_string());
    t.put("back", names.iter().rev().cloned().collect::<Vec<_>>().join(", "));
    match t.choose(4) {
        0 => ask_carefully(
            t,
            &[
                "{names} met {at}. Who met {at}?",
                "List the names: {names} met {at}.",
                "Which names are in this text? {names} met {at}.",
            ],
            &["{comma}."],
        ),
        1 => ask_carefully(
            t,
            &["{comma}. Which name comes first?", "What is the first name in this list: {comma}?"],
            &["{first}.", "The first name is {first}."],
        ),
        2 => ask_carefully(
            t,
            &["{comma}. Which name comes last?", "What is the last name in this list: {comma}?"],
            &["{last}.", "The last name is {last}."],
        ),
        _ => ask_carefully(
            t,
            &["How many names are in this list: {comma}?", "{names} met {at}. How many were they?"],
            &["{count}.", "There are {count}."],
        ),
    }
}

/// Letters of a short word, and its first and last letter.
fn spell(t: &mut Teller) {
    let word = if t.chance(0.5) { t.pick(THINGS).to_owned() } else { invented_name(t).to_lowercase() };
    let letters: Vec<String> = word.chars().map(|c| c.to_string()).collect();
    t.put("w", word.clone());
    t.put("letters", letters.join("-"));
    t.put("x", letters[0].clone());
    match t.choose(3) {
        0 => ask_exactly(t, &["[Please s|S]pell the word {w}.", "How do you spell {w}?"], &["{letters}"]),
        1 => ask_exactly(
            t,
            &["With which letter does {w} begin?", "What is the first letter of {w}?"],
            &["{x}", "{w} begins with {x}."],
        ),
        _ => {
            let word = super::teller::capitalized(&word);
            t.put("W", word);
            ask_carefully(t, &["Write {w} with a capital letter.", "Write {w} with a large first letter."], &["{W}"]);
        }
    }
}

/// A tale, and then what it says in one sentence, or an answer from it.
fn summarize(t: Teller, split: Split) -> (Teller, Vec<Combination>) {
    let mut tale = Tale::draw(t, split);
    tale.t.raw(USER);
    let before = tale.t.chance(0.6);
    let summary = tale.t.chance(0.6);
    if before && summary {
        tale.t.say_one(&[
            "[Please s|S]ummarize[| this story| the text]:",
            "[Please s|S]ay in one sentence what happens[| here]:",
            "What happens in this story?",
        ]);
        tale.t.forget();
    }
    tale.tell();
    let answer = if summary {
        if !before {
            tale.t.forget();
            tale.t.say_one(&[
                "Summarize this[| in one sentence].",
                "What happened, in one sentence?",
                "Give me a summary.",
            ]);
        }
        tale.summary.clone()
    } else {
        let at = tale.t.choose(tale.facts.len());
        let fact = &tale.facts[at];
        let (question, answer) = (fact.question.clone(), fact.answer.clone());
        tale.t.forget();
        tale.t.put("question", question);
        tale.t.say_one(&["{question}", "Question: {question}"]);
        answer
    };
    tale.t.raw(END);
    tale.t.raw(ASSISTANT);
    tale.t.raw(&answer);
    tale.t.raw(END);
    // Kept in the style of the other tasks: one task, one answer.
    debug_assert!(turn_count(tale.t.text()) == 1);
    (tale.t, tale.told)
}

fn turn_count(text: &str) -> usize {
    text.matches(ASSISTANT).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn copy_task_answer_equals_the_text() {
        for seed in 0..300 {
            let mut t = Teller::new(Rng::new(seed, 0));
            copy(&mut t);
            let (question, answer) = t.text().split_once(ASSISTANT).unwrap();
            let answer = answer.strip_suffix(END).unwrap();
            assert!(question.contains(answer), "{}", t.text());
        }
    }

    #[test]
    fn extraction_answer_names_a_person_of_the_text() {
        for seed in 0..300 {
            let mut t = Teller::new(Rng::new(seed, 1));
            extract(&mut t);
            assert!(t.text().starts_with(USER) && t.text().ends_with(END), "{}", t.text());
            let (question, answer) = t.text().split_once(ASSISTANT).unwrap();
            let name =
                answer.split([' ', '.', '<']).find(|w| w.starts_with(char::is_uppercase) && *w != "The").unwrap();
            assert!(question.contains(name), "{}", t.text());
        }
    }
}
