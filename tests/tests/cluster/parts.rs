//! What is beside the servers of a site in a cluster, and where their pods find models.

use std::process::Command;

use serde_json::{Value, json};
use textnlp_tests::{counts, eventually};

use crate::operator::{Operator, pinned};

#[test]
fn pods_share_models_and_a_user_job_queries_their_database() {
    let Some(operator) = Operator::with_nothing("parts") else { return };
    let (namespace, cluster) = (operator.namespace.as_str(), operator.cluster);
    let settings = r#"{"sp":{"entityId":"https://a.example.com"},"idp":{"entityId":"https://b.example.com"}}"#;
    let file = cluster.folder().join(format!("{namespace}-saml.json"));
    std::fs::write(&file, settings).unwrap();
    // Rows are tenants': whoever asks says whose.
    let asks = format!(
        "echo \"mode $PROCESSING_MODE\"; {} -X -q -A -t \"$DATABASE_URL\" -c \"set textnlp.tenant = '*'\" -c \"select 'keys ' || count(*) from api_keys\"",
        Operator::psql().display()
    );
    let command = json!(["sh", "-c", asks]);
    let sets = [
        "sites[0].cluster.models.kind=claim".to_owned(),
        "sites[0].cluster.models.size=1GiB".to_owned(),
        format!("sites[0].cluster.analytics.image={}", pinned("local/analytics:1")),
        "sites[0].cluster.analytics.schedule=0 0 1 1 *".to_owned(),
        format!("sites[0].cluster.analytics.command={command}"),
        "sites[0].cluster.analytics.spot=prefer".to_owned(),
        format!("sites[0].cluster.saml={file}"),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let done = operator.up(&sets);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    eprintln!("up: {:?} in {} s", counts(&done), done["seconds"]);
    assert_eq!(counts(&operator.up(&sets))[..4], [0, 0, 0, 0], "a second up plans nothing");
    assert_eq!(operator.get("deployment", "textnlp-api")["status"]["availableReplicas"], 3);

    // Three pods, one model, once; and nothing half.
    let claim = operator.get("persistentvolumeclaim", "textnlp-models");
    assert_eq!(claim["spec"]["accessModes"][0], "ReadWriteMany");
    let shared = cluster.folder().join("claims").join(claim["metadata"]["uid"].as_str().unwrap());
    let names = |folder: &str| -> Vec<String> {
        let entries = shared.join(folder).read_dir_utf8().unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_owned()).collect()
    };
    assert_eq!((names("models").len(), names("assembly").len()), (1, 0));

    // Now, and not at its time.
    let job = ["create", "job", "once", "--from=cronjob/analytics-processor", "-n", namespace];
    assert!(cluster.kubectl(&job).status.success());
    eventually("the operator's job ends", || (operator.get("job", "once")["status"]["succeeded"] == 1).then_some(()));
    let said = cluster.kubectl(&["logs", "job/once", "-n", namespace]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("mode batch") && said.contains("keys 1"), "{said}");
    let tolerated = operator.get("job", "once")["spec"]["template"]["spec"]["tolerations"].clone();
    let map = operator.get("configmap", "spot-config")["data"]["tolerations.yaml"].clone();
    assert_eq!(serde_json::from_str::<Value>(map.as_str().unwrap()).unwrap(), tolerated);
    // As they were looked at, and not as they were written: a name that is there twice would mean one thing to us and another to others.
    let map = operator.get("configmap", "saml-config")["data"]["saml2_settings.json"].clone();
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(read(map.as_str().unwrap()), read(settings));

    // The same models out of an image, with everything else left out: pods roll, and what was made for it goes, but for the volume.
    let image = cluster.folder().join(format!("{namespace}-image"));
    let copied = Command::new("cp").args(["-r", shared.join("models").as_str(), image.as_str()]).status();
    assert!(copied.unwrap().success());
    let models = pinned("local/models:1");
    cluster.kubelet().put_program_of(&models, "/", image);
    let models = format!("sites[0].cluster.models.reference={models}");
    let sets = ["sites[0].cluster.models.kind=image", models.as_str()];
    let done = operator.up(&sets);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    assert!(!operator.get("cronjob", "analytics-processor")["metadata"].is_object());
    assert!(!operator.get("configmap", "saml-config")["metadata"].is_object());
    assert_eq!(
        operator.get("persistentvolumeclaim", "textnlp-models")["status"]["phase"],
        "Bound",
        "data is protected"
    );
    operator.run(&["down", "--yes", "--delete-data", "pilot"], &sets).expect(0);
    eventually("the namespace was ours", || {
        (!cluster.kubectl(&["get", "namespace", namespace]).status.success()).then_some(())
    });
}

#[test]
fn every_shipped_environment_of_a_cluster_is_planned() {
    let Some(operator) = Operator::new("plans") else { return };
    // The application firewall is one of an Ingress.
    let ingress = [
        "sites[0].cluster.ingress={ class: nginx, issuer: letsencrypt }",
        "sites[0].cluster.address=null",
        "traffic.domain=textnlp.example.com",
    ];
    for name in ["pilot", "scale-up", "enterprise", "optimized"] {
        let file = operator.sandbox.folder().join(format!("{name}.plan"));
        let mut command = operator.command_of(name, &["plan", "-o", "json", "--out", file.as_str()], &ingress);
        let plan = textnlp_tests::said(command.output().unwrap()).expect(0).json();
        let [created, others @ .., unchanged] = counts(&plan);
        assert!(created > 10 && others == [0; 3] && unchanged == 0, "{name}: {plan:#}");
        let saved = std::fs::read_to_string(&file).unwrap();
        for (part, is_there) in [
            ("main/server/deployment", true),
            ("main/server/autoscaler", name != "pilot"),
            ("main/server/analytics", name == "enterprise"),
            ("nvidia.com/gpu", name == "optimized"),
        ] {
            assert_eq!(saved.contains(part), is_there, "{name}: {part} {saved}");
        }
    }
}
