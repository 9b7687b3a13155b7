//! What the alerts of clouds have in common: the mailboxes that get them, and the database that they are about. Pure.

use std::collections::BTreeSet;

use textnlp_provider::component::{Monitoring, Postgres, ReceiverAddress};
use textnlp_provider::settings::Hosting;

/// What to write where a service sends to mailboxes only, and the alerts of the cluster are off.
pub const WRITE_MAILBOX: &str = "write `smtps://mail.example.com?from=alerts@example.com&to=oncall@example.com`, or \
                                 `monitoring.stack: true`";

/// The recipients in the address of a receiver: `smtps://HOST?to=A,B`; `None` if it is no such address.
pub fn mailboxes(address: &str) -> Option<Vec<String>> {
    let rest = ["smtps://", "smtp://"].iter().find_map(|scheme| address.strip_prefix(scheme))?;
    let (_, query) = rest.split_once('?')?;
    let decoded = |text: &str| text.replace("%40", "@").replace("%2C", ",");
    let split = |to: &str| decoded(to).split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>();
    let all: Vec<String> = query.split('&').filter_map(|pair| pair.strip_prefix("to=")).flat_map(split).collect();
    let is_wrong = |one: &String| !one.contains('@') || one.contains('%');
    (!all.is_empty() && !all.iter().any(is_wrong)).then_some(all)
}

/// The mailboxes of all receivers, and the names of the receivers without one. The address of a secret stays in the cluster: clouds show
/// those that they send to.
pub fn mail_receivers(monitoring: &Monitoring) -> (BTreeSet<String>, Vec<&str>) {
    let (mut all, mut others) = (BTreeSet::new(), Vec::new());
    for (name, address) in &monitoring.receivers {
        let found = match address {
            ReceiverAddress::Plain(text) => mailboxes(text.trim()),
            ReceiverAddress::Secret(_) => None,
        };
        match found {
            Some(found) => all.extend(found),
            None => others.push(name.as_str()),
        }
    }
    (all, others)
}

/// The PostgreSQL that the cloud runs for this environment.
pub fn managed_postgres(monitoring: &Monitoring) -> Option<&Postgres> {
    let database = monitoring.monitored.database.as_ref().filter(|one| one.hosting == Some(Hosting::Managed))?;
    database.postgres.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_those_of_mail_addresses() {
        let of = |address: &str| mailboxes(address).unwrap_or_default().join(" ");
        let address = "smtps://mail.example.com?from=alerts@example.com&to=a@example.com%2Cb%40example.com";
        assert_eq!(of(address), "a@example.com b@example.com");
        for other in ["https://example.com/hook?to=a@example.com", "smtp://mail.example.com", "smtp://h?to=a%20b@c"] {
            assert_eq!(mailboxes(other), None, "{other}");
        }
    }
}
