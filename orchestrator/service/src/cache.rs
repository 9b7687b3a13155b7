//! The Redis of the servers' cache.

use textnlp_net::redis::redis_url;
use textnlp_orchestrator::environment::model::{Environment, UrlSource};
use textnlp_provider::Problem;

/// Why the servers would not start with the address of their Redis, where it is a secret that can be read here. The environment
/// check reads other addresses.
pub fn redis_problem(environment: &Environment) -> Option<Problem> {
    let cache = &environment.cache;
    let address = cache.url.as_ref().filter(|address| matches!(address, UrlSource::Secret(_)) && cache.is_external());
    let error = redis_url(address?.read()?.trim()).err()?;
    Some(Problem::new("cache.url".to_owned(), error.cause.to_owned(), error.fix.to_owned()))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::CacheKind;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    #[test]
    fn secret_address_of_a_redis_is_checked_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        let problem = |address: &str| {
            std::fs::write(&file, address).unwrap();
            let mut loaded = Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
            let cache = &mut loaded.environment.cache;
            cache.kind = CacheKind::Redis;
            cache.url = Some(format!("secret:file:{}", file.display()).parse().unwrap());
            redis_problem(&loaded.environment)
        };
        assert!(problem("rediss://ada:hunter2@cache.example.com:6379/0\n").is_none());
        assert!(problem("redis://:hunter2@10.0.0.7:6379").is_none());
        for address in ["redis://:hunter2@cache.example.com", "https://hunter2.example.com", "hunter2"] {
            let problem = problem(address).unwrap();
            assert_eq!(problem.place, "cache.url");
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
    }
}
