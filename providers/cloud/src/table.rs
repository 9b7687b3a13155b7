//! The table of kinds.

use std::collections::BTreeSet;
use std::time::Duration;

use textnlp_provider::{DataClass, Effect, Identity, Kind, KindName, Pricing, ReplaceOrder, ZONES};

use crate::cloud::Cloud;
use crate::resource::{AnyResource, TAGS};

/// One kind.
pub struct Row<C: Cloud> {
    /// Its declaration.
    pub kind: Kind,
    /// The name of its service, by which error codes are looked up.
    pub service: &'static str,
    /// How its objects are read and changed.
    pub resource: &'static dyn AnyResource<C>,
    /// Fields that can neither change nor be recreated, each with what to do instead.
    pub refused: &'static [(&'static str, &'static str)],
}

impl<C: Cloud> Row<C> {
    /// What a change of the field takes.
    pub fn effect(&self, field: &str) -> Effect {
        if let Some((_, why)) = self.refused.iter().find(|(refused, _)| *refused == field) {
            return Effect::Refuse((*why).to_owned());
        }
        if field == TAGS || field == ZONES || self.resource.in_place().contains(&field) {
            Effect::InPlace
        } else {
            Effect::Replace
        }
    }
}

/// A declaration with the usual values: no data, created before the old one is deleted, ten minutes.
pub const fn kind(name: &'static str, says: &'static str, identity: Identity) -> Kind {
    Kind {
        name,
        says,
        identity,
        data: DataClass::None,
        replace: match identity {
            Identity::Token => ReplaceOrder::CreateFirst,
            Identity::Named | Identity::Part => ReplaceOrder::DeleteFirst,
        },
        one_by_one: false,
        shared: &[],
        replica: None,
        settles: SETTLES,
        deadline: MINUTE.saturating_mul(10),
        typical: None,
        schema: 1,
        pricing: Pricing::Free,
        permissions: &[],
        terraform: &[],
    }
}

/// A minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// How long a new object may be missing from lists. No cloud states a bound; AWS's own tools retry for about this long
/// (<https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>).
const SETTLES: Duration = Duration::from_secs(60);

/// All rows of a cloud.
pub fn rows<C: Cloud>() -> impl Iterator<Item = &'static Row<C>> {
    C::rows().iter().copied().flatten()
}

/// The row of a kind.
pub fn row<C: Cloud>(kind: &KindName) -> Option<&'static Row<C>> {
    rows::<C>().find(|row| row.kind.name == kind.as_str())
}

/// The declarations of all kinds of a cloud.
pub fn kinds<C: Cloud>() -> Vec<Kind> {
    rows::<C>().map(|row| row.kind.clone()).collect()
}

/// The kinds of a cloud as a table of a guide. `permissions` is what the cloud calls a permission, and `is_tagged` tells whether the tags
/// of a kind change in place.
pub fn markdown<C: Cloud>(permissions: &str, is_tagged: impl Fn(&Kind) -> bool) -> String {
    let mut text = format!("| kind | what it is | changes in place | from Terraform | cost | {permissions} |\n");
    text += "|---|---|---|---|---|---|\n";
    let listed = |words: Vec<String>| if words.is_empty() { "—".to_owned() } else { words.join(", ") };
    for row in rows::<C>() {
        let kind = &row.kind;
        let tags = is_tagged(kind).then_some(TAGS);
        let fields = row.resource.in_place().iter().copied().chain(tags).map(|field| format!("`{field}`"));
        let terraform = kind.terraform.iter().map(|(name, _)| format!("`{name}`"));
        let (fields, terraform, cost) = (listed(fields.collect()), listed(terraform.collect()), cost(kind));
        let actions = actions(kind);
        text += &format!("| `{}` | {} | {fields} | {terraform} | {cost} | {actions} |\n", kind.name, kind.says);
    }
    text
}

/// The head of a table with the rows of [`coverage`].
pub const COVERAGE: &str = "| kind | used by | create | update | import | drift | delete | price | permissions |\n|---|---|---|---|---|---|---|---|---|\n";

/// What this program does with the objects of each kind, as rows of a table of a guide. `users` says of the name of a kind what uses it.
pub fn coverage<C: Cloud>(users: &dyn Fn(&str) -> String) -> String {
    rows::<C>().map(|row| covered(row, &users(row.kind.name))).collect()
}

fn covered<C: Cloud>(row: &Row<C>, users: &str) -> String {
    let (kind, resource) = (&row.kind, row.resource);
    let create = match kind.identity {
        Identity::Token => "by token",
        Identity::Named => "by name",
        Identity::Part => "in its parent",
    };
    let update = match (resource.in_place().len(), row.refused.len()) {
        (0, 0) => "replaced".to_owned(),
        (0, refused) => format!("replaced, {refused} refused"),
        (changed, 0) => format!("{changed} in place"),
        (changed, refused) => format!("{changed} in place, {refused} refused"),
    };
    let ways = [(resource.carries_tags(), "lineage"), (true, "id"), (!kind.terraform.is_empty(), "Terraform")];
    let import: Vec<&str> = ways.iter().filter(|(has, _)| *has).map(|(_, way)| *way).collect();
    let hidden = resource.in_place().iter().filter(|field| resource.is_hidden(field));
    let hidden: Vec<String> = hidden.map(|field| format!("`{field}`")).collect();
    let drift = if hidden.is_empty() { "all".to_owned() } else { format!("all but {}", hidden.join(", ")) };
    let delete = match (resource.is_retained(), kind.data) {
        (true, _) => "stays",
        (false, DataClass::Precious) => "`--delete-data`",
        (false, _) => "yes",
    };
    let (import, cost, actions) = (import.join(", "), cost(kind), actions(kind));
    format!(
        "| `{}` | {users} | {create} | {update} | {import} | {drift} | {delete} | {cost} | {actions} |\n",
        kind.name
    )
}

fn cost(kind: &Kind) -> &'static str {
    match kind.pricing {
        Pricing::Free => "none",
        Pricing::BySpec => "by its spec",
        Pricing::Included => "included",
        Pricing::Unknown(why) => why,
    }
}

/// How many permissions it needs. What follows a brace says when.
fn actions(kind: &Kind) -> usize {
    let name = |action: &'static str| action.split('{').next().unwrap_or(action);
    kind.permissions.iter().map(|permission| name(permission.action)).collect::<BTreeSet<&str>>().len()
}
