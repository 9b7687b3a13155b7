//! Which replicas have computed the beginning of a prompt. The next message of a conversation goes to one of them, because
//! only its prefix cache has the earlier messages.
//!
//! A prompt is cut at the ends of its messages and within long ones. The hash of the text up to each cut is the key of a
//! bounded table, whose values are the replicas that have answered such a request. It is a guess: a replica may have given
//! its cache to others since. A wrong guess costs the time to compute the prompt, as any other replica would need, and the
//! wait behind its requests.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Method};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The endpoints that compute a prompt.
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/stream"];
/// What tells tenants apart, besides API keys: their prefix caches have nothing in common.
const TENANT_HEADERS: [&str; 3] = ["authorization", "x-tenant-id", "host"];
/// The beginning of every API key. `server.security.api_key_header` may name any header.
const KEY_PREFIX: &[u8] = b"tnlp_";
/// The shortest part of a text that is cut off, in bytes: about the unit of the prefix cache, 32 tokens.
const MIN_STEP: usize = 128;
/// A shorter beginning that conversations have in common, in bytes, saves less than balanced replicas do.
const MIN_COMMON: usize = 512;
/// The most entries of a generation: what 32,768 buckets hold. Two generations take about 2 MB.
const GENERATION: usize = 28_000;
/// The replicas that are recorded for a text. A text that more have computed is common, and all will have it soon.
const MAX_HOLDERS: usize = 4;

/// Incarnations of replicas, the latest first; 0 is none.
pub(super) type Holders = [u32; MAX_HOLDERS];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// Random for each process, so that clients can neither find collisions nor texts of others.
    keys: RandomState,
    table: Mutex<Table>,
}

/// Two generations: when the young one is full, it becomes the old one, and the texts of the old one that were not used
/// since are dropped.
#[derive(Debug, Default)]
struct Table {
    young: HashMap<u64, Holders>,
    old: HashMap<u64, Holders>,
}

/// A request for a prompt.
#[derive(Debug)]
pub(super) struct Prompt {
    /// The hashes of its beginnings, the shortest first.
    hashes: Vec<u64>,
    /// The count of those that are too short to be worth a choice.
    short: usize,
}

/// The parts of a request that a prompt begins with. Other parts do not change what is cached.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
}

impl Prefixes {
    /// The prompt of a request; `None` for any other request.
    pub(super) fn prompt(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Option<Prompt> {
        if *method != Method::POST || !PATHS.contains(&path) {
            return None;
        }
        let body: Body<'_> = serde_json::from_slice(body).ok()?;
        let mut cuts = Cuts { hasher: self.keys.build_hasher(), position: 0, last: 0, all: Vec::new() };
        for name in TENANT_HEADERS {
            for value in headers.get_all(name) {
                cuts.add_unseen(name.as_bytes());
                cuts.add_unseen(value.as_bytes());
            }
        }
        for value in headers.values().filter(|value| value.as_bytes().starts_with(KEY_PREFIX)) {
            cuts.add_unseen(value.as_bytes());
        }
        cuts.add_unseen(body.model.map_or("", RawValue::get).as_bytes());
        let messages = body.messages.unwrap_or_default();
        for text in body.tools.iter().chain(&messages).chain(&body.prompt) {
            cuts.add(text.get().as_bytes());
        }
        // A string of JSON: quotes within a text are escaped.
        let is_continued = messages.iter().any(|message| message.get().contains("\"assistant\""));
        // The replica also has its answers, so a known beginning may be a small part of what it has. A new conversation
        // has only its instructions in common with others: they must be most of it, or all such would go to one replica.
        let least = if is_continued { 0 } else { MIN_COMMON.max(cuts.position / 2) };
        let short = cuts.all.partition_point(|(end, _)| *end < least);
        Some(Prompt { hashes: cuts.all.into_iter().map(|(_, hash)| hash).collect(), short })
    }

    /// The replicas that have computed beginnings of a prompt, the longest beginning first.
    pub(super) fn holders(&self, prompt: &Prompt) -> Vec<Holders> {
        let table = self.table();
        let mut found: Vec<Holders> =
            prompt.hashes[prompt.short..].iter().rev().filter_map(|hash| table.get(*hash)).collect();
        found.dedup();
        found
    }

    /// Records that a replica has computed a prompt. Only for answers without an error: others fill the table for nothing.
    pub(super) fn record(&self, prompt: &Prompt, holder: u32) {
        let mut table = self.table();
        for hash in &prompt.hashes {
            table.add(*hash, holder);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn get(&self, hash: u64) -> Option<Holders> {
        self.young.get(&hash).or_else(|| self.old.get(&hash)).copied()
    }

    fn add(&mut self, hash: u64, holder: u32) {
        let mut holders = self.get(hash).unwrap_or_default();
        let end = holders.iter().position(|held| *held == holder).unwrap_or(MAX_HOLDERS - 1);
        holders[..=end].rotate_right(1);
        holders[0] = holder;
        if self.young.len() >= GENERATION && !self.young.contains_key(&hash) {
            // Both keep their memory.
            self.old.clear();
            std::mem::swap(&mut self.young, &mut self.old);
        }
        self.young.insert(hash, holders);
    }
}

/// Where a prompt is cut. Each place depends only on the text before it, so that two prompts that begin with the same text
/// are cut at the same places in it. The distances grow with the length, so that the longest body that is taken in has
/// fewer than 200 cuts.
struct Cuts {
    hasher: DefaultHasher,
    /// Bytes so far.
    position: usize,
    /// The last cut.
    last: usize,
    /// The end of each beginning, and its hash.
    all: Vec<(usize, u64)>,
}

impl Cuts {
    /// What precedes the text, without a cut.
    fn add_unseen(&mut self, text: &[u8]) {
        self.hasher.write(text);
        self.hasher.write_u8(u8::MAX);
    }

    /// A message, or another whole part.
    fn add(&mut self, mut text: &[u8]) {
        while let Some((head, rest)) = text.split_at_checked(self.last + MIN_STEP.max(self.last / 8) - self.position) {
            self.hasher.write(head);
            self.position += head.len();
            self.cut();
            text = rest;
        }
        self.position += text.len();
        // Ends it: no byte of UTF-8 has this value.
        self.add_unseen(text);
        if self.position > self.last + self.last / 16 {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.last = self.position;
        self.all.push((self.position, self.hasher.finish()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const INSTRUCTIONS: &str = "Answer in one sentence. ";

    fn prompt_of(prefixes: &Prefixes, headers: &[(&str, &str)], body: &Value) -> Option<Prompt> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        prefixes.prompt(&Method::POST, "/v1/chat/completions", &headers, body.to_string().as_bytes())
    }

    fn prompt(prefixes: &Prefixes, body: &Value) -> Prompt {
        prompt_of(prefixes, &[("authorization", "Bearer a")], body).unwrap()
    }

    /// Messages of these lengths: instructions, and then questions and answers in turns.
    fn chat(of: &str, lengths: &[usize]) -> Value {
        let roles = std::iter::once("system").chain(["user", "assistant"].into_iter().cycle());
        let messages = roles.zip(lengths).enumerate().map(|(at, (role, length))| {
            let text = if at == 0 { INSTRUCTIONS.repeat(1000) } else { format!("{of} {at} ").repeat(10_000) };
            json!({ "role": role, "content": text[..*length] })
        });
        json!({ "model": "m", "messages": messages.collect::<Vec<_>>(), "temperature": lengths.len() })
    }

    fn held(prefixes: &Prefixes, prompt: &Prompt) -> Vec<u32> {
        prefixes.holders(prompt).into_iter().map(|holders| holders[0]).collect()
    }

    #[test]
    fn next_message_of_a_conversation_finds_who_answered_the_last_one() {
        let prefixes = Prefixes::default();
        for (first, rest) in [(20_usize, [30_usize, 2000, 30]), (3000, [5000, 200, 10]), (200, [10, 10, 9000])] {
            let length = first.to_string();
            prefixes.record(&prompt(&prefixes, &chat(&length, &[first, rest[0]])), 1);
            prefixes.record(&prompt(&prefixes, &chat("other", &[first, rest[0]])), 2);
            let next = prompt(&prefixes, &chat(&length, &[first, rest[0], rest[1], rest[2]]));
            assert_eq!(held(&prefixes, &next)[0], 1, "{first} {rest:?}");
            prefixes.record(&next, 3);
            let next = prompt(&prefixes, &chat(&length, &[first, rest[0], rest[1], rest[2], 100, 10]));
            assert_eq!(held(&prefixes, &next)[0], 3, "{first} {rest:?}");
        }
    }

    #[test]
    fn new_conversation_follows_only_long_instructions() {
        let prefixes = Prefixes::default();
        for (instructions, question, follows) in [(4000, 500, true), (4000, 9000, false), (100, 20, false)] {
            prefixes.record(&prompt(&prefixes, &chat("a", &[instructions, question])), 1);
            let other = prompt(&prefixes, &chat("b", &[instructions, question]));
            assert_eq!(!held(&prefixes, &other).is_empty(), follows, "{instructions} {question}");
        }
    }

    #[test]
    fn text_that_a_prompt_continues_is_found() {
        let prefixes = Prefixes::default();
        let text = "Once upon a time. ".repeat(100);
        let body = |text: &str| json!({ "prompt": text, "max_tokens": 5 });
        prefixes.record(&prompt(&prefixes, &body(&text)), 1);
        assert_eq!(held(&prefixes, &prompt(&prefixes, &body(&format!("{text} And then.")))), [1]);
        assert!(held(&prefixes, &prompt(&prefixes, &body(&format!("x{text}")))).is_empty());
    }

    #[test]
    fn tenants_models_tools_and_processes_have_nothing_in_common() {
        let prefixes = Prefixes::default();
        let body = chat("a", &[2000, 100]);
        let mut other = body.clone();
        other["model"] = json!("n");
        let mut tools = body.clone();
        tools["tools"] = json!([{ "type": "function" }]);
        let key = [("x-own-header", "tnlp_a")];
        let requests: [(&[(&str, &str)], &Value); 7] = [
            (&[("authorization", "Bearer a")], &body),
            (&[("authorization", "Bearer b")], &body),
            (&[("x-tenant-id", "a")], &body),
            (&[("host", "a.example")], &body),
            (&key, &body),
            (&[("authorization", "Bearer a")], &other),
            (&[("authorization", "Bearer a")], &tools),
        ];
        for (headers, body) in requests {
            let prompt = prompt_of(&prefixes, headers, body).unwrap();
            assert!(held(&prefixes, &prompt).is_empty(), "{headers:?}");
            prefixes.record(&prompt, 1);
            assert_eq!(held(&prefixes, &prompt), [1], "{headers:?}");
        }
        let next = Prefixes::default();
        assert_ne!(prompt(&prefixes, &body).hashes, prompt(&next, &body).hashes);
    }

    #[test]
    fn only_requests_for_a_prompt_have_one() {
        let prefixes = Prefixes::default();
        let headers = HeaderMap::new();
        let asked = |method: &Method, path: &str, body: &[u8]| prefixes.prompt(method, path, &headers, body).is_some();
        let body = chat("a", &[10, 10]).to_string();
        for path in PATHS {
            assert!(asked(&Method::POST, path, body.as_bytes()));
        }
        assert!(!asked(&Method::GET, "/v1/stream", body.as_bytes()));
        assert!(!asked(&Method::POST, "/v1/embeddings", body.as_bytes()));
        let deep = "[".repeat(100_000);
        for bad in ["", "{", "[]", "\"x\"", "{\"messages\":{}}", "{\"model\":\"a\",\"model\":\"b\"}", deep.as_str()] {
            assert!(!asked(&Method::POST, PATHS[0], bad.as_bytes()), "{bad:.20}");
        }
        assert!(!asked(&Method::POST, PATHS[0], b"{\"prompt\":\"\xff\"}"));
    }

    #[test]
    fn cuts_of_the_longest_bodies_are_few() {
        let prefixes = Prefixes::default();
        let long = json!({ "prompt": "x".repeat(256 << 10) });
        let many = json!({ "messages": vec![json!({}); 64 << 10] });
        for body in [long, many] {
            let cuts = prompt(&prefixes, &body).hashes.len();
            assert!((50..200).contains(&cuts), "{cuts}");
        }
    }

    #[test]
    fn latest_holders_and_used_texts_are_kept() {
        let mut table = Table::default();
        for holder in [1, 2, 3, 2, 4, 5] {
            table.add(0, holder);
        }
        assert_eq!(table.get(0), Some([5, 4, 2, 3]));
        table.add(1, 1);
        for hash in 2..10 * GENERATION as u64 {
            table.add(hash, 1);
            if hash % 10_000 == 0 {
                table.add(0, 5);
            }
            assert!(table.young.len() <= GENERATION && table.old.len() <= GENERATION);
        }
        assert_eq!((table.get(0), table.get(1)), (Some([5, 4, 2, 3]), None));
    }
}
