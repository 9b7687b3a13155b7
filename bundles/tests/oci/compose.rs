//! The compose files as texts: what holds for every service, and what each file is for.

use serde_yaml::Value;

const FILES: [(&str, &str); 4] = [
    ("dev", include_str!("../../../templates/compose/docker-compose.dev.yml")),
    ("staging", include_str!("../../../templates/compose/docker-compose.staging.yml")),
    ("test", include_str!("../../../templates/compose/docker-compose.test.yml")),
    ("airgap", include_str!("../../../templates/compose/docker-compose.airgap.yml")),
];

fn read(text: &str) -> Value {
    let mut value: Value = serde_yaml::from_str(text).unwrap();
    // A merged mapping brings its own merge along, so once for each.
    value.apply_merge().unwrap();
    value.apply_merge().unwrap();
    value
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_sequence().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

#[test]
fn every_compose_service_is_hardened_and_pins_its_image() {
    for (name, text) in FILES {
        let file = read(text);
        assert_eq!(file["name"], format!("textnlp-{name}").as_str());
        for service in ["migrate", "api", "postgres", "redis"] {
            let facts = &file["services"][service];
            let at = format!("{name}: {service}");
            assert_eq!(facts["read_only"], true, "{at}");
            assert_eq!(strings(&facts["cap_drop"]), ["ALL"], "{at}");
            assert_eq!(strings(&facts["security_opt"]), ["no-new-privileges:true"], "{at}");
            assert!(facts["user"].as_str().is_some_and(|user| !user.starts_with('0') && user != "root"), "{at}");
            let image = facts["image"].as_str().unwrap();
            assert!(image.contains(':') && !image.contains("latest"), "{at}: {image}");
            assert!(facts["privileged"].is_null() && facts["network_mode"] != "host", "{at}");
        }
        // Every volume that is named is declared.
        for service in ["api", "postgres", "redis"] {
            for volume in strings(&file["services"][service]["volumes"]) {
                let source = volume.split(':').next().unwrap();
                assert!(source.starts_with("${") || file["volumes"].get(source).is_some(), "{name}: {volume}");
            }
        }
        assert_eq!(strings(&file["services"]["postgres"]["profiles"]), ["data"], "{name}");
        assert_eq!(strings(&file["services"]["redis"]["profiles"]), ["data"], "{name}");
        for service in ["postgres", "redis"] {
            assert!(file["services"][service]["ports"].is_null(), "{name}: {service} is not reachable from outside");
            assert!(!strings(&file["services"][service]["healthcheck"]["test"]).is_empty());
        }
    }
}

#[test]
fn compose_api_waits_for_its_database_and_is_probed_on_loopback() {
    for (name, text) in FILES {
        let api = read(text)["services"]["api"].clone();
        assert_eq!(api["depends_on"]["migrate"]["condition"], "service_completed_successfully", "{name}");
        assert_eq!(strings(&api["healthcheck"]["test"])[..2], ["CMD", "/usr/local/bin/textnlp-deploy"], "{name}");
        assert_eq!(api["user"], "65532:65532", "{name}");
        let ports = strings(&api["ports"]);
        assert!(ports[0].ends_with(":8080") && ports[1].ends_with(":9090"), "{name}: {ports:?}");
        assert!(
            ports.iter().all(|port| port.starts_with("127.0.0.1:") || port.starts_with("${TEXTNLP_BIND:-127.0.0.1}"))
        );
        let volumes = strings(&api["volumes"]);
        assert_eq!(volumes[0], "data:/var/lib/textnlp", "{name}");
        assert!(volumes[1].ends_with(":/models:ro") && volumes[2].ends_with(":/etc/textnlp/server.yaml:ro"), "{name}");
    }
}

#[test]
fn each_compose_file_uses_the_matching_image_source() {
    let [dev, staging, test, airgap] = FILES.map(|(_, text)| read(text));
    let of = |file: &Value, service: &str, key: &str| file["services"][service][key].as_str().unwrap().to_owned();
    for service in ["migrate", "api", "postgres", "redis"] {
        assert_eq!(of(&airgap, service, "pull_policy"), "never");
        assert!(of(&staging, service, "image").contains("@sha256:"), "staging is told digests");
    }
    assert_eq!(
        (of(&airgap, "postgres", "image"), of(&airgap, "redis", "image")),
        ("postgres:15".to_owned(), "redis:7".to_owned())
    );
    assert!(of(&airgap, "api", "image").starts_with("textnlp:${TEXTNLP_VERSION:?"));
    assert!(strings(&airgap["services"]["api"]["volumes"])[2].contains("./configs/server.yaml"));
    assert_eq!(
        (of(&airgap, "api", "restart"), of(&dev, "api", "restart")),
        ("unless-stopped".to_owned(), "no".to_owned())
    );
    assert!(
        strings(&test["services"]["api"]["ports"]).iter().all(|port| port.starts_with("127.0.0.1::")),
        "free ports"
    );
}
