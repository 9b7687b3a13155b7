//! Forms: the input of the protocols `query` and `ec2`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::text::{self, TimeFormat, time_format};
use super::{Reader, Request};
use crate::aws::model::{Kind, Protocol, Reference, Shape};

/// The names of a form, split at their dots.
#[derive(Default)]
struct Node {
    value: Option<String>,
    children: BTreeMap<String, Node>,
}

/// How many parts a name may have.
const MAX_DEPTH: usize = 64;

pub(super) fn parse(reader: &mut Reader<'_>, protocol: Protocol, reference: &Reference, request: &Request) -> Value {
    let mut root = Node::default();
    for (name, value) in request.form() {
        match name.as_str() {
            "Action" => {}
            "Version" if value == reader.model.metadata.api_version => {}
            "Version" => reader.problem("Version", format!("{value:?} is not the model's")),
            name => {
                let mut node = &mut root;
                for part in name.split('.').take(MAX_DEPTH) {
                    node = node.children.entry(part.to_owned()).or_default();
                }
                if node.value.replace(value).is_some() {
                    reader.problem(name, "it is given twice");
                }
            }
        }
    }
    let form = Form { is_ec2: protocol == Protocol::Ec2 };
    match reader.shape(reference, "input") {
        Some(shape) => form.structure(reader, &shape, root, ""),
        None => {
            root.children.keys().for_each(|name| reader.problem(name, "the operation has no input"));
            Value::Object(Map::new())
        }
    }
}

struct Form {
    is_ec2: bool,
}

impl Form {
    fn name(&self, name: &str, member: &Reference, shape: &Shape) -> String {
        if self.is_ec2 {
            if let Some(name) = &member.query_name {
                return name.clone();
            }
            let mut name = member.location_name.as_deref().unwrap_or(name).to_owned();
            if let Some(first) = name.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            return name;
        }
        // The name of a list without elements around its items is that of its items.
        let items = shape.member.as_ref().filter(|_| shape.flattened || member.flattened);
        let items = items.and_then(|items| items.location_name.as_deref());
        items.or(member.location_name.as_deref()).unwrap_or(name).to_owned()
    }

    fn structure(&self, reader: &mut Reader<'_>, shape: &Shape, mut node: Node, path: &str) -> Value {
        let mut members = Map::new();
        for (name, member) in &shape.members {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(inner) = reader.shape(member, &path) else { continue };
            if let Some(node) = node.children.remove(&self.name(name, member, &inner)) {
                members.insert(name.clone(), self.value(reader, member, &inner, node, &path));
            }
        }
        for name in node.children.keys() {
            reader.problem(path, format!("the model has no member for {name:?}"));
        }
        Value::Object(members)
    }

    fn value(&self, reader: &mut Reader<'_>, reference: &Reference, shape: &Shape, node: Node, path: &str) -> Value {
        match shape.kind {
            Kind::Structure => self.structure(reader, shape, node, path),
            Kind::List => self.list(reader, reference, shape, node, path),
            Kind::Map => self.map(reader, reference, shape, node, path),
            _ => {
                node.children.keys().for_each(|name| reader.problem(path, format!("{name:?} is below a scalar")));
                let text = node.value.unwrap_or_default();
                let format = time_format(reference, shape, TimeFormat::Rfc3339);
                text::parse(reader, shape, format, &text, path)
            }
        }
    }

    fn list(&self, reader: &mut Reader<'_>, reference: &Reference, shape: &Shape, mut node: Node, path: &str) -> Value {
        let Some(member) = &shape.member else { return Value::Array(Vec::new()) };
        if !self.is_ec2 && !shape.flattened && !reference.flattened {
            node = self.below(reader, node, member.location_name.as_deref().unwrap_or("member"), path);
        }
        let nodes = numbered(reader, node, path);
        let Some(inner) = reader.shape(member, path) else { return Value::Array(Vec::new()) };
        let one = |(index, node)| self.value(reader, member, &inner, node, &format!("{path}[{index}]"));
        Value::Array(nodes.into_iter().enumerate().map(one).collect())
    }

    fn map(&self, reader: &mut Reader<'_>, reference: &Reference, shape: &Shape, mut node: Node, path: &str) -> Value {
        let (Some(key), Some(item)) = (&shape.key, &shape.value) else { return Value::Object(Map::new()) };
        if !shape.flattened && !reference.flattened {
            node = self.below(reader, node, "entry", path);
        }
        let mut entries = Map::new();
        let Some(inner) = reader.shape(item, path) else { return Value::Object(entries) };
        for mut entry in numbered(reader, node, path) {
            let name = entry.children.remove(key.location_name.as_deref().unwrap_or("key"));
            let value = entry.children.remove(item.location_name.as_deref().unwrap_or("value"));
            let (Some(name), Some(value)) = (name.and_then(|name| name.value), value) else {
                reader.problem(path, "an entry has no key or no value");
                continue;
            };
            let value = self.value(reader, item, &inner, value, &format!("{path}.{name}"));
            entries.insert(name, value);
        }
        Value::Object(entries)
    }

    /// The part below a name, which is the only one. Nothing at all, or empty text, is an empty list.
    fn below(&self, reader: &mut Reader<'_>, mut node: Node, name: &str, path: &str) -> Node {
        let below = node.children.remove(name).unwrap_or_default();
        node.children.keys().for_each(|other| reader.problem(path, format!("{other:?} is not {name:?}")));
        below
    }
}

/// The parts below 1, 2, 3, ….
fn numbered(reader: &mut Reader<'_>, node: Node, path: &str) -> Vec<Node> {
    let mut items = BTreeMap::new();
    for (name, node) in node.children {
        match name.parse::<usize>() {
            Ok(number) if number > 0 => drop(items.insert(number, node)),
            _ => reader.problem(path, format!("{name:?} is no number of an item")),
        }
    }
    if items.keys().copied().ne(1..=items.len()) {
        reader.problem(path, "the numbers of items have gaps");
    }
    items.into_values().collect()
}
