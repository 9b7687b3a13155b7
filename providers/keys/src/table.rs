//! The resource kinds of this crate and their properties. Their names are recorded in state files, which older versions
//! wrote when the on-prem provider owned these kinds.

use std::time::Duration;

use textnlp_provider::{DataClass, Identity, Kind, KindName, Permission, Pricing, ReplaceOrder};

use crate::diff::FieldRules;

/// The kinds that [`Keys`](crate::Keys) owns.
pub(crate) static KINDS: [Kind; 4] = [DIRECTORY, SECRET, AUTHORITY, CERTIFICATE];

/// The folder of a site.
pub const DIRECTORY: Kind = kind("onprem.directory", "the folder of a site", DataClass::None, 30);
/// A secret in the secret store.
pub const SECRET: Kind = kind("onprem.secret", "a generated secret", DataClass::Precious, 60);
/// A local certificate authority.
pub const AUTHORITY: Kind = kind("onprem.authority", "a built-in certificate authority", DataClass::Precious, 60);
/// A certificate that the local authority issued, or a user-provided one.
pub const CERTIFICATE: Kind = kind("onprem.certificate", "the certificate that clients see", DataClass::Derived, 60);

const WRITE: Permission = Permission::change("to write to the state folder");

const fn kind(name: &'static str, says: &'static str, data: DataClass, deadline_seconds: u64) -> Kind {
    Kind {
        name,
        says,
        identity: Identity::Named,
        data,
        // Every object here has an exclusive path or name.
        replace: ReplaceOrder::DeleteFirst,
        one_by_one: false,
        shared: &[],
        replica: None,
        // A marker is read as it was written.
        settles: Duration::ZERO,
        deadline: Duration::from_secs(deadline_seconds),
        schema: 1,
        typical: Some(Duration::from_secs(1)),
        pricing: Pricing::Included,
        permissions: &[WRITE],
        // No Terraform provider creates these objects.
        terraform: &[],
    }
}

/// The kinds as an enum: what code matches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// [`DIRECTORY`].
    Directory,
    /// [`SECRET`].
    Secret,
    /// [`AUTHORITY`].
    Authority,
    /// [`CERTIFICATE`].
    Certificate,
}

impl KeyKind {
    const ALL: [Self; 4] = [Self::Directory, Self::Secret, Self::Authority, Self::Certificate];

    /// The kind of this name; `None` for a kind of another provider.
    pub fn of(kind: &KindName) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == kind.as_str())
    }

    /// How its fields are compared.
    pub(crate) fn rules(self) -> FieldRules {
        match self {
            Self::Directory => FieldRules::default(),
            Self::Secret => FieldRules {
                replace: &["name", "recipe", "shared"],
                // The version of the secret is unknown to this observer, which is no change.
                accepts_any: Some(|field, after| field == "given" && after["version"] == ""),
                ..FieldRules::default()
            },
            Self::Authority => FieldRules { replace: &["subject", "key", "certificate_file"], ..FieldRules::default() },
            Self::Certificate => {
                FieldRules { replace: &["certificate_file", "key_file", "existing"], ..FieldRules::default() }
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Directory => DIRECTORY.name,
            Self::Secret => SECRET.name,
            Self::Authority => AUTHORITY.name,
            Self::Certificate => CERTIFICATE.name,
        }
    }
}

impl From<KeyKind> for KindName {
    fn from(kind: KeyKind) -> Self {
        Self::new(kind.name()).expect("the names in the table are kind names")
    }
}
