//! The tags that say whose an object is, as Google's labels or as a text in a description. Both are injective.
//!
//! A label value has at most 63 characters of `[a-z0-9_-]` (GoogleCloudPlatform/k8s-config-connector#363). The id of a resource has
//! slashes, and up to 122 characters:
//! a slash becomes an underscore, which ids do not have, and a longer value goes on in a label whose key ends with `-2`.

use serde_json::{Map, Value};
use textnlp_cloud::tags::{ENVIRONMENT, LINEAGE, OPERATION, RESOURCE, Tags};
use textnlp_provider::Problem;

/// The most characters of a key and of a value.
const MOST: usize = 63;
/// The end of the key of the rest of a long value.
const MORE: &str = "-2";
/// How labels start that Google's services set themselves (GoogleCloudPlatform/magic-modules#11300).
const OF_GOOGLE: &str = "goog-";
/// The labels of an object, of which each built-in tag takes one, and the resource id two.
const MOST_LABELS: usize = 64 - 6;
/// The start of a description with tags.
const HEAD: &str = "textnlp";
/// The short names of tags in descriptions: the shortest description has 256 bytes.
const SHORT: [(&str, &str); 4] = [("l", LINEAGE), ("e", ENVIRONMENT), ("r", RESOURCE), ("o", OPERATION)];

/// Whether labels of this key are Google's or a part of another one.
pub(crate) fn is_reserved(key: &str) -> bool {
    key.starts_with(OF_GOOGLE) || key == crate::kinds::DATABASE || key.strip_suffix(MORE) == Some(RESOURCE)
}

/// Tags as labels.
pub(crate) fn encode(tags: &Tags) -> Value {
    let mut labels = Map::new();
    for (key, value) in tags {
        let value = if key == RESOURCE { value.replace('/', "_") } else { value.clone() };
        match value.split_at_checked(MOST) {
            Some((first, rest)) if key == RESOURCE && !rest.is_empty() => {
                labels.insert(key.clone(), first.into());
                labels.insert(format!("{key}{MORE}"), rest.into());
            }
            _ => drop(labels.insert(key.clone(), value.into())),
        }
    }
    Value::Object(labels)
}

/// The tags in labels, also those of others.
pub(crate) fn decode(labels: &Value) -> Tags {
    let members = labels.as_object().into_iter().flatten();
    let mut tags: Tags = members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    let rest = tags.remove(&format!("{RESOURCE}{MORE}")).unwrap_or_default();
    if let Some(resource) = tags.get_mut(RESOURCE) {
        *resource = format!("{resource}{rest}").replace('_', "/");
    }
    tags
}

/// The labels of an object after tags are set and removed.
pub(crate) fn changed(seen: &Tags, set: &Tags, remove: &[String]) -> Value {
    let mut tags = seen.clone();
    tags.extend(set.clone());
    tags.retain(|key, _| !remove.contains(key));
    encode(&tags)
}

/// The tags that say whose an object is, as a description; `None` if they are longer than `most` bytes.
pub(crate) fn describe(tags: &Tags, most: usize) -> Option<String> {
    let pairs = SHORT.iter().filter_map(|(short, key)| Some(format!(" {short}={}", tags.get(*key)?)));
    let text = format!("{HEAD}{}", pairs.collect::<String>());
    (text.len() <= most).then_some(text)
}

/// The tags in a description.
pub(crate) fn of_description(text: &str) -> Tags {
    let Some(pairs) = text.strip_prefix(HEAD).and_then(|rest| rest.strip_prefix(' ')) else { return Tags::new() };
    let pair = |word: &str| {
        let (short, value) = word.split_once('=')?;
        let (_, key) = SHORT.iter().find(|(name, _)| *name == short)?;
        Some(((*key).to_owned(), value.to_owned()))
    };
    pairs.split(' ').filter_map(pair).collect()
}

/// The tags of an environment that are no labels of Google Cloud.
pub(crate) fn problems<'t>(tags: impl IntoIterator<Item = (&'t String, &'t String)>) -> Vec<Problem> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let fix = "use lower-case letters, digits, `_` and `-`, at most 63 of them, and begin the key with a letter";
    let mut problems = Vec::new();
    let mut count = 0;
    for (key, value) in tags {
        count += 1;
        let is_key = key.len() <= MOST && key.starts_with(|c: char| c.is_ascii_lowercase()) && key.chars().all(fits);
        if !is_key || value.len() > MOST || !value.chars().all(fits) {
            let shown: String = format!("{key}: {value}").chars().take(80).collect();
            problems.push(Problem::new("tags", format!("`{shown}` is no label of Google Cloud"), fix));
        } else if is_reserved(key) {
            problems.push(Problem::new("tags", format!("labels such as `{key}` are Google's own"), "rename the tag"));
        }
    }
    if count > MOST_LABELS {
        let cause = format!("{count} tags are set, and an object has room for {MOST_LABELS}");
        problems.push(Problem::new("tags", cause, "remove some of them"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::ResourceId;

    use super::*;

    fn tags(resource: &str) -> Tags {
        let pairs = [
            (LINEAGE, "0198c0de-0000-7000-8000-000000000001"),
            (ENVIRONMENT, "staging"),
            (RESOURCE, resource),
            (OPERATION, "0123456789abcdef0123456789abcdef"),
        ];
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn resource_ids_survive_labels_and_descriptions() {
        let part = |letter: char| letter.to_string().repeat(40);
        let longest = format!("{}/{}/{}", part('a'), part('b'), part('c'));
        for resource in ["main/network/vpc", "main/cluster", longest.as_str()] {
            assert!(ResourceId::new(resource).is_ok());
            let tags = tags(resource);
            let labels = encode(&tags);
            let valid = |text: &str| {
                text.len() <= MOST
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
            };
            assert!(
                labels.as_object().unwrap().iter().all(|(key, value)| valid(key) && valid(value.as_str().unwrap())),
                "{labels}"
            );
            assert_eq!(decode(&labels), tags);
            let text = describe(&tags, 256).unwrap();
            assert_eq!(of_description(&text), tags, "{text}");
        }
    }

    #[test]
    fn longest_names_fit_into_the_shortest_description() {
        let part = |letter: char| letter.to_string().repeat(40);
        let mut tags = tags(&format!("{}/{}/{}", part('a'), part('b'), part('c')));
        tags.insert(ENVIRONMENT.to_owned(), part('e'));
        assert!(describe(&tags, 256).is_some());
        assert!(describe(&tags, 100).is_none());
        assert!(of_description("a network of another team l=1").is_empty());
    }

    #[test]
    fn labels_of_google_stay() {
        let seen = decode(&json!({ "goog-gke-node": "", "team": "text", "old": "1" }));
        let set = Tags::from([("team".to_owned(), "other".to_owned())]);
        assert_eq!(changed(&seen, &set, &["old".to_owned()]), json!({ "goog-gke-node": "", "team": "other" }));
        assert!(is_reserved("goog-gke-node") && is_reserved("textnlp-resource-2") && !is_reserved("team"));
    }

    #[test]
    fn tags_that_are_no_labels_are_problems() {
        let of = |key: &str, value: &str| problems([(&key.to_owned(), &value.to_owned())]).len();
        assert_eq!(of("team", "text_1"), 0);
        for (key, value) in [("Team", "text"), ("team", "Text"), ("1team", "a"), ("team", "a/b"), ("goog-x", "a")] {
            assert_eq!(of(key, value), 1, "{key}: {value}");
        }
        assert_eq!(of(&"a".repeat(64), ""), 1);
    }
}
