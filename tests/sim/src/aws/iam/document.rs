//! Policy documents.

use serde_json::Value;

use crate::Fault;

/// The document of an input, if IAM accepts it. `is_trust` says that it must name principals, else it must name resources.
pub(super) fn checked(text: &str, is_trust: bool) -> Result<Value, Fault> {
    let malformed = |why: &str| Fault::new("MalformedPolicyDocument", why);
    let document: Value = serde_json::from_str(text).map_err(|_| malformed("This policy contains invalid Json"))?;
    if document.get("Version").is_some_and(|version| version != "2012-10-17" && version != "2008-10-17") {
        return Err(malformed("The policy failed legacy parsing"));
    }
    let statements = list(&document["Statement"]);
    if statements.is_empty() {
        return Err(malformed("Syntax errors in policy."));
    }
    for statement in statements {
        let has = |name: &str| statement.get(name).is_some() || statement.get(format!("Not{name}")).is_some();
        if statement["Effect"] != "Allow" && statement["Effect"] != "Deny" || !has("Action") {
            return Err(malformed("Syntax errors in policy."));
        }
        if is_trust && !has("Principal") {
            return Err(malformed("AssumeRole policy must contain principals."));
        }
        if is_trust && has("Resource") {
            return Err(malformed("Has prohibited field Resource"));
        }
        if !is_trust && has("Principal") {
            return Err(malformed("Policy document should not specify a principal."));
        }
        if !is_trust && !has("Resource") {
            return Err(malformed("Policy statement must contain resources."));
        }
    }
    Ok(document)
}

/// The value or values of an element.
pub(super) fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    }
}

/// Whether a trust policy allows an action to a principal, such as `("Service", "eks.amazonaws.com")`. Conditions are the caller's.
#[must_use]
pub fn trusts<'a>(trust: &'a Value, action: &str, kind: &str, principal: impl Fn(&str) -> bool) -> Option<&'a Value> {
    list(&trust["Statement"]).into_iter().find(|statement| {
        let acts = list(&statement["Action"]).into_iter().filter_map(Value::as_str);
        let whom = list(&statement["Principal"][kind]).into_iter().filter_map(Value::as_str);
        let is_all = statement["Principal"] == "*";
        statement["Effect"] == "Allow"
            && acts.into_iter().any(|act| act == action || act == "sts:*")
            && (is_all || whom.into_iter().any(&principal))
    })
}

/// A document as answers carry it.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
