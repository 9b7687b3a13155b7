//! The resource kinds of this provider and their properties.

use std::time::Duration;

use textnlp_keys::FieldRules;
use textnlp_provider::{DataClass, Identity, Kind, KindName, Permission, Pricing, ReplaceOrder, Verb};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The operations that start programs and read what they need.
const STARTS: &[Verb] = &[Verb::Create, Verb::Update];

/// What every kind needs.
const WRITE: Permission = Permission::change("to write to the state folder");

const fn kind(name: &'static str, says: &'static str, identity: Identity, data: DataClass, deadline: Duration) -> Kind {
    Kind {
        name,
        says,
        identity,
        data,
        // Every object here has an exclusive path, port or name.
        replace: ReplaceOrder::DeleteFirst,
        one_by_one: false,
        shared: &[],
        replica: None,
        // A marker is read as it was written.
        settles: Duration::ZERO,
        deadline,
        schema: 1,
        // Measured: at most 0.4 s.
        typical: Some(Duration::from_secs(1)),
        pricing: Pricing::Included,
        permissions: &[WRITE],
        // No Terraform provider creates these objects.
        terraform: &[],
    }
}

/// The table itself.
pub(crate) static KINDS: [Kind; 15] = [
    textnlp_keys::DIRECTORY,
    Kind {
        permissions: &[WRITE, Permission::on(STARTS, "to leave a process running")],
        ..kind(
            ResourceKind::Supervisor.name(),
            "the process that keeps a site's programs running",
            Identity::Named,
            DataClass::None,
            MINUTE,
        )
    },
    textnlp_keys::SECRET,
    textnlp_keys::AUTHORITY,
    textnlp_keys::CERTIFICATE,
    Kind {
        permissions: &[
            WRITE,
            Permission::change("to write to the model cache"),
            Permission::on(STARTS, "to read the model {source}"),
        ],
        // By its size.
        typical: None,
        ..kind(
            ResourceKind::Model.name(),
            "the files of a model",
            Identity::Named,
            DataClass::Derived,
            HOUR.saturating_mul(6),
        )
    },
    Kind {
        permissions: &[
            WRITE,
            Permission::on(STARTS, "to run programs in the state folder"),
            Permission::on(STARTS, "to read {source}"),
        ],
        ..kind(
            ResourceKind::Program.name(),
            "a program by its digest",
            Identity::Named,
            DataClass::Derived,
            MINUTE.saturating_mul(5),
        )
    },
    kind(ResourceKind::File.name(), "a configuration file", Identity::Named, DataClass::Derived, MINUTE),
    kind(
        ResourceKind::Database.name(),
        "keys, quotas and usage in an SQLite file",
        Identity::Named,
        DataClass::Precious,
        MINUTE,
    ),
    Kind {
        permissions: &[WRITE, Permission::change("to run PostgreSQL, as its own user where this is root")],
        // By the delivery of PostgreSQL.
        typical: None,
        ..kind(
            ResourceKind::Postgres.name(),
            "keys, quotas and usage in a PostgreSQL",
            Identity::Named,
            DataClass::Precious,
            MINUTE.saturating_mul(10),
        )
    },
    kind(
        ResourceKind::Control.name(),
        "the log of control data, or of who is primary",
        Identity::Named,
        DataClass::Precious,
        MINUTE,
    ),
    kind(
        ResourceKind::Schema.name(),
        "the schema of a database",
        Identity::Part,
        DataClass::None,
        MINUTE.saturating_mul(15),
    ),
    // A replicated one waits until a second site has joined, which starts at the same time.
    kind(
        ResourceKind::ApiKey.name(),
        "an API key in a database",
        Identity::Part,
        DataClass::Derived,
        MINUTE.saturating_mul(10),
    ),
    Kind {
        one_by_one: true,
        permissions: &[
            WRITE,
            Permission::on(STARTS, "to listen on {inputs.listen}"),
            Permission::on(STARTS, "to listen on {inputs.metrics_listen}"),
        ],
        // By the size of its model.
        typical: None,
        ..kind(
            ResourceKind::Process.name(),
            "a program that is kept running",
            Identity::Named,
            DataClass::None,
            MINUTE.saturating_mul(20),
        )
    },
    Kind {
        permissions: &[WRITE, Permission::on(STARTS, "to order certificates at {directory}")],
        // By the authority.
        typical: None,
        ..kind(
            ResourceKind::PublicCertificate.name(),
            "the certificate of a public authority",
            Identity::Named,
            DataClass::Derived,
            MINUTE.saturating_mul(10),
        )
    },
];

/// The kinds as an enum: what code matches on. Those of [`textnlp_keys`] are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceKind {
    Supervisor,
    Model,
    Program,
    File,
    Database,
    Postgres,
    Control,
    Schema,
    ApiKey,
    Process,
    PublicCertificate,
}

impl ResourceKind {
    const ALL: [Self; 11] = [
        Self::Supervisor,
        Self::Model,
        Self::Program,
        Self::File,
        Self::Database,
        Self::Postgres,
        Self::Control,
        Self::Schema,
        Self::ApiKey,
        Self::Process,
        Self::PublicCertificate,
    ];

    /// The noun of a kind's name; `None` for another kind.
    pub(crate) fn of(kind: &KindName) -> Option<Self> {
        Self::ALL.into_iter().find(|noun| noun.name() == kind.as_str())
    }

    /// The name of the kind.
    pub(crate) fn kind(self) -> KindName {
        KindName::new(self.name()).expect("the names in the table are kind names")
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "onprem.supervisor",
            Self::Model => "onprem.model",
            Self::Program => "onprem.program",
            Self::File => "onprem.file",
            Self::Database => "onprem.database",
            Self::Postgres => "onprem.postgres",
            Self::Control => "onprem.control",
            Self::Schema => "onprem.schema",
            Self::ApiKey => "onprem.api-key",
            Self::Process => "onprem.process",
            Self::PublicCertificate => "onprem.public-certificate",
        }
    }

    /// How its fields are compared.
    pub(crate) fn rules(self) -> FieldRules {
        let replaced_by = |replace| FieldRules { replace, ..FieldRules::default() };
        match self {
            // The old certificate stays until there is another one.
            Self::Supervisor | Self::PublicCertificate => FieldRules::default(),
            Self::Model => FieldRules {
                creation_only: &["max_cache_bytes"],
                // A model is identified by its files: the digest that becomes known later is no change.
                from_outputs: &["digest"],
                accepts_any: Some(|field, after| field == "digest" && after.is_null()),
                ..replaced_by(&["path"])
            },
            // The running program is identified by its digest, not by its path.
            Self::Program => FieldRules { creation_only: &["source"], ..replaced_by(&["path"]) },
            // The version that created a data folder keeps running it.
            Self::Postgres => FieldRules { creation_only: &["version"], ..replaced_by(&["path"]) },
            Self::File | Self::Database | Self::Control => replaced_by(&["path"]),
            // Another program leaves the schema as it is, unless another schema is wanted.
            Self::Schema => FieldRules { creation_only: &["program", "config"], ..replaced_by(&["database"]) },
            Self::ApiKey => {
                FieldRules { creation_only: &["program", "config"], ..replaced_by(&["database", "public_id"]) }
            }
            Self::Process => replaced_by(&["unit"]),
        }
    }
}

impl From<ResourceKind> for KindName {
    fn from(noun: ResourceKind) -> Self {
        noun.kind()
    }
}

#[cfg(test)]
mod tests {
    use textnlp_keys::KeyKind;

    use super::*;

    #[test]
    fn every_kind_has_exactly_one_enum_variant() {
        for kind in &KINDS {
            let name = KindName::new(kind.name).unwrap();
            let nouns = [ResourceKind::of(&name).map(ResourceKind::kind), KeyKind::of(&name).map(KindName::from)];
            assert_eq!(nouns.into_iter().flatten().collect::<Vec<_>>(), [name]);
        }
        assert_eq!(KINDS.len(), ResourceKind::ALL.len() + 4);
        assert_eq!(ResourceKind::of(&KindName::new("aws.vpc").unwrap()), None);
    }
}
