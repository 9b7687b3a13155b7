//! The table of the guide: what each part of the same environment becomes on each provider.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use camino::Utf8Path;
use jiff::Timestamp;
use textnlp_aws::tables::{rds_ca, regions};
use textnlp_keys::trust::inspect;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::environment::{Environment, Library, Overrides, components};
use textnlp_orchestrator::release::{Artifacts, Release, digest};
use textnlp_provider::capabilities::Setting;
use textnlp_provider::component::Program;
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Capability, Component, Wanted};

use super::{Context, PROVIDERS, Row, catalogue, secrets};

/// What all columns have: a production environment with a database, a cache of models, monitoring and backups.
const ENVIRONMENT: &str = "pilot";

/// The environment on a provider, with the settings that it needs there.
fn environment(name: &str, row: &Row, runtime: Runtime, more: &[&str]) -> Environment {
    let hosting = match row.name {
        "onprem" | "kubernetes" => "cluster",
        _ => "managed",
    };
    let (region, account, registry) = match &row.assumed {
        Some(assumed) => (assumed.region, assumed.account, (assumed.registry)(assumed.account, assumed.region)),
        None => ("local", "", "registry.example.com/textnlp".to_owned()),
    };
    let mut sets = vec![
        format!("sites[0].provider={}", row.name),
        format!("sites[0].runtime={runtime}"),
        format!("sites[0].region={region}"),
        format!("database.hosting={hosting}"),
        format!("registry.url={registry}"),
    ];
    if runtime == Runtime::Kubernetes {
        sets.push("traffic.domain=textnlp.example.com".to_owned());
    }
    if row.name == "azure" && runtime == Runtime::Kubernetes {
        sets.push("database.replicas=1".to_owned());
    }
    if !account.is_empty() {
        sets.push(format!("sites[0].account=\"{account}\""));
    }
    sets.extend(more.iter().map(|set| (*set).to_owned()));
    let overrides = Overrides { sets, ..Overrides::default() };
    let loaded = Library::built_in().load(name, &overrides, &catalogue());
    loaded.unwrap_or_else(|error| panic!("{}: {error}", row.name)).environment
}

/// The kinds that a component becomes, or why it is refused.
fn cell(lowered: Result<Vec<Wanted>, textnlp_provider::Problems>) -> String {
    let wanted = match lowered {
        Ok(wanted) => wanted,
        Err(problems) => {
            let causes: Vec<&str> = problems.0.iter().map(|problem| problem.cause.as_str()).collect();
            return format!("refused: {}", causes.join("; "));
        }
    };
    let mut counts: Vec<(String, usize)> = Vec::new();
    for one in &wanted {
        let kind = one.kind.as_str();
        match counts.iter_mut().find(|(name, _)| name == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind.to_owned(), 1)),
        }
    }
    let words: Vec<String> = counts
        .iter()
        .map(|(kind, count)| if *count > 1 { format!("{count} `{kind}`") } else { format!("`{kind}`") })
        .collect();
    words.join(", ")
}

/// Why nothing is created for a part, by the head of the column.
const NOTHING: &[(&str, &str, &str)] = &[
    ("onprem", "registry", "machines run programs, not images"),
    ("kubernetes", "registry", "the registry is yours"),
    ("aws, sagemaker", "backup", "no data outlives a container"),
    ("aws, sagemaker", "certificate", "clients reach the endpoint by a name of AWS with its certificate"),
    ("aws, sagemaker", "cluster", "SageMaker runs the containers"),
    ("aws, sagemaker", "database", "each container has SQLite"),
    ("aws, sagemaker", "gateway", "SageMaker distributes the requests"),
    ("aws, sagemaker", "monitoring", "SageMaker sends its metrics to CloudWatch"),
    ("aws, sagemaker", "network", "containers are in the network of SageMaker"),
    ("aws, sagemaker", "secrets", "requests are signed with credentials of AWS"),
    ("gcp, cloud-run", "backup", "no data outlives an instance"),
    ("gcp, cloud-run", "certificate", "clients reach the service by a name of Google Cloud with its certificate"),
    ("gcp, cloud-run", "cluster", "Cloud Run runs the containers"),
    ("gcp, cloud-run", "database", "each instance has SQLite"),
    ("gcp, cloud-run", "gateway", "Cloud Run distributes the requests"),
    ("gcp, cloud-run", "monitoring", "Cloud Run sends its metrics to Cloud Monitoring"),
    ("gcp, cloud-run", "network", "containers are in the network of Google Cloud"),
    ("gcp, cloud-run", "secrets", "requests have ID tokens of Google Cloud"),
    ("gcp, vertex", "backup", "no data outlives a replica"),
    ("gcp, vertex", "certificate", "clients reach the endpoint by a name of Google Cloud with its certificate"),
    ("gcp, vertex", "cluster", "Vertex AI runs the containers"),
    ("gcp, vertex", "database", "each replica has SQLite"),
    ("gcp, vertex", "gateway", "Vertex AI distributes the requests"),
    ("gcp, vertex", "monitoring", "Vertex AI sends its metrics to Cloud Monitoring"),
    ("gcp, vertex", "network", "containers are in the network of Google Cloud"),
    ("gcp, vertex", "secrets", "requests have access tokens of Google Cloud"),
    ("azure, azure-ml", "backup", "no data outlives a replica"),
    ("azure, azure-ml", "certificate", "clients reach the endpoint by a name of Azure with its certificate"),
    ("azure, azure-ml", "cluster", "Azure Machine Learning runs the containers"),
    ("azure, azure-ml", "database", "each replica has SQLite"),
    ("azure, azure-ml", "gateway", "Azure Machine Learning distributes the requests"),
    ("azure, azure-ml", "monitoring", "Azure Machine Learning sends its metrics to Azure Monitor"),
    ("azure, azure-ml", "network", "containers are in the network of Azure Machine Learning"),
    ("azure, azure-ml", "secrets", "requests have access tokens of Microsoft Entra"),
];

/// What the parts of an environment become, each or why it is refused.
fn expanded(row: &Row, environment: &Environment) -> Vec<(String, Result<Vec<Wanted>, textnlp_provider::Problems>)> {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let digest = digest(b"server");
    let artifacts = Artifacts {
        program: Program { path: "/opt/textnlp-server".to_owned(), digest: digest.clone() },
        models: BTreeMap::from([("textnlp-tiny".to_owned(), digest.clone())]),
        templates: None,
        schema: Some(3),
        given: BTreeMap::new(),
        files: Default::default(),
        image: Some(format!("1@{digest}")),
    };
    let site = &environment.sites[0].name;
    let secrets: Arc<_> = secrets(folder);
    let context = Context { folder, secrets, environment, site, take: &[], server: None };
    let provider = (row.provider)(&context).unwrap_or_else(|error| panic!("{}: {error:#}", row.name));
    let (place, parts) = components(environment, &Release::resolve(environment, &artifacts)).remove(0);
    parts.iter().map(|part: &Component| (part.name.to_string(), provider.lower(part, &place))).collect()
}

/// The columns: the head of each, its provider and runtime.
fn heads() -> Vec<(String, &'static Row, Runtime)> {
    let mut heads = Vec::new();
    for row in PROVIDERS.iter().filter(|row| row.missing.is_none()) {
        for support in row.capabilities.runtimes {
            let head = if row.capabilities.runtimes.len() > 1 {
                format!("{}, {}", row.name, support.runtime)
            } else {
                row.name.to_owned()
            };
            heads.push((head, row, support.runtime));
        }
    }
    heads
}

fn columns() -> Vec<(String, BTreeMap<String, String>)> {
    let cells = |(head, row, runtime): (String, &'static Row, Runtime)| {
        let parts = expanded(row, &environment(ENVIRONMENT, row, runtime, &[]));
        (head, parts.into_iter().map(|(part, lowered)| (part, cell(lowered))).collect())
    };
    heads().into_iter().map(cells).collect()
}

fn table() -> String {
    let columns = columns();
    let mut names: Vec<&String> = columns.iter().flat_map(|(_, cells)| cells.keys()).collect();
    names.sort();
    names.dedup();
    let heads: Vec<&str> = columns.iter().map(|(head, _)| head.as_str()).collect();
    let mut text = format!("| part | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for name in names {
        let cell = |(head, cells): &(String, BTreeMap<String, String>)| {
            let reason = NOTHING.iter().find(|(column, part, _)| column == head && part == name);
            match (cells.get(name).filter(|text| !text.is_empty()), reason) {
                (Some(text), None) => text.clone(),
                (None, Some((.., reason))) => format!("nothing: {reason}"),
                (text, reason) => panic!("{name} of {head}: {text:?}, but the reason is {reason:?}"),
            }
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        text += &format!("| `{name}` | {} |\n", cells.join(" | "));
    }
    text
}

/// The parts that use each kind, and what they need for it in the environment, if it is more than [`ENVIRONMENT`].
type Used = BTreeMap<String, BTreeMap<String, &'static str>>;

/// Adds the parts that use the kinds of a provider's own; answers how many pairs are new.
fn add(
    used: &mut Used,
    row: &Row,
    parts: &[(String, Result<Vec<Wanted>, textnlp_provider::Problems>)],
    with: &'static str,
) -> usize {
    let own = format!("{}.", row.name);
    let mut new = 0;
    for (part, lowered) in parts {
        for wanted in lowered.iter().flatten().filter(|wanted| wanted.kind.as_str().starts_with(&own)) {
            let parts = used.entry(wanted.kind.as_str().to_owned()).or_default();
            if let Entry::Vacant(entry) = parts.entry(part.clone()) {
                entry.insert(with);
                new += 1;
            }
        }
    }
    new
}

/// A setting whose kinds [`ENVIRONMENT`] does not have.
struct Variation {
    /// The head of the column.
    column: &'static str,
    /// What the guide calls it.
    with: &'static str,
    environment: &'static str,
    sets: &'static [&'static str],
}

const fn variation(column: &'static str, with: &'static str, sets: &'static [&'static str]) -> Variation {
    Variation { column, with, environment: ENVIRONMENT, sets }
}

const AWS: &str = "aws, kubernetes";
const GCP: &str = "gcp, kubernetes";
const AZURE: &str = "azure, kubernetes";
const ZONE: &str = "traffic.existing=Z0123456789ABCDEFGHIJ";
const BUDGET: &[&str] = &["budget.monthly=1000"];
const MODELS: &[&str] = &["models[0].source=bucket:tiny"];
const MAILBOX: &[&str] =
    &["monitoring.receivers={ operators: \"smtps://mail.example.com?from=a@example.com&to=b@example.com\" }"];

const VARIATIONS: &[Variation] = &[
    variation(AWS, "`traffic.existing`", &[ZONE]),
    variation(AWS, "`traffic.managed_certificate`", &[ZONE, "traffic.managed_certificate=true"]),
    Variation {
        column: AWS,
        with: "several sites",
        environment: "multi-region-clouds",
        sets: &["database.hosting=external", ZONE],
    },
    variation(
        AWS,
        "`cluster.access`",
        &["cluster.access=[{ identity: \"arn:aws:iam::123456789012:role/admins\", level: view }]"],
    ),
    variation(AWS, "`monitoring.receivers`", &["monitoring.receivers={ operators: \"https://hooks.example.com\" }"]),
    variation(AWS, "`budget.monthly`", BUDGET),
    variation(AWS, "`storage.replicate_to`", &["storage.replicate_to=us-west-2"]),
    variation(AWS, "`cache.hosting: managed`", &["cache.kind=redis", "cache.hosting=managed"]),
    variation(AWS, "`database.replica_region`", &["database.replica_region=us-west-2"]),
    variation(AWS, "models of its bucket", MODELS),
    variation("aws, sagemaker", "`scaling.max`", &["scaling.max=6", "scaling.requests_per_second=5"]),
    variation(GCP, "`traffic.existing`", &["traffic.existing=example-com"]),
    Variation {
        column: GCP,
        with: "several sites",
        environment: "multi-region-clouds",
        sets: &["database.hosting=external", "traffic.existing=example-com"],
    },
    variation(GCP, "a mailbox in `monitoring.receivers`", MAILBOX),
    variation(GCP, "`budget.monthly`", BUDGET),
    variation(GCP, "`cache.hosting: managed`", &["cache.kind=redis", "cache.hosting=managed"]),
    variation(GCP, "`database.replica_region`", &["database.replica_region=us-east1"]),
    variation(GCP, "models of its bucket", MODELS),
    variation(
        AZURE,
        "`traffic.existing`",
        &["traffic.existing=/subscriptions/s/resourceGroups/dns/providers/Microsoft.Network/dnsZones/example.com"],
    ),
    Variation {
        column: AZURE,
        with: "several sites",
        environment: "multi-region-clouds",
        sets: &[
            "database.hosting=external",
            "traffic.existing=/subscriptions/s/resourceGroups/dns/providers/Microsoft.Network/dnsZones/example.com",
            // Three active sites: a standby has no clients before a failover, and here each site has some.
            "database.replicas=0",
            "sites[2].role=secondary",
            "traffic.weights={ primary: 100, secondary: 50, tertiary: 10 }",
        ],
    },
    variation(AZURE, "a mailbox in `monitoring.receivers`", MAILBOX),
    variation(AZURE, "`budget.monthly`", BUDGET),
    variation(AZURE, "`cache.hosting: managed`", &["cache.kind=redis", "cache.hosting=managed"]),
    variation(AZURE, "`database.replica_region`", &["database.replica_region=northeurope"]),
    variation(AZURE, "`maintenance`", &["maintenance={ day: sunday, at: \"03:00\", hours: 4 }"]),
    variation(AZURE, "`storage.replicate_to`", &["storage.replicate_to=northeurope"]),
    variation(AZURE, "`storage.archive_after`", &["storage.archive_after=90d"]),
    variation(AZURE, "models of its bucket", MODELS),
    variation("azure, azure-ml", "`scaling.max`", &["scaling.max=6", "scaling.requests_per_second=5"]),
];

/// What uses each kind, by expansion of [`ENVIRONMENT`] and its variations.
fn used() -> Used {
    let (heads, mut used) = (heads(), Used::new());
    for (_, row, runtime) in &heads {
        add(&mut used, row, &expanded(row, &environment(ENVIRONMENT, row, *runtime, &[])), "");
    }
    for Variation { column, with, environment: name, sets } in VARIATIONS {
        let (_, row, runtime) = heads.iter().find(|(head, ..)| head == column).unwrap();
        let parts = expanded(row, &environment(name, row, *runtime, sets));
        let new = add(&mut used, row, &parts, with);
        let refused: Vec<_> =
            parts.iter().filter_map(|(part, lowered)| Some((part, lowered.as_ref().err()?))).collect();
        assert!(new > 0, "{column} uses no other kind with {with}: {refused:?}");
    }
    used
}

#[test]
fn guide_lists_what_each_part_becomes() {
    textnlp_tests::guide::expect_section("docs/guide/providers.md", "parts", &table());
}

#[test]
fn guide_lists_what_is_done_with_each_kind() {
    let used = used();
    let users = |kind: &str| match used.get(kind) {
        None => "no environment".to_owned(),
        Some(parts) => {
            let words = parts.iter().map(|(part, with)| match *with {
                "" => format!("`{part}`"),
                with => format!("`{part}` with {with}"),
            });
            words.collect::<Vec<_>>().join(", ")
        }
    };
    let rows = [textnlp_aws::coverage(&users), textnlp_gcp::coverage(&users), textnlp_azure::coverage(&users)];
    let table = format!("{}{}", textnlp_cloud::COVERAGE, rows.concat());
    textnlp_tests::guide::expect_section("docs/guide/providers.md", "coverage", &table);
}

/// The certificate that pods verify RDS with.
#[test]
fn pods_on_aws_verify_the_managed_database_by_the_authorities_of_its_region() {
    let row = PROVIDERS.iter().find(|row| row.name == "aws").unwrap();
    let lowered = |part: &str, more: &[&str]| {
        let environment = environment(ENVIRONMENT, row, Runtime::Kubernetes, more);
        expanded(row, &environment).into_iter().find(|(name, _)| name == part).unwrap().1
    };
    for region in ["eu-central-1", "us-east-1"] {
        let server = lowered("server", &[&format!("sites[0].region={region}")]).unwrap();
        let map = server.iter().find(|one| one.id.as_str().ends_with("/server/private-ca")).unwrap();
        let pem = map.spec.as_value()["data"]["ca.crt"].as_str().unwrap();
        assert_eq!(Some(pem), rds_ca::of_region(region));
        let deployment = server.iter().find(|one| one.id.as_str().ends_with("/server/deployment")).unwrap();
        assert!(deployment.needs.iter().any(|need| need.on == map.id), "{deployment:?}");
        let dumps = lowered("backup", &[&format!("sites[0].region={region}")]).unwrap();
        let script = dumps.iter().find(|one| one.id.as_str().ends_with("/backup/script")).unwrap();
        assert_eq!(script.spec.as_value()["data"]["ca.crt"].as_str(), Some(pem));
    }
    let unknown = "sites[0].region=cn-north-1";
    let refused = lowered("database", &[unknown]).unwrap_err().to_string();
    assert!(refused.contains("cn-north-1") && refused.contains("`network.private_ca`"), "{refused}");
    lowered("database", &[unknown, "network.private_ca=/etc/hosts"]).unwrap();
}

#[test]
fn each_authority_of_rds_signs_itself_and_is_of_its_region_for_another_year() {
    let a_year_after_the_record: Timestamp = "2027-11-28T00:00:00Z".parse().unwrap();
    for region in regions::all() {
        let Some(pem) = rds_ca::of_region(region.name) else { continue };
        let certificates: Vec<&str> = pem.split_inclusive("-----END CERTIFICATE-----\n").collect();
        let kinds = ["RSA2048", "RSA4096", "ECC384"];
        assert_eq!(certificates.len(), kinds.len(), "{}", region.name);
        for (certificate, kind) in certificates.iter().zip(kinds) {
            let pem = certificate.as_bytes();
            let name = format!("Amazon RDS {} Root CA {kind} G1", region.name);
            let found = inspect(pem, Some(pem), None).unwrap();
            assert!(found.signed == Some(true) && found.not_after > a_year_after_the_record, "{name}: {found:?}");
            let trusted = TrustRoots::only_pem(pem, &name).unwrap().store();
            let subject = String::from_utf8_lossy(&trusted.roots[0].subject);
            assert!(subject.contains(&name), "{name}: {subject}");
        }
    }
}

/// Its web application firewall is one of an ingress, wherever the cluster is.
#[test]
fn scale_up_expands_in_clusters_of_every_provider() {
    let ingress = "sites[0].cluster.ingress={ class: nginx, issuer: letsencrypt }";
    let has_pods = |row: &&Row| row.capabilities.runtimes.iter().any(|one| one.runtime == Runtime::Kubernetes);
    let rows: Vec<&Row> = PROVIDERS.iter().filter(|row| row.missing.is_none()).filter(has_pods).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let environment = environment("scale-up", row, Runtime::Kubernetes, &[ingress]);
        let parts = expanded(row, &environment);
        let (_, gateway) = parts.iter().find(|(part, _)| part == "gateway").unwrap();
        let gateway = gateway.as_ref().unwrap_or_else(|problems| panic!("{}: {problems}", row.name));
        let ingress = gateway.iter().find(|one| one.kind.as_str() == "kubernetes.ingress").unwrap();
        assert!(ingress.spec.as_value().to_string().contains("enable-modsecurity"), "{}: {ingress:?}", row.name);
    }
}

#[test]
fn private_registry_is_a_secret_in_clusters_of_every_provider() {
    let folder = tempfile::tempdir().unwrap();
    let file = Utf8Path::from_path(folder.path()).unwrap().join("password");
    textnlp_files::Replace::private().write(&file, b"hunter2").unwrap();
    let password = format!("registry.password=secret:file:{file}");
    let image = format!("sites[0].cluster.image=registry.example.com/team/textnlp@{}", digest(b"image"));
    let sets = ["registry.url=https://registry.example.com/team/", "registry.user=ci", &password, &image];
    for (head, row, runtime) in heads().into_iter().filter(|(.., runtime)| *runtime == Runtime::Kubernetes) {
        let support = row.capabilities.of(runtime).unwrap();
        assert!(support.supports(Capability::Optional(Setting::RegistryPassword)), "{head}");
        let parts = expanded(row, &environment(ENVIRONMENT, row, runtime, &sets));
        let part = |name: &str| {
            let (_, lowered) = parts.iter().find(|(part, _)| part == name).unwrap();
            lowered.as_ref().unwrap_or_else(|problems| panic!("{head}: {problems}"))
        };
        assert!(parts.iter().all(|(part, _)| part != "registry"), "{head}: no repository is created in it");
        let secret = part("cluster").iter().find(|one| one.id.as_str().ends_with("/cluster/registry")).unwrap();
        let account = &secret.spec.as_value()["data"][".dockerconfigjson"];
        assert_eq!(account["$registry"], "registry.example.com/team", "{head}");
        let password = part("secrets").iter().find(|one| one.id.as_str().ends_with("/secrets/registry-password"));
        assert!(secret.needs.iter().any(|need| Some(&need.on) == password.map(|one| &one.id)), "{head}: {secret:?}");
    }
}

#[test]
fn nodes_of_a_created_cluster_have_room_for_a_pod() {
    const REQUESTS: &str = "sites[0].cluster.resources={ requests: { cpu: 5, memory: 9GiB } }";
    const POOLS: [&str; 3] = ["aws.eks-node-group", "gcp.node-pool", "azure.pool"];
    for (head, row, runtime) in heads() {
        // Clouds create their clusters.
        if row.assumed.is_none() || runtime != Runtime::Kubernetes {
            continue;
        }
        let part = |name: &str, more: &[&str]| {
            let parts = expanded(row, &environment(ENVIRONMENT, row, runtime, more));
            parts.into_iter().find(|(part, _)| part == name).unwrap().1
        };
        let pool = |more: &[&str]| -> String {
            let all = part("cluster", more).unwrap();
            let mut pools = all.iter().filter(|one| POOLS.contains(&one.kind.as_str()));
            pools.next().unwrap().id.to_string()
        };
        let (usual, medium) = (pool(&[]), pool(&[REQUESTS]));
        assert!(!usual.contains("medium") && medium.contains("medium"), "{head}: {usual} {medium}");
        assert_eq!(pool(&["cluster.node_size=medium"]), medium, "{head}");
        let server = part("server", &[REQUESTS]).unwrap();
        let pods = server.iter().find(|one| one.id.as_str().ends_with("/deployment")).unwrap();
        assert!(pods.needs.iter().any(|need| need.on.as_str() == medium), "{head}: {:?}", pods.needs);
        let refused = part("cluster", &[REQUESTS, "cluster.node_size=small"]).unwrap_err().to_string();
        for words in ["requests 5100m CPU and 9280Mi memory", "write `cluster.node_size: medium`"] {
            assert!(refused.contains(words), "{head}: {refused}");
        }
    }
}
