//! Parts of components that several tests lower.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use textnlp_onprem::{OnPrem, Options};
use textnlp_provider::component::{Postgres, Program};
use textnlp_provider::settings::{Role, Runtime};
use textnlp_provider::{InvalidName, Site};

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
        managed: None,
    }
}

pub(crate) fn onprem(state: &str) -> OnPrem {
    OnPrem::new(Options::new(Utf8PathBuf::from(state), Utf8PathBuf::from("/opt/supervisor")).unwrap())
}

pub(crate) fn site() -> Site {
    Site {
        environment: name("staging"),
        name: name("here"),
        account: "host".to_owned(),
        region: "local".to_owned(),
        runtime: Runtime::Process,
        role: Some(Role::Primary),
        tags: BTreeMap::new(),
        protect_data: true,
        cluster: None,
        subnets: Vec::new(),
        maintenance: None,
    }
}
