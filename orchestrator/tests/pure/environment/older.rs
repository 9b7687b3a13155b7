//! Files of earlier days.

use super::*;

fn migrated(label: &str, text: &str) -> (String, String) {
    let source = Source { label: label.to_owned(), bytes: text.as_bytes().to_vec() };
    let migrated = environment::migrate(&source).unwrap();
    (migrated.text, migrated.warnings.iter().map(|w| w.to_string() + "\n").collect())
}

#[test]
fn legacy_files_are_migrated_with_a_warning_per_key() {
    let (text, warnings) = migrated("config/development.yaml", OLD_FLAT);
    expect![[r#"
        extends: development
        environment: development
        server:
          api:
            host: localhost
            port: 8080
            workers: 2
          security:
            jwt_secret: "${JWT_SECRET}"
            api_keys_enabled: false
          monitoring:
            log_level: DEBUG
            log_file: logs/textnlp.log
        database:
          host: localhost
          port: 5432
          name: textnlp_dev
          user: postgres
          password: "${DB_PASSWORD}"
          kind: postgres
          hosting: external
        storage:
          model_folder: "./models"
          model_cache: 1GB
    "#]]
    .assert_eq(&text);
    expect![[r#"
        config/development.yaml:1:1: warning: `extends`: a file in the old format does not say where `development` runs; the values of `development` apply; write `extends: development`
        config/development.yaml:1:17: warning: `server.host`: this is an older key; write `server.api.host`; `textnlp-deploy env migrate` does it
        config/development.yaml:1:34: warning: `server.port`: this is an older key; write `server.api.port`; `textnlp-deploy env migrate` does it
        config/development.yaml:1:49: warning: `server.workers`: this is an older key; write `server.api.workers`; `textnlp-deploy env migrate` does it
        config/development.yaml:3:16: warning: `redis.host`: the address of a Redis may have a password, so this is left out; remove it; `cache: { kind: redis, url: secret:env:REDIS_URL }` keeps vectors there
        config/development.yaml:3:33: warning: `redis.port`: the address of a Redis may have a password, so this is left out; remove it; `cache: { kind: redis, url: secret:env:REDIS_URL }` keeps vectors there
        config/development.yaml:3:43: warning: `redis.db`: the address of a Redis may have a password, so this is left out; remove it; `cache: { kind: redis, url: secret:env:REDIS_URL }` keeps vectors there
        config/development.yaml:4:17: warning: `models.path`: this is an older key; write `storage.model_folder`; `textnlp-deploy env migrate` does it
        config/development.yaml:4:39: warning: `models.cache_size`: this is an older key; write `storage.model_cache`; `textnlp-deploy env migrate` does it
        config/development.yaml:4:44: warning: `models.download_on_startup`: models are fetched and checked by `up`, before the server starts; remove it
        config/development.yaml:5:25: warning: `security.jwt_secret`: this is an older key; write `server.security.jwt_secret`; `textnlp-deploy env migrate` does it
        config/development.yaml:5:60: warning: `security.api_keys_enabled`: this is an older key; write `server.security.api_keys_enabled`; `textnlp-deploy env migrate` does it
        config/development.yaml:6:19: warning: `logging.level`: this is an older key; write `server.monitoring.log_level`; `textnlp-deploy env migrate` does it
        config/development.yaml:6:32: warning: `logging.file`: this is an older key; write `server.monitoring.log_file`; `textnlp-deploy env migrate` does it
    "#]].assert_eq(&warnings);
    expect![[r#"
        extends: pilot
        environment: production
        server:
          api:
            host: 0.0.0.0
            port: 8080
            workers: 4
            timeout: 300
            max_request_size: 10MB
          security:
            jwt_algorithm: RS256
            jwt_expiry: 3600
            api_key_header: X-API-Key
            rate_limit: 1000/hour
          monitoring:
            metrics_port: 9090
            enable_tracing: true
            log_level: INFO
        models:
          - { name: gpt2, role: default, preload: true }
        storage:
          model_folder: /models
          model_cache: 50GB
        database:
          kind: postgres
          hosting: external
          url: "${DATABASE_URL}"
          pool_size: 20
          max_overflow: 40
    "#]]
    .assert_eq(&migrated("production.yaml", OLD_NESTED).0);
    let notes = migrated("production.yaml", OLD_NESTED).1;
    assert!(
        notes.contains("note: `textnlp.models.preload`: `bert` is an encoder") && notes.contains("skipped"),
        "{notes}"
    );
    let (text, warnings) = migrated(".env.staging", OLD_VARIABLES);
    assert!(!text.contains("hunter2") && !warnings.contains("hunter2"));
    expect![[r#"
        extends: staging
        environment: staging
        server:
          monitoring:
            log_level: INFO
        database:
          kind: postgres
          hosting: external
          host: staging-db
          port: 5432
          name: textnlp_staging
          user: postgres
          password: secret:env:DB_PASSWORD
    "#]]
    .assert_eq(&text);
}

#[test]
fn legacy_file_with_only_encoder_models_keeps_the_parents_models() {
    let old = "textnlp: { models: { default: bert-base-uncased, preload: [org/DistilBERT-base, roberta] } }\n";
    let (text, notes) = migrated("staging.yaml", old);
    assert!(!text.contains("models") && notes.matches("is an encoder").count() == 3, "{text}{notes}");
    let source = Source { label: "staging.yaml".to_owned(), bytes: text.into_bytes() };
    let loaded = Library::built_in().load_source(source, &Overrides::default(), &Catalogue::default()).unwrap();
    assert_eq!(loaded.environment.models[0].name, "textnlp-tiny");
}

#[test]
fn file_that_is_no_environment_is_not_migrated() {
    let of = |text: &str| Source { label: "compose.yml".to_owned(), bytes: text.as_bytes().to_vec() };
    let Err(environment::LoadError::Invalid(report)) =
        environment::migrate(&of("services: { web: { image: nginx } }\n"))
    else {
        panic!("it is migrated")
    };
    assert!(report.to_string().contains("it is no environment file"), "{report}");
    assert!(environment::migrate(&of("environment: shop\n")).is_ok());
}

#[test]
fn legacy_files_load_the_same_before_and_after_migration() {
    for (label, text) in
        [("config/development.yaml", OLD_FLAT), ("production.yaml", OLD_NESTED), (".env.staging", OLD_VARIABLES)]
    {
        let load = |text: &str| {
            let source = Source { label: label.to_owned(), bytes: text.as_bytes().to_vec() };
            Library::built_in()
                .load_source(source, &Overrides::default(), &Catalogue::default())
                .unwrap_or_else(|e| panic!("{label}:\n{e}"))
        };
        let (old, new) = (load(text), load(&migrated(label, text).0));
        assert_eq!(diff(&old, &new), [], "{label}");
        assert!(!new.report.to_string().contains("older"), "{}", new.report);
        assert!(old.report.to_string().contains("older"), "{}", old.report);
    }
}
