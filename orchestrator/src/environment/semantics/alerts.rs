//! Checks of alert receivers.

use textnlp_provider::ComponentName;

use super::super::model::*;
use super::Checker;
use crate::alert::Destination;

const ELSEWHERE: &str = "the supervisor that sends the messages runs in another folder";

const MAILBOX: &str = "smtps://mail.example.com?from=alerts@example.com&to=oncall@example.com";

impl Checker<'_> {
    /// Checks the receivers. A receiver's name becomes a file name. A plain address is parsed here; a secret one cannot
    /// be read here.
    pub(super) fn receivers(&mut self) {
        for (name, address) in &self.environment.monitoring.receivers {
            let path = format!("monitoring.receivers.{name}");
            if let Err(error) = ComponentName::new(name) {
                self.error(&path, error.to_string(), "name it like `oncall`");
            }
            let url = match address {
                UrlSource::Url(url) => url,
                UrlSource::Secret(SecretSource::File(file)) if !file.starts_with('/') => {
                    self.error(&path, ELSEWHERE, "write a path that begins with `/`");
                    continue;
                }
                UrlSource::Secret(_) => continue,
            };
            let fix = "write a reference to a secret: `secret:env:ONCALL_URL` or `secret:file:/PATH`";
            match Destination::parse(url) {
                Err(why) => self.error(&path, why.to_string(), fix),
                // The environment is recorded, exported and in support bundles; the path of a webhook is its token.
                Ok(destination) if destination.may_hold_token() => {
                    let fix = format!("{fix}; for sites on AWS, a mailbox instead: `{MAILBOX}`");
                    self.error(&path, "the path or query of a webhook usually holds its token", fix);
                }
                Ok(_) => {}
            }
        }
        if self.environment.monitoring.receivers.is_empty() {
            return;
        }
        let network = &self.environment.network;
        let secret = |address: &Option<UrlSource>| match address {
            Some(UrlSource::Secret(SecretSource::File(file))) => Some(file.clone()),
            _ => None,
        };
        let (http, https) = (secret(&network.proxy.http), secret(&network.proxy.https));
        let files = [("private_ca", network.private_ca.clone()), ("proxy.http", http), ("proxy.https", https)];
        for (setting, file) in files {
            if file.is_some_and(|file| !file.starts_with('/')) {
                self.error(&format!("network.{setting}"), ELSEWHERE, "write a path that begins with `/`");
            }
        }
    }
}
