//! Whatever a file, a variable or an argument holds: an environment or a report, never a panic.

use std::collections::BTreeMap;

use proptest::prelude::*;
use textnlp_orchestrator::environment::{self, Catalogue, Library, LoadError, Overrides, Source};

fn load(bytes: &[u8], overrides: &Overrides) -> Result<(), String> {
    let source = Source { label: "f.yaml".to_owned(), bytes: bytes.to_vec() };
    // Migration reads the same bytes another way.
    let _ = environment::migrate(&source);
    match Library::built_in().load_source(source, overrides, &Catalogue::default()) {
        Ok(loaded) => {
            loaded.to_yaml(true);
            Ok(())
        }
        Err(LoadError::Invalid(report)) => {
            assert!(report.has_errors(), "a refusal has a reason");
            Err(report.to_string())
        }
        Err(other) => Err(other.to_string()),
    }
}

const GOOD: &str = include_str!("../../../environments/multi-region.yaml");

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_load_or_produce_a_report(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&bytes, &Overrides::default());
    }

    #[test]
    fn any_yaml_like_text_loads_or_produces_a_report(text in "[a-z:{}\\[\\],&*!|>\"' \n\t#$-]{0,200}") {
        let _ = load(text.as_bytes(), &Overrides::default());
    }

    #[test]
    fn one_changed_byte_never_panics_the_loader(at in 0..GOOD.len(), byte in any::<u8>()) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = load(&bytes, &Overrides::default());
    }

    #[test]
    fn any_override_is_applied_or_reported(path in "[a-z.\\[\\]0-9*]{0,30}", value in ".{0,30}", section in "[a-z_]{1,12}") {
        let overrides = Overrides {
            variables: BTreeMap::from([(format!("TEXTNLP_SET__{section}__x"), value.clone())]),
            sets: vec![format!("{path}={value}"), path, value],
            flags: Vec::new(),
        };
        let _ = load(GOOD.as_bytes(), &overrides);
    }
}

#[test]
fn report_of_many_errors_has_a_bounded_length() {
    let many: String = (0..15_000).map(|i| format!("k{i}: 1\n")).collect();
    let report = load(many.as_bytes(), &Overrides::default()).unwrap_err();
    assert!(report.lines().count() <= 101, "{}", report.lines().count());
    let long = format!("{}: 1\nenvironment: {}\n", "k".repeat(400_000), "v".repeat(400_000));
    let report = load(long.as_bytes(), &Overrides::default()).unwrap_err();
    assert!(report.len() < 20_000, "{}", report.len());
}

#[test]
fn invalid_numbers_are_refused() {
    for (value, field) in [
        (".nan", "gates.error_rate"),
        (".inf", "budget.monthly"),
        ("-1", "scaling.min"),
        ("1e999", "gates.availability"),
        ("99999999999999999999", "gates.users"),
    ] {
        let overrides = Overrides { sets: vec![format!("{field}={value}")], ..Overrides::default() };
        let report = load(GOOD.as_bytes(), &overrides).unwrap_err();
        assert!(report.contains(&format!("--set {field}: error: `{field}`")), "{value}: {report}");
    }
}

#[test]
fn control_characters_are_stripped_from_reports() {
    let report = load(b"environment: \"a\\e[31mb\"\n\"k\\e[2J\": 1\n", &Overrides::default()).unwrap_err();
    assert!(!report.contains('\u{1b}'), "{report:?}");
}
