//! Security Token Service.

use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "sts",
    model: "sts",
    operations: &[("GetCallerIdentity", get_caller_identity)],
    quotas: &[],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[Behaviour {
    service: "sts",
    what: "GetCallerIdentity needs no permission, and gives account, ARN and unique id of the signer",
    source: Source::Documentation("https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html"),
}];

fn get_caller_identity(_: &mut World, call: &Call) -> Result<Value, Fault> {
    Ok(json!({ "Account": call.account, "Arn": call.identity, "UserId": call.identity_id }))
}
