//! What an environment's components become in a cluster: golden objects, refusals, and the word of a real API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use expect_test::{expect, expect_file};
use serde_json::{Value, json};
use textnlp_cluster::Cluster as ControlPlane;
use textnlp_kubernetes::{Access, Kubernetes, local_part, server_pod};
use textnlp_provider::cluster::{
    Analytics, Balancer, BucketIdentity, CloudCache, ClusterAccess, ClusterGpus, ClusterNodes, EgressRule,
    IdentityToken, NodeAutoscaler, NodeChoice, OwnPostgres, Transport,
};
use textnlp_provider::component::*;
use textnlp_provider::settings::{CacheKind, DatabaseKind, Hosting, NodeSize, Runtime, Spot, Strategy, TlsMode};
use textnlp_provider::{CloudId, Component, DatabasePart, OutputRef, Ownership, Provider, Recorded, Site, Wanted};

use crate::parts::*;

#[test]
fn site_expands_into_the_golden_objects() {
    let mut text = String::new();
    for one in objects(&fixture()) {
        let needs: Vec<String> = one.needs.iter().map(|need| need.on.to_string()).collect();
        text += &format!("# {} is a {}, after {}\n", one.id, one.kind, needs.join(", "));
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    expect_file!["./golden/site.yaml"].assert_eq(&text);
}

#[test]
fn the_load_balancer_of_a_cloud_keeps_the_addresses_of_clients() {
    let annotations = BTreeMap::from([("cloud.example.com/type".to_owned(), "fast".into())]);
    let balancer = Balancer { annotations, keeps_addresses: true, notices_after_seconds: 20 };
    let there = Fixture { balancer: Some(balancer), ..fixture() };
    let spec = |place: &Fixture, end: &str| {
        let all = objects(place);
        all.iter().find(|one| one.id.as_str().ends_with(end)).map(|one| one.spec.as_value().clone()).unwrap()
    };
    let service = spec(&there, "gateway/service");
    assert_eq!(service["metadata"]["annotations"]["cloud.example.com/type"], "fast");
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    let sleeps = |place: &Fixture| -> Vec<u64> {
        let pod = spec(place, "server/deployment")["spec"]["template"]["spec"].clone();
        let containers = pod["containers"].as_array().cloned().unwrap_or_default();
        let sleep = |one: &Value| one["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        containers.iter().filter_map(sleep).chain(pod["terminationGracePeriodSeconds"].as_u64()).collect()
    };
    let later: Vec<u64> = sleeps(&fixture()).into_iter().map(|seconds| seconds + 20).collect();
    assert_eq!(sleeps(&there), later, "new connections arrive until the load balancer notices");
    // An address that the cluster does not balance has no load balancer.
    let address = |access: &mut ClusterAccess| access.address = Some("https://text.example.com".to_owned());
    let service = spec(&there.set(address), "gateway/service");
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert_eq!(service["spec"].get("externalTrafficPolicy"), None);
    assert_eq!(service["metadata"]["annotations"].get("cloud.example.com/type"), None);
}

#[test]
fn canary_release_is_complete_in_its_pod_template() {
    let mut text = String::new();
    for one in canary(&fixture()) {
        text += &format!("# {} is a {}\n", one.id, one.kind);
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    assert!(!text.contains("name: textnlp-config\n        configMap") && text.contains("downwardAPI"));
    expect_file!["./golden/canary.yaml"].assert_eq(&text);
}

#[test]
fn prometheus_settings_are_on_the_deployment_and_the_token_in_a_secret() {
    let of =
        |workload: Workload, place: Fixture| lowered(&component("server", ComponentSpec::Workload(workload)), place);
    let place = Fixture { rollout: Strategy::Canary, prometheus_ca: Some(Ok("PEM".to_owned())), ..fixture() };
    let made = of(judged(), place.clone()).unwrap();
    let spec = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).map(|one| one.spec.as_value());
    let token = OutputRef::new("main/secrets/prometheus-token".parse().unwrap(), "secret");
    assert_eq!(
        spec("server/prometheus").map(|secret| (&secret["metadata"]["name"], &secret["data"])),
        Some((
            &json!("textnlp-prometheus"),
            &json!({ "token": token, "url": { "$plain": "https://prometheus" }, "ca.crt": { "$plain": "PEM" } })
        ))
    );
    let deployment = made.iter().find(|one| one.id.as_str().ends_with("/deployment")).unwrap();
    let asked = &deployment.spec.as_value()["metadata"]["annotations"]["textnlp-rollout-queries"];
    expect![[r#"{"url":"https://prometheus","secret":true,"queries":[{"name":"errors seen by clients","query":"sum(rate(x{namespace=\"{{namespace}}\",pod=~\"textnlp-api-{{new}}-.*\"}[1m]))","at_most":0.01,"samples":3}]}"#]]
        .assert_eq(asked.as_str().unwrap());
    assert!(
        deployment.needs.iter().any(|need| need.on.as_str() == "main/server/prometheus"),
        "it is there before it is asked for"
    );
    // Nobody is asked with anything, or at all.
    let open = judged().outside.map(|outside| PrometheusQueries { token: false, ..outside });
    let plain = Fixture { prometheus_ca: None, ..place.clone() };
    for (workload, place, asked) in [
        (Workload { outside: open, ..judged() }, plain.clone(), true),
        (workload(), plain, false),
        (judged(), fixture(), false),
    ] {
        let made = of(workload, place).unwrap();
        assert!(made.iter().all(|one| !one.id.as_str().ends_with("/prometheus")));
        let deployment = made.iter().find(|one| one.id.as_str().ends_with("/deployment")).unwrap();
        let annotations = &deployment.spec.as_value()["metadata"]["annotations"];
        assert_eq!(annotations["textnlp-rollout-queries"].is_string(), asked, "{annotations}");
    }
    let why = of(judged(), Fixture { prometheus_ca: Some(Err("no certificates".to_owned())), ..place }).unwrap_err();
    assert!(why.to_string().contains("no certificates"), "{why}");
}

/// The policies among these objects, by name.
fn policies(made: &[Wanted]) -> BTreeMap<String, Value> {
    let made = made.iter().filter(|one| one.kind.as_str() == "kubernetes.network-policy");
    let made = made.map(|one| one.spec.as_value().clone());
    made.map(|spec| (spec["metadata"]["name"].as_str().unwrap().to_owned(), spec["spec"].clone())).collect()
}

#[test]
fn pods_accept_requests_over_loopback_and_show_probes_and_metrics_only() {
    let made = objects(&fixture());
    let spec = |end: &str| {
        made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap_or_else(|| panic!("{end}")).spec.as_value()
    };
    let config: Value = serde_yaml::from_str(spec("server/config")["data"]["server.yaml"].as_str().unwrap()).unwrap();
    let api = &config["textnlp"]["api"];
    assert_eq!(
        (&api["listen"], &api["health_listen"], &api["metrics_listen"]),
        (&json!("127.0.0.1:8080"), &json!("0.0.0.0:8082"), &json!("0.0.0.0:9090"))
    );
    assert!(api.get("host").is_none() && api.get("port").is_none(), "they contradict `listen`");
    let gateway: Value =
        serde_yaml::from_str(spec("gateway/config")["data"]["gateway.yaml"].as_str().unwrap()).unwrap();
    assert_eq!(gateway["gateway"]["backends"][0]["listen"], api["listen"]);
    let pod = &spec("server/deployment")["spec"]["template"]["spec"];
    for container in pod["containers"].as_array().unwrap() {
        let ports = container["ports"].as_array().unwrap();
        assert!(ports.iter().all(|port| port["containerPort"] != 8080), "{container}");
        for probe in ["livenessProbe", "readinessProbe"] {
            let port = &container[probe]["httpGet"]["port"];
            assert!(ports.iter().any(|one| one["name"] == *port && one["name"] != "https"), "{container}");
        }
    }
    // Clients reach the TLS port; probes of the node are not subject to policies.
    let allowed = policies(&made)["textnlp-in"]["ingress"].clone();
    let open: Vec<&Value> = allowed.as_array().unwrap().iter().filter(|rule| rule.get("from").is_none()).collect();
    assert_eq!(open, [&json!({ "ports": [{ "protocol": "TCP", "port": 8443 }] })]);
}

#[test]
fn pods_connect_only_to_their_dependencies() {
    let url = |url: &str| {
        let Some(postgres) = database().postgres else { unreachable!() };
        let address = Some(DatabaseAddress::Url(url.to_owned(), None));
        Database { postgres: Some(Box::new(Postgres { address, ..*postgres })), ..database() }
    };
    let server = |change: &dyn Fn(&mut Workload), place: Fixture| {
        let mut workload = workload();
        change(&mut workload);
        policies(&lowered(&component("server", ComponentSpec::Workload(workload)), place).unwrap())
    };
    let ports = |rule: &Value| -> Vec<u64> {
        rule["ports"].as_array().unwrap().iter().filter_map(|port| port["port"].as_u64()).collect()
    };
    let model = |source: &str| {
        let source = source.to_owned();
        move |workload: &mut Workload| workload.served[0].source.clone_from(&source)
    };

    // A rule without destinations is for clients of the API server only, and none reaches a metadata service.
    let everything = Fixture { adapter: true, rollout: Strategy::Canary, ..own_fixture() };
    let mut all = policies(&own_objects(&everything));
    let more = server(&|workload| *workload = judged(), Fixture { rollout: Strategy::Canary, ..fixture() });
    all.extend(more.into_iter().map(|(name, policy)| (format!("{name} of another"), policy)));
    let hub = server(&model("hf:org/name"), fixture());
    all.extend(hub.into_iter().map(|(name, policy)| (format!("{name} of a hub"), policy)));
    for (name, policy) in &all {
        for rule in policy["egress"].as_array().into_iter().flatten() {
            assert!(!ports(rule).is_empty(), "{name}: {rule}");
            let Some(to) = rule["to"].as_array() else {
                assert_eq!(ports(rule), [443, 6443], "{name}: {rule}");
                assert!(["textnlp-api-clients", "textnlp-database"].contains(&name.as_str()), "{name}: {rule}");
                continue;
            };
            for block in to.iter().filter_map(|one| one.get("ipBlock")) {
                let except = block["except"].to_string();
                match block["cidr"].as_str().unwrap() {
                    "0.0.0.0/0" => assert!(except.contains("169.254.0.0/16"), "{name}: {block}"),
                    "::/0" => {
                        assert!(except.contains("fd00:ec2::254/128") || except.contains("fc00::/7"), "{name}: {block}")
                    }
                    narrow => assert_eq!(narrow, "169.254.20.10/32", "{name}: {block}"),
                }
            }
        }
    }
    let clients = all["textnlp-api-clients"]["podSelector"]["matchExpressions"][0]["values"].clone();
    assert_eq!(clients, json!(["textnlp-rollout", "textnlp-adapter"]));

    // The database of the cluster is a label, and that of a plain address is one.
    let own = &all["textnlp-out"];
    assert_eq!(own["podSelector"], json!({ "matchLabels": { "app.kubernetes.io/part-of": "textnlp" } }));
    let to = json!([{ "podSelector": { "matchLabels": { "cnpg.io/cluster": "textnlp-database" } } }]);
    assert_eq!(own["egress"][1], json!({ "to": to, "ports": [{ "protocol": "TCP", "port": 5432 }] }));
    // Pods of CloudNativePG's jobs have no label of ours: they resolve names and copy from the primary, which accepts them.
    let instances = &all["textnlp-database"];
    assert_eq!(instances["podSelector"], to[0]["podSelector"]);
    let dns = &own["egress"][0];
    assert!(instances["egress"].as_array().unwrap().contains(dns), "{instances}");
    let rules = |direction: &str, peers: &str, from: &Value| -> Vec<u64> {
        let rules = instances[direction].as_array().unwrap().iter().filter(|rule| rule[peers] == *from);
        rules.flat_map(ports).collect()
    };
    assert_eq!((rules("egress", "to", &to), rules("ingress", "from", &to)), (vec![5432, 8000], vec![5432, 8000]));
    // The operator's pods, wherever they run, and no others.
    let operator = json!({ "matchLabels": { "app.kubernetes.io/name": "cloudnative-pg" } });
    let operator = json!([{ "namespaceSelector": {}, "podSelector": operator }]);
    assert_eq!(rules("ingress", "from", &operator), [8000]);
    assert_eq!(instances["ingress"].to_string().matches("8000").count(), 2, "{instances}");
    // A client of the API server has no business with the database, and no other pod of ours with its instances.
    let excluded = json!({ "key": "app.kubernetes.io/name", "operator": "NotIn", "values": ["textnlp-rollout", "textnlp-adapter"] });
    let clients = json!([{ "podSelector": {
        "matchLabels": { "app.kubernetes.io/part-of": "textnlp" }, "matchExpressions": [excluded],
    } }]);
    assert_eq!(rules("ingress", "from", &clients), [5432]);
    let stored = |address: &'static str| {
        let stored = url(address);
        server(&move |workload| workload.stored.clone_from(&stored), fixture())["textnlp-database-out"]["egress"]
            .clone()
    };
    let addressed = stored("postgresql://u@10.0.0.7:6432/text");
    let to = json!([{ "ipBlock": { "cidr": "10.0.0.7/32" } }]);
    assert_eq!(addressed, json!([{ "to": to, "ports": [{ "protocol": "TCP", "port": 6432 }] }]));
    assert_eq!(ports(&stored("postgresql://u@db.example.com/text")[0]), [5432]);
    assert_eq!(stored("postgresql:///text?user=u&host=10.0.0.7&port=6432"), addressed);
    // What names a metadata service is refused, however it is written.
    for address in
        ["169.254.169.254/text", "[fd00:ec2::254]:443/text", "/text?host=169.254.169.254", "[::ffff:169.254.169.254]"]
    {
        let workload = Workload { stored: url(&format!("postgresql://u@{address}")), ..workload() };
        let refused = lowered(&component("server", ComponentSpec::Workload(workload)), fixture()).unwrap_err();
        assert!(refused.to_string().contains("metadata services"), "{address}: {refused}");
    }
    // Where it is, only pods read: it has the usual port.
    let secret = server(&|_| {}, fixture());
    assert_eq!(ports(&secret["textnlp-database-out"]["egress"][0]), [5432]);

    // Models: nothing for what the program or an image has, the public network for a hub, the proxy where there is one.
    let image = with_model_image(&pinned("registry.example.com/models"), fixture());
    for made in [secret, server(&model("hf:org/name"), image)] {
        assert!(!made.contains_key("textnlp-models"), "{made:?}");
    }
    let hub = server(&model("hf:org/name"), fixture())["textnlp-models"].clone();
    assert_eq!(hub["podSelector"], json!({ "matchLabels": { "app": "textnlp-api" } }));
    assert!(ports(&hub["egress"][0]) == [443] && hub.to_string().contains("10.0.0.0/8"), "{hub}");
    let web = server(&model("https://models.example.com:8444/a/"), fixture())["textnlp-models"].clone();
    assert!(ports(&web["egress"][0]) == [8444] && !web.to_string().contains("10.0.0.0/8"), "{web}");
    let proxy = BTreeMap::from([("HTTPS_PROXY".to_owned(), "http://10.0.0.9:3128".to_owned())]);
    let place = Fixture { egress: Egress { proxy, ..fixture().egress }, ..fixture() };
    let by_proxy = server(&model("hf:org/name"), place)["textnlp-models"]["egress"].clone();
    let to = json!([{ "ipBlock": { "cidr": "10.0.0.9/32" } }]);
    assert_eq!(by_proxy, json!([{ "to": to, "ports": [{ "protocol": "TCP", "port": 3128 }] }]));

    // What is configured, and nothing without policies.
    let rule = |to: &str, protocol| EgressRule { to: to.to_owned(), port: 53, protocol };
    let place = fixture().set(|site| site.egress = vec![rule("169.254.169.254", Transport::Udp)]);
    let network =
        |policies, place: Fixture| policies_of(&Network { cidr: None, policies, ..Network::default() }, place);
    let to = json!([{ "ipBlock": { "cidr": "169.254.169.254/32" } }]);
    let out = network(true, place)["textnlp-out"]["egress"].clone();
    assert_eq!(
        out.as_array().unwrap().last(),
        Some(&json!({ "to": to, "ports": [{ "protocol": "UDP", "port": 53 }] }))
    );
    assert!(network(false, fixture()).is_empty());
    let named = || vec!["10.96.0.1".to_owned(), "10.0.0.0/28".to_owned(), "100.64.0.0/10".to_owned()];
    let place = Fixture { adapter: true, ..fixture() }.set(|site| site.api_server = named());
    let to = json!([
        { "ipBlock": { "cidr": "10.96.0.1/32" } },
        { "ipBlock": { "cidr": "10.0.0.0/28" } },
        { "ipBlock": { "cidr": "100.64.0.0/10", "except": ["100.100.100.200/32"] } },
    ]);
    let ports = json!([{ "protocol": "TCP", "port": 443 }, { "protocol": "TCP", "port": 6443 }]);
    let limited = network(true, place)["textnlp-api-clients"]["egress"][0].clone();
    assert_eq!(limited, json!({ "to": to, "ports": ports }));
    let open = Fixture { egress: Egress::default(), ..fixture() };
    assert!(server(&model("hf:org/name"), open).is_empty());
}

fn policies_of(network: &Network, place: Fixture) -> BTreeMap<String, Value> {
    policies(&lowered(&component("network", ComponentSpec::Network(network.clone())), place).unwrap())
}

#[test]
fn images_by_tag_are_refused_in_production() {
    let named = |set: &dyn Fn(&mut ClusterAccess)| fixture().set(set);
    let tag = || Some("registry.example.com/textnlp:1".to_owned());
    let server = component("server", ComponentSpec::Workload(workload()));
    let database = component("database", ComponentSpec::Database(own_stored()));
    let models = component("models", ComponentSpec::ModelStore(models()));
    let postgres = Some("registry.example.com/postgresql:15".to_owned());
    let own = own_fixture().set(|site| site.database_image.clone_from(&postgres));
    let jobs = named(&|site| site.analytics = Some(Analytics { image: tag(), ..analytics(Spot::Never) }));
    for (component, place, image) in [
        (&server, named(&|site| site.image = tag()), "registry.example.com/textnlp:1"),
        (&server, jobs, "registry.example.com/textnlp:1"),
        (&database, own, "registry.example.com/postgresql:15"),
        (&models, with_model_image("registry.example.com/models:1", fixture()), "registry.example.com/models:1"),
    ] {
        let problems = lowered(component, place.clone()).unwrap_err().to_string();
        assert!(problems.contains("needs its digest") && problems.contains(image), "{problems}");
        assert!(problems.contains(&format!("crane digest {image}")), "{problems}");
        // Before production, the preflight warns.
        lowered(component, Fixture { pinned: false, ..place }).unwrap();
    }
    let newer = Fixture { postgres: own_fixture().postgres.map(|own| OwnPostgres { version: 99, ..own }), ..fixture() };
    let problems = lowered(&database, newer).unwrap_err().to_string();
    assert!(problems.contains("no image of PostgreSQL 99 is built in"), "{problems}");
}

#[test]
fn auxiliary_components_and_scheduling_expand_into_the_golden_objects() {
    let mut text = String::new();
    for one in beside(&fixture()) {
        let needs: Vec<String> = one.needs.iter().map(|need| need.on.to_string()).collect();
        text += &format!("# {} is a {}, after {}\n", one.id, one.kind, needs.join(", "));
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    expect_file!["./golden/parts.yaml"].assert_eq(&text);
}

#[test]
fn user_job_gets_database_access_and_the_settings_of_its_config_map() {
    let server = |stored: Database, place: Fixture| {
        let made =
            lowered(&component("server", ComponentSpec::Workload(Workload { stored, ..workload() })), place).unwrap();
        let of = |part: &str| {
            let found = made.iter().find(|one| one.id.as_str() == format!("main/server/{part}"));
            found.map(|one| one.spec.as_value().clone())
        };
        (of("analytics").unwrap(), of("spot-config"))
    };
    let pod = |job: &Value| job["spec"]["jobTemplate"]["spec"]["template"].clone();
    let variable = |job: &Value, name: &str| {
        let env = pod(job)["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        env.into_iter().find(|one| one["name"] == name)
    };
    let place = |spot: Spot, place: Fixture| place.set(|site| site.analytics = Some(analytics(spot)));

    let (far, map) = server(database(), place(Spot::Only, fixture()));
    let from = json!({ "secretKeyRef": { "name": "textnlp-secrets", "key": "database-url" } });
    assert_eq!(variable(&far, "DATABASE_URL").unwrap()["valueFrom"], from);
    assert_eq!(variable(&far, "PROCESSING_MODE").unwrap()["value"], "batch");
    let map = map.unwrap()["data"].clone();
    let told = |file: &str| serde_yaml::from_str::<Value>(map[file].as_str().unwrap()).unwrap();
    let template = pod(&far);
    for (label, value) in told("labels.yaml").as_object().unwrap() {
        assert_eq!(&template["metadata"]["labels"][label], value);
    }
    assert_eq!(template["spec"]["tolerations"], told("tolerations.yaml"));
    assert_eq!(
        told("tolerations.yaml"),
        json!([{ "key": "node.kubernetes.io/lifecycle", "operator": "Equal", "value": "spot", "effect": "NoSchedule" }])
    );
    assert_eq!(template["spec"]["nodeSelector"], json!({ "node.kubernetes.io/lifecycle": "spot" }));
    assert!(template["spec"].get("affinity").is_none());

    let (own, map) = server(own_stored(), place(Spot::Never, own_fixture()));
    let password = json!({ "secretKeyRef": { "name": "textnlp-secrets", "key": "database-password" } });
    assert_eq!(variable(&own, "PGPASSWORD").unwrap()["valueFrom"], password);
    assert_eq!(
        variable(&own, "DATABASE_URL").unwrap()["value"],
        "postgresql://textnlp:$(PGPASSWORD)@textnlp-database-rw:5432/textnlp?sslmode=verify-full&sslrootcert=/etc/textnlp-database/ca.crt"
    );
    assert!(own.to_string().contains("textnlp-database-ca"), "its authority is there");
    assert_eq!(map, None, "nobody asks for machines that can be taken back");
    assert!(pod(&own)["spec"].get("tolerations").is_none());

    // A password of somebody else's may have letters that an address would have to escape: it stays beside it.
    let Some(postgres) = database().postgres else { unreachable!() };
    let given = ExternalSecret { source: "secret:env:PASSWORD".to_owned(), version: "abc".to_owned() };
    let address = DatabaseAddress::Url("postgresql://u@db.example.com/text".to_owned(), Some(given));
    let stored = Database { postgres: Some(Box::new(Postgres { address: Some(address), ..*postgres })), ..database() };
    let (theirs, _) = server(stored, place(Spot::Never, fixture()));
    assert_eq!(variable(&theirs, "DATABASE_URL").unwrap()["value"], "postgresql://u@db.example.com/text");
    assert_eq!(variable(&theirs, "PGPASSWORD").unwrap()["valueFrom"], password);
}

#[test]
fn address_of_an_external_database_is_a_variable_and_the_password_of_one_in_the_cluster_a_file() {
    let of = |stored: Database, place: Fixture| {
        let made =
            lowered(&component("server", ComponentSpec::Workload(Workload { stored, ..workload() })), place).unwrap();
        let spec = |part: &str| {
            let found = made.iter().find(|one| one.id.as_str() == format!("main/server/{part}")).unwrap();
            found.spec.as_value().clone()
        };
        let from = |pod: Value| -> Vec<Value> {
            let env = pod["containers"][0]["env"].as_array().unwrap().clone();
            env.into_iter().filter(|one| one["name"] == "DATABASE_URL" || one["name"] == "PGPASSWORD").collect()
        };
        let pods = ["migrate", "deployment"].map(|part| from(spec(part)["spec"]["template"]["spec"].clone()));
        (pods, spec("secrets")["data"].clone(), spec("config")["data"].to_string())
    };
    let (pods, secret, _) = of(database(), fixture());
    let key = json!({ "secretKeyRef": { "name": "textnlp-secrets", "key": "database-url" } });
    let variable = vec![json!({ "name": "DATABASE_URL", "valueFrom": key })];
    assert_eq!(pods, [variable.clone(), variable]);
    assert!(secret.get("database-url").is_some(), "{secret}");
    let (pods, secret, config) = of(own_stored(), own_fixture());
    assert_eq!(pods, [Vec::<Value>::new(), Vec::new()]);
    assert!(secret.get("database-url").is_none() && secret.get("database-password").is_some(), "{secret}");
    assert!(config.contains("/etc/textnlp-secrets/database-password"), "{config}");
}

#[test]
fn secrets_of_webhooks_are_in_a_secret_and_their_addresses_are_reached() {
    let (ours, theirs) = ("https://hooks.example.com:8443/batches", "https://192.0.2.7/");
    let mut server = workload();
    server.egress.policies = true;
    server.config["textnlp"]["batch"] = json!({ "webhooks": [{ "url": ours }, { "tenant": "acme", "url": theirs }] });
    let made = lowered(&component("server", ComponentSpec::Workload(server)), fixture()).unwrap();
    let find = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap().spec.as_value();
    let names = [webhook_secret(None, ours), webhook_secret(Some("acme"), theirs)];
    let config = find("/server/config")["data"]["server.yaml"].as_str().unwrap();
    for name in &names {
        assert!(config.contains(&format!("\"secret_file\":\"/etc/textnlp-secrets/{name}\"")), "{config}");
        let secret = find("/server/secrets").to_string();
        assert!(secret.contains(&format!("/secrets/{name}#secret")), "{secret}");
    }
    let rules = find("/allow-webhooks")["spec"]["egress"].to_string();
    assert!(rules.contains("192.0.2.7/32") && rules.contains("8443") && rules.contains("443"), "{rules}");
    let plain = lowered(&component("server", ComponentSpec::Workload(workload())), fixture()).unwrap();
    assert!(!plain.iter().any(|one| one.id.as_str().ends_with("/allow-webhooks")));
}

#[test]
fn redis_of_the_cache_is_the_only_address_of_its_policy_and_its_secret_address_is_in_a_secret() {
    let with = |cache: serde_json::Value| {
        let mut server = workload();
        server.egress.policies = true;
        server.config["textnlp"]["cache"] = cache;
        lowered(&component("server", ComponentSpec::Workload(server)), fixture()).unwrap()
    };
    let plain = with(json!({ "kind": "redis", "url": "rediss://192.0.2.9:7000/0" }));
    let find = |made: &[textnlp_provider::Wanted], end: &str| {
        made.iter().find(|one| one.id.as_str().ends_with(end)).map(|one| one.spec.as_value().clone())
    };
    let wanted = json!([{
        "to": [{ "ipBlock": { "cidr": "192.0.2.9/32" } }], "ports": [{ "protocol": "TCP", "port": 7000 }],
    }]);
    assert_eq!(find(&plain, "/allow-cache").unwrap()["spec"]["egress"], wanted);
    assert!(!find(&plain, "/server/secrets").unwrap().to_string().contains("cache-url"));
    let secret = with(json!({ "kind": "redis" }));
    let config = find(&secret, "/server/config").unwrap()["data"]["server.yaml"].to_string();
    assert!(config.contains("/etc/textnlp-secrets/cache-url"), "{config}");
    assert!(find(&secret, "/server/secrets").unwrap().to_string().contains("/secrets/cache-url#secret"));
    assert!(find(&secret, "/allow-cache").unwrap().to_string().contains("6379"));
    assert!(find(&with(json!({ "kind": "memory" })), "/allow-cache").is_none());
}

#[test]
fn address_of_a_cache_that_a_cloud_runs_has_the_generated_password() {
    let mut server = Workload { cache: Some("cache".parse().unwrap()), ..workload() };
    server.egress.policies = true;
    server.config["textnlp"]["cache"] = json!({ "kind": "redis" });
    let made = lowered(&component("server", ComponentSpec::Workload(server)), fixture()).unwrap();
    let find = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap();
    let secrets = find("/server/secrets");
    let address = json!({
        "$url": { "$output": "main/cache/group#url" },
        "password": { "$output": "main/secrets/cache-password#secret" },
    });
    assert_eq!(secrets.spec.as_value()["data"]["cache-url"], address);
    for need in ["main/cache/group", "main/secrets/cache-password"] {
        assert!(secrets.needs.iter().any(|one| one.on.as_str() == need), "{need}: {:?}", secrets.needs);
    }
    let config = find("/server/config").spec.as_value()["data"]["server.yaml"].to_string();
    assert!(config.contains("/etc/textnlp-secrets/cache-url"), "{config}");
    assert!(find("/allow-cache").spec.as_value().to_string().contains("6379"));
    // A cloud that generates the password has a port of its own too.
    let mut server = Workload { cache: Some("cache".parse().unwrap()), ..workload() };
    server.egress.policies = true;
    server.config["textnlp"]["cache"] = json!({ "kind": "redis" });
    let of_cloud =
        Fixture { cache: CloudCache { port: Some(10_000), has_login: true, ..CloudCache::default() }, ..fixture() };
    let made = lowered(&component("server", ComponentSpec::Workload(server)), of_cloud).unwrap();
    let spec = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap().spec.as_value().clone();
    let address =
        json!({ "$url": { "$output": "main/cache/group#url" }, "password": { "$output": "main/cache/group#login" } });
    assert_eq!(spec("/server/secrets")["data"]["cache-url"], address);
    assert!(spec("/allow-cache").to_string().contains("10000"));
    let managed = ManagedCache { memory_bytes: 1, replicas: 0, secrets: "secrets".parse().unwrap(), database: None };
    let cache = ComponentSpec::Cache(Cache { kind: CacheKind::Redis, managed: Some(managed) });
    assert!(lowered(&component("cache", cache), fixture()).unwrap().is_empty());
}

#[test]
fn cache_whose_login_a_cloud_generates_is_reached_with_it_and_verified_by_its_authority() {
    let mut server = Workload { cache: Some("cache".parse().unwrap()), ..workload() };
    server.egress.policies = true;
    server.config["textnlp"]["cache"] = json!({ "kind": "redis" });
    let cache = CloudCache { port: Some(6378), has_login: true, has_authority: true };
    let made = lowered(&component("server", ComponentSpec::Workload(server)), Fixture { cache, ..fixture() }).unwrap();
    let find = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap().spec.as_value().clone();
    let data = find("/server/secrets")["data"].clone();
    let address = json!({
        "$url": { "$output": "main/cache/group#url" }, "password": { "$output": "main/cache/group#login" },
    });
    assert_eq!(data["cache-url"], address);
    assert_eq!(data["cache-ca.pem"], json!({ "$plain": { "$output": "main/cache/group#ca_pem" } }));
    let config = find("/server/config")["data"]["server.yaml"].to_string();
    assert!(config.contains("/etc/textnlp-secrets/cache-ca.pem"), "{config}");
    let policy = find("/allow-cache").to_string();
    assert!(policy.contains("6378") && !policy.contains("6379"), "{policy}");
}

#[test]
fn collector_of_traces_is_the_only_address_of_its_policy_and_its_secret_is_in_a_secret() {
    let mut server = workload();
    server.egress.policies = true;
    let traces = json!({ "endpoint": "https://192.0.2.9:4318/v1/traces", "ratio": "1", "header": "authorization" });
    server.config["textnlp"]["monitoring"] = json!({ "enable_tracing": true, "traces": traces });
    let made = lowered(&component("server", ComponentSpec::Workload(server)), fixture()).unwrap();
    let find = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap().spec.as_value();
    let config = find("/server/config")["data"]["server.yaml"].as_str().unwrap();
    assert!(config.contains("\"secret_file\":\"/etc/textnlp-secrets/traces\""), "{config}");
    assert!(find("/server/secrets").to_string().contains("/secrets/traces#secret"));
    let wanted = json!([{
        "to": [{ "ipBlock": { "cidr": "192.0.2.9/32" } }], "ports": [{ "protocol": "TCP", "port": 4318 }],
    }]);
    assert_eq!(find("/allow-traces")["spec"]["egress"], wanted);
    let plain = lowered(&component("server", ComponentSpec::Workload(workload())), fixture()).unwrap();
    assert!(!plain.iter().any(|one| one.id.as_str().ends_with("/allow-traces")));
}

#[test]
fn every_pod_of_the_namespace_is_pulled_with_the_account_at_the_registry() {
    let autoscaler = NodeAutoscaler {
        part: "autoscaler-role".to_owned(),
        image: pinned("registry.k8s.io/autoscaling/cluster-autoscaler:v1.34.5"),
        provider: "aws".to_owned(),
        discovery: "asg:tag=k8s.io/cluster-autoscaler/enabled".to_owned(),
        variables: BTreeMap::new(),
    };
    let plain =
        Fixture { rollout: Strategy::Canary, adapter: true, node_autoscaler: Some(autoscaler), ..own_fixture() };
    let plain = plain.set(|site| site.database_image = Some(pinned("registry.example.com/postgresql:15")));
    let with_account = with_registry(plain.clone());
    let all = |place: &Fixture| {
        let mut made = own_objects(place);
        made.extend(copying(copies(None), place));
        made
    };
    let made = all(&with_account);
    let secret = made.iter().find(|one| one.id.as_str() == "main/cluster/registry").unwrap();
    let password = OutputRef::new("main/secrets/registry-password".parse().unwrap(), "secret");
    let spec = secret.spec.as_value();
    assert_eq!(
        (&spec["metadata"]["name"], &spec["type"]),
        (&json!("textnlp-registry"), &json!("kubernetes.io/dockerconfigjson"))
    );
    let file = json!({ "$registry": "registry.example.com", "username": "ci", "password": password });
    assert_eq!(spec["data"], json!({ ".dockerconfigjson": file }));
    // Pods get it by their account, and those of CloudNativePG by its cluster.
    let pulls = |one: &Wanted, list: &Value| {
        *list == json!([{ "name": "textnlp-registry" }]) && one.needs.iter().any(|need| need.on == secret.id)
    };
    let mut accounts = BTreeSet::new();
    for one in &made {
        let spec = one.spec.as_value();
        match one.kind.as_str() {
            "kubernetes.service-account" if spec["metadata"]["namespace"] == "textnlp" => {
                assert!(pulls(one, &spec["imagePullSecrets"]), "{}", one.id);
                accounts.insert(spec["metadata"]["name"].as_str().unwrap());
            }
            "kubernetes.service-account" => assert!(spec.get("imagePullSecrets").is_none(), "{}", one.id),
            "kubernetes.postgres-cluster" => assert!(pulls(one, &spec["spec"]["imagePullSecrets"])),
            _ => {}
        }
    }
    for one in &made {
        let spec = &one.spec.as_value()["spec"];
        for pod in ["/template/spec", "/jobTemplate/spec/template/spec"].iter().filter_map(|at| spec.pointer(at)) {
            let account = pod["serviceAccountName"].as_str().unwrap_or("default");
            let is_elsewhere = one.spec.as_value()["metadata"]["namespace"] != "textnlp";
            assert!(accounts.contains(account) || is_elsewhere, "{}: {account}", one.id);
        }
    }
    // Pods get it when they are created: those that cannot pull their image are replaced.
    for id in ["main/server/migrate", "main/server/first-key", "main/server/deployment", "main/adapter/deployment"] {
        let one = made.iter().find(|one| one.id.as_str() == id).unwrap();
        let annotations = &one.spec.as_value()["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["textnlp-registry"], "registry.example.com", "{id}");
    }
    // A database whose image is elsewhere stays as it is: CloudNativePG can stop updating one that gets a pull secret.
    let database = |place: &Fixture| {
        let made = own_objects(place);
        made.into_iter().find(|one| one.kind.as_str() == "kubernetes.postgres-cluster").unwrap()
    };
    let (before, after) = (database(&own_fixture()), database(&with_registry(own_fixture())));
    assert_eq!((&before.spec, &before.needs), (&after.spec, &after.needs));
    // Without an account nothing says so.
    let text: Vec<String> = all(&plain).iter().map(|one| one.spec.to_string()).collect();
    assert!(text.iter().all(|one| !one.contains("textnlp-registry") && !one.contains("imagePullSecrets")));
}

/// Other sites ask for the readiness of this one at a port that clients do not reach.
#[test]
fn health_checks_of_other_sites_have_a_port_and_a_service() {
    let plain = objects(&fixture());
    assert!(!plain.iter().any(|one| one.spec.as_value().to_string().contains("8444")));
    let addressed = fixture().set(|site| site.health_address = Some("https://ready.example.com:8444".to_owned()));
    let made = objects(&Fixture { replicates: true, ..fixture() });
    assert!(
        made.iter().map(|one| &one.spec).eq(objects(&addressed).iter().map(|one| &one.spec)),
        "always with failover"
    );
    let find = |end: &str| made.iter().find(|one| one.id.as_str().ends_with(end)).unwrap().spec.as_value();
    let service = &find("/service-ready")["spec"];
    assert_eq!((&service["type"], &service["ports"][0]["port"]), (&json!("ClusterIP"), &json!(8444)));
    let containers = find("/deployment")["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
    let ports = &containers.iter().find(|one| one["name"] == "gateway").unwrap()["ports"];
    assert_eq!(ports[2], json!({ "name": "ready", "containerPort": 8444, "protocol": "TCP" }));
    let config = find("/gateway/config")["data"]["gateway.yaml"].as_str().unwrap();
    assert!(config.contains(r#""ready_listen":"0.0.0.0:8444""#), "{config}");
    assert_eq!(find("/allow-in")["spec"]["ingress"][1], json!({ "ports": [{ "protocol": "TCP", "port": 8444 }] }));
}

#[test]
fn model_image_is_mounted_read_only() {
    let reference = pinned("registry.example.com/models");
    let place = || with_model_image(&reference, fixture());
    let server = lowered(&component("server", ComponentSpec::Workload(workload())), place()).unwrap();
    let deployment = server.iter().find(|one| one.kind.as_str() == "kubernetes.deployment").unwrap();
    let pod = &deployment.spec.as_value()["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "shared-models").unwrap();
    assert_eq!(volume["image"], json!({ "reference": reference, "pullPolicy": "IfNotPresent" }));
    for containers in ["initContainers", "containers"] {
        for container in pod[containers].as_array().unwrap() {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mounted = mounts.iter().find(|mount| mount["name"] == "shared-models");
            assert_eq!(mounted.is_some(), container["name"] != "gateway", "{container}");
            assert!(mounted.is_none_or(|mount| mount["readOnly"] == true), "{container}");
        }
    }
    // What lies on this machine comes in the image.
    let mut near = models();
    near.models[0].source = "file:/srv/model".to_owned();
    let made = lowered(&component("models", ComponentSpec::ModelStore(near)), place()).unwrap();
    let list = made[0].spec.as_value()["data"]["models.yaml"].as_str().unwrap();
    assert!(list.contains(r#""image":"/var/lib/textnlp/image""#) && !list.contains("cache"), "{list}");
    assert_eq!(made.len(), 1, "no volume of ours");
}

#[test]
fn metrics_adapter_precedes_the_autoscaler_and_admits_only_the_api_server() {
    let mut text = String::new();
    for one in adapter(&fixture()) {
        let needs: Vec<String> = one.needs.iter().map(|need| need.on.to_string()).collect();
        text += &format!("# {} is a {}, after {}\n", one.id, one.kind, needs.join(", "));
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    expect_file!["./golden/adapter.yaml"].assert_eq(&text);
    // Where nothing grows nobody asks it.
    let server = component("server", ComponentSpec::Workload(workload()));
    let made = lowered(&server, Fixture { adapter: true, ..fixture() }).unwrap();
    assert!(made.iter().all(|one| !one.id.as_str().starts_with("main/adapter/")), "{made:?}");
}

#[test]
fn replicas_are_ours_without_autoscaler_and_small_sites_have_no_budget() {
    let made = |replicas| {
        let one = component("server", ComponentSpec::Workload(Workload { replicas, ..workload() }));
        lowered(&one, fixture()).unwrap()
    };
    let find = |made: &[Wanted], kind: &str| {
        made.iter().find(|one| one.kind.as_str() == kind).map(|one| one.spec.as_value()["spec"].clone())
    };
    let three = made(3);
    assert_eq!(find(&three, "kubernetes.deployment").unwrap()["replicas"], 3);
    assert_eq!(find(&three, "kubernetes.horizontal-pod-autoscaler"), None);
    for (replicas, least) in [(1, None), (2, Some(1)), (3, Some(2)), (20, Some(2))] {
        let budget = find(&made(replicas), "kubernetes.pod-disruption-budget");
        assert_eq!(budget.map(|spec| spec["minAvailable"].clone()), least.map(|least: u32| json!(least)), "{replicas}");
    }
}

#[test]
fn existing_namespace_is_read_and_must_be_the_configured_one() {
    let mut network =
        component("network", ComponentSpec::Network(Network { cidr: None, policies: false, ..Network::default() }));
    network.existing = Some("textnlp".parse().unwrap());
    let made = lowered(&network, fixture()).unwrap();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].ownership, Ownership::External("textnlp".parse().unwrap()));
    // What others run there goes on talking.
    let policies = Network { cidr: None, policies: true, ..Network::default() };
    let shared = Component { part: ComponentSpec::Network(policies.clone()), ..network.clone() };
    let denied = |component: &Component| {
        let made = lowered(component, fixture()).unwrap();
        let deny = made.iter().find(|one| one.id.as_str().ends_with("/deny")).unwrap();
        deny.spec.as_value()["spec"]["podSelector"].clone()
    };
    assert_eq!(denied(&shared), json!({ "matchLabels": { "app.kubernetes.io/part-of": "textnlp" } }));
    assert_eq!(denied(&Component { existing: None, ..shared }), json!({}));
    network.existing = Some("other".parse().unwrap());
    let problems = lowered(&network, fixture()).unwrap_err();
    assert!(problems.to_string().contains("the existing namespace is `other`"), "{problems}");
    for name in ["default", "kube-system", "a/b", "", "-a", "../x"] {
        network.existing = None;
        assert!(lowered(&network, Fixture { namespace: name.to_owned(), ..fixture() }).is_err(), "{name}");
    }
}

#[test]
fn external_certificate_is_mounted_and_never_written() {
    let place = Fixture { certificate: Some("site-tls".to_owned()), ..fixture() };
    let existing = |mode: TlsMode, name: &str| {
        let certificate = Certificate { mode, names: Vec::new(), days: 90, acme: None };
        let mut one = component("certificate", ComponentSpec::Certificate(certificate));
        one.existing = (!name.is_empty()).then(|| name.parse().unwrap());
        lowered(&one, place.clone())
    };
    let made = existing(TlsMode::Existing, "site-tls").unwrap();
    let [secret] = &made[..] else { panic!("{made:?}") };
    assert_eq!(secret.ownership, Ownership::External("textnlp/site-tls".parse().unwrap()));
    assert_eq!(existing(TlsMode::LocalCa, "").unwrap(), []);
    let (ours, theirs) = (TlsMode::LocalCa, TlsMode::Existing);
    for (mode, name) in [(theirs, ""), (theirs, "/etc/a.pem"), (theirs, "A_B"), (ours, "site-tls")] {
        assert!(existing(mode, name).is_err(), "{mode} {name}");
    }
    let gateway = lowered(&component("gateway", ComponentSpec::Endpoint(endpoint())), place.clone()).unwrap();
    assert!(gateway.iter().all(|one| one.kind.as_str() != "kubernetes.secret"));
    let server = lowered(&component("server", ComponentSpec::Workload(workload())), place).unwrap();
    let deployment = server.iter().find(|one| one.kind.as_str() == "kubernetes.deployment").unwrap();
    let text = deployment.spec.to_string();
    assert!(text.contains(r#""secretName":"site-tls""#) && !text.contains(r#""secretName":"textnlp-tls""#), "{text}");
    assert!(deployment.needs.iter().any(|need| need.on == secret.id), "it has to be there first");
}

#[test]
fn managed_database_uses_tls_and_verifies_its_backups() {
    let mut text = String::new();
    for one in own_database(&own_fixture()) {
        let needs: Vec<String> = one.needs.iter().map(|need| need.on.to_string()).collect();
        text += &format!("# {} is a {}, after {}\n", one.id, one.kind, needs.join(", "));
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    expect_file!["./golden/database.yaml"].assert_eq(&text);
    let cluster = |replicas: u32| {
        let stored = Database { postgres: Some(Box::new(Postgres { replicas, ..own_postgres() })), ..own_stored() };
        let made = lowered(&component("database", ComponentSpec::Database(stored)), own_fixture()).unwrap();
        made.iter().find(|one| one.id.as_str() == "main/database/cluster").unwrap().spec.as_value()["spec"].clone()
    };
    assert!(cluster(0)["postgresql"].get("synchronous").is_none());
    for (replicas, durability) in [(1, "preferred"), (2, "required")] {
        assert_eq!(cluster(replicas)["postgresql"]["synchronous"]["dataDurability"], durability);
    }
    // Whoever asks for what is not there is told so, all of it at once.
    let asks = Backup { destination: Some("/mnt/dumps".to_owned()), every_seconds: 7 * 3600, ..backup() };
    let place = by_route(own_fixture());
    let problems = lowered(&component("backup", ComponentSpec::Backup(asks)), place).unwrap_err().to_string();
    for says in ["not in `/mnt/dumps`", "`s3://BUCKET/PREFIX`", "cannot run every 25200 s", "has no name"] {
        assert!(problems.contains(says), "{says}: {problems}");
    }
    let far = lowered(&component("backup", ComponentSpec::Backup(backup())), fixture()).unwrap_err();
    assert!(far.to_string().contains("backups of an external database"), "{far}");
    let odd = Postgres { port: Some(6543), archive_seconds: Some(60), ..own_postgres() };
    let odd = Database { postgres: Some(Box::new(odd)), ..own_stored() };
    let problems =
        lowered(&component("database", ComponentSpec::Database(odd)), own_fixture()).unwrap_err().to_string();
    assert!(problems.contains("has port 5432") && problems.contains("archiving the log"), "{problems}");
    for image in
        ["postgresql", "r.example.com:5000/postgresql", "postgresql:latest", "postgresql:16.2", "postgresql@sha256:15"]
    {
        let place = own_fixture().set(|site| site.database_image = Some(image.to_owned()));
        let said = lowered(&component("database", ComponentSpec::Database(own_stored())), place).unwrap_err();
        assert!(said.to_string().contains("does not begin with 15"), "{image}: {said}");
    }
    let managed = Database { hosting: Some(Hosting::Managed), ..own_stored() };
    // A cloud's provider creates it; pods reach it by its outputs.
    assert!(lowered(&component("database", ComponentSpec::Database(managed)), fixture()).unwrap().is_empty());
}

#[test]
fn one_object_of_a_site_has_its_dumps_and_one_its_database() {
    let kubernetes = Kubernetes::new(Access::kubeconfig(None, None), Arc::new(crate::world::Vault::default()));
    let recorded = |wanted: &Wanted| Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: wanted.via.clone(),
        spec: wanted.spec.clone(),
        needs: wanted.needs.clone(),
        ownership: Ownership::Ours,
        schema: 1,
        cloud_id: CloudId::new("object").unwrap(),
        created: None,
        outputs: BTreeMap::new(),
        protected: false,
        tainted: false,
    };
    let parts = |made: Vec<Wanted>| -> BTreeMap<String, DatabasePart> {
        let part = |one: &Wanted| Some((one.id.to_string(), kubernetes.database_part(&recorded(one))?));
        made.iter().filter_map(part).collect()
    };
    let dumps = ("main/backup/volume".to_owned(), DatabasePart::Dumps);
    let database = ("main/database/cluster".to_owned(), DatabasePart::Data);
    assert_eq!(parts(own_objects(&own_fixture())), BTreeMap::from([dumps.clone(), database]));
    let managed = ManagedDumps {
        version: 16,
        disk_bytes: 100 << 30,
        backup_bytes: 200 << 30,
        secrets: "secrets".parse().unwrap(),
        private_ca: None,
    };
    let of_cloud = component("backup", ComponentSpec::Backup(Backup { managed: Some(managed), ..backup() }));
    assert_eq!(parts(lowered(&of_cloud, fixture()).unwrap()), BTreeMap::from([dumps]));
}

const COPIES: &str = "s3://company-backups/textnlp/pilot/main";

fn copies(secrets: Option<&str>) -> DumpCopies {
    let egress = Egress { policies: true, ..Egress::default() };
    let credentials = secrets.map(|name| name.parse().unwrap());
    DumpCopies { url: COPIES.to_owned(), credentials, endpoint: None, egress }
}

/// Backups whose dumps are copied to a bucket.
fn copying(copies: DumpCopies, place: &Fixture) -> Vec<Wanted> {
    let destination = Some("s3://company-backups/textnlp".to_owned());
    let backup = Backup { destination, copies: Some(Box::new(copies)), ..backup() };
    lowered(&component("backup", ComponentSpec::Backup(backup)), place.clone()).unwrap()
}

#[test]
fn only_the_job_that_copies_dumps_to_a_bucket_gets_its_credentials_and_connects_to_it() {
    let of = |copies: DumpCopies, place: &Fixture| -> BTreeMap<String, Wanted> {
        let made = copying(copies, place).into_iter();
        made.map(|one| (one.id.as_str().trim_start_matches("main/backup/").to_owned(), one)).collect()
    };
    let job =
        |made: &BTreeMap<String, Wanted>, part: &str| made[part].spec.as_value()["spec"]["jobTemplate"]["spec"].clone();
    let pod = |made: &BTreeMap<String, Wanted>, part: &str| job(made, part)["template"]["spec"].clone();
    let rules = |made: &BTreeMap<String, Wanted>| made["allow-copies"].spec.as_value()["spec"]["egress"].clone();
    let ports = |made: &BTreeMap<String, Wanted>| -> Vec<u64> {
        let rules = rules(made);
        let of_rule = |rule: &Value| rule["ports"].as_array().cloned().unwrap_or_default();
        rules.as_array().unwrap().iter().flat_map(of_rule).filter_map(|port| port["port"].as_u64()).collect()
    };

    // With credentials: a Secret, which the container that copies mounts, and the account without rights.
    let made = of(copies(Some("secrets")), &own_fixture());
    let parts: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(parts, ["allow-copies", "credentials", "restore", "schedule", "script", "volume"]);
    let data = json!({ "bucket.env": { "$output": "main/secrets/backup-credentials#secret" } });
    assert_eq!(made["credentials"].spec.as_value()["data"], data);
    let needs = |part: &str| made[part].needs.iter().map(|need| need.on.to_string()).collect::<Vec<_>>();
    for part in ["main/backup/credentials", "main/backup/allow-copies"] {
        assert!(needs("schedule").iter().any(|on| on == part), "{part}: {:?}", needs("schedule"));
        assert!(needs("restore").iter().all(|on| on != part), "{part}: {:?}", needs("restore"));
    }
    let pods = pod(&made, "schedule");
    let command = pods["containers"][0]["command"].as_array().unwrap().clone();
    let flag = |name: &str| command.iter().filter_map(Value::as_str).find_map(|one| one.strip_prefix(name));
    assert_eq!(flag("--destination="), Some(COPIES));
    assert_eq!(flag("--credentials="), Some("/etc/textnlp-backup-credentials/bucket.env"));
    assert!(pods["containers"][0]["volumeMounts"].to_string().contains(r#""name":"credentials""#), "{pods}");
    assert!(!pods["initContainers"][0].to_string().contains("credentials"), "{pods}");
    assert_eq!(pods["serviceAccountName"], "textnlp-api");
    assert!(!pod(&made, "restore").to_string().contains("credentials"), "{}", pod(&made, "restore"));
    // A failed copy does not dump the database again.
    let retries = &job(&made, "schedule")["podFailurePolicy"]["rules"][0];
    assert_eq!(
        (&retries["action"], &retries["onExitCodes"]["containerName"]),
        (&json!("FailJob"), &json!("textnlp-backup"))
    );
    assert!(job(&made, "restore").get("podFailurePolicy").is_none());
    // To the public network, from the pods of that job only.
    let selector = &made["allow-copies"].spec.as_value()["spec"]["podSelector"];
    assert_eq!(*selector, json!({ "matchLabels": { "app.kubernetes.io/name": "textnlp-backup" } }));
    assert!(ports(&made) == [443] && rules(&made).to_string().contains("10.0.0.0/8"), "{}", rules(&made));

    // Without: an account of its own, and the services on the nodes that give credentials for such buckets.
    let identity = |scheme: &str| BucketIdentity {
        scheme: scheme.to_owned(),
        own: format!("{scheme}://models/"),
        variables: BTreeMap::new(),
        token: None,
        services: vec!["169.254.170.23:80".parse().unwrap()],
        part: "reader".to_owned(),
        skip_annotation: None,
    };
    let with = |scheme| Fixture { bucket_identity: Some(identity(scheme)), ..own_fixture() };
    let made = of(copies(None), &with("s3"));
    assert_eq!(pod(&made, "schedule")["serviceAccountName"], "textnlp-backup");
    assert_eq!(pod(&made, "restore")["serviceAccountName"], "textnlp-api");
    // Not for the container with the database's password.
    let annotations = job(&made, "schedule")["template"]["metadata"]["annotations"].clone();
    assert_eq!(annotations, json!({ "eks.amazonaws.com/skip-containers": "dump" }));
    assert_eq!(pod(&made, "schedule")["initContainers"][0]["name"], "dump");
    assert!(job(&made, "restore")["template"]["metadata"].get("annotations").is_none());
    assert_eq!(made["account"].spec.as_value()["metadata"]["name"], "textnlp-backup");
    assert!(!made.contains_key("credentials") && !pod(&made, "schedule").to_string().contains("credentials"));
    assert_eq!(ports(&made), [443, 80]);
    assert!(rules(&made).to_string().contains("169.254.170.23/32"), "{}", rules(&made));
    assert_eq!(ports(&of(copies(None), &with("gs"))), [443], "those of another cloud give none for it");
    assert_eq!(ports(&of(copies(Some("secrets")), &with("s3"))), [443], "nor with credentials");

    // Another store, a company's authority and its proxy.
    let proxy = BTreeMap::from([("HTTPS_PROXY".to_owned(), "http://10.0.0.9:3128".to_owned())]);
    let endpoint = Some("https://10.0.0.7:9000".to_owned());
    let store = DumpCopies { endpoint, ..copies(Some("secrets")) };
    assert_eq!(rules(&of(store.clone(), &own_fixture()))[0]["to"], json!([{ "ipBlock": { "cidr": "10.0.0.7/32" } }]));
    assert_eq!(ports(&of(store.clone(), &own_fixture())), [9000]);
    let egress = Egress { proxy, private_ca: Some(Ok("PEM".to_owned())), policies: true };
    let made = of(DumpCopies { egress, ..store }, &own_fixture());
    assert_eq!(ports(&made), [3128]);
    let pods = pod(&made, "schedule")["containers"][0].clone();
    let variable = |name: &str| {
        let variables = pods["env"].as_array().unwrap();
        variables.iter().find(|one| one["name"] == name).map(|one| one["value"].clone())
    };
    assert_eq!(variable("HTTPS_PROXY"), Some(json!("http://10.0.0.9:3128")));
    assert_eq!(variable("TEXTNLP_CA_FILE"), Some(json!("/etc/textnlp-private-ca/ca.crt")));
    assert!(pods["volumeMounts"].to_string().contains("/etc/textnlp-private-ca"), "{pods}");
    assert!(made["schedule"].needs.iter().any(|need| need.on.as_str() == "main/server/private-ca"));
    // A metadata service is refused, and without policies there is none.
    let metadata = DumpCopies { endpoint: Some("https://169.254.169.254".to_owned()), ..copies(Some("secrets")) };
    let asks = Backup { destination: Some(COPIES.to_owned()), copies: Some(Box::new(metadata)), ..backup() };
    let refused = lowered(&component("backup", ComponentSpec::Backup(asks)), own_fixture()).unwrap_err();
    assert!(refused.to_string().contains("metadata services"), "{refused}");
    let open = of(DumpCopies { egress: Egress::default(), ..copies(Some("secrets")) }, &own_fixture());
    assert!(!open.contains_key("allow-copies"));
}

#[test]
fn database_that_a_cloud_runs_is_dumped_with_the_address_and_the_password_of_the_servers() {
    let lowered_of = |version: u32, private_ca: Option<FileText>, place: Fixture| {
        let secrets = "secrets".parse().unwrap();
        let managed = ManagedDumps { version, disk_bytes: 100 << 30, backup_bytes: 200 << 30, secrets, private_ca };
        lowered(&component("backup", ComponentSpec::Backup(Backup { managed: Some(managed), ..backup() })), place)
    };
    let of = |made: &[Wanted], part: &str| {
        let id = format!("main/backup/{part}");
        made.iter().find(|one| one.id.as_str() == id).unwrap().clone()
    };
    for authority in [Some("PEM"), None] {
        let made = lowered_of(16, authority.map(|pem| Ok(pem.to_owned())), fixture()).unwrap();
        let data = of(&made, "owner").spec.as_value()["data"].clone();
        let given = json!({
            "password": { "$output": "main/secrets/database-password#secret" },
            "url": { "$plain": { "$output": "main/database/instance#url" } },
        });
        assert_eq!(data, given);
        assert_eq!(of(&made, "script").spec.as_value()["data"]["ca.crt"].as_str(), authority);
        for (job, containers) in [("schedule", "initContainers"), ("restore", "containers")] {
            let job = of(&made, job);
            assert!(job.needs.iter().any(|need| need.on.as_str() == "main/backup/owner"), "{job:?}");
            let pod = &job.spec.as_value()["spec"]["jobTemplate"]["spec"]["template"]["spec"];
            let container = &pod[containers][0];
            let image = container["image"].as_str().unwrap();
            assert!(image.starts_with("ghcr.io/cloudnative-pg/postgresql:16."), "{image}");
            let variables = container["env"].as_array().unwrap();
            let variable = |name: &str| variables.iter().find(|one| one["name"] == name);
            let url = &variable("DATABASE_URL").unwrap()["valueFrom"]["secretKeyRef"];
            assert_eq!(url, &json!({ "name": "textnlp-backup-database", "key": "url" }));
            let volumes = pod["volumes"].as_array().unwrap();
            let secret = volumes.iter().find(|volume| volume["name"] == "owner").unwrap();
            assert_eq!(secret["secret"]["secretName"], "textnlp-backup-database");
            let file = variable("PGSSLROOTCERT").map(|one| one["value"].as_str().unwrap());
            assert_eq!(file, authority.map(|_| "/etc/textnlp-backup/ca.crt"));
            // Nothing of a database in the cluster, which would be tried first.
            assert!(variable("PGHOST").is_none() && variable("PGDATABASE").is_none(), "{variables:?}");
            assert!(!pod.to_string().contains("textnlp-database-ca"), "{pod}");
        }
        assert_eq!(of(&made, "volume").spec.as_value()["spec"]["resources"]["requests"]["storage"], "200Gi");
    }
    // What has volumes is removed before what deletes them.
    let nodes = ClusterNodes { general: "nodes".to_owned(), gpu: None, disks: Some("disks".to_owned()) };
    let made = lowered_of(16, None, Fixture { nodes: Some(nodes), ..fixture() }).unwrap();
    let needs_disks = |one: &&Wanted| one.needs.iter().any(|need| need.on.as_str() == "main/cluster/disks");
    let before: BTreeSet<&str> = made.iter().filter(needs_disks).map(|one| one.id.as_str()).collect();
    assert_eq!(before, BTreeSet::from(["main/backup/restore", "main/backup/schedule", "main/backup/volume"]));
    // Its programs are of the server's version.
    let with_image = |tag: &str| {
        let image = pinned(&format!("registry.example.com/postgresql:{tag}"));
        lowered_of(16, None, fixture().set(|site| site.database_image = Some(image)))
    };
    with_image("16.4").unwrap();
    for other in ["15", "17"] {
        let refused = with_image(other).unwrap_err().to_string();
        assert!(refused.contains("does not begin with 16"), "{refused}");
    }
    let unknown = lowered_of(99, None, fixture()).unwrap_err().to_string();
    assert!(unknown.contains("no image of PostgreSQL 99 is built in"), "{unknown}");
    let by_tag = fixture().set(|site| site.database_image = Some("registry.example.com/postgresql:16".to_owned()));
    let by_tag = lowered_of(16, None, by_tag).unwrap_err().to_string();
    assert!(by_tag.contains("needs its digest"), "{by_tag}");
}

#[test]
fn analytics_job_runs_the_program_of_the_servers_unless_an_image_is_set() {
    let server = |place: Fixture, is_analyzed: bool| {
        let mut workload = Workload { stored: database(), ..workload() };
        if is_analyzed {
            workload.config["textnlp"]["analytics"] = json!({ "retention_days": 90 });
        }
        lowered(&component("server", ComponentSpec::Workload(workload)), place).unwrap()
    };
    let job = |made: &[Wanted]| made.iter().find(|one| one.id.as_str() == "main/server/analytics").cloned();
    assert!(job(&server(fixture(), false)).is_none());

    let place = fixture().set(|site| site.node_selector = BTreeMap::from([("pool".to_owned(), "text".to_owned())]));
    let made = server(place, true);
    let ours = job(&made).unwrap();
    for part in ["config", "migrate", "secrets"] {
        assert!(ours.needs.iter().any(|need| need.on.as_str() == format!("main/server/{part}")), "{part}");
    }
    let spec = &ours.spec.as_value()["spec"];
    assert_eq!((&spec["schedule"], &spec["concurrencyPolicy"]), (&json!("0 * * * *"), &json!("Forbid")));
    let pod = &spec["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!((&pod["restartPolicy"], &pod["nodeSelector"]), (&json!("OnFailure"), &json!({ "pool": "text" })));
    let migrate = made.iter().find(|one| one.id.as_str() == "main/server/migrate").unwrap();
    let migrate = &migrate.spec.as_value()["spec"]["template"]["spec"];
    let (container, other) = (&pod["containers"][0], &migrate["containers"][0]);
    for field in ["image", "command", "volumeMounts"] {
        assert_eq!(container[field], other[field], "{field}: as the other job of the servers");
    }
    let config = "/etc/textnlp/server.yaml";
    assert_eq!(container["args"], json!(["admin", "analytics", "--config", config, "--do", "{\"do\":\"run\"}"]));
    let env: BTreeMap<&str, &Value> =
        container["env"].as_array().unwrap().iter().map(|one| (one["name"].as_str().unwrap(), &one["value"])).collect();
    assert_eq!(env["PROCESSING_MODE"], "batch");
    assert!(env["DATABASE_URL"].is_null(), "it is in a Secret: {env:?}");

    // An image of the operator's own runs as it is, without the configuration of the servers.
    let own = Analytics { image: Some(pinned("registry.example.com/own:1")), ..Analytics::default() };
    let made = job(&server(fixture().set(|site| site.analytics = Some(own.clone())), true)).unwrap();
    let pod = made.spec.as_value()["spec"]["jobTemplate"]["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    assert!(container.get("command").is_none() && container.get("args").is_none(), "{container}");
    assert_eq!(pod["volumes"].as_array().unwrap().len(), 1, "{pod}");
}

#[test]
fn private_ca_and_proxy_reach_the_objects_that_need_them() {
    let proxy = BTreeMap::from([("HTTPS_PROXY".to_owned(), "http://proxy:3128".to_owned())]);
    let egress = Egress { private_ca: Some(Ok("PEM".to_owned())), proxy, policies: true };
    let place = Fixture { egress, ..fixture() }.set(|site| site.analytics = Some(analytics(Spot::Never)));
    let of = |stored: Database, place: Fixture| {
        lowered(&component("server", ComponentSpec::Workload(Workload { stored, ..workload() })), place)
    };
    let made = of(database(), place.clone()).unwrap();
    let found = |part: &str| made.iter().find(|one| one.id.as_str() == format!("main/server/{part}")).unwrap();
    let spec = |part: &str| found(part).spec.as_value();
    assert_eq!(spec("private-ca")["data"], json!({ "ca.crt": "PEM" }));
    assert!(spec("config")["data"]["server.yaml"].to_string().contains("/etc/textnlp-private-ca/ca.crt"));
    for part in ["migrate", "deployment"] {
        assert!(found(part).needs.iter().any(|need| need.on.as_str() == "main/server/private-ca"), "{part}");
    }
    let pod = &spec("deployment")["spec"]["template"]["spec"];
    let volume = json!({ "name": "private-ca", "configMap": { "name": "textnlp-private-ca" } });
    let volumes = |pod: &Value| pod["volumes"].as_array().unwrap().iter().filter(|one| **one == volume).count();
    let mount = json!({ "name": "private-ca", "mountPath": "/etc/textnlp-private-ca", "readOnly": true });
    let mounts = |container: &Value| container["volumeMounts"].as_array().unwrap().contains(&mount);
    let is_told = |container: &Value, name: &str| {
        container["env"].as_array().into_iter().flatten().any(|variable| variable["name"] == name)
    };
    let (models, api, gateway) = (&pod["initContainers"][0], &pod["containers"][0], &pod["containers"][1]);
    assert_eq!((volumes(pod), mounts(models), mounts(api), mounts(gateway)), (1, true, true, false));
    for name in ["HTTPS_PROXY", "TEXTNLP_CA_FILE"] {
        assert!(is_told(models, name) && !is_told(api, name), "{name} is for who fetches models");
    }
    assert!(!is_told(models, "DATABASE_URL"), "who fetches models asks no database");
    let job = &spec("migrate")["spec"]["template"]["spec"];
    assert_eq!((volumes(job), mounts(&job["containers"][0])), (1, true));
    let theirs = &spec("analytics")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let theirs =
        (volumes(theirs), mounts(&theirs["containers"][0]), is_told(&theirs["containers"][0], "PGSSLROOTCERT"));
    assert_eq!(theirs, (1, true, true));

    // A database beside the servers is known by its own authority; models are still fetched from elsewhere.
    let own = Fixture { postgres: own_fixture().postgres, ..place.clone() };
    let made = of(own_stored(), own).unwrap();
    let deployment = made.iter().find(|one| one.id.as_str() == "main/server/deployment").unwrap();
    let pod = &deployment.spec.as_value()["spec"]["template"]["spec"];
    let api = (mounts(&pod["containers"][0]), pod["containers"][0]["volumeMounts"].to_string());
    assert!(volumes(pod) == 1 && mounts(&pod["initContainers"][0]) && !api.0 && api.1.contains("database-authority"));

    // The Redis of the cache too, whatever its database is known by: each mounts the file once, and a change restarts pods.
    for (stored, postgres) in [(database(), None), (own_stored(), own_fixture().postgres)] {
        let mut server = Workload { stored, ..workload() };
        server.config["textnlp"]["cache"] =
            json!({ "kind": "redis", "url": "rediss://r.example.com", "ca_file": "/etc/ca.pem" });
        let place = Fixture { postgres, ..place.clone() };
        let made = lowered(&component("server", ComponentSpec::Workload(server)), place).unwrap();
        let spec = |part: &str| {
            let id = format!("main/server/{part}");
            made.iter().find(|one| one.id.as_str() == id).unwrap().spec.as_value().clone()
        };
        let config = spec("config")["data"]["server.yaml"].to_string();
        assert!(config.contains("/etc/textnlp-private-ca/ca.crt") && !config.contains("/etc/ca.pem"), "{config}");
        let template = &spec("deployment")["spec"]["template"];
        let mounted = template["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().iter();
        assert_eq!((volumes(&template["spec"]), mounted.filter(|one| **one == mount).count()), (1, 1));
        let digest = json!({ "$output": "main/server/private-ca#digest" });
        assert_eq!(template["metadata"]["annotations"]["textnlp-private-ca-digest"], digest);
    }

    let egress = Egress { private_ca: Some(Err("no certificates".to_owned())), ..place.egress.clone() };
    let why = of(database(), Fixture { egress, ..place }).unwrap_err().to_string();
    assert!(why.contains("network.private_ca") && why.contains("no certificates"), "{why}");
}

#[test]
fn endpoint_is_an_ingress_or_a_route_and_openshift_chooses_the_user() {
    let gateway = || component("gateway", ComponentSpec::Endpoint(endpoint()));
    let nginx = |waf: bool, issuer: Option<&str>| by_nginx(issuer, Fixture { waf, ..fixture() });
    let of = |made: &[Wanted], kind: &str| {
        made.iter().find(|one| one.kind.as_str() == kind).map(|one| one.spec.as_value().clone())
    };
    let made = lowered(&gateway(), nginx(true, Some("letsencrypt"))).unwrap();
    let ingress = of(&made, "kubernetes.ingress").unwrap();
    let annotations = &ingress["metadata"]["annotations"];
    assert_eq!(annotations["nginx.ingress.kubernetes.io/enable-modsecurity"], "true");
    assert_eq!(annotations["nginx.ingress.kubernetes.io/enable-owasp-core-rules"], "true");
    assert_eq!(annotations["nginx.ingress.kubernetes.io/proxy-body-size"], "10000000");
    assert_eq!(annotations["cert-manager.io/cluster-issuer"], "letsencrypt");
    assert_eq!(ingress["spec"]["tls"], json!([{ "hosts": ["text.example.com"], "secretName": "site-tls" }]));
    let plain = of(&lowered(&gateway(), nginx(false, None)).unwrap(), "kubernetes.ingress").unwrap().to_string();
    assert!(!plain.contains("modsecurity") && !plain.contains("cert-manager"), "{plain}");

    let route = by_route(fixture());
    let made = lowered(&gateway(), route.clone()).unwrap();
    let spec = of(&made, "kubernetes.openshift-route").unwrap()["spec"].clone();
    assert_eq!((&spec["host"], &spec["tls"]["termination"]), (&json!("text.example.com"), &json!("passthrough")));
    let server = component("server", ComponentSpec::Workload(workload()));
    let told = nginx(false, None).set(|site| site.openshift = true);
    for (place, user) in [(route.clone(), Value::Null), (told, Value::Null), (nginx(false, None), json!(65532))] {
        for one in lowered(&server, place).unwrap() {
            if let Some(context) = one.spec.as_value().pointer("/spec/template/spec/securityContext") {
                assert_eq!((&context["runAsUser"], &context["fsGroup"]), (&user, &user), "{}", one.id);
                assert_eq!(context["runAsNonRoot"], true);
            }
        }
    }
    // The pod that answers an authority's challenge is let through, where one is asked.
    let policies = |place: Fixture| {
        let network =
            component("network", ComponentSpec::Network(Network { cidr: None, policies: true, ..Network::default() }));
        let made = lowered(&network, place).unwrap();
        made.iter().any(|one| one.id.as_str().ends_with("/allow-solver"))
    };
    assert!(policies(nginx(false, Some("letsencrypt"))) && !policies(nginx(false, None)) && !policies(fixture()));
    // A firewall is one of an ingress.
    for place in [Fixture { waf: true, ..route }, Fixture { waf: true, ..fixture() }] {
        let problems = lowered(&gateway(), place).unwrap_err();
        assert!(problems.to_string().contains("ModSecurity"), "{problems}");
    }
}

#[test]
fn external_gateway_reaches_pods_with_our_ca() {
    let mut text = String::new();
    for one in gateway(&fixture()) {
        let needs: Vec<String> = one.needs.iter().map(|need| need.on.to_string()).collect();
        text += &format!("# {} is a {}, after {}\n", one.id, one.kind, needs.join(", "));
        text += &serde_yaml::to_string(one.spec.as_value()).unwrap();
        text += "---\n";
    }
    expect_file!["./golden/gateway.yaml"].assert_eq(&text);
    let text: String = weighted(&fixture())
        .iter()
        .filter(|one| one.kind.as_str() != "kubernetes.deployment")
        .map(|one| {
            format!("# {} is a {}\n{}---\n", one.id, one.kind, serde_yaml::to_string(one.spec.as_value()).unwrap())
        })
        .collect();
    expect_file!["./golden/weighted.yaml"].assert_eq(&text);
    // Nobody may write a route that is shared by nobody.
    let plain = canary(&by_gateway(fixture()));
    let role = plain.iter().find(|one| one.kind.as_str() == "kubernetes.role").unwrap();
    assert!(!role.spec.to_string().contains("httproutes"), "{}", role.spec);
    let gateway = || component("gateway", ComponentSpec::Endpoint(endpoint()));
    let given = Fixture { certificate: Some("site-tls".to_owned()), ..by_gateway(fixture()) };
    let problems = lowered(&gateway(), given).unwrap_err();
    assert!(problems.to_string().contains("its certificate authority for the Gateway is not configured"), "{problems}");
    let problems = lowered(&gateway(), Fixture { waf: true, ..by_gateway(fixture()) }).unwrap_err();
    assert!(problems.to_string().contains("ModSecurity"), "{problems}");
    // A time of the Gateway API has five digits.
    let slow = component("gateway", ComponentSpec::Endpoint(Endpoint { timeout_seconds: u32::MAX, ..endpoint() }));
    let made = lowered(&slow, by_gateway(fixture())).unwrap();
    let route = made.iter().find(|one| one.kind.as_str() == "kubernetes.http-route").unwrap();
    assert_eq!(route.spec.as_value().pointer("/spec/rules/0/timeouts/request").unwrap(), "99999s");
}

#[test]
fn operators_machine_creates_secrets_certificates_and_the_relay_parts() {
    let certificate = |names: Vec<String>| {
        ComponentSpec::Certificate(Certificate { mode: TlsMode::LocalCa, names, days: 90, acme: None })
    };
    let mut external = component("certificate", certificate(Vec::new()));
    external.existing = Some("site-tls".parse().unwrap());
    let generate =
        ["replication-password", "database-password"].map(|name| (name.to_owned(), SecretRecipe::Password(32)));
    let secrets = Secrets { generate: generate.into(), shared: Default::default(), given: BTreeMap::new() };
    let network = Network { cidr: Some("10.0.0.0/8".to_owned()), policies: true, ..Network::default() };
    let cluster = Cluster::of("network".parse().unwrap());
    let of = |component: &Component, fixture: &Fixture, replicates: bool| {
        let cluster = Some(Box::new(Fixture { replicates, ..fixture.clone() }.cluster()));
        let (component, site) = local_part(component, &Site { cluster, ..site() })?;
        assert_eq!(site.runtime, Runtime::Process);
        Some(component)
    };
    let one = |component: &Component| of(component, &fixture(), false).map(|component| component.part);
    let network = one(&component("network", ComponentSpec::Network(network)));
    assert!(matches!(network, Some(ComponentSpec::Network(Network { cidr: None, .. }))), "{network:?}");
    let Some(ComponentSpec::Secrets(secrets)) = one(&component("secrets", ComponentSpec::Secrets(secrets))) else {
        panic!("no secrets")
    };
    assert_eq!(secrets.generate.keys().collect::<Vec<_>>(), ["database-password"]);
    assert!(one(&component("certificate", certificate(Vec::new()))).is_some() && one(&external).is_none());
    assert!(one(&component("database", ComponentSpec::Database(database()))).is_some());
    assert_eq!(one(&component("database", ComponentSpec::Database(own_stored()))), None);
    // The supervisor of the site agent.
    let cluster = component("cluster", ComponentSpec::Cluster(cluster));
    assert_eq!(one(&cluster), None);
    assert!(of(&cluster, &fixture(), true).is_some());
    // The certificate of the metrics adapter.
    let server = component("server", ComponentSpec::Workload(workload()));
    assert_eq!(one(&server), None);
    let adapter = of(&server, &Fixture { adapter: true, ..fixture() }, false).unwrap();
    let ComponentSpec::Certificate(made) = &adapter.part else { panic!("{adapter:?}") };
    assert_eq!((adapter.name.as_str(), &made.names), ("adapter", &vec!["textnlp-adapter.textnlp.svc".to_owned()]));
    // A site outside of clusters has no such part.
    assert!(local_part(&server, &site()).is_none());
}

#[test]
fn nodes_are_chosen_by_what_the_containers_of_a_pod_request() {
    let all = objects(&fixture());
    let servers = all.iter().find(|one| one.id.as_str().ends_with("/deployment")).unwrap();
    let pod = &servers.spec.as_value()["spec"]["template"]["spec"];
    let requests = |field: &str| -> Vec<Value> {
        pod[field].as_array().unwrap().iter().map(|one| one["resources"]["requests"].clone()).collect()
    };
    let both = [json!({ "cpu": "2", "memory": "4Gi" }), json!({ "cpu": "100m", "memory": "64Mi" })];
    assert_eq!(requests("containers"), both);
    assert_eq!(requests("initContainers"), [json!({ "cpu": "100m", "memory": "128Mi" })], "less than both");
    let said = server_pod(&fixture().settings.resources, &models().models, false);
    assert_eq!(said.to_string(), "2100m CPU and 4160Mi memory");
}

#[test]
fn nodes_of_an_existing_cluster_are_not_chosen() {
    let node_choice = NodeChoice { size: Some(NodeSize::Large), machine: Some("m7i.2xlarge".to_owned()), pod: None };
    let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
    let chosen = Fixture { node_choice, ..fixture() };
    let refused = lowered(&cluster, chosen.clone()).unwrap_err().to_string();
    for field in ["cluster.node_size", "instance_type"] {
        assert!(refused.contains(field), "{refused}");
    }
    let nodes = ClusterNodes { general: "system-nodes".to_owned(), gpu: None, disks: None };
    let created = Fixture { nodes: Some(nodes), ..chosen };
    assert!(lowered(&cluster, created.clone()).is_ok());
    // Those that are created offer whole GPUs.
    let sliced = created.set(|settings| settings.gpu_resource = Some("nvidia.com/mig-1g.10gb".to_owned()));
    let refused = lowered(&cluster, sliced).unwrap_err().to_string();
    assert!(refused.contains("cluster.gpu_resource") && refused.contains("whole GPUs"), "{refused}");
}

#[test]
fn pods_start_after_the_nodes_that_a_cloud_creates() {
    let nodes = ClusterNodes { general: "system-nodes".to_owned(), gpu: Some("gpu-nodes".to_owned()), disks: None };
    let gpu = ClusterGpus {
        count: 4,
        existing: false,
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        device_plugin: true,
    };
    let server = component("server", ComponentSpec::Workload(Workload { replicas: 3, ..workload() }));
    let after = |place: Fixture| -> Vec<(String, Vec<String>)> {
        let of = |one: &Wanted| {
            let needs = one.needs.iter().map(|need| need.on.to_string()).filter(|id| id.contains("-nodes"));
            (one.id.to_string(), needs.collect::<Vec<_>>())
        };
        lowered(&server, place).unwrap().iter().map(of).filter(|(_, nodes)| !nodes.is_empty()).collect()
    };
    assert_eq!(after(fixture()), [], "a cluster that is there has its nodes");
    let waiting = after(Fixture { nodes: Some(nodes), gpu: Some(gpu), ..fixture() });
    let of = |end: &str| waiting.iter().find(|(id, _)| id.ends_with(end)).map(|(_, nodes)| nodes.join(" "));
    assert_eq!(of("/deployment").as_deref(), Some("main/cluster/gpu-nodes main/cluster/system-nodes"));
    assert_eq!(of("/migrate").as_deref(), Some("main/cluster/system-nodes"), "a job computes nothing");
    assert_eq!(of("/config"), None, "settings need no node");
}

#[test]
fn pods_have_a_gpu_each_on_nodes_that_other_pods_do_not_use() {
    let gpus = |count, device_plugin| ClusterGpus {
        count,
        existing: false,
        node_selector: BTreeMap::from([("textnlp/pool".to_owned(), "gpu".to_owned())]),
        tolerations: Vec::new(),
        device_plugin,
    };
    let by_cpu = Autoscaling { max: 20, cpu: Some(70), memory: None, requests_per_second: None };
    let scaled = |gpu: Option<ClusterGpus>, replicas: u32, autoscaling: Autoscaling| {
        let workload = Workload { replicas, autoscaling: Some(autoscaling), canary: None, ..workload() };
        lowered(&component("server", ComponentSpec::Workload(workload)), Fixture { gpu, ..fixture() })
    };
    let by_rate = Autoscaling { requests_per_second: Some(5), ..by_cpu };
    let server = |gpu: Option<ClusterGpus>, replicas: u32| scaled(gpu, replicas, by_rate);
    let spec = |made: &[Wanted], end: &str| -> Value {
        let found = made.iter().find(|one| one.id.as_str().ends_with(end));
        found.unwrap_or_else(|| panic!("{end}")).spec.as_value().clone()
    };
    let made = server(Some(gpus(4, true)), 3).unwrap();
    let pod = &spec(&made, "/deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"]["textnlp/pool"], "gpu");
    let tolerations = pod["tolerations"].as_array().unwrap();
    assert!(tolerations.contains(&json!({ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" })));
    let [api, gateway] = [0, 1].map(|number| pod["containers"][number]["resources"].clone());
    for part in ["requests", "limits"] {
        assert_eq!(api[part]["nvidia.com/gpu"], 1, "{api}");
        assert!(gateway[part].get("nvidia.com/gpu").is_none(), "{gateway}");
    }
    assert!(pod["initContainers"][0]["resources"]["limits"].get("nvidia.com/gpu").is_none());
    // The driver keeps compiled kernels, fewer than would have the pod evicted.
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let kernels = mounts.iter().find(|mount| mount["name"] == "kernels").unwrap();
    assert!(kernels.get("readOnly").is_none(), "{kernels}");
    let env = pod["containers"][0]["env"].as_array().unwrap();
    let of = |name: &str| env.iter().find(|one| one["name"] == name).unwrap()["value"].clone();
    assert_eq!((of("CUDA_CACHE_PATH"), of("CUDA_CACHE_MAXSIZE")), (kernels["mountPath"].clone(), json!("536870912")));
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.contains(&json!({ "name": "kernels", "emptyDir": { "sizeLimit": "1Gi" } })), "{volumes:?}");
    // A changed device runs the job again, which refuses an image without CUDA.
    let device = |made: &[Wanted], job: &str| {
        spec(made, job)["spec"]["template"]["metadata"]["annotations"]["textnlp-device"].clone()
    };
    assert_eq!(
        (device(&made, "/migrate"), device(&server(None, 3).unwrap(), "/migrate")),
        (json!("cuda"), Value::Null)
    );
    // Jobs compute nothing.
    let job = &spec(&made, "/migrate")["spec"]["template"]["spec"];
    assert!(job.get("nodeSelector").is_none() && !job.to_string().contains("nvidia"), "{job}");
    // In a cluster of the operator, the chosen nodes may all have GPUs: jobs tolerate their taint, and take none.
    let settings =
        ClusterAccess { node_selector: BTreeMap::from([("team".to_owned(), "text".to_owned())]), ..fixture().settings };
    let own = ClusterGpus { node_selector: BTreeMap::new(), ..gpus(4, false) };
    let workload_of_three = component("server", ComponentSpec::Workload(Workload { replicas: 3, ..workload() }));
    let beside = lowered(&workload_of_three, Fixture { gpu: Some(own), settings, ..fixture() }).unwrap();
    let job = &spec(&beside, "/migrate")["spec"]["template"]["spec"];
    assert_eq!(job["nodeSelector"]["team"], "text");
    assert_eq!(job["tolerations"][0]["key"], "nvidia.com/gpu");
    assert!(!job["containers"].to_string().contains("nvidia"), "{job}");
    // A GPU for a new pod is free only where there are more of them than pods, which the autoscaler leaves no room for.
    let strategy = |made: &[Wanted]| spec(made, "/deployment")["spec"]["strategy"]["rollingUpdate"].clone();
    assert_eq!(strategy(&made), json!({ "maxUnavailable": 1, "maxSurge": 0 }));
    assert_eq!(spec(&made, "/autoscaler")["spec"]["maxReplicas"], 4);
    // The CPU is idle while the GPU computes.
    let metrics = |made: &[Wanted]| spec(made, "/autoscaler")["spec"]["metrics"].clone();
    let found = metrics(&made);
    assert!(found.as_array().unwrap().len() == 1 && found[0]["type"] == "Pods", "{found}");
    let problems = scaled(Some(gpus(4, true)), 3, by_cpu).unwrap_err().to_string();
    assert!(problems.contains("needs the request rate"), "{problems}");
    assert_eq!(metrics(&scaled(None, 3, by_cpu).unwrap())[0]["resource"]["name"], "cpu");
    let made = server(Some(gpus(40, true)), 3).unwrap();
    assert_eq!(strategy(&made), json!({ "maxUnavailable": 0, "maxSurge": 1 }));
    assert_eq!(spec(&made, "/autoscaler")["spec"]["maxReplicas"], 20);
    let problems = server(Some(gpus(2, true)), 3).unwrap_err().to_string();
    assert!(problems.contains("2 GPUs are enough for 2 replicas, and not for 3"), "{problems}");
    // A slice or a share of a GPU has a name of its own.
    let settings = ClusterAccess { gpu_resource: Some("nvidia.com/mig-1g.10gb".to_owned()), ..fixture().settings };
    let sliced = lowered(&workload_of_three, Fixture { gpu: Some(gpus(7, false)), settings, ..fixture() }).unwrap();
    let api = spec(&sliced, "/deployment")["spec"]["template"]["spec"]["containers"][0]["resources"].clone();
    for part in ["requests", "limits"] {
        assert_eq!((&api[part]["nvidia.com/mig-1g.10gb"], api[part].get("nvidia.com/gpu")), (&json!(1), None), "{api}");
    }
    let plain = server(None, 3).unwrap();
    let deployment = spec(&plain, "/deployment").to_string();
    assert!(!deployment.contains("\"nvidia.com/gpu\":") && !deployment.contains("CUDA"), "no GPU is asked for");
    assert_eq!(spec(&plain, "/autoscaler")["spec"]["maxReplicas"], 20);
}

#[test]
fn device_plugin_is_an_object_of_sites_whose_cloud_has_none() {
    let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
    let gpus = |device_plugin| ClusterGpus {
        count: 1,
        existing: false,
        node_selector: BTreeMap::from([("textnlp/pool".to_owned(), "gpu".to_owned())]),
        tolerations: Vec::new(),
        device_plugin,
    };
    let plugin = |device_plugin| {
        let made = lowered(&cluster, Fixture { gpu: Some(gpus(device_plugin)), ..fixture() }).unwrap();
        made.into_iter().find(|one| one.id.as_str().ends_with("cluster/device-plugin"))
    };
    let made = plugin(true).unwrap();
    assert_eq!(made.kind.as_str(), "kubernetes.daemon-set");
    let spec = made.spec.as_value();
    assert_eq!(spec["metadata"]["namespace"], "kube-system");
    let pod = &spec["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"]["textnlp/pool"], "gpu");
    let image = pod["containers"][0]["image"].as_str().unwrap();
    assert!(image.starts_with("nvcr.io/nvidia/k8s-device-plugin:v") && image.contains("@sha256:"), "{image}");
    assert!(plugin(false).is_none());
}

#[test]
fn node_autoscaler_is_an_object_of_sites_whose_cloud_has_none() {
    let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
    let autoscaler = NodeAutoscaler {
        image: pinned("registry.k8s.io/autoscaling/cluster-autoscaler:v1.34.5"),
        provider: "aws".to_owned(),
        discovery: "asg:tag=k8s.io/cluster-autoscaler/enabled,k8s.io/cluster-autoscaler/here".to_owned(),
        variables: BTreeMap::from([("AWS_REGION".to_owned(), "eu-west-1".to_owned())]),
        part: "autoscaler-identity".to_owned(),
    };
    let nodes = ClusterNodes { general: "system-nodes".to_owned(), gpu: None, disks: None };
    let made = |node_autoscaler| {
        let fixture = Fixture { node_autoscaler, nodes: Some(nodes.clone()), ..fixture() };
        let mut made = lowered(&cluster, fixture).unwrap();
        made.retain(|one| one.id.as_str().contains("/node-autoscaler"));
        made
    };
    assert_eq!(made(None), []);
    let made = made(Some(autoscaler));
    let kinds: Vec<&str> = made.iter().map(|one| one.kind.as_str()).collect();
    let expected = [
        "kubernetes.service-account",
        "kubernetes.cluster-role",
        "kubernetes.cluster-role-binding",
        "kubernetes.deployment",
    ];
    assert_eq!(kinds, expected);
    let names: Vec<&Value> = made.iter().map(|one| &one.spec.as_value()["metadata"]["name"]).collect();
    assert!(names.iter().all(|name| **name == "textnlp-node-autoscaler"), "{names:?}");
    let [.., deployment] = made.as_slice() else { panic!() };
    let needs: Vec<&str> = deployment.needs.iter().map(|need| need.on.as_str()).collect();
    for part in ["autoscaler-identity", "node-autoscaler-binding", "system-nodes"] {
        assert!(needs.contains(&format!("main/cluster/{part}").as_str()), "{part}: {needs:?}");
    }
    let pod = &deployment.spec.as_value()["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "textnlp-node-autoscaler");
    let container = &pod["containers"][0];
    let args = container["args"].as_array().unwrap();
    assert!(args.contains(&json!("--cloud-provider=aws")), "{args:?}");
    let env = container["env"].as_array().unwrap();
    assert!(env.contains(&json!({ "name": "AWS_REGION", "value": "eu-west-1" })), "{env:?}");
}

/// An identity as a cloud gives it to pods.
fn bucket_identity() -> BucketIdentity {
    BucketIdentity {
        scheme: "s3".to_owned(),
        own: "s3://own/".to_owned(),
        variables: BTreeMap::from([("AWS_REGION".to_owned(), json!("eu-west-1"))]),
        token: Some(IdentityToken {
            audience: "pods.example".to_owned(),
            folder: "/var/run/identity".to_owned(),
            file: "token".to_owned(),
            seconds: 86_400,
        }),
        services: vec!["169.254.170.23:80".parse().unwrap()],
        part: "reader".to_owned(),
        skip_annotation: Some("cloud/skip".to_owned()),
    }
}

#[test]
fn only_the_container_that_fetches_models_signs_in_to_buckets() {
    let from = |source: &str| {
        let mut workload = workload();
        workload.served[0].source = source.to_owned();
        workload.egress.policies = true;
        workload
    };
    let place = |identity: Option<BucketIdentity>| Fixture { bucket_identity: identity, ..fixture() };
    let made = |source: &str| {
        let server = component("server", ComponentSpec::Workload(from(source)));
        lowered(&server, place(Some(bucket_identity()))).unwrap()
    };
    let all = made("s3://models/team/sha256-ab/");
    let deployment = all.iter().find(|one| one.id.as_str().ends_with("/deployment")).unwrap();
    assert!(deployment.needs.iter().any(|need| need.on.as_str() == "main/models/reader"), "{:?}", deployment.needs);
    let template = &deployment.spec.as_value()["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["cloud/skip"], "models,api,gateway");
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "textnlp-models");
    assert!(all.iter().any(|one| one.id.as_str() == "main/server/models-account"), "the account is an object");
    let names = ["initContainers", "containers"].into_iter().flat_map(|of| pod[of].as_array().unwrap());
    let names: Vec<&str> = names.map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["models", "api", "gateway"]);
    let job = all.iter().find(|one| one.id.as_str().ends_with("/migrate")).unwrap();
    assert_eq!(job.spec.as_value()["spec"]["template"]["spec"]["serviceAccountName"], "textnlp-api");
    let token =
        json!({ "serviceAccountToken": { "audience": "pods.example", "expirationSeconds": 86_400, "path": "token" } });
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.contains(&json!({ "name": "identity", "projected": { "sources": [token] } })), "{volumes:?}");
    let signs_in = |container: &Value| {
        let region = json!({ "name": "AWS_REGION", "value": "eu-west-1" });
        let mounts = container["volumeMounts"].as_array().unwrap().iter().any(|mount| mount["name"] == "identity");
        (mounts, container["env"].as_array().is_some_and(|env| env.contains(&region)))
    };
    assert_eq!(signs_in(&pod["initContainers"][0]), (true, true));
    for container in pod["containers"].as_array().unwrap() {
        assert_eq!(signs_in(container), (false, false), "{container}");
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
    let to_service = json!([{ "ipBlock": { "cidr": "169.254.170.23/32" } }]);
    let allowed = policies(&all)["textnlp-models"]["egress"].clone();
    assert!(allowed.as_array().unwrap().iter().any(|rule| rule["to"] == to_service && rule["ports"][0]["port"] == 80));

    let plain = made("hf:org/name");
    let text = serde_json::to_string(&plain.iter().map(|one| one.spec.as_value()).collect::<Vec<_>>()).unwrap();
    assert!(!text.contains("identity") && !text.contains("169.254.170.23"), "{text}");

    let mut store = models();
    store.models[0].source = "bucket:team/mine".to_owned();
    let component_of = component("models", ComponentSpec::ModelStore(store));
    let listed = lowered(&component_of, place(Some(bucket_identity()))).unwrap();
    let listed = serde_json::to_string(&listed.iter().map(|one| one.spec.as_value()).collect::<Vec<_>>()).unwrap();
    assert!(listed.contains("s3://own/team/mine/") && !listed.contains("bucket:"), "{listed}");
    let problem = |source: &str, identity| {
        let mut store = models();
        store.models[0].source = source.to_owned();
        lowered(&component("models", ComponentSpec::ModelStore(store)), place(identity))
            .err()
            .map(|why| why.to_string())
    };
    assert_eq!(problem("s3://models/a/", Some(bucket_identity())), None);
    let other = problem("gs://models/a/", Some(bucket_identity())).unwrap();
    assert!(other.contains("no credentials for `gs:`") && other.contains("s3://BUCKET/"), "{other}");
    assert!(problem("bucket:a", None).unwrap().contains("no credentials for `bucket:`"));
    let none = problem("s3://models/a/", None).unwrap();
    assert!(none.contains("no credentials for `s3:`") && none.contains("kind: image"), "{none}");
}

#[test]
fn unsupported_cluster_settings_are_refused_by_name() {
    let mut sqlite = database();
    (sqlite.kind, sqlite.hosting, sqlite.postgres) = (DatabaseKind::Sqlite, None, None);
    let mut far = models();
    far.models[0].digest = None;
    let mut near = models();
    near.models[0].source = "file:/srv/model".to_owned();
    let mut alike = models();
    let second = alike.models[0].clone();
    alike.models.push(second);
    (alike.models[0].name, alike.models[1].name) = ("acme/own".to_owned(), "acme-own".to_owned());
    let watched = Workload { watch: Some("watch".parse().unwrap()), stored: own_stored(), ..workload() };
    let mail = ReceiverAddress::Plain("mailto:oncall@example.com".to_owned());
    let told = Monitoring { receivers: BTreeMap::from([("oncall".to_owned(), mail)]), ..Monitoring::default() };
    let autoscaling = Autoscaling { max: 20, cpu: Some(70), memory: None, requests_per_second: None };
    let both = workload().canary.map(|canary| Canary { share: None, ..canary });
    let doubled = Workload { autoscaling: Some(autoscaling), canary: both, ..workload() };
    let mut logged = workload();
    logged.config["textnlp"]["monitoring"]["log_file"] = json!("/var/log/a");
    for (part, says) in [
        (ComponentSpec::Database(sqlite), "a `sqlite` database is not supported in a cluster"),
        (ComponentSpec::Cache(Cache { kind: CacheKind::Redis, managed: None }), "`redis` cache"),
        (ComponentSpec::ModelStore(far), "model `textnlp-tiny` has no digest"),
        (ComponentSpec::ModelStore(near), "pods cannot reach it"),
        (ComponentSpec::ModelStore(alike), "`acme/own` and `acme-own` have the same name"),
        (ComponentSpec::Workload(watched), "replication of control data between sites in clusters is not supported"),
        (ComponentSpec::Workload(doubled), "an autoscaler counts the pods of both releases"),
        (ComponentSpec::Workload(logged), "writes its log to standard output"),
        (ComponentSpec::Monitoring(told), "`monitoring.stack` is off"),
        (
            ComponentSpec::Network(Network {
                cidr: Some("10.0.0.0/8".to_owned()),
                policies: false,
                ..Network::default()
            }),
            "10.0.0.0/8 cannot be created",
        ),
        (ComponentSpec::Workload(Workload { replicas: 0, ..workload() }), "0 replicas"),
    ] {
        let problems = lowered(&component("one", part), fixture()).unwrap_err();
        assert!(problems.to_string().contains(says), "{says}: {problems}");
    }
    let gone = Fixture { saml: Some(Err("there is no file a.json".to_owned())), ..fixture() };
    let problems = lowered(&component("server", ComponentSpec::Workload(workload())), gone).unwrap_err();
    assert!(problems.to_string().contains("there is no file a.json"), "{problems}");
    let nowhere = Fixture { domain: None, ..fixture() }.set(|site| site.image = None);
    let server = component("server", ComponentSpec::Workload(workload()));
    assert!(lowered(&server, nowhere.clone()).unwrap_err().to_string().contains("no image is set"));
    let gateway = component("gateway", ComponentSpec::Endpoint(endpoint()));
    assert!(
        lowered(&gateway, nowhere).unwrap_err().to_string().contains("the address that clients use is not configured")
    );
    let open = component("gateway", ComponentSpec::Endpoint(Endpoint { tls: false, ..endpoint() }));
    assert!(lowered(&open, fixture()).unwrap_err().to_string().contains("without TLS"));
}

/// A spec in which what is known only later has a value of its form.
fn filled(value: &Value, encoded: bool) -> Value {
    if OutputRef::from_value(value).is_some() || value.get("$plain").is_some() {
        return json!(if encoded { "Y2VydGlmaWNhdGU=" } else { "0123abcd" });
    }
    match value {
        Value::Array(items) => items.iter().map(|item| filled(item, encoded)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), filled(value, encoded))).collect(),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_server_accepts_every_object_and_its_pods_are_restricted() {
    let Some(control) = ControlPlane::shared() else { return };
    crate::world::add_real_kinds(control).await;
    let namespace = control.namespace("dry");
    let label = "pod-security.kubernetes.io/enforce=restricted";
    assert!(control.kubectl(&["label", "namespace", &namespace, label]).status.success());
    let mut tried = 0;
    let whole = Fixture { namespace: namespace.clone(), waf: true, ..fixture() };
    let whole = objects(&by_nginx(Some("letsencrypt"), whole));
    let own = own_database(&Fixture { namespace: namespace.clone(), ..own_fixture() });
    let own = own.into_iter().filter(|one| !whole.iter().any(|other| other.id == one.id)).collect::<Vec<_>>();
    let canary = canary(&Fixture { namespace: namespace.clone(), ..fixture() });
    let adapter = adapter(&Fixture { namespace: namespace.clone(), ..fixture() });
    let parts = beside(&Fixture { namespace: namespace.clone(), ..fixture() });
    let mut gateway = gateway(&Fixture { namespace: namespace.clone(), ..fixture() });
    gateway.extend(weighted(&Fixture { namespace: namespace.clone(), ..fixture() }));
    let image = Fixture { namespace: namespace.clone(), ..own_fixture() };
    let image = with_model_image(&pinned("registry.example.com/models:1"), image);
    let image = image.set(|site| site.analytics = Some(analytics(Spot::Only)));
    let ends = ["/deployment", "/analytics"];
    let image = own_objects(&image).into_iter().filter(|one| ends.iter().any(|end| one.id.as_str().ends_with(end)));
    let image: Vec<Wanted> = image.collect();
    assert_eq!(image.len(), 2);
    let own_place = Fixture { namespace: namespace.clone(), ..own_fixture() };
    let mut copying = [Some("secrets"), None].map(|secrets| copying(copies(secrets), &own_place)).concat();
    copying.retain(|one| !["/volume", "/script", "/restore"].iter().any(|end| one.id.as_str().ends_with(end)));
    let private = objects(&with_registry(Fixture { namespace: namespace.clone(), ..fixture() })).into_iter();
    let private: Vec<Wanted> = private.filter(|one| one.kind.as_str() == "kubernetes.service-account").collect();
    let all = whole.iter().chain(&own).chain(&copying).chain(&canary).chain(&parts).chain(&image).chain(&private);
    for one in all.chain(&adapter).chain(&gateway) {
        let (_, noun) = one.kind.as_str().split_once('.').unwrap();
        let is_secret = noun == "secret";
        let mut object = filled(one.spec.as_value(), is_secret || noun == "api-service");
        let (version, kind) =
            API.iter().find(|(name, ..)| *name == noun).map(|(_, version, kind)| (version, kind)).unwrap();
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        let file = control.folder().join(format!("dry-{tried}.json"));
        std::fs::write(&file, object.to_string()).unwrap();
        let said = control.kubectl(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--field-manager=dry",
            "-f",
            file.as_str(),
        ]);
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{}: {errors}", one.id);
        // The certificate is none, which is only remarked on; what pods are not allowed would be remarked on too.
        assert!(is_secret || !errors.to_lowercase().contains("warning"), "{}: {errors}", one.id);
        tried += 1;
    }
    assert_eq!(tried, 79, "all of them");
}

const API: &[(&str, &str, &str)] = &[
    ("namespace", "v1", "Namespace"),
    ("service-account", "v1", "ServiceAccount"),
    ("role", "rbac.authorization.k8s.io/v1", "Role"),
    ("role-binding", "rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("config-map", "v1", "ConfigMap"),
    ("service-monitor", "monitoring.coreos.com/v1", "ServiceMonitor"),
    ("prometheus-rule", "monitoring.coreos.com/v1", "PrometheusRule"),
    ("alertmanager-config", "monitoring.coreos.com/v1alpha1", "AlertmanagerConfig"),
    ("secret", "v1", "Secret"),
    ("network-policy", "networking.k8s.io/v1", "NetworkPolicy"),
    ("job", "batch/v1", "Job"),
    ("daemon-set", "apps/v1", "DaemonSet"),
    ("deployment", "apps/v1", "Deployment"),
    ("service", "v1", "Service"),
    ("ingress", "networking.k8s.io/v1", "Ingress"),
    ("http-route", "gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("backend-tls-policy", "gateway.networking.k8s.io/v1", "BackendTLSPolicy"),
    ("cron-job", "batch/v1", "CronJob"),
    ("persistent-volume-claim", "v1", "PersistentVolumeClaim"),
    ("postgres-cluster", "postgresql.cnpg.io/v1", "Cluster"),
    ("pod-disruption-budget", "policy/v1", "PodDisruptionBudget"),
    ("api-service", "apiregistration.k8s.io/v1", "APIService"),
    ("horizontal-pod-autoscaler", "autoscaling/v2", "HorizontalPodAutoscaler"),
];
