//! Messages to the alert receivers of an environment.

use std::collections::BTreeMap;

use futures::StreamExt;
use jiff::Timestamp;
use textnlp_orchestrator::alert::{DeliveredAlert, Destination, Sender};
use textnlp_orchestrator::environment::model::{Environment, SiteSettings, UrlSource};
use textnlp_provider::alert::{Alert, AlertState};
use textnlp_provider::component::{CLUSTER_RECEIVERS, is_public_webhook};
use textnlp_provider::{Problem, error_chain};
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
        let file = chosen.loaded.own_file();
        return Err(Failure::usage("no_receivers", error)
            .hint(format!("write `monitoring: {{ receivers: {{ oncall: secret:env:ONCALL_URL }} }}` into {file}")));
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

/// The problems of receivers that the Alertmanager of a cluster cannot use. It takes the address of a webhook from a Secret,
/// but not that of a mail server, so that an address that cannot be read while planning must be a webhook.
pub fn cluster_problems(environment: &Environment) -> Vec<Problem> {
    if !environment.monitoring.stack || !environment.sites.iter().any(SiteSettings::is_in_cluster) {
        return Vec::new();
    }
    let problem = |(name, address): (&String, &UrlSource)| {
        let is_refused = match address {
            UrlSource::Secret(_) => address.read().is_some_and(|text| !is_public_webhook(&text)),
            // The provider refuses others with the same words.
            UrlSource::Url(_) => false,
        };
        let cause = "the Alertmanager of a cluster cannot use this secret address".to_owned();
        let place = format!("monitoring.receivers.{name}");
        is_refused.then(|| Problem::new(place, cause, CLUSTER_RECEIVERS.to_owned()))
    };
    environment.monitoring.receivers.iter().filter_map(problem).collect()
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

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    #[test]
    fn receivers_of_a_cluster_are_webhooks_or_mail_without_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            format!("secret:file:{}", file.display())
        };
        let problems = |address: &str, environment: &str| {
            let mut loaded =
                Library::built_in().load(environment, &Overrides::default(), &Catalogue::default()).unwrap();
            loaded.environment.monitoring.receivers.insert("oncall".to_owned(), address.parse().unwrap());
            cluster_problems(&loaded.environment).len()
        };
        let mail = "smtps://ada:hunter2@mail.example.com?from=a@b.c&to=d@e.f";
        let (hook, secret_mail) = (written("hook", "https://hooks.example.com/t0ken\n"), written("mail", mail));
        assert_eq!(problems(&hook, "pilot"), 0);
        assert_eq!(problems(&secret_mail, "pilot"), 1);
        // A secret that is not there is another problem, and a machine sends its mail itself.
        assert_eq!(problems("secret:env:TEXTNLP_TEST_IS_NOT_SET", "pilot"), 0);
        assert_eq!(problems(&secret_mail, "staging"), 0);
    }
}
