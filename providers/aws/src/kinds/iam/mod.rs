//! What the kinds of IAM share: tags, and policy documents. IAM has no list by tags: the path of our objects bounds what is read.

pub(super) mod instance_profile;
pub(super) mod oidc_provider;
pub(super) mod role;

use aws_sdk_iam::types;
use serde_json::{Map, Value};
use textnlp_provider::{Condition, Permission, Verb};

use crate::tags::Tags;

/// The signing name.
pub(super) const SERVICE: &str = "iam";
/// The path of all roles and instance profiles that this program creates.
pub(crate) const PATH: &str = "/textnlp/";
/// All roles that this program creates, for reads. A role that is not there has no path: it is read by its name.
const READ_ROLES: &str = "arn:{$partition}:iam::{$account}:role/textnlp*";
/// The roles of the site, as a policy names them.
pub(crate) const ROLES: &str = "arn:{$partition}:iam::{$account}:role/textnlp/{$names}*";

/// The permission to give a role of the site to a service.
pub(crate) const fn passes(verbs: &'static [Verb], to: &'static [Condition]) -> Permission {
    Permission { resource: ROLES, conditions: to, ..Permission::on(verbs, "iam:PassRole") }
}

/// To EKS: for a cluster, its machines and its pods.
pub(crate) const TO_EKS: &[Condition] =
    &[Condition { key: PASSED, value: "ec2.amazonaws.com* eks.amazonaws.com pods.eks.amazonaws.com" }];
/// To flow logs.
pub(crate) const TO_FLOW_LOGS: &[Condition] = &[Condition { key: PASSED, value: "vpc-flow-logs.amazonaws.com" }];
/// To machines.
const TO_MACHINES: &[Condition] = &[Condition { key: PASSED, value: "ec2.amazonaws.com*" }];
/// To the copies of a bucket.
pub(crate) const TO_BUCKETS: &[Condition] = &[Condition { key: PASSED, value: "s3.amazonaws.com" }];
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_iam-condition-keys.html>
const PASSED: &str = "iam:PassedToService";

fn tags(tags: Option<Vec<types::Tag>>) -> Tags {
    tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect()
}

fn listed(tags: &Tags) -> Vec<types::Tag> {
    // A tag with its key and its value is always complete.
    tags.iter().filter_map(|(key, value)| types::Tag::builder().key(key).value(value).build().ok()).collect()
}

/// A policy document of an answer, in which it is percent-encoded, in the form that [`normal`] gives.
pub(crate) fn document(encoded: &str) -> Value {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    serde_json::from_slice(&bytes).map(normal).unwrap_or(Value::Null)
}

/// A policy document in which every element that may be one text or a list of texts is a sorted list.
pub(crate) fn normal(document: Value) -> Value {
    let Value::Object(mut document) = document else { return document };
    if let Some(statements) = document.remove("Statement") {
        let statements = if let Value::Array(all) = statements { all } else { vec![statements] };
        document.insert("Statement".to_owned(), statements.into_iter().map(statement).collect());
    }
    Value::Object(document)
}

/// Whether two policy documents say the same. Services show lists in another order, and one text in place of a list of one
/// (hashicorp/terraform#2432).
pub(crate) fn is_same(one: &Value, other: &Value) -> bool {
    normal(one.clone()) == normal(other.clone())
}

fn statement(statement: Value) -> Value {
    let Value::Object(members) = statement else { return statement };
    let each = |values: Map<String, Value>, form: fn(Value) -> Value| -> Value {
        values.into_iter().map(|(key, value)| (key, form(value))).collect()
    };
    let member = |(name, value): (String, Value)| {
        let value = match (name.as_str(), value) {
            ("Action" | "NotAction" | "Resource" | "NotResource", value) => texts(value),
            ("Principal" | "NotPrincipal", Value::Object(principals)) => each(principals, texts),
            ("Condition", Value::Object(operators)) => each(operators, |keys| match keys {
                Value::Object(keys) => keys.into_iter().map(|(key, value)| (key, texts(value))).collect(),
                other => other,
            }),
            (_, value) => value,
        };
        (name, value)
    };
    members.into_iter().map(member).collect()
}

fn texts(value: Value) -> Value {
    let mut all = if let Value::Array(all) = value { all } else { vec![value] };
    all.sort_by_key(ToString::to_string);
    all.dedup();
    Value::Array(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_equal_in_all_of_their_forms() {
        let encoded = "%7B%22Statement%22%3A%7B%22Effect%22%3A%22Allow%22%2C%22Principal%22%3A%7B%22Service%22%3A\
                       %22ec2.amazonaws.com%22%7D%2C%22Action%22%3A%22sts%3AAssumeRole%22%7D%7D";
        let list = json!({ "Statement": [{
            "Effect": "Allow", "Principal": { "Service": ["ec2.amazonaws.com"] }, "Action": ["sts:AssumeRole"],
        }] });
        assert_eq!(document(encoded), list);
        assert_eq!(normal(list.clone()), list);
        let plus = document("%7B%22Statement%22%3A%5B%7B%22Resource%22%3A%22a+b%25%22%7D%5D%7D");
        assert_eq!(plus, json!({ "Statement": [{ "Resource": ["a+b%"] }] }));
        for broken in ["%", "%7", "%zz", "{", ""] {
            assert_eq!(document(broken), Value::Null, "{broken}");
        }
    }
}
