//! Tags as lists of `Key` and `Value`, and the operations of services that have them for an ARN in the input.

use serde_json::{Value, json};

use crate::{Call, Fault, World};

/// The names that a service has for them.
pub(super) struct KeyValues {
    /// The member with the ARN.
    pub(super) arn: &'static str,
    /// The member with the tags.
    pub(super) tags: &'static str,
    /// The member with the keys to remove.
    pub(super) keys: &'static str,
    /// What is said of an ARN that is not there.
    pub(super) missing: fn(&str) -> Fault,
}

impl KeyValues {
    /// The tags of an input, as SNS compares them: sorted.
    pub(super) fn pairs(&self, call: &Call) -> Vec<(String, String)> {
        let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
        let mut pairs: Vec<_> = call.list(self.tags).iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
        pairs.sort();
        pairs
    }

    pub(super) fn list(&self, world: &World, call: &Call) -> Result<Value, Fault> {
        let tags = world.tags.of(self.object(world, call)?).into_iter();
        let tags: Vec<Value> = tags.map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
        Ok(json!({ self.tags: tags }))
    }

    pub(super) fn set(&self, world: &mut World, call: &Call) -> Result<Value, Fault> {
        let arn = self.object(world, call)?;
        world.tags.set(arn, self.pairs(call), call.visible());
        Ok(json!({}))
    }

    pub(super) fn remove(&self, world: &mut World, call: &Call) -> Result<Value, Fault> {
        let arn = self.object(world, call)?;
        world.tags.remove(arn, call.texts(self.keys));
        Ok(json!({}))
    }

    /// The ARN of the input, if there is such an object.
    fn object<'a>(&self, world: &World, call: &'a Call) -> Result<&'a str, Fault> {
        let arn = call.text(self.arn);
        world.tags.has(arn).then_some(arn).ok_or_else(|| (self.missing)(arn))
    }
}
