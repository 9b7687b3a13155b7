//! Who is told when something is wrong.

use textnlp_provider::ComponentName;

use super::super::model::*;
use super::Meaning;
use crate::alert::Destination;

const ELSEWHERE: &str = "who sends the messages runs in another folder than this one";

impl Meaning<'_> {
    /// A receiver's name becomes the name of a file; an address that is written out is read, one that is a secret is not known here.
    pub(super) fn receivers(&mut self) {
        for (name, address) in &self.environment.monitoring.receivers {
            let path = format!("monitoring.receivers.{name}");
            if let Err(error) = ComponentName::new(name) {
                self.error(&path, error.to_string(), "name it like `oncall`");
            }
            let url = match address {
                Address::Url(url) => url,
                Address::Secret(SecretSource::File(file)) if !file.starts_with('/') => {
                    self.error(&path, ELSEWHERE, "write a path that begins with `/`");
                    continue;
                }
                Address::Secret(_) => continue,
            };
            if let Err(why) = Destination::parse(url) {
                let fix = "write `https://…`, or a reference to a secret such as `secret:env:ONCALL_URL`";
                self.error(&path, why.to_string(), fix);
            }
        }
        let own = self.environment.network.private_ca.as_deref();
        if !self.environment.monitoring.receivers.is_empty() && own.is_some_and(|path| !path.starts_with('/')) {
            self.error("network.private_ca", ELSEWHERE, "write a path that begins with `/`");
        }
    }
}
