//! Objects as other tools declare them, for an export of what exists and of what is wanted.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::name::{CloudId, EnvironmentName, Lineage};
use crate::resource::{Outputs, Recorded, Wanted};

/// A tool whose files declare the objects of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Terraform and OpenTofu.
    Terraform,
    /// AWS CloudFormation.
    CloudFormation,
    /// Bicep, and thus Azure Resource Manager.
    Bicep,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terraform => "terraform",
            Self::CloudFormation => "cloudformation",
            Self::Bicep => "bicep",
        })
    }
}

/// The file of objects of a whole subscription: see [`Declaration::file`].
pub const SUBSCRIPTION_SCOPE: &str = "subscription";

/// A request to declare one object.
#[derive(Debug, Clone, Copy)]
pub struct Declare<'a> {
    /// The tool.
    pub tool: Tool,
    /// The environment.
    pub environment: &'a EnvironmentName,
    /// The deployment.
    pub lineage: Lineage,
    /// The object: as recorded, with the attributes that the provider showed last.
    pub object: &'a Recorded,
    /// All objects of its site.
    pub beside: &'a [Recorded],
    /// Whether it does not exist: its attributes are the wanted ones, and each value that only a creation shows is a [`Placeholder`].
    pub is_planned: bool,
}

/// An object before its creation.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedObject {
    /// Its id if that follows from its spec, else a placeholder.
    pub cloud_id: CloudId,
    /// Its outputs: what follows from its spec, and placeholders. One that no declaration can refer to is missing.
    pub outputs: Outputs,
}

/// The value of an output that only the creation of its object shows: a text that no other value contains. Exports replace it by a
/// reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholder<'t> {
    /// The kind of the object.
    pub kind: &'t str,
    /// Its resource.
    pub resource: &'t str,
    /// The output.
    pub output: &'t str,
}

/// Begin, divide and end a placeholder: private characters, which no attribute of an object has.
const BEGIN: char = '\u{e001}';
const DIVIDE: char = '\u{e002}';
const END: char = '\u{e003}';

impl<'t> Placeholder<'t> {
    /// That of an output of a wanted resource.
    pub fn of(wanted: &'t Wanted, output: &'t str) -> Self {
        Self { kind: wanted.kind.as_str(), resource: wanted.id.as_str(), output }
    }

    /// The placeholder that a whole text is.
    pub fn read(text: &'t str) -> Option<Self> {
        let mut members = text.strip_prefix(BEGIN)?.strip_suffix(END)?.split(DIVIDE);
        let (kind, resource, output) = (members.next()?, members.next()?, members.next()?);
        members.next().is_none().then_some(Self { kind, resource, output })
    }
}

impl fmt::Display for Placeholder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BEGIN}{}{DIVIDE}{}{DIVIDE}{}{END}", self.kind, self.resource, self.output)
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Without a placeholder.
    Text(&'t str),
    /// A placeholder.
    Placeholder(&'t str),
}

/// The placeholders in a text, and what is between them.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut all, mut rest) = (Vec::new(), text);
    while let Some((before, _)) = rest.split_once(BEGIN) {
        let (_, found) = rest.split_at(before.len());
        let Some((inside, after)) = found.split_once(END) else { break };
        if !before.is_empty() {
            all.push(Piece::Text(before));
        }
        let (placeholder, _) = found.split_at(inside.len() + END.len_utf8());
        all.push(Piece::Placeholder(placeholder));
        rest = after;
    }
    if !rest.is_empty() {
        all.push(Piece::Text(rest));
    }
    all
}

/// An object in the terms of a tool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declaration {
    /// The tool's type: `google_compute_network`, `Microsoft.Network/virtualNetworks@2024-05-01`, `AWS::EC2::VPC`.
    pub kind: String,
    /// Its attributes. A text that equals an output of another object becomes a reference to it, and a reference to a secret a
    /// variable.
    pub body: Map<String, Value>,
    /// Its id, as the tool imports it.
    pub id: String,
    /// The members of that id, for a tool that asks for each.
    pub identifiers: BTreeMap<String, String>,
    /// The attributes in the tool's terms of the outputs that others can refer to.
    pub outputs: BTreeMap<String, String>,
    /// The plugin of the tool that knows the type.
    pub plugin: Option<Plugin>,
    /// What the object is in, for a tool that nests objects.
    pub within: Option<Within>,
    /// The file with it, without an extension, for a tool that deploys one scope at a time.
    pub file: String,
    /// Attributes that other programs change: the tool leaves them as they are.
    pub ignored: &'static [&'static str],
    /// What of the object is not declared and stays as it is, such as a password; empty if nothing.
    pub without: &'static str,
    /// The attributes that operators set for each environment, such as a count of nodes: their names, and their places in the body as
    /// JSON pointers. A tool with a file of values has them there.
    pub settings: &'static [(&'static str, &'static str)],
}

/// A plugin of a tool: a provider of Terraform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plugin {
    /// Its local name: `google`.
    pub name: &'static str,
    /// Its address in the registry: `hashicorp/google`.
    pub source: &'static str,
    /// The supported versions.
    pub version: &'static str,
    /// Its settings, such as the region.
    pub settings: BTreeMap<&'static str, String>,
}

/// What a nested object is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Within {
    /// A part of an object.
    Parent {
        /// The id of that object.
        id: String,
        /// The name of that object, with those of what it is in: `account/default`.
        name: String,
    },
    /// An extension of the object with this id.
    Scope(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_in_texts() {
        let one = Placeholder { kind: "memory.thing", resource: "here/thing", output: "id" };
        let text = one.to_string();
        assert_eq!(Placeholder::read(&text), Some(one));
        assert_eq!(
            pieces(&format!("a{text}b{text}")),
            [Piece::Text("a"), Piece::Placeholder(&text), Piece::Text("b"), Piece::Placeholder(&text)]
        );
        assert_eq!(pieces("plain"), [Piece::Text("plain")]);
        let cut = text.trim_end_matches(END);
        assert_eq!((pieces(cut), Placeholder::read(cut)), (vec![Piece::Text(cut)], None));
    }
}
