//! Environments as an operator meets them: files in, an environment or one complete report out.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use textnlp_orchestrator::environment::{Catalogue, Environment, Library, LoadError, Overrides, components};
use textnlp_orchestrator::release::{Artifacts, Release};
use textnlp_provider::component::{Part, Program};

fn artifacts() -> Artifacts {
    let digest = textnlp_orchestrator::release::digest(b"server");
    Artifacts {
        program: Program { path: "/opt/textnlp-server".to_owned(), digest: digest.clone() },
        models: BTreeMap::from([("textnlp-tiny".to_owned(), digest.clone())]),
        templates: digest,
        schema: Some(3),
    }
}

fn built_in(name: &str) -> Environment {
    match Library::built_in().load(name, &Overrides::default(), &Catalogue::default()) {
        Ok(loaded) => loaded.environment,
        Err(LoadError::Invalid(report)) => panic!("{name}:\n{report}"),
        Err(other) => panic!("{name}: {other}"),
    }
}

#[test]
fn every_environment_that_ships_loads_and_says_its_own_name() {
    let listed = Library::built_in().list();
    assert_eq!(listed.len(), 9);
    for entry in listed {
        assert_eq!(built_in(&entry.name).environment.as_str(), entry.name);
    }
}

#[test]
fn development_and_staging_become_components_in_the_fixed_order() {
    let names = |name: &str| {
        let environment = built_in(name);
        let release = Release::resolve(&environment, &artifacts());
        let mut sites = components(&environment, &release);
        assert_eq!(sites.len(), 1);
        let (site, parts) = sites.remove(0);
        assert_eq!((site.name.as_str(), site.region.as_str(), site.runtime.as_str()), ("here", "local", "process"));
        (parts.iter().map(|c| c.name.to_string()).collect::<Vec<_>>().join(" "), parts)
    };
    assert_eq!(names("development").0, "network cluster secrets models database cache server gateway");
    let (staging, parts) = names("staging");
    assert_eq!(staging, "network cluster secrets certificate models database cache server gateway");
    let Part::Workload(server) = &parts[7].part else { panic!("{:?}", parts[7]) };
    let config = serde_yaml::to_string(&server.config).unwrap();
    expect_test::expect![[r#"
        textnlp:
          environment: staging
          phase: staging
          region: local
          site: here
          api:
            workers: 4
            timeout: 300
            max_request_size: 10MB
            queue: 256
            max_tokens: 4096
            cors_origins: []
            docs: true
            drain_seconds: 30
            require_https: true
          models:
            default: textnlp-tiny
            max_cache_size: 50GB
            preload:
            - textnlp-tiny
            serve:
            - name: textnlp-tiny
              quantize: q8_0
              context: 1024
            threads: 0
          database:
            pool_size: 20
            max_overflow: 40
          security:
            jwt_algorithm: RS256
            jwt_expiry: 3600
            api_keys_enabled: true
            api_key_header: X-API-Key
            rate_limit: 1000/hour
            token_rate_limit: null
            issuer: staging
          monitoring:
            metrics_port: 9090
            enable_tracing: false
            log_level: INFO
            log_file: null
    "#]]
    .assert_eq(&config);
}
