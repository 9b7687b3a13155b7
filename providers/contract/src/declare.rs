//! Objects as other tools declare them, for an export of what exists.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::name::{EnvironmentName, Lineage};
use crate::resource::Recorded;

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
