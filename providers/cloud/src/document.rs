//! JSON documents of APIs with uniform methods: the places of members, and the templates of paths. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Sets the member at a JSON pointer (RFC 6901, without escapes). Objects on the way are created.
pub fn set(document: &mut Value, pointer: &str, value: Value) {
    let mut at = document;
    for name in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(members) = at else { return };
        at = members.entry(name).or_insert(Value::Null);
    }
    *at = value;
}

/// The member at a JSON pointer; `None` for one that is null too.
pub fn get<'d>(document: &'d Value, pointer: &str) -> Option<&'d Value> {
    document.pointer(pointer).filter(|value| !value.is_null())
}

/// A JSON pointer as a path of an update mask: `/iamConfig/labels` is `iamConfig.labels`.
pub fn mask(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// A template with the values of its placeholders; `None` if one has none.
pub fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        filled.push_str(before);
        filled.push_str(&value(name)?);
        rest = after;
    }
    filled.push_str(rest);
    Some(filled)
}

/// The values of the placeholders of a template in a text; `None` if the text does not have its form. A placeholder after a
/// slash stands for one segment; one at the start of a template or after another character for any number.
pub fn capture<'t>(template: &'t str, text: &str) -> Option<BTreeMap<&'t str, String>> {
    let mut parts: Vec<(&str, &str)> = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        parts.push((before, name));
        rest = after;
    }
    let mut text = text.strip_suffix(rest)?;
    let mut found = BTreeMap::new();
    for (place, (before, name)) in parts.iter().enumerate().rev() {
        let (head, value) = match (place, before.is_empty()) {
            (0, true) => ("", text),
            _ => text.rsplit_once(before)?,
        };
        if value.is_empty() || (before.contains('/') && value.contains('/')) {
            return None;
        }
        found.insert(*name, value.to_owned());
        text = head;
    }
    text.is_empty().then_some(found)
}

/// The last segment of a path.
pub fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_set_and_read_by_pointers() {
        let mut document = json!({ "a": 1, "b": null });
        set(&mut document, "/settings/ip/on", json!(true));
        set(&mut document, "/b/c", json!("d"));
        assert_eq!(document, json!({ "a": 1, "b": { "c": "d" }, "settings": { "ip": { "on": true } } }));
        assert_eq!(get(&document, "/settings/ip/on"), Some(&json!(true)));
        assert_eq!(get(&json!({ "a": null }), "/a"), None);
        assert_eq!(mask("/settings/ip"), "settings.ip");
    }

    #[test]
    fn templates_are_filled_and_read_back() {
        for (template, text, values) in [
            ("projects/{p}/networks/{name}", "projects/a/networks/b", vec![("p", "a"), ("name", "b")]),
            (
                "{cluster}/pools/{name}",
                "projects/a/clusters/c/pools/d",
                vec![("cluster", "projects/a/clusters/c"), ("name", "d")],
            ),
            (
                "{target}#{role}#{who}",
                "projects/a#roles/r#x",
                vec![("target", "projects/a"), ("role", "roles/r"), ("who", "x")],
            ),
        ] {
            let found = capture(template, text).unwrap();
            let expected: BTreeMap<&str, String> = values.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
            assert_eq!(found, expected, "{template}");
            assert_eq!(fill(template, |name| found.get(name).cloned()).as_deref(), Some(text));
        }
        for (template, text) in [
            ("projects/{p}/networks/{name}", "projects/a/subnetworks/b"),
            ("projects/{p}/networks/{name}", "projects/a/b/networks/c"),
            ("projects/{p}/networks/{name}", "x/projects/a/networks/c"),
            ("projects/{p}/networks/{name}", "projects/a/networks/"),
        ] {
            assert!(capture(template, text).is_none(), "{template} {text}");
        }
        assert!(fill("{a}", |_| None).is_none());
    }
}
