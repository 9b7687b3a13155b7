//! Methods, paths, queries and headers: the protocols `rest-json` and `rest-xml`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::text::{self, TimeFormat, time_format};
use super::{Reader, Reply, Request, is_s3, json, xml};
use crate::Service;
use crate::aws::model::{Kind, Location, Model, Operation, Protocol, Reference, Shape};

/// The operation of a request by method, path and query.
pub(super) fn route(model: &Model, service: &Service, request: &Request) -> Option<Arc<Operation>> {
    let candidates = model.routes().iter().filter_map(|operation| {
        let (path, query) = operation.http.request_uri.split_once('?').unwrap_or((&operation.http.request_uri, ""));
        let fixed = fixed_segments(path);
        if operation.http.method != request.method || labels(path, &request.path).is_none() {
            return None;
        }
        let literals: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        if !literals.iter().all(|literal| request.query.contains(literal)) {
            return None;
        }
        let mut required = 0;
        let mut known: Vec<String> = literals.iter().map(|(name, _)| name.clone()).collect();
        if let Some(shape) = operation.input.as_ref().and_then(|input| model.shape(&input.shape)) {
            for (name, member) in &shape.members {
                let wire = member.location_name.as_ref().unwrap_or(name);
                let is_there = match member.location {
                    Some(Location::Querystring) => {
                        known.push(wire.clone());
                        request.query.iter().any(|(name, _)| name == wire)
                    }
                    Some(Location::Header) => request.headers.contains_key(wire.as_str()),
                    _ => continue,
                };
                if shape.required.contains(name) {
                    if !is_there {
                        return None;
                    }
                    required += 1;
                }
            }
        }
        let is_current = !operation.deprecated;
        // SDKs name the operation where method and path are not enough.
        let is_named = request.query.iter().any(|(name, value)| name == "x-id" && *value == operation.name);
        let unknown = request.query.iter().filter(|(name, _)| name != "x-id" && !known.contains(name)).count();
        let is_handled = service.operations.iter().any(|(name, _)| *name == operation.name);
        let match_of = (is_named, literals.len(), required, Reverse(unknown), fixed);
        let rank = (match_of, is_handled, is_current, Reverse(operation.name.clone()));
        Some((rank, operation.clone()))
    });
    candidates.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, operation)| operation)
}

fn fixed_segments(template: &str) -> usize {
    template.split('/').filter(|segment| !segment.is_empty() && !segment.starts_with('{')).count()
}

/// The values of a path's labels, decoded, if the path is like the template.
fn labels(template: &str, path: &str) -> Option<HashMap<String, String>> {
    let mut found = HashMap::new();
    let mut rest = path.strip_prefix('/')?;
    let template = template.strip_prefix('/').unwrap_or(template).trim_end_matches('/');
    for segment in template.split('/').filter(|segment| !segment.is_empty()) {
        let label = segment.strip_prefix('{').and_then(|label| label.strip_suffix('}'));
        match label {
            Some(label) if label.ends_with('+') => {
                // All that follows, of which there is at least something.
                if rest.is_empty() {
                    return None;
                }
                found.insert(label.trim_end_matches('+').to_owned(), decode(rest));
                rest = "";
            }
            label => {
                let (part, after) = rest.split_once('/').unwrap_or((rest, ""));
                match label {
                    Some(_) if part.is_empty() => return None,
                    Some(label) => drop(found.insert(label.to_owned(), decode(part))),
                    None if part != segment => return None,
                    None => {}
                }
                rest = after;
            }
        }
    }
    rest.is_empty().then_some(found)
}

/// Text without percent-encoding.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn parse(
    reader: &mut Reader<'_>,
    protocol: Protocol,
    operation: &Operation,
    reference: &Reference,
    request: &Request,
    streamed: &mut Bytes,
) -> Value {
    let Some(shape) = reader.shape(reference, "input") else { return Value::Object(Map::new()) };
    let (path, literal) = operation.http.request_uri.split_once('?').unwrap_or((&operation.http.request_uri, ""));
    let labels = labels(path, &request.path).unwrap_or_default();
    let literals: Vec<String> =
        url::form_urlencoded::parse(literal.as_bytes()).map(|(name, _)| name.into_owned()).collect();
    let mut unread: Vec<&str> = request.query.iter().map(|(name, _)| name.as_str()).collect();
    unread.retain(|name| *name != "x-id" && !literals.iter().any(|literal| literal == name));
    let mut members = Map::new();
    for (name, member) in &shape.members {
        let Some(location) = member.location else { continue };
        let wire = member.location_name.as_ref().unwrap_or(name);
        let path = format!("input.{name}");
        let Some(inner) = reader.shape(member, &path) else { continue };
        let value = match location {
            Location::Uri => {
                labels.get(wire).map(|text| scalar(reader, member, &inner, TimeFormat::Rfc3339, text, &path))
            }
            Location::Querystring => {
                let given = request.query.iter().filter(|(name, _)| name == wire).map(|(_, value)| value.as_str());
                let given: Vec<&str> = given.collect();
                unread.retain(|name| name != wire);
                match (inner.kind, given.first()) {
                    (_, None) => None,
                    (Kind::List, _) => {
                        let items = inner.member.clone().unwrap_or_default();
                        let item = reader.shape(&items, &path);
                        item.map(|item| {
                            let one = |text: &&str| scalar(reader, &items, &item, TimeFormat::Rfc3339, text, &path);
                            Value::Array(given.iter().map(one).collect())
                        })
                    }
                    (_, Some(text)) => Some(scalar(reader, member, &inner, TimeFormat::Rfc3339, text, &path)),
                }
            }
            Location::Header => request.header(wire).map(|text| header(reader, member, &inner, text, &path)),
            Location::Headers => {
                let entries = request.headers.iter().filter_map(|(name, value)| {
                    let key = name.as_str().strip_prefix(&wire.to_ascii_lowercase())?;
                    Some((key.to_owned(), Value::from(value.to_str().ok()?)))
                });
                let entries: Map<String, Value> = entries.collect();
                (!entries.is_empty()).then_some(Value::Object(entries))
            }
            Location::StatusCode => None,
        };
        members.extend(value.map(|value| (name.clone(), value)));
    }
    unread.iter().for_each(|name| reader.problem("query", format!("the model has no member for {name:?}")));
    body(reader, protocol, &shape, reference, request, streamed, &mut members);
    Value::Object(members)
}

fn body(
    reader: &mut Reader<'_>,
    protocol: Protocol,
    shape: &Shape,
    reference: &Reference,
    request: &Request,
    streamed: &mut Bytes,
    members: &mut Map<String, Value>,
) {
    let read = |reader: &mut Reader<'_>, reference: &Reference, path: &str| match protocol {
        Protocol::RestJson => match serde_json::from_slice(&request.body) {
            Ok(value) => json::read(reader, reference, value, path),
            Err(error) => {
                reader.problem(path, format!("it is not JSON: {error}"));
                Value::Null
            }
        },
        _ => xml::parse(reader, reference, &request.body, path),
    };
    let payload = shape.payload.as_ref().and_then(|name| Some((name, shape.members.get(name)?)));
    let Some((name, member)) = payload else {
        let in_body = Shape {
            members: shape
                .members
                .iter()
                .filter(|(_, m)| m.location.is_none())
                .map(|(n, m)| (n.clone(), m.clone()))
                .collect(),
            ..shape.clone()
        };
        if request.body.is_empty() || in_body.members.is_empty() {
            if !request.body.is_empty() && request.body.as_ref() != b"{}" {
                reader.problem("body", "the operation has none");
            }
            return;
        }
        if let Value::Object(found) = read(reader, reference, "input") {
            members.extend(found);
        }
        return;
    };
    let Some(inner) = reader.shape(member, name) else { return };
    if member.streaming {
        *streamed = request.body.clone();
        return;
    }
    if request.body.is_empty() {
        return;
    }
    let value = match inner.kind {
        Kind::Structure | Kind::List | Kind::Map => read(reader, member, &format!("input.{name}")),
        Kind::Blob => STANDARD.encode(&request.body).into(),
        _ => String::from_utf8_lossy(&request.body).into_owned().into(),
    };
    members.insert(name.clone(), value);
}

fn scalar(
    reader: &mut Reader<'_>,
    reference: &Reference,
    shape: &Shape,
    usual: TimeFormat,
    text: &str,
    path: &str,
) -> Value {
    text::parse(reader, shape, time_format(reference, shape, usual), text, path)
}

fn header(reader: &mut Reader<'_>, reference: &Reference, shape: &Shape, text: &str, path: &str) -> Value {
    if reference.jsonvalue {
        let decoded = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        return decoded.unwrap_or_else(|| text.to_owned()).into();
    }
    match (shape.kind, &shape.member) {
        (Kind::List, Some(items)) => {
            let Some(item) = reader.shape(items, path) else { return Value::Null };
            let parts = text.split(',').map(str::trim);
            let one = |part| scalar(reader, items, &item, TimeFormat::HttpDate, part, path);
            Value::Array(parts.map(one).collect())
        }
        _ => scalar(reader, reference, shape, TimeFormat::HttpDate, text, path),
    }
}

pub(super) fn reply(
    model: &Model,
    protocol: Protocol,
    operation: &Operation,
    reference: &Reference,
    output: &Value,
    streamed: Bytes,
    reply: &mut Reply,
) {
    let (Some(shape), Some(members)) = (model.shape(&reference.shape), output.as_object()) else { return };
    for (name, value) in members {
        let Some(member) = shape.members.get(name) else { continue };
        let (Some(location), Some(inner)) = (member.location, model.shape(&member.shape)) else { continue };
        let wire = member.location_name.as_ref().unwrap_or(name);
        match (location, value) {
            (Location::StatusCode, value) => {
                reply.status = value.as_u64().and_then(|status| status.try_into().ok()).unwrap_or(reply.status);
            }
            (Location::Headers, Value::Object(entries)) => {
                for (key, value) in entries {
                    reply.set(&format!("{wire}{key}"), value.as_str().unwrap_or_default());
                }
            }
            (_, Value::Array(items)) => {
                let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                reply.set(wire, &items.join(","));
            }
            (_, value) => {
                let format = time_format(member, &inner, TimeFormat::HttpDate);
                reply.set(wire, &text::write(&inner, format, value));
            }
        }
    }
    // A part of an object.
    if is_s3(model) && members.contains_key("ContentRange") {
        reply.status = 206;
    }
    let is_json = protocol == Protocol::RestJson;
    let kind = if is_json { "application/json" } else { "application/xml" };
    let has_type = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let payload = shape.payload.as_ref().and_then(|name| Some((name, shape.members.get(name)?)));
    if let Some((name, member)) = payload {
        let Some(inner) = model.shape(&member.shape) else { return };
        let value = members.get(name);
        reply.body = match (inner.kind, value) {
            _ if member.streaming => streamed,
            (_, None) => Bytes::new(),
            (Kind::Structure | Kind::List | Kind::Map, Some(value)) => {
                if !has_type {
                    reply.set("content-type", kind);
                }
                match is_json {
                    true => json::write_member(model, member, value).to_string().into(),
                    false => {
                        let name = member.location_name.as_deref().or(inner.location_name.as_deref());
                        let namespace = member.xml_namespace.as_ref().or(inner.xml_namespace.as_ref());
                        let namespace = namespace.map_or_else(|| namespace_of(model), |n| n.uri().to_owned());
                        let name = name.unwrap_or(&member.shape);
                        xml::document(model, name, Some(&namespace), member, value).into()
                    }
                }
            }
            (Kind::Blob, Some(value)) => STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default().into(),
            (_, Some(value)) => value.as_str().unwrap_or_default().to_owned().into(),
        };
        return;
    }
    let has_body = shape.members.values().any(|member| member.location.is_none());
    if is_json {
        reply.set("content-type", kind);
        reply.body = json::write(model, &shape, output, true).to_string().into();
    } else if has_body {
        reply.set("content-type", kind);
        let inside = xml::members(model, Some(&shape), members);
        reply.body = if operation.name == "GetBucketLocation" && is_s3(model) {
            // The one answer whose root is its only member.
            let region = members.get("LocationConstraint").and_then(Value::as_str).unwrap_or_default();
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<LocationConstraint xmlns=\"{}\">{region}</LocationConstraint>", namespace_of(model)).into()
        } else {
            let known = S3_ROOTS.iter().find(|(known, _)| is_s3(model) && *known == operation.name);
            let name = match (known, reference.shape.strip_suffix("Output")) {
                (Some((_, root)), _) => (*root).to_owned(),
                (None, Some(name)) => format!("{name}Result"),
                (None, None) => reference.shape.clone(),
            };
            let namespace = namespace_of(model);
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name} xmlns=\"{namespace}\">{inside}</{name}>")
                .into()
        };
    }
}

/// Roots of S3's answers, which the model does not name and clients check
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html>).
const S3_ROOTS: &[(&str, &str)] = &[
    ("DeleteObjects", "DeleteResult"),
    ("GetBucketLifecycleConfiguration", "LifecycleConfiguration"),
    ("GetBucketTagging", "Tagging"),
    ("GetBucketVersioning", "VersioningConfiguration"),
    ("ListBuckets", "ListAllMyBucketsResult"),
    ("ListObjectVersions", "ListVersionsResult"),
    ("ListObjects", "ListBucketResult"),
    ("ListObjectsV2", "ListBucketResult"),
];

fn namespace_of(model: &Model) -> String {
    match is_s3(model) {
        true => "http://s3.amazonaws.com/doc/2006-03-01/".to_owned(),
        false => format!("https://route53.amazonaws.com/doc/{}/", model.metadata.api_version),
    }
}
