//! The part of a component that is created on the operator's machine: a cluster gets its secrets and certificates from
//! there. A site that replicates has its site agent and its inter-site relay there too, outside of what may fail.

use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{self, Certificate, ComponentSpec};
use textnlp_provider::settings::{Runtime, TlsMode};
use textnlp_provider::{Component, Site};

use super::adapter::{ADAPTER, ADAPTER_COMPONENT};

/// Only the API server sees the adapter's certificate and is configured to trust it, so a long lifetime is acceptable.
const ADAPTER_DAYS: u32 = 1825;
/// A secret that the database in the cluster does not need: its replicas authenticate by certificates.
const REPLICATION_PASSWORD: &str = "replication-password";

/// The component and the site as the provider of that machine expands them. Pure.
pub fn local_part(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let cluster = site.cluster.as_deref()?;
    let component = here(component, cluster)?;
    Some((component, Site { runtime: Runtime::Process, ..site.clone() }))
}

fn here(component: &Component, cluster: &ClusterSite) -> Option<Component> {
    let as_is = || Some(component.clone());
    let ours = |part: ComponentSpec| Some(Component { existing: None, part, ..component.clone() });
    match &component.part {
        // The folder for the site's secrets and certificates.
        ComponentSpec::Network(network) => {
            ours(ComponentSpec::Network(component::Network { cidr: None, ..network.clone() }))
        }
        ComponentSpec::Secrets(secrets) => {
            let mut secrets = secrets.clone();
            secrets.generate.remove(REPLICATION_PASSWORD);
            Some(Component { part: ComponentSpec::Secrets(secrets), ..component.clone() })
        }
        // An external certificate is a Secret in the cluster.
        ComponentSpec::Certificate(_) => as_is().filter(|one| one.existing.is_none()),
        // A database in the cluster has only its password on this machine.
        ComponentSpec::Database(database) => {
            let is_inside = database.postgres.as_ref().is_some_and(|one| one.address.is_none());
            as_is().filter(|_| !is_inside)
        }
        // The metrics adapter presents its own certificate to the API server.
        ComponentSpec::Workload(_) => cluster.adapter.then(|| Component {
            name: ADAPTER_COMPONENT.parse().expect("the constant is a label"),
            existing: None,
            part: ComponentSpec::Certificate(Certificate {
                mode: TlsMode::LocalCa,
                names: vec![format!("{ADAPTER}.{}.svc", cluster.namespace)],
                days: ADAPTER_DAYS,
                acme: None,
            }),
        }),
        // The supervisor of the site agent.
        ComponentSpec::Cluster(of) if cluster.replicates => {
            ours(ComponentSpec::Cluster(component::Cluster { gpu: None, ..of.clone() }))
        }
        ComponentSpec::Relay(_) | ComponentSpec::SiteAgent(_) => as_is(),
        _ => None,
    }
}
