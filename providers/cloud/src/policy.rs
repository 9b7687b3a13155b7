//! Policies as documents. Pure.

use serde_json::Value;
use textnlp_provider::{PolicyDocument, PolicyFormat};

/// The documents with all of these parts: several where one would have more than `most` characters in its parts, without white space.
/// `framed` makes a document of parts.
pub fn documents(
    title: &str,
    parts: Vec<Value>,
    most: usize,
    framed: impl Fn(Vec<Value>) -> Value,
) -> Vec<PolicyDocument> {
    let mut documents: Vec<Vec<Value>> = vec![Vec::new()];
    let mut length = 0;
    for part in parts {
        let more = part.to_string().len();
        if length + more > most && length > 0 {
            documents.push(Vec::new());
            length = 0;
        }
        length += more + 1;
        if let Some(last) = documents.last_mut() {
            last.push(part);
        }
    }
    let count = documents.len();
    let documents = documents.into_iter().enumerate().map(|(n, parts)| PolicyDocument {
        title: match count {
            1 => title.to_owned(),
            _ => format!("{title} {} of {count}", n + 1),
        },
        format: PolicyFormat::Json,
        text: serde_json::to_string_pretty(&framed(parts)).unwrap_or_default(),
        notes: Vec::new(),
    });
    documents.collect()
}

/// Adds a note to the first document with one of these permissions.
pub fn note_on(documents: &mut [PolicyDocument], permissions: &[&str], note: &str) {
    let has =
        |document: &&mut PolicyDocument| permissions.iter().any(|one| document.text.contains(&format!("\"{one}\"")));
    if let Some(first) = documents.iter_mut().find(has) {
        first.notes.push(note.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::documents;

    #[test]
    fn a_long_policy_becomes_several_documents() {
        let parts = |count: usize| -> Vec<Value> { (0..count).map(|_| json!("1234")).collect() };
        let titles = |count: usize| -> Vec<String> {
            documents("policy", parts(count), 14, Value::Array).into_iter().map(|document| document.title).collect()
        };
        assert_eq!(titles(0), ["policy"]);
        assert_eq!(titles(2), ["policy"]);
        assert_eq!(titles(3), ["policy 1 of 2", "policy 2 of 2"]);
        assert_eq!(documents("policy", parts(1), 1, Value::Array)[0].text, "[\n  \"1234\"\n]");
    }
}
