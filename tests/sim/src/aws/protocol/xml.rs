//! XML: bodies of `rest-xml`, and answers of `query` and `ec2`.

use serde_json::{Map, Value};

use super::Reader;
use super::text::{self, TimeFormat, time_format};
use crate::aws::model::{Kind, Model, Operation, Protocol, Reference, Shape};
use crate::aws::xml::{Element, escape};

/// The name of a member's element.
fn name_of<'a>(name: &'a str, member: &'a Reference, shape: &'a Shape) -> &'a str {
    // The name of a list without an element around its items is that of its items.
    let items = shape.member.as_ref().filter(|_| shape.kind == Kind::List && is_flat(member, shape));
    let items = items.and_then(|items| items.location_name.as_deref());
    items.or(member.location_name.as_deref()).or(shape.location_name.as_deref()).unwrap_or(name)
}

fn is_flat(reference: &Reference, shape: &Shape) -> bool {
    reference.flattened || shape.flattened
}

pub(super) fn parse(reader: &mut Reader<'_>, reference: &Reference, body: &[u8], path: &str) -> Value {
    let parsed = std::str::from_utf8(body).map_err(|e| e.to_string()).and_then(Element::parse);
    match (parsed, reader.shape(reference, path)) {
        (Ok(root), Some(shape)) => read(reader, reference, &shape, root, path),
        (Err(error), _) => {
            reader.problem(path, format!("it is not XML: {error}"));
            Value::Null
        }
        (Ok(_), None) => Value::Null,
    }
}

fn read(reader: &mut Reader<'_>, reference: &Reference, shape: &Shape, element: Element, path: &str) -> Value {
    match shape.kind {
        Kind::Structure => structure(reader, shape, element, path),
        Kind::List => items(reader, shape, element.children, path, true),
        Kind::Map => entries(reader, shape, element.children, path),
        _ => {
            element.children.iter().for_each(|child| reader.problem(path, format!("{:?} is below text", child.name)));
            text::parse(reader, shape, time_format(reference, shape, TimeFormat::Rfc3339), &element.text, path)
        }
    }
}

fn structure(reader: &mut Reader<'_>, shape: &Shape, mut element: Element, path: &str) -> Value {
    let mut members = Map::new();
    for (name, member) in shape.members.iter().filter(|(_, member)| member.location.is_none()) {
        let path = format!("{path}.{name}");
        let Some(inner) = reader.shape(member, &path) else { continue };
        let wire = name_of(name, member, &inner);
        if member.xml_attribute {
            let wire = wire.rsplit(':').next().unwrap_or(wire);
            let found = element.attributes.iter().find(|(key, _)| key.rsplit(':').next() == Some(wire));
            if let Some((_, value)) = found {
                members.insert(name.clone(), value.clone().into());
            }
            continue;
        }
        let (mut found, rest): (Vec<Element>, Vec<Element>) =
            element.children.into_iter().partition(|child| child.name == wire);
        element.children = rest;
        let is_flat = is_flat(member, &inner);
        let value = match (inner.kind, found.len()) {
            (_, 0) => continue,
            (Kind::List, _) if is_flat => items(reader, &inner, found, &path, false),
            (Kind::Map, _) if is_flat => entries(reader, &inner, found, &path),
            (_, count) => {
                if count > 1 {
                    reader.problem(&path, "it is given twice");
                }
                read(reader, member, &inner, found.swap_remove(0), &path)
            }
        };
        members.insert(name.clone(), value);
    }
    element
        .children
        .iter()
        .for_each(|child| reader.problem(path, format!("the model has no member for {:?}", child.name)));
    Value::Object(members)
}

fn items(reader: &mut Reader<'_>, shape: &Shape, elements: Vec<Element>, path: &str, is_named: bool) -> Value {
    let Some(member) = &shape.member else { return Value::Null };
    let wanted = member.location_name.as_deref().unwrap_or("member");
    let mut values = Vec::new();
    for (index, element) in elements.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        if is_named && element.name != wanted {
            reader.problem(&path, format!("{:?} is not {wanted:?}", element.name));
        }
        if let Some(inner) = reader.shape(member, &path) {
            values.push(read(reader, member, &inner, element, &path));
        }
    }
    Value::Array(values)
}

fn entries(reader: &mut Reader<'_>, shape: &Shape, elements: Vec<Element>, path: &str) -> Value {
    let mut entries = Map::new();
    let (Some(key), Some(item)) = (&shape.key, &shape.value) else { return Value::Object(entries) };
    let (key_name, item_name) = (
        key.location_name.as_deref().unwrap_or("key").to_owned(),
        item.location_name.as_deref().unwrap_or("value").to_owned(),
    );
    for mut entry in elements {
        let position = |wanted: &str, entry: &Element| entry.children.iter().position(|child| child.name == wanted);
        let key = position(&key_name, &entry).map(|at| entry.children.swap_remove(at).text);
        let value = position(&item_name, &entry).map(|at| entry.children.swap_remove(at));
        match (key, value, reader.shape(item, path)) {
            (Some(key), Some(value), Some(inner)) => {
                let value = read(reader, item, &inner, value, &format!("{path}.{key}"));
                entries.insert(key, value);
            }
            _ => reader.problem(path, "an entry has no key or no value"),
        }
    }
    Value::Object(entries)
}

/// The answer of the protocols whose input is a form.
pub(super) fn form_reply(
    model: &Model,
    protocol: Protocol,
    operation: &Operation,
    reference: &Reference,
    output: &Value,
    request_id: &str,
) -> String {
    let shape = model.shape(&reference.shape);
    let body =
        shape.map(|shape| members(model, Some(&shape), output.as_object().unwrap_or(&Map::new()))).unwrap_or_default();
    let namespace = model
        .metadata
        .xml_namespace
        .as_ref()
        .map(|n| n.uri().to_owned())
        .unwrap_or_else(|| format!("http://{}.amazonaws.com/doc/{}/", operation.name, model.metadata.api_version));
    let (name, namespace, id) = (&operation.name, escape(&namespace), escape(request_id));
    let inside = match (protocol, &reference.result_wrapper) {
        (Protocol::Ec2, _) => format!("<requestId>{id}</requestId>{body}"),
        (_, Some(wrapper)) => {
            format!("<{wrapper}>{body}</{wrapper}><ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>")
        }
        (_, None) => format!("{body}<ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>"),
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name}Response xmlns=\"{namespace}\">{inside}</{name}Response>"
    )
}

/// A whole document of one value.
pub(super) fn document(
    model: &Model,
    name: &str,
    namespace: Option<&str>,
    reference: &Reference,
    value: &Value,
) -> String {
    let mut out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let namespace = namespace.map(|uri| format!(" xmlns=\"{}\"", escape(uri))).unwrap_or_default();
    write(model, &mut out, name, &namespace, reference, value);
    out
}

/// The elements of a structure's members that lie in the body.
pub(super) fn members(model: &Model, shape: Option<&Shape>, values: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (name, value) in values {
        let Some(member) = shape.and_then(|shape| shape.members.get(name)) else { continue };
        if member.location.is_none() && !member.xml_attribute {
            member_into(model, &mut out, name, member, value);
        }
    }
    out
}

fn member_into(model: &Model, out: &mut String, name: &str, member: &Reference, value: &Value) {
    let Some(shape) = model.shape(&member.shape) else { return };
    let wire = name_of(name, member, &shape);
    match (shape.kind, value) {
        (Kind::List, Value::Array(items)) if is_flat(member, &shape) => {
            let Some(item) = &shape.member else { return };
            items.iter().for_each(|value| write(model, out, wire, "", item, value));
        }
        (Kind::Map, Value::Object(entries)) if is_flat(member, &shape) => {
            entries.iter().for_each(|(key, value)| entry(model, out, wire, &shape, key, value));
        }
        _ => {
            let namespace = member.xml_namespace.as_ref().map(|n| format!(" xmlns=\"{}\"", escape(n.uri())));
            write(model, out, wire, &namespace.unwrap_or_default(), member, value);
        }
    }
}

fn entry(model: &Model, out: &mut String, wire: &str, shape: &Shape, key: &str, value: &Value) {
    let (Some(named), Some(item)) = (&shape.key, &shape.value) else { return };
    out.push_str(&format!("<{wire}>"));
    write(model, out, named.location_name.as_deref().unwrap_or("key"), "", named, &Value::String(key.to_owned()));
    write(model, out, item.location_name.as_deref().unwrap_or("value"), "", item, value);
    out.push_str(&format!("</{wire}>"));
}

fn write(model: &Model, out: &mut String, name: &str, attributes: &str, reference: &Reference, value: &Value) {
    let Some(shape) = model.shape(&reference.shape) else { return };
    let mut own = attributes.to_owned();
    if let Value::Object(values) = value {
        for (name, member) in shape.members.iter().filter(|(_, member)| member.xml_attribute) {
            if let Some(Value::String(text)) = values.get(name) {
                let wire = member.location_name.as_deref().unwrap_or(name);
                if let Some(Namespace { uri, prefix }) = prefixed(reference, &shape) {
                    own.push_str(&format!(" xmlns:{prefix}=\"{}\"", escape(uri)));
                }
                own.push_str(&format!(" {wire}=\"{}\"", escape(text)));
            }
        }
    }
    out.push_str(&format!("<{name}{own}>"));
    match (shape.kind, value) {
        (Kind::Structure, Value::Object(values)) => out.push_str(&members(model, Some(&shape), values)),
        (Kind::List, Value::Array(items)) => {
            if let Some(item) = &shape.member {
                let wire = item.location_name.as_deref().unwrap_or("member");
                items.iter().for_each(|value| write(model, out, wire, "", item, value));
            }
        }
        (Kind::Map, Value::Object(entries)) => {
            entries.iter().for_each(|(key, value)| entry(model, out, "entry", &shape, key, value));
        }
        _ => out.push_str(&escape(&text::write(&shape, time_format(reference, &shape, TimeFormat::Rfc3339), value))),
    }
    out.push_str(&format!("</{name}>"));
}

struct Namespace<'a> {
    uri: &'a str,
    prefix: &'a str,
}

fn prefixed<'a>(reference: &'a Reference, shape: &'a Shape) -> Option<Namespace<'a>> {
    use crate::aws::model::Namespace as Declared;
    match reference.xml_namespace.as_ref().or(shape.xml_namespace.as_ref()) {
        Some(Declared::Full { uri, prefix: Some(prefix) }) => Some(Namespace { uri, prefix }),
        _ => None,
    }
}
