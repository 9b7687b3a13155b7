//! What AWS can do with the settings of an environment.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, Capability, RuntimeSupport, Setting, SiteRecords, Store};
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};
use textnlp_provider::{Component, Form, Site};

use crate::lower::{DISKS, SYSTEM, addon, bucket_identity, endpoint, node_autoscaler};
use crate::tables::machines::NODES;
use crate::tables::rds_ca;

/// What is not listed here is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[
        RuntimeSupport { runtime: Runtime::Kubernetes, supported: KUBERNETES, refused: &[] },
        RuntimeSupport { runtime: Runtime::Sagemaker, supported: SAGEMAKER, refused: NOT_BY_SAGEMAKER },
    ],
    site_records: Some(SiteRecords { notices_after: endpoint::NOTICES_AFTER, takes_names: true }),
    names_balancers: true,
    forms: &[
        (Form::ACCOUNT, Form { fits: is_account, says: "an account is 12 digits in quotes, such as \"123456789012\"" }),
        (Form::REGION, Form { fits: is_region, says: "a region is like `eu-central-1`: `aws ec2 describe-regions`" }),
        (
            Form::ROLE,
            Form {
                fits: |id| is_of_iam(id, "role/"),
                says: "a role is its ARN, such as `arn:aws:iam::123456789012:role/deploy`",
            },
        ),
        (
            Form::BOUNDARY,
            Form {
                fits: |id| is_of_iam(id, "policy/"),
                says: "a boundary is the ARN of a policy, such as `arn:aws:iam::123456789012:policy/most`",
            },
        ),
    ],
};

fn is_account(id: &str) -> bool {
    id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// `eu-central-1`, `us-gov-west-1`: <https://docs.aws.amazon.com/global-infrastructure/latest/regions/aws-regions.html>.
fn is_region(id: &str) -> bool {
    let mut words: Vec<&str> = id.split('-').collect();
    let number = words.pop().unwrap_or_default();
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    words.len() >= 2
        && words.iter().all(is_word)
        && number.len() == 1
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is the ARN of a role or a policy; policies of AWS itself are of the account `aws`.
fn is_of_iam(id: &str, what: &str) -> bool {
    let mut parts = id.splitn(6, ':');
    let (arn, partition) = (parts.next(), parts.next().unwrap_or_default());
    let (service, region, account) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let name = parts.next().and_then(|rest| rest.strip_prefix(what)).unwrap_or_default();
    arn == Some("arn")
        && partition.starts_with("aws")
        && service == Some("iam")
        && region == Some("")
        && (is_account(account) || account == "aws")
        && !name.is_empty()
}

const KUBERNETES: &[Capability] = &[
    Database(DatabaseKind::Postgres, Some(Hosting::Managed)),
    Database(DatabaseKind::Postgres, Some(Hosting::External)),
    Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
    Cache(CacheKind::Redis, Some(Hosting::Managed)),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Existing),
    Failover(Failover::Manual),
    Failover(Failover::Automatic),
    Replication(DatabaseCopy::Streaming),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    Rollout(Strategy::Canary),
    Rollout(Strategy::BlueGreen),
    State(Store::Folder),
    State(Store::S3),
    Backup(Store::Folder),
    Backup(Store::S3),
    Backup(Store::Gs),
    Backup(Store::Az),
    Optional(Setting::AddressRange),
    Optional(Setting::AlertReceivers),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::Backup),
    Optional(Setting::BackupSize),
    Gpu(GpuSize::Small),
    Gpu(GpuSize::Medium),
    Gpu(GpuSize::Large),
    Gpu(GpuSize::Xlarge),
    Optional(Setting::ClusterAccess),
    Optional(Setting::ClusterNetworks),
    Optional(Setting::ClusterNodes),
    Optional(Setting::ClusterVersion),
    Optional(Setting::DatabaseReplica),
    Optional(Setting::PermissionBoundary),
    Optional(Setting::EncryptionKey),
    Optional(Setting::ExistingRegistry),
    Optional(Setting::ExistingRole),
    Optional(Setting::ExternalId),
    Optional(Setting::Features),
    Optional(Setting::GpuAutoscaling),
    Optional(Setting::GpuMachines),
    Optional(Setting::Maintenance),
    Optional(Setting::MfaDevice),
    Optional(Setting::NodeSize),
    Optional(Setting::ExistingZone),
    Optional(Setting::ManagedCertificate),
    Optional(Setting::ModelReplica),
    Optional(Setting::MonitoringStack),
    Optional(Setting::NetworkPolicies),
    Optional(Setting::PrivateAuthority),
    Optional(Setting::Proxy),
    Optional(Setting::Registry),
    Optional(Setting::RegistryPassword),
    Optional(Setting::SessionDuration),
    Optional(Setting::Subnets),
    Optional(Setting::Tags),
    Optional(Setting::WebApplicationFirewall),
];

/// An endpoint keeps nothing: its SQLite file ends with the instance. AWS terminates TLS and authorizes callers, so that
/// keys, tenants, gateways and failover are not supported, nor is what needs a cluster or a network of its own.
const SAGEMAKER: &[Capability] = &[
    Database(DatabaseKind::Sqlite, None),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Off),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    Rollout(Strategy::Canary),
    Rollout(Strategy::BlueGreen),
    State(Store::Folder),
    State(Store::S3),
    Optional(Setting::AlertReceivers),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::EncryptionKey),
    Optional(Setting::ExistingRole),
    Optional(Setting::ExternalId),
    Gpu(GpuSize::Small),
    Gpu(GpuSize::Medium),
    Gpu(GpuSize::Large),
    Gpu(GpuSize::Xlarge),
    Optional(Setting::MfaDevice),
    Optional(Setting::ModelReplica),
    Optional(Setting::PermissionBoundary),
    Optional(Setting::Registry),
    Optional(Setting::SessionDuration),
    Optional(Setting::Tags),
];

/// Why an endpoint refuses settings.
const NOT_BY_SAGEMAKER: &[(&str, &str)] = &[
    ("backup.destination", "no data outlives a container"),
    ("backup.enabled", "no data outlives a container"),
    ("backup.size", "no data outlives a container"),
    ("cache.kind", "containers are in the network of SageMaker"),
    ("cluster.max_nodes", "SageMaker runs the containers"),
    ("dr.mode", "nothing leads clients from an endpoint to another site"),
    ("features", "flags are in a database, and no data outlives a container"),
    ("gpu.machines", "`gpu.size` or `sites[].instance_type` chooses the machine"),
    ("gpu.max", "each instance has its GPUs: `scaling.max` is the most of them"),
    ("maintenance", "SageMaker has no maintenance window"),
    ("monitoring.stack", "SageMaker sends its metrics to CloudWatch"),
    ("network.private_ca", "containers are in the network of SageMaker"),
    ("network.proxy", "containers are in the network of SageMaker"),
    ("registry.existing", "existing registries are not supported for endpoints yet"),
    ("registry.password", "SageMaker pulls the image with the role of the endpoint"),
    ("replication.database.mode", "each container has SQLite"),
    ("traffic.existing", "clients reach the endpoint by a name of AWS with its certificate"),
];

/// The component as the provider of the objects inside of the cluster expands it: without what AWS's own resources answer for. Pure.
pub fn inside(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let mut inner = component.clone();
    // AWS's alarms go to the receivers.
    if let ComponentSpec::Monitoring(monitoring) = &mut inner.part {
        monitoring.receivers.clear();
    }
    // Pods verify RDS, by what the environment names or by the region's own authorities.
    let verified_by = match &mut inner.part {
        ComponentSpec::Workload(workload) if workload.stored.hosting == Some(Hosting::Managed) => {
            Some(&mut workload.egress.private_ca)
        }
        ComponentSpec::Backup(backup) => backup.managed.as_mut().map(|managed| &mut managed.private_ca),
        _ => None,
    };
    if let Some(authority) = verified_by.filter(|authority| authority.is_none()) {
        *authority = rds_ca::of_region(&site.region).map(|pem| Ok(pem.to_owned()));
    }
    let nodes = NODES.of_any_site(site).named(SYSTEM);
    let (inner, mut site) = textnlp_cloud::inside(&inner, site, &format!("{nodes}-nodes"));
    if let Some(gpu) = textnlp_cloud::created_gpus(&mut site) {
        // AWS's images of nodes have the driver, and no plugin: <https://docs.aws.amazon.com/eks/latest/userguide/ml-eks-optimized-ami.html>.
        gpu.device_plugin = true;
    }
    let balancer = endpoint::balancer(component, &site);
    let identity = bucket_identity(component, &site);
    let autoscaler = node_autoscaler(component, &site);
    if let Some(cluster) = &mut site.cluster {
        if let Some(nodes) = &mut cluster.nodes {
            nodes.disks = Some(addon(DISKS));
        }
        cluster.node_autoscaler = autoscaler;
        cluster.balancer = balancer;
        cluster.bucket_identity = (!cluster.existing).then_some(identity);
    }
    Some((inner, site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_of_aws() {
        for (setting, id, expected) in [
            (Form::ACCOUNT, "123456789012", true),
            (Form::ACCOUNT, "production", false),
            (Form::REGION, "eu-central-1", true),
            (Form::REGION, "us-gov-west-1", true),
            (Form::REGION, "eu-central-1a", false),
            (Form::REGION, "westeurope", false),
            (Form::ROLE, "arn:aws:iam::123456789012:role/team/deploy", true),
            (Form::ROLE, "arn:aws-cn:iam::123456789012:role/deploy", true),
            (Form::ROLE, "deploy", false),
            (Form::ROLE, "arn:aws:iam::123456789012:user/ada", false),
            (Form::BOUNDARY, "arn:aws:iam::aws:policy/PowerUserAccess", true),
            (Form::BOUNDARY, "arn:aws:iam::123456789012:role/deploy", false),
        ] {
            assert_eq!((CAPABILITIES.form(setting).unwrap().fits)(id), expected, "{setting}: {id}");
        }
    }
}
