//! Filters as EC2's describes and others take them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Fault;

/// Whether an object passes all filters of an input, which are `[{ Name, Values }]`.
///
/// `tag:KEY` and `tag-key` look at `tags`; any other name asks `values`, which gives the object's values, or `None` for
/// a name that the operation does not have. Values may hold `*` and `?`, and `\` before those that stand for themselves.
///
/// # Errors
/// `InvalidParameterValue` of EC2, for a filter that the operation does not have.
pub fn passes(
    filters: &[Value],
    tags: &BTreeMap<String, String>,
    values: impl Fn(&str) -> Option<Vec<String>>,
) -> Result<bool, Fault> {
    let mut passes = true;
    for filter in filters {
        let name = filter["Name"].as_str().unwrap_or_default();
        let actual = match name.strip_prefix("tag:") {
            Some(key) => tags.get(key).cloned().into_iter().collect(),
            None if name == "tag-key" => tags.keys().cloned().collect(),
            None => values(name)
                .ok_or_else(|| Fault::new("InvalidParameterValue", format!("The filter '{name}' is invalid")))?,
        };
        let wanted = filter["Values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let wanted: Vec<&str> = wanted.collect();
        passes &= actual.iter().any(|actual| wanted.iter().any(|wanted| is_like(wanted, actual)));
    }
    Ok(passes)
}

/// Whether a text is like a pattern with `*`, `?` and `\`.
#[must_use]
pub fn is_like(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and up to where it took text.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let (wanted, is_literal, width) = match pattern.get(p) {
            Some('\\') if p + 1 < pattern.len() => (pattern.get(p + 1), true, 2),
            wanted => (wanted, false, 1),
        };
        match wanted {
            Some('*') if !is_literal => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] || (*c == '?' && !is_literal) => (p, t) = (p + width, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
