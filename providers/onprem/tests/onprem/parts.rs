//! Parts of components that several tests lower.

use textnlp_provider::InvalidName;
use textnlp_provider::component::{Postgres, Program};

pub(crate) fn name<T: TryFrom<String, Error = InvalidName>>(text: &str) -> T {
    T::try_from(text.to_owned()).unwrap()
}

pub(crate) fn program() -> Program {
    Program { path: "/opt/server".to_owned(), digest: format!("sha256:{}", "a".repeat(64)) }
}

/// A PostgreSQL of our own, of one site.
pub(crate) fn postgres() -> Postgres {
    Postgres {
        address: None,
        ca_file: None,
        name: "textnlp".to_owned(),
        version: 15,
        port: None,
        replicas: 0,
        connections: 60,
        secrets: name("secrets"),
        cluster: name("cluster"),
        program: program(),
        archive_seconds: None,
        between: None,
    }
}
