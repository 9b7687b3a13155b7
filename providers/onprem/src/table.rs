//! Every kind that a machine has, and what sets them apart.

use std::time::Duration;

use textnlp_provider::{DataClass, Identity, Kind, KindName, ReplaceOrder};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What every kind needs.
const WRITE: &str = "to write to the state folder";

const fn kind(name: &'static str, says: &'static str, identity: Identity, data: DataClass, deadline: Duration) -> Kind {
    Kind {
        name,
        says,
        identity,
        data,
        // Every object here has a path, a port or a name that only one can have.
        replace: ReplaceOrder::DeleteFirst,
        one_by_one: false,
        // A marker is read as it was written.
        settles: Duration::ZERO,
        deadline,
        schema: 1,
        price_key: None,
        permissions: &[WRITE],
        // No Terraform provider makes what is of ours here.
        terraform: &[],
    }
}

/// The table itself.
pub(crate) static KINDS: [Kind; 14] = [
    kind("onprem.directory", "the folder of a site", Identity::Named, DataClass::None, SECOND.saturating_mul(30)),
    Kind {
        permissions: &[WRITE, "to leave a process running"],
        ..kind(
            "onprem.supervisor",
            "the process that keeps a site's programs running",
            Identity::Named,
            DataClass::None,
            MINUTE,
        )
    },
    kind("onprem.secret", "a generated secret", Identity::Named, DataClass::Precious, MINUTE),
    kind("onprem.authority", "a certificate authority of one's own", Identity::Named, DataClass::Precious, MINUTE),
    kind("onprem.certificate", "the certificate that clients see", Identity::Named, DataClass::Derived, MINUTE),
    Kind {
        permissions: &[WRITE, "to write to the model cache", "to read the model {source}"],
        ..kind("onprem.model", "the files of a model", Identity::Named, DataClass::Derived, HOUR.saturating_mul(6))
    },
    Kind {
        permissions: &[WRITE, "to run programs in the state folder", "to read {source}"],
        ..kind(
            "onprem.program",
            "a program by its digest",
            Identity::Named,
            DataClass::Derived,
            MINUTE.saturating_mul(5),
        )
    },
    kind("onprem.file", "a configuration file", Identity::Named, DataClass::Derived, MINUTE),
    kind("onprem.database", "keys, quotas and usage in an SQLite file", Identity::Named, DataClass::Precious, MINUTE),
    Kind {
        permissions: &[WRITE, "to run PostgreSQL, as its own user where this is root"],
        ..kind(
            "onprem.postgres",
            "keys, quotas and usage in a PostgreSQL",
            Identity::Named,
            DataClass::Precious,
            MINUTE.saturating_mul(10),
        )
    },
    kind(
        "onprem.control",
        "the log of control data, or of who is primary",
        Identity::Named,
        DataClass::Precious,
        MINUTE,
    ),
    kind("onprem.schema", "the schema of a database", Identity::Part, DataClass::None, MINUTE.saturating_mul(15)),
    // One that is replicated waits until a second site has joined, which comes up at the same time.
    kind("onprem.api-key", "an API key in a database", Identity::Part, DataClass::Derived, MINUTE.saturating_mul(10)),
    Kind {
        one_by_one: true,
        permissions: &[WRITE, "to listen on {inputs.listen}", "to listen on {inputs.metrics_listen}"],
        ..kind(
            "onprem.process",
            "a program that is kept running",
            Identity::Named,
            DataClass::None,
            MINUTE.saturating_mul(20),
        )
    },
];

/// The kinds as an enum: what code matches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noun {
    Directory,
    Supervisor,
    Secret,
    Authority,
    Certificate,
    Model,
    Program,
    File,
    Database,
    Postgres,
    Control,
    Schema,
    ApiKey,
    Process,
}

impl Noun {
    const ALL: [Self; 14] = [
        Self::Directory,
        Self::Supervisor,
        Self::Secret,
        Self::Authority,
        Self::Certificate,
        Self::Model,
        Self::Program,
        Self::File,
        Self::Database,
        Self::Postgres,
        Self::Control,
        Self::Schema,
        Self::ApiKey,
        Self::Process,
    ];

    /// The noun of a kind's name; `None` for a kind that is not ours.
    pub(crate) fn of(kind: &KindName) -> Option<Self> {
        KINDS.iter().position(|ours| ours.name == kind.as_str()).map(|place| Self::ALL[place])
    }

    /// The name of the kind.
    pub(crate) fn kind(self) -> KindName {
        let place = Self::ALL.iter().position(|noun| *noun == self).unwrap_or_default();
        KindName::new(KINDS[place].name).expect("the names in the table are kind names")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nouns_agree() {
        for noun in Noun::ALL {
            assert_eq!(Noun::of(&noun.kind()), Some(noun));
        }
        assert_eq!(Noun::Directory.kind().as_str(), "onprem.directory");
        assert_eq!(Noun::ApiKey.kind().as_str(), "onprem.api-key");
        assert_eq!(Noun::Process.kind().as_str(), "onprem.process");
        assert_eq!(Noun::of(&KindName::new("aws.vpc").unwrap()), None);
    }
}
