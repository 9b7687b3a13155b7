//! Messages to the alert receivers of an environment.

use std::collections::BTreeMap;

use futures::StreamExt;
use jiff::Timestamp;
use textnlp_orchestrator::alert::{DeliveredAlert, Destination, Sender};
use textnlp_provider::alert::{Alert, AlertState};
use textnlp_provider::error_chain;
use uuid::Uuid;

use crate::{ChosenEnvironment, Failure};

/// Concurrent receivers.
const BESIDE: usize = 8;

/// The destination of a receiver, or why it has none.
pub type ReceiverDestination = Result<Destination, String>;

/// The destination of an address.
pub fn destination(address: &str) -> ReceiverDestination {
    Destination::parse(address).map_err(|why| why.to_string())
}

/// The receivers of the environment file, with the caller's secrets: these, or all.
pub fn receivers(
    chosen: &ChosenEnvironment,
    wanted: &[String],
) -> Result<BTreeMap<String, ReceiverDestination>, Failure> {
    let name = &chosen.scope.name;
    let receivers = &chosen.loaded.environment.monitoring.receivers;
    if receivers.is_empty() {
        let error = anyhow::anyhow!("environment {name} has no alert receivers");
        return Err(Failure::usage("no_receivers", error)
            .hint("add `monitoring: { receivers: { oncall: secret:env:ONCALL_URL } }` to the environment file"));
    }
    if let Some(unknown) = wanted.iter().find(|wanted| !receivers.contains_key(*wanted)) {
        let known: Vec<&str> = receivers.keys().map(String::as_str).collect();
        let error = anyhow::anyhow!("environment {name} has no receiver `{unknown}`");
        return Err(Failure::usage("no_such_receiver", error).hint(format!("its receivers: {}", known.join(", "))));
    }
    let chosen_ones = receivers.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name));
    let known = chosen_ones
        .map(|(name, address)| {
            let text = address.read().ok_or_else(|| format!("its address ({address}) is not set"));
            (name.clone(), text.and_then(|text| destination(&text)))
        })
        .collect();
    Ok(known)
}

/// A message that says that it is a test.
pub fn test_message(chosen: &ChosenEnvironment) -> Alert {
    let (name, environment) = (&chosen.scope.name, &chosen.loaded.environment);
    Alert {
        id: format!("test-{}", Uuid::new_v4()),
        environment: name.to_string(),
        site: environment.sites.first().map(|site| site.name.to_string()).unwrap_or_default(),
        at: Timestamp::now(),
        state: AlertState::Test,
        name: "test".to_owned(),
        about: "message".to_owned(),
        says: "This is a test message: no action is required.".to_owned(),
    }
}

/// Sends a message to receivers at the same time. Returns what each of them refused, or why it failed, by name.
pub async fn deliver<'r>(
    sender: &Sender,
    message: &Alert,
    receivers: impl IntoIterator<Item = (&'r String, &'r ReceiverDestination)>,
) -> BTreeMap<String, Result<DeliveredAlert, String>> {
    let tries = futures::stream::iter(receivers).map(|(name, destination)| async move {
        let sent = match destination {
            Ok(destination) => sender.send(destination, message).await.map_err(|error| error_chain(&error)),
            Err(why) => Err(why.clone()),
        };
        (name.clone(), sent)
    });
    tries.buffer_unordered(BESIDE).collect().await
}
