//! What keeps alarms and the budget from being noticed, although every call succeeds.

use textnlp_provider::{Ownership, Problem, Wanted};

use super::unknown;
use crate::api::Api;
use crate::lower::PUBLISHERS;
use crate::table;
use crate::tags;

/// Checks the wanted topic and the wanted budget of a site.
pub(super) async fn monitoring(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in wanted {
        match one.kind.as_str() {
            "aws.budget" => problems.push(untagged(one)),
            "aws.topic" => {
                problems.extend(unconfirmed(api, one).await);
                problems.extend(locked(api, one, wanted).await);
            }
            _ => {}
        }
    }
    problems
}

/// Only the management account of an organization can see which tags are activated.
fn untagged(budget: &Wanted) -> Problem {
    let cause = format!("AWS counts for it what has the cost allocation tag `{}`", tags::ENVIRONMENT);
    let fix = "activate the tag once: console of the management account, Billing > Cost allocation tags";
    Problem::note(budget.id.to_string(), cause, fix)
}

/// An unconfirmed subscription gets no messages.
async fn unconfirmed(api: &Api, topic: &Wanted) -> Option<Problem> {
    let row = table::row(&topic.kind)?;
    // The rest of the spec refers to objects that may not be there yet.
    let seen = match row.resource.read(api, topic.spec.get("name")?.as_str()?).await {
        Ok(seen) => seen?,
        Err(error) => return Some(unknown("the topic", &error)),
    };
    let who = seen.outputs.get("unconfirmed")?.as_str()?;
    let cause = format!("these get no alarms, because they have not confirmed their subscription: {who}");
    Some(Problem::warning(topic.id.to_string(), cause, "open the link in the mail of AWS Notifications"))
}

/// An existing key may not let AWS's services encrypt their messages, which then are lost.
async fn locked(api: &Api, topic: &Wanted, wanted: &[Wanted]) -> Option<Problem> {
    let key =
        wanted.iter().find(|one| one.kind.as_str() == "aws.key" && topic.needs.iter().any(|need| need.on == one.id))?;
    let Ownership::External(id) = &key.ownership else { return None };
    let described = match api.find("kms", id.as_str(), api.kms.describe_key().key_id(id.as_str()).send()).await {
        Ok(described) => described?.key_metadata?.key_id,
        Err(error) => return Some(unknown("the key", &error)),
    };
    let call = api.kms.get_key_policy().key_id(described).policy_name("default").send();
    let policy = match api.find("kms", id.as_str(), call).await {
        Ok(answer) => answer?.policy.unwrap_or_default(),
        Err(error) => return Some(unknown("the policy of the key", &error)),
    };
    let missing: Vec<&str> = PUBLISHERS.iter().copied().filter(|service| !policy.contains(service)).collect();
    if missing.is_empty() {
        return None;
    }
    let cause =
        format!("the policy of the key {id} does not name {}, whose messages are lost then", missing.join(" and "));
    let fix = "allow these services `kms:Decrypt` and `kms:GenerateDataKey*` in it, for your account";
    Some(Problem::warning(topic.id.to_string(), cause, fix))
}
