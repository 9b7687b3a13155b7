//! Objects as CloudFormation and Terraform's provider `awscc` declare them. `awscc` mirrors the types of CloudFormation with attributes in
//! snake case (<https://registry.terraform.io/providers/hashicorp/awscc/latest/docs>), so that one table serves both.
//!
//! Values that no answer of AWS shows, such as passwords, are in no declaration of an object that exists: an import leaves them as they
//! are. A new object has them ([`New`]).

mod forms;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use textnlp_cloud::region_of;
use textnlp_cloud::tags::{self, Tags};
use textnlp_provider::{CloudId, Declaration, Declare, Outputs, Placeholder, PlannedObject, Plugin, Tool, Wanted};

use crate::api::Api;

/// How an object of a kind is declared.
struct Form {
    kind: &'static str,
    /// Its type in CloudFormation.
    of: &'static str,
    /// Whether `awscc` has that type.
    has_awscc: bool,
    /// Fields of the spec and the places of their properties.
    fields: &'static [(&'static str, &'static str)],
    /// Properties by code.
    more: fn(&Object<'_>) -> Value,
    tagging: Tagging,
    /// The members of its primary identifier, in the order of the type's schema.
    identifiers: &'static [(&'static str, Source)],
    /// The outputs that others refer to, and their attributes. [`REF`] is the first identifier.
    outputs: &'static [(&'static str, &'static str)],
    /// Objects of other types that are a part of it.
    parts: fn(&Object<'_>) -> Vec<Part>,
    /// What is not declared of it, because the state has no id of it.
    without: &'static str,
    ignored: &'static [&'static str],
    /// What differs for an object that does not exist.
    new: New,
    /// See [`Declaration::settings`]: attributes of `awscc`.
    settings: &'static [(&'static str, &'static str)],
}

/// How the declaration of a new object differs.
struct New {
    /// More properties.
    more: fn(&Object<'_>) -> Value,
    /// More objects that are a part of it.
    parts: fn(&Object<'_>) -> Vec<Part>,
    /// More outputs that others refer to.
    outputs: &'static [(&'static str, &'static str)],
    /// What is not declared of it, where that differs.
    without: Option<&'static str>,
}

impl New {
    /// No difference.
    const USUAL: Self = Self { more: |_| Value::Null, parts: |_| Vec::new(), outputs: &[], without: None };
}

impl Form {
    /// A form with the usual values.
    const USUAL: Self = Self {
        kind: "",
        of: "",
        has_awscc: true,
        fields: &[],
        more: |_| Value::Null,
        tagging: Tagging::List("Tags"),
        identifiers: &[],
        outputs: &[],
        parts: |_| Vec::new(),
        without: "",
        ignored: &[],
        new: New::USUAL,
        settings: &[],
    };

    /// The first identifier of an object, where a field of its spec has it.
    fn named<'s>(&self, spec: &'s Value) -> Option<&'s str> {
        match self.identifiers.first() {
            Some((_, Source::Field(field))) => spec[*field].as_str(),
            _ => None,
        }
    }
}

/// The reference to an object itself.
const REF: &str = "Ref";

/// Where the tags of an object are.
#[derive(Clone, Copy)]
enum Tagging {
    /// A list of keys and values, in this property.
    List(&'static str),
    /// An object with a member for each tag.
    Map,
    /// The type has none.
    None,
}

/// Where a member of an identifier comes from.
#[derive(Clone, Copy)]
enum Source {
    /// The id of the object.
    Id,
    /// A field of its spec.
    Field(&'static str),
    /// One of its outputs.
    Output(&'static str),
    /// The same for all objects.
    Text(&'static str),
    /// By code, from the id.
    Code(fn(&str) -> String),
}

/// An object of another type.
struct Part {
    of: &'static str,
    properties: Value,
    identifiers: Vec<(&'static str, String)>,
}

/// An object to declare.
struct Object<'a> {
    id: &'a str,
    spec: &'a Value,
    outputs: &'a BTreeMap<String, Value>,
    tags: Tags,
}

impl Object<'_> {
    fn output(&self, name: &str) -> Value {
        self.outputs.get(name).cloned().unwrap_or_default()
    }

    /// The tags as CloudFormation lists them.
    fn listed(&self) -> Value {
        listed(self.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

/// Fields of specs that are outputs too, with the same value.
const OF_SPEC: [&str; 3] = ["name", "cidr", "version"];

/// What is known of an object before its creation.
pub(crate) fn planned(wanted: &Wanted) -> Option<PlannedObject> {
    let form = forms::ALL.iter().find(|form| form.kind == wanted.kind.as_str())?;
    let spec = wanted.spec.as_value();
    let of = |output: &str| Value::from(Placeholder::of(wanted, output).to_string());
    let mut outputs = Outputs::new();
    for (output, attribute) in form.new.outputs.iter().chain(form.outputs) {
        let value = form.named(spec).filter(|_| *attribute == REF).map_or_else(|| of(output), Value::from);
        outputs.entry((*output).to_owned()).or_insert(value);
    }
    for field in OF_SPEC {
        if let Some(value) = wanted.spec.get(field) {
            outputs.entry(field.to_owned()).or_insert_with(|| value.clone());
        }
    }
    let id = crate::table::row(&wanted.kind).and_then(|row| row.resource.id(&wanted.spec));
    let id = id.unwrap_or_else(|| Placeholder::of(wanted, "id").to_string());
    Some(PlannedObject { cloud_id: CloudId::new(id).ok()?, outputs, is_optional: false })
}

/// Tags as CloudFormation lists them.
fn listed<'t>(tags: impl Iterator<Item = (&'t str, &'t str)>) -> Value {
    tags.map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}

/// The declarations of an object, in a site of a region.
pub(crate) fn declarations(request: &Declare<'_>, region: &str) -> Option<Result<Vec<Declaration>, String>> {
    if request.tool == Tool::Bicep {
        return None;
    }
    let form = forms::ALL.iter().find(|form| form.kind == request.object.kind.as_str())?;
    if request.tool == Tool::Terraform && !form.has_awscc {
        return Some(Err(format!("the provider awscc has no resource for {}", form.of)));
    }
    Some(declared(form, request, region))
}

fn declared(form: &'static Form, request: &Declare<'_>, region: &str) -> Result<Vec<Declaration>, String> {
    let Declare { tool, environment, lineage, object: recorded, is_planned, .. } = *request;
    let region = region_of(&recorded.spec).unwrap_or(region);
    let own = tags::in_spec(&recorded.spec);
    let object = Object {
        id: recorded.cloud_id.as_str(),
        spec: recorded.spec.as_value(),
        outputs: &recorded.outputs,
        tags: tags::of_object::<Api>(lineage, environment, &recorded.id, &own),
    };
    let identifiers = form.identifiers.iter().map(|(name, source)| {
        let value = match source {
            Source::Id => json!(object.id),
            Source::Field(field) => object.spec[*field].clone(),
            Source::Output(output) => object.output(output),
            Source::Text(text) => json!(text),
            Source::Code(code) => json!(code(object.id)),
        };
        match value.as_str() {
            Some(text) => Ok((*name, text.to_owned())),
            // Nothing imports it.
            None if is_planned => Ok((*name, String::new())),
            None => Err(format!("CloudFormation identifies it by its {name}, which it does not have")),
        }
    });
    let identifiers: Vec<(&'static str, String)> = identifiers.collect::<Result<_, _>>()?;
    let new = is_planned.then_some(&form.new);
    let main = Part { of: form.of, properties: properties(form, new, &object), identifiers };
    let file = format!("{environment}-{}-{region}", recorded.site);
    let write = |part: Part| declaration(tool, part, (form, region, file.as_str()));
    let mut first = write(main);
    if let Some(new) = new {
        first.outputs.extend(attributes_of(tool, new.outputs, ""));
        first.without = new.without.unwrap_or(first.without);
    }
    let mut all = vec![first];
    all.extend((form.parts)(&object).into_iter().map(write));
    let more = new.map(|new| (new.parts)(&object)).unwrap_or_default();
    all.extend(more.into_iter().map(|part| Declaration { is_new_only: true, ..write(part) }));
    // Of its parts nothing is referred to.
    for part in all.iter_mut().skip(1) {
        part.outputs.clear();
        part.without = "";
        part.ignored = &[];
        part.settings = &[];
    }
    Ok(all)
}

/// The attributes of outputs in the terms of a tool. `first` is the first identifier.
fn attributes_of(tool: Tool, outputs: &[(&str, &str)], first: &str) -> BTreeMap<String, String> {
    let named = outputs.iter().map(|(output, attribute)| {
        let attribute = match (tool, *attribute) {
            (Tool::Terraform, REF) => snake(first),
            (Tool::Terraform, attribute) => attribute.split('.').map(snake).collect::<Vec<_>>().join("."),
            (_, attribute) => attribute.to_owned(),
        };
        ((*output).to_owned(), attribute)
    });
    named.collect()
}

fn properties(form: &Form, new: Option<&New>, object: &Object<'_>) -> Value {
    let mut all = json!({});
    for (field, to) in form.fields {
        textnlp_cloud::document::set(&mut all, to, object.spec[*field].clone());
    }
    let more = new.map(|new| (new.more)(object)).unwrap_or_default();
    for more in [(form.more)(object), more] {
        if more.is_object() {
            merge(&mut all, more);
        }
    }
    match form.tagging {
        Tagging::List(to) => all[to] = object.listed(),
        Tagging::Map => all["Tags"] = json!(object.tags),
        Tagging::None => {}
    }
    all
}

/// Sets the members of a value, also those of its members.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, member) in from {
                merge(into.entry(name).or_insert(Value::Null), member);
            }
        }
        (into, from) => *into = from,
    }
}

fn declaration(tool: Tool, part: Part, (form, region, file): (&'static Form, &str, &str)) -> Declaration {
    let properties = without_empty(part.properties);
    let first = part.identifiers.first().map(|(name, _)| *name).unwrap_or_default();
    let outputs = attributes_of(tool, form.outputs, first);
    let id = part.identifiers.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("|");
    let identifiers = part.identifiers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let (kind, properties, plugin) = match tool {
        Tool::Terraform => {
            let settings = BTreeMap::from([("region", region.to_owned())]);
            let plugin = Plugin { name: "awscc", source: "hashicorp/awscc", version: "~> 1.100", settings };
            (resource(part.of), attributes(&properties), Some(plugin))
        }
        _ => (part.of.to_owned(), properties, None),
    };
    let body = match properties {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    let (file, ignored, without) = (file.to_owned(), form.ignored, form.without);
    let settings = if tool == Tool::Terraform { form.settings } else { &[] };
    Declaration {
        kind,
        body,
        id,
        identifiers,
        outputs,
        plugin,
        file,
        ignored,
        without,
        settings,
        ..Declaration::default()
    }
}

/// A value without members that say nothing.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let all = members.into_iter().map(|(name, member)| (name, without_empty(member)));
            Value::Object(all.filter(|(_, member)| !is_empty(member)).collect())
        }
        Value::Array(items) => items.into_iter().map(without_empty).collect(),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// Properties without a schema of their own: `awscc` has them as JSON texts.
const DOCUMENTS: [&str; 5] = ["AssumeRolePolicyDocument", "PolicyDocument", "KeyPolicy", "Parameters", "FilterPolicy"];
/// Properties with keys of operators.
const MAPS: [&str; 2] = ["Environment", "Labels"];

/// Properties as attributes of `awscc`.
fn attributes(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let attribute = |(name, member): (&String, &Value)| {
                let is_map = MAPS.contains(&name.as_str()) || (name == "Tags" && member.is_object());
                let member = match member {
                    document if DOCUMENTS.contains(&name.as_str()) => Value::from(document.to_string()),
                    map if is_map => map.clone(),
                    other => attributes(other),
                };
                (snake(name), member)
            };
            Value::Object(members.iter().map(attribute).collect())
        }
        Value::Array(items) => items.iter().map(attributes).collect(),
        other => other.clone(),
    }
}

/// The resource of `awscc` for a type: `awscc_ec2_vpc_endpoint` of `AWS::EC2::VPCEndpoint`.
fn resource(of: &str) -> String {
    let mut parts = of.split("::").skip(1);
    let (service, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("awscc_{}_{}", service.to_ascii_lowercase(), snake(name))
}

/// A name in snake case, with acronyms as words: `db_instance_arn` of `DBInstanceArn`.
fn snake(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::with_capacity(name.len() + 8);
    for (place, c) in chars.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|before| chars.get(before));
        let is_last_of_acronym = chars.get(place + 1).is_some_and(char::is_ascii_lowercase);
        let begins_word = before.is_some_and(|before| !before.is_ascii_uppercase() || is_last_of_acronym);
        if c.is_ascii_uppercase() && begins_word {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{
        CloudId, EnvironmentName, KindName, Lineage, Outputs, Ownership, Recorded, ResourceId, SiteName, Spec,
    };
    use uuid::Uuid;

    use super::*;

    fn declared_as(tool: Tool, kind: &str, id: &str, spec: Value, outputs: Value) -> Result<Vec<Declaration>, String> {
        let (id, outputs) = (CloudId::new(id).unwrap(), serde_json::from_value::<Outputs>(outputs).unwrap());
        declared_object(tool, kind, Spec::of(&spec), PlannedObject { cloud_id: id, outputs, is_optional: false }, false)
    }

    fn declared_object(
        tool: Tool,
        kind: &str,
        spec: Spec,
        object: PlannedObject,
        is_planned: bool,
    ) -> Result<Vec<Declaration>, String> {
        let object = Recorded {
            id: ResourceId::new("here/one").unwrap(),
            kind: KindName::new(kind).unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec,
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: object.cloud_id,
            created: None,
            outputs: object.outputs,
            protected: false,
            tainted: false,
        };
        let environment = EnvironmentName::new("staging").unwrap();
        let lineage = Lineage(Uuid::nil());
        let request = Declare { tool, environment: &environment, lineage, object: &object, beside: &[], is_planned };
        declarations(&request, "eu-central-1").unwrap()
    }

    fn wanted(kind: &str, spec: &Value) -> Wanted {
        Wanted {
            id: ResourceId::new("here/one").unwrap(),
            kind: KindName::new(kind).unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec: Spec::of(spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        }
    }

    /// The declarations of an object that does not exist.
    fn new(tool: Tool, kind: &str, spec: &Value) -> Vec<Declaration> {
        let wanted = wanted(kind, spec);
        let object = planned(&wanted).unwrap();
        declared_object(tool, kind, wanted.spec, object, true).unwrap()
    }

    #[test]
    fn every_kind_is_declared_or_refused_with_a_reason() {
        for row in crate::table::rows() {
            let count = forms::ALL.iter().filter(|form| form.kind == row.kind.name).count();
            assert_eq!(count, 1, "{}", row.kind.name);
            // A form never panics, whatever a record lacks.
            if let Err(why) = declared_as(Tool::Terraform, row.kind.name, "a:b", json!({}), json!({})) {
                assert!(!why.is_empty());
            }
        }
        let is_known = |form: &Form| crate::table::rows().any(|row| row.kind.name == form.kind);
        assert!(forms::ALL.iter().all(is_known));
    }

    /// A field of a spec that changes no declaration: its kind, its place and the fields in it, and why.
    const UNDECLARED: &[(&str, &str, &str)] = &[
        ("aws.vpc", "/default_rules", "the group is AWS's own: the README says how to remove its rules"),
        ("aws.launch-template", "/hardened", "a declaration always has what it says"),
        ("aws.instance-profile", "/tags", "its type has no tags"),
        ("aws.topic", "/subscriptions/0/pending", "only its owner confirms a subscription"),
        ("aws.repository", "/images", "no type has images"),
        (
            "aws.eks-cluster",
            "/deployer_access",
            "who applies the file is not known: the README says how to give access",
        ),
        ("aws.eks-node-group", "/release", "without a release EKS takes its newest one, as `up` does"),
        ("aws.eks-addon", "/kubernetes", "they are a property of its version"),
        ("aws.db-parameter-group", "/parameters/text/at_restart", "CloudFormation chooses the time by the parameter"),
        ("aws.dns-record", "/tags", "its type has no tags"),
        ("aws.certificate", "/records", "a stack that creates a certificate writes its records"),
        ("aws.endpoint", "/deployment", "it is of the next update: the README says how to declare it"),
        ("aws.endpoint", "/variants", "the first values are those of its configuration, and then autoscaling's"),
    ];

    /// Values without which another field has no place in a declaration.
    const EXAMPLES: &[(&str, &str, &str)] = &[
        ("aws.vpc-endpoint", "/kind", "\"Interface\""),
        ("aws.db-instance", "/source", "null"),
        ("aws.health-check", "/host", "\"192.0.2.1\""),
    ];

    /// A spec of a kind with every field.
    fn example(row: &crate::table::Row) -> Value {
        let mut spec = row.resource.example();
        for (_, place, value) in EXAMPLES.iter().filter(|(kind, ..)| *kind == row.kind.name) {
            *spec.pointer_mut(place).unwrap() = serde_json::from_str(value).unwrap();
        }
        spec
    }

    /// The places of the values in a document.
    fn places(value: &Value, place: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(all) => all.iter().for_each(|(name, one)| places(one, &format!("{place}/{name}"), found)),
            Value::Array(all) => {
                all.iter().enumerate().for_each(|(at, one)| places(one, &format!("{place}/{at}"), found));
            }
            _ => found.push(place.to_owned()),
        }
    }

    /// The places of a spec whose values change no declaration.
    fn undeclared(kind: &str, spec: &Value) -> Vec<String> {
        let declared = |spec: &Value| new(Tool::CloudFormation, kind, spec);
        let before = declared(spec);
        let mut all = Vec::new();
        places(spec, "", &mut all);
        all.retain(|place| {
            let mut other = spec.clone();
            let value = other.pointer_mut(place).unwrap();
            *value = match &*value {
                Value::Bool(on) => json!(!on),
                Value::Number(number) => number.as_i64().map_or(json!(0.5), |number| json!(number + 1)),
                _ => json!("other"),
            };
            declared(&other) == before
        });
        all
    }

    #[test]
    fn every_field_of_a_spec_is_declared_or_left_out_with_a_reason() {
        for row in crate::table::rows() {
            let kind = row.kind.name;
            let spec = example(row);
            assert!(spec.is_object(), "{kind} has no example");
            let known: Vec<&str> =
                UNDECLARED.iter().filter(|(of, ..)| *of == kind).map(|(_, place, _)| *place).collect();
            let is_in = |place: &str, known: &str| {
                place.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let found = undeclared(kind, &spec);
            let lacking: Vec<&String> =
                found.iter().filter(|place| !known.iter().any(|known| is_in(place, known))).collect();
            assert!(lacking.is_empty(), "{kind}: declare {lacking:?}, or say why not in UNDECLARED");
            for known in known {
                assert!(found.iter().any(|place| is_in(place, known)), "{kind}: {known} is declared");
            }
        }
        assert!(UNDECLARED.iter().all(|(.., because)| !because.is_empty()));
    }

    #[test]
    fn a_field_that_no_form_has_is_found() {
        let row = crate::table::rows().find(|row| row.kind.name == "aws.subnet").unwrap();
        let mut spec = example(row);
        assert_eq!(undeclared("aws.subnet", &spec), Vec::<String>::new());
        spec["made_up"] = json!({ "inner": [true] });
        assert_eq!(undeclared("aws.subnet", &spec), ["/made_up/inner/0"]);
    }

    #[test]
    fn attributes_of_awscc_are_properties_in_snake_case() {
        for (name, expected) in [
            ("DBInstanceIdentifier", "db_instance_identifier"),
            ("VPCSecurityGroups", "vpc_security_groups"),
            ("MultiAZ", "multi_az"),
            ("OKActions", "ok_actions"),
            ("KMSMasterKeyID", "kms_master_key_id"),
            ("S3DataSource", "s3_data_source"),
            ("EnableSNI", "enable_sni"),
            ("VolumeSizeInGB", "volume_size_in_gb"),
        ] {
            assert_eq!(snake(name), expected);
        }
        assert_eq!(resource("AWS::EC2::VPCEndpoint"), "awscc_ec2_vpc_endpoint");
        let role = json!({ "name": "r", "path": "/textnlp/", "trust": { "Version": "2012-10-17" }, "inline": {}, "managed": [] });
        let all =
            declared_as(Tool::Terraform, "aws.role", "r", role, json!({ "arn": "arn:aws:iam::1:role/r" })).unwrap();
        assert_eq!((all[0].kind.as_str(), all[0].id.as_str()), ("awscc_iam_role", "r"));
        assert_eq!(all[0].body["assume_role_policy_document"], "{\"Version\":\"2012-10-17\"}");
        assert_eq!(all[0].outputs["arn"], "arn");
    }

    #[test]
    fn parts_are_imported_by_what_identifies_them() {
        let routes =
            json!({ "vpc": "vpc-1", "routes": [{ "to": "0.0.0.0/0", "via": "nat-1" }], "subnets": ["subnet-1"] });
        let all =
            declared_as(Tool::CloudFormation, "aws.route-table", "rtb-1", routes, json!({ "id": "rtb-1" })).unwrap();
        let [table, route] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((table.kind.as_str(), route.kind.as_str()), ("AWS::EC2::RouteTable", "AWS::EC2::Route"));
        assert_eq!(route.body["NatGatewayId"], "nat-1");
        assert_eq!(route.id, "rtb-1|0.0.0.0/0");
        assert_eq!(route.identifiers["CidrBlock"], "0.0.0.0/0");
        assert!(table.without.contains("associations"));
        assert_eq!(table.file, "staging-here-eu-central-1");
    }

    #[test]
    fn new_objects_have_what_an_import_leaves_as_it_is() {
        let [nat, subnet] =
            ["aws.nat-gateway", "aws.subnet"].map(|kind| Placeholder::of(&wanted(kind, &json!({})), "id").to_string());
        let routes =
            json!({ "vpc": "vpc-1", "routes": [{ "to": "0.0.0.0/0", "via": nat }], "subnets": [subnet], "tags": {} });
        let all = new(Tool::CloudFormation, "aws.route-table", &routes);
        let [table, route, association] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((table.without, route.kind.as_str()), ("", "AWS::EC2::Route"));
        assert_eq!(route.body["NatGatewayId"], nat.as_str());
        assert_eq!(association.kind, "AWS::EC2::SubnetRouteTableAssociation");
        assert_eq!((route.is_new_only, association.is_new_only), (false, true));
        assert_eq!(association.body["SubnetId"], subnet.as_str());
        let own = Placeholder::of(&wanted("aws.route-table", &routes), "id").to_string();
        assert_eq!(association.body["RouteTableId"], own.as_str());

        let password = json!({ "$secret": "database", "version": "1" });
        let server = json!({ "name": "db", "source": null, "password": password });
        let all = new(Tool::Terraform, "aws.db-instance", &server);
        assert_eq!((&all[0].body["master_user_password"], all[0].without), (&password, ""));
        let outputs = planned(&wanted("aws.db-instance", &server)).unwrap().outputs;
        assert_eq!(outputs["name"], "db");
        assert!(Placeholder::read(outputs["host"].as_str().unwrap()).is_some(), "{outputs:?}");

        let cache = json!({ "name": "cache", "token": password });
        let all = new(Tool::Terraform, "aws.cache", &cache);
        assert_eq!((&all[0].body["auth_token"], all[0].without), (&password, ""));
        let all = declared_as(Tool::Terraform, "aws.cache", "cache", cache, json!({})).unwrap();
        assert_eq!((all[0].body.get("auth_token"), all[0].without), (None, "its token"));
        let all = new(Tool::Terraform, "aws.vpc", &json!({}));
        assert!(all[0].without.starts_with("the rules of its default security group"), "{}", all[0].without);

        let template = new(Tool::Terraform, "aws.launch-template", &json!({ "name": "nodes" }));
        assert_eq!(template[0].outputs["version"], "latest_version_number");
        let topic = json!({ "name": "t", "policy": { "Version": "2012-10-17" },
            "subscriptions": [{ "protocol": "email", "endpoint": "a@example.com" }] });
        let kinds: Vec<String> = new(Tool::Terraform, "aws.topic", &topic).into_iter().map(|one| one.kind).collect();
        assert_eq!(kinds, ["awscc_sns_topic", "awscc_sns_topic_inline_policy", "awscc_sns_subscription"]);
    }

    /// Without these, a cloud would choose: another access to a cluster, and connections to everywhere.
    #[test]
    fn what_a_tool_creates_is_as_closed_as_what_up_creates() {
        let cluster = json!({ "name": "c", "private_access": true, "public_cidrs": [], "authentication": "API" });
        for tool in [Tool::CloudFormation, Tool::Terraform] {
            let in_tool =
                |properties: Value| if tool == Tool::Terraform { attributes(&properties) } else { properties };
            let mut open = cluster.clone();
            open["public_cidrs"] = json!(["203.0.113.0/24"]);
            for (spec, cidrs) in [(&cluster, None), (&open, Some(json!(["203.0.113.0/24"])))] {
                let body = Value::Object(new(tool, "aws.eks-cluster", spec).remove(0).body);
                let mut network = json!({ "EndpointPrivateAccess": true, "EndpointPublicAccess": cidrs.is_some() });
                if let Some(cidrs) = cidrs {
                    network["PublicAccessCidrs"] = cidrs;
                }
                let access = json!({ "AuthenticationMode": "API", "BootstrapClusterCreatorAdminPermissions": false });
                let expected = in_tool(json!({
                    "ResourcesVpcConfig": network, "AccessConfig": access, "BootstrapSelfManagedAddons": false,
                }));
                for (name, value) in expected.as_object().unwrap() {
                    assert_eq!(&body[name], value, "{name}");
                }
            }
            let group = |egress: Value| {
                let spec = json!({ "vpc": "vpc-1", "name": "g", "egress": egress });
                let body = Value::Object(new(tool, "aws.security-group", &spec).remove(0).body);
                let name = if tool == Tool::Terraform { "security_group_egress" } else { "SecurityGroupEgress" };
                body[name].as_array().cloned().unwrap_or_default()
            };
            let address = if tool == Tool::Terraform { "cidr_ip" } else { "CidrIp" };
            let closed = group(json!([]));
            assert_eq!((closed.len(), &closed[0][address]), (1, &json!(crate::kinds::NOWHERE)));
            let rule = json!({ "protocol": "tcp", "from": 443, "to": 443, "peer": "0.0.0.0/0", "description": "" });
            let open = group(json!([rule]));
            assert_eq!((open.len(), &open[0][address]), (1, &json!("0.0.0.0/0")));
        }
        let ignored = new(Tool::Terraform, "aws.eks-cluster", &cluster).remove(0).ignored;
        assert!(ignored.contains(&"bootstrap_self_managed_addons"), "an import would replace the cluster: {ignored:?}");
        let addon = new(Tool::CloudFormation, "aws.eks-addon", &json!({ "cluster": "c", "name": "vpc-cni" }));
        assert_eq!(addon[0].body["ResolveConflicts"], "OVERWRITE");
        let target = new(Tool::CloudFormation, "aws.scaling-target", &json!({ "min": 1, "max": 2 }));
        let tags = target[0].body["Tags"].as_array().unwrap();
        assert!(tags.iter().any(|tag| tag["Key"] == textnlp_cloud::tags::LINEAGE), "an import finds it by its tag");
    }

    #[test]
    fn an_import_finds_what_a_tool_created() {
        let dashboard = json!({ "name": "d", "body": { "widgets": [] } });
        let all = new(Tool::CloudFormation, "aws.dashboard", &dashboard);
        let tags = all[0].body["Tags"].as_array().unwrap();
        assert!(tags.iter().any(|tag| tag["Key"] == textnlp_cloud::tags::LINEAGE), "{tags:?}");

        // Without its zone, or with another order of its names, which a read sorts, a certificate would be replaced.
        let of = |names: [&str; 2]| json!({ "names": names, "zone": "Z1", "records": true });
        let (name, wildcard) = ("a.example.com", "*.a.example.com");
        let created = new(Tool::CloudFormation, "aws.certificate", &of([name, wildcard])).remove(0).body;
        let arn = json!({ "arn": "arn:aws:acm:eu-central-1:1:certificate/c" });
        let recorded = declared_as(Tool::CloudFormation, "aws.certificate", "c", of([wildcard, name]), arn).unwrap();
        let options = [wildcard, name].map(|name| json!({ "DomainName": name, "HostedZoneId": "Z1" }));
        assert_eq!((&created["DomainName"], &created["DomainValidationOptions"]), (&json!(name), &json!(options)));
        assert_eq!(recorded[0].body, created);
        // The import finds the zone by a tag.
        let zone = json!({ "Key": crate::tags::ZONE, "Value": "Z1" });
        assert!(created["Tags"].as_array().unwrap().contains(&zone), "{created:?}");
    }
}
