use serde_json::{Value, json};

use super::*;
use crate::engine::Sampling;
use crate::sample::{Sampler, Scratch};
use crate::text::tests::{byte_tokenizer, byte_tokenizer_with, pieces_tokenizer};

/// Random logits, as random weights make them.
fn logits(tokens: &[u32], seed: u64, vocab: usize) -> Vec<f32> {
    let mut hash = tokens.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, &token| {
        let hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        hash ^ hash >> 29
    });
    let mut next = || {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (hash >> 40) as f32 / (1u64 << 24) as f32 * 8.0
    };
    (0..vocab).map(|_| next()).collect()
}

fn sampling(seed: u64) -> Sampling {
    Sampling {
        temperature: if seed.is_multiple_of(3) { 0.0 } else { 1.0 },
        top_k: if seed.is_multiple_of(2) { 5 } else { 0 },
        top_p: 0.9,
        min_p: 0.0,
        repetition_penalty: 1.1,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        seed,
    }
}

/// The text of an answer, and whether it was complete within `most` tokens.
fn answer(tokenizer: &Tokenizer, mut guide: Guide, sampling: Sampling, most: usize) -> (String, bool) {
    let (seed, mut sampler) = (sampling.seed, Sampler::new(sampling, &[]));
    let (mut tokens, mut bytes, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    for position in 0..most {
        let row = logits(&tokens, seed, tokenizer.vocab() + 7);
        let chosen = sampler.choose(&row, position as u64, None, Some(guide.allowed()), &mut scratch).unwrap().token;
        if tokenizer.end_tokens().contains(&chosen) {
            return (String::from_utf8(bytes).unwrap(), true);
        }
        sampler.accept(chosen);
        tokens.push(chosen);
        bytes.extend_from_slice(tokenizer.bytes(chosen));
        let progress = guide.accept(chosen);
        let progress = progress.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&bytes)));
        if progress == Progress::Complete {
            return (String::from_utf8(bytes).unwrap(), true);
        }
    }
    (String::from_utf8_lossy(&bytes).into_owned(), false)
}

fn guides(tokenizer: Tokenizer) -> (Arc<Tokenizer>, Arc<Guides>) {
    let tokenizer = Arc::new(tokenizer);
    let guides = Guides::new(&tokenizer, tokenizer.vocab() + 7);
    (tokenizer, guides)
}

/// A schema, and what every answer for it satisfies.
type Case = (Value, fn(&Value) -> bool);

fn cases() -> Vec<Case> {
    vec![
        (
            json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "title": "A person",
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 8, "minLength": 2},
                    "age": {"type": "integer", "minimum": 0, "maximum": 130},
                    "kind": {"enum": ["a", "ü\"\n", null, 7, {"x": [1, true]}]},
                    "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
                },
                "required": ["name", "age", "kind", "tags"],
                "additionalProperties": false,
            }),
            |value| {
                let name = value["name"].as_str().map_or(0, |name| name.chars().count());
                let known = [json!("a"), json!("ü\"\n"), json!(null), json!(7), json!({"x": [1, true]})];
                let tags = value["tags"].as_array().map_or(0, Vec::len);
                (2..=8).contains(&name)
                    && value["age"].as_u64().is_some_and(|age| age <= 130)
                    && value.get("kind").is_some_and(|kind| known.contains(kind))
                    && (1..=3).contains(&tags)
                    && value.as_object().is_some_and(|map| map.len() == 4)
            },
        ),
        (json!({"type": "integer", "minimum": -5, "maximum": 17}), |value| {
            value.as_i64().is_some_and(|number| (-5..=17).contains(&number))
        }),
        (json!({"enum": ["yes", "no"]}), |value| value == "yes" || value == "no"),
        (json!({"const": {"a": [null, 1.5]}}), |value| *value == json!({"a": [null, 1.5]})),
        (json!({"type": "string", "pattern": "^[a-c]{2,4}$"}), |value| {
            value
                .as_str()
                .is_some_and(|text| (2..=4).contains(&text.len()) && text.bytes().all(|b| b"abc".contains(&b)))
        }),
        (json!({"type": "string", "format": "date"}), |value| value.as_str().is_some_and(|text| text.len() == 10)),
        (json!({"anyOf": [{"type": "null"}, {"type": "boolean"}]}), |value| value.is_null() || value.is_boolean()),
        (
            json!({
                "$defs": {"tree": {
                    "type": "object",
                    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
                    "required": ["v", "next"],
                    "additionalProperties": false,
                }},
                "$ref": "#/$defs/tree",
            }),
            |mut value| {
                while value["next"].is_object() && value["v"].is_boolean() {
                    value = &value["next"];
                }
                value["v"].is_boolean() && value["next"].is_null()
            },
        ),
        (
            json!({"allOf": [
                {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 90}}, "required": ["a"]},
                {"properties": {"a": {"maximum": 5}}, "additionalProperties": false},
            ]}),
            |value| value["a"].as_i64().is_some_and(|a| (3..=5).contains(&a)) && value.as_object().unwrap().len() == 1,
        ),
        (
            json!({
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": {"type": "boolean"},
                "maxProperties": 3,
            }),
            |value| value.as_object().is_some_and(|map| map.values().all(Value::is_boolean) && map.contains_key("a")),
        ),
        (json!({"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 1}), |value| {
            value.as_f64().is_some_and(|number| (number * 4.0).fract() == 0.0 && (0.0..=1.0).contains(&number))
        }),
    ]
}

#[test]
fn random_logits_give_json_of_the_schema_with_each_family_of_tokenizers() {
    for tokenizer in [byte_tokenizer(), pieces_tokenizer()] {
        let (tokenizer, guides) = guides(tokenizer);
        for (schema, holds) in cases() {
            let guide = guides.compile(&schema).unwrap_or_else(|error| panic!("{schema}: {error:?}"));
            let mut complete = 0;
            for seed in 0..24 {
                let (text, whole) = answer(&tokenizer, guide.clone(), sampling(seed), 600);
                if whole {
                    complete += 1;
                    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}: {text}: {error}"));
                    assert!(holds(&value), "{schema}: {text}");
                }
            }
            assert!(complete >= 12, "{schema}: {complete} of 24 were complete");
        }
    }
}

#[test]
fn call_has_the_name_and_the_arguments_of_one_function() {
    let (tokenizer, guides) = guides(byte_tokenizer());
    let pair = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "first": { "$ref": "#/$defs/kind" },
            "const": { "anyOf": [{ "type": "null" }, { "$ref": "#/properties/first" }] },
            "text": { "const": { "$ref": "#/$defs/kind" } },
        },
        "required": ["first", "const", "text"],
        "additionalProperties": false,
        "$defs": { "kind": { "enum": ["a", "b"] } },
    });
    let chain = json!({
        "type": "object",
        "properties": { "next": { "anyOf": [{ "type": "null" }, { "$ref": "#" }] } },
        "required": ["next"],
        "additionalProperties": false,
    });
    let guide = guides.compile(&call_schema("parameters", [("pair", &pair), ("chain", &chain)])).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for seed in 0..24 {
        let (text, whole) = answer(&tokenizer, guide.clone(), sampling(seed), 600);
        if !whole {
            continue;
        }
        let call: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let arguments = &call["parameters"];
        match call["name"].as_str() {
            Some("pair") => {
                let known = |kind: &Value| kind == "a" || kind == "b";
                assert!(known(&arguments["first"]), "{text}");
                assert!(arguments["const"].is_null() || known(&arguments["const"]), "{text}");
                assert_eq!(arguments["text"], json!({ "$ref": "#/$defs/kind" }), "{text}");
            }
            Some("chain") => assert!(arguments["next"].is_null() || arguments["next"].is_object(), "{text}"),
            _ => panic!("{text}"),
        }
        names.insert(call["name"].to_string());
    }
    assert_eq!(names.len(), 2, "{names:?}");
}

fn refusal(guides: &Guides, schema: &Value) -> GuideError {
    guides.compile(schema).expect_err(&schema.to_string()[..60.min(schema.to_string().len())])
}

#[test]
fn what_cannot_be_guaranteed_is_refused_with_its_place() {
    let (_, guides) = guides(byte_tokenizer());
    let of = |schema: Value| match refusal(&guides, &schema) {
        GuideError::Schema { at, problem } => (at, problem),
        other => panic!("{schema}: {other:?}"),
    };
    for (schema, wanted) in [
        (json!({"type": "array", "uniqueItems": true}), "/uniqueItems"),
        (json!({"properties": {"a": {"not": {}}}}), "/properties/a/not"),
        (json!({"items": {"anyOf": [{"type": "null"}, {"contains": {}}]}}), "/items/anyOf/1/contains"),
        (json!({"$defs": {"x": {"nullable": true}}}), "/$defs/x/nullable"),
        (json!({"x-guidance": {"lenient": true}}), "/x-guidance"),
        (json!({"properties": {"a": {"x-guidance": {}}}}), "/properties/a/x-guidance"),
        (json!({"properties": {"a": {"$schema": "x"}}}), "/properties/a/$schema"),
        (json!({"type": "text"}), "/type"),
        (json!({"type": ["string", 1]}), "/type"),
        (json!({"properties": []}), "/properties"),
        (json!({"properties": {"a": 7}}), "/properties/a"),
        (json!({"required": "a"}), "/required"),
        (json!({"anyOf": []}), "/anyOf"),
        (json!({"enum": []}), "/enum"),
        (json!({"enum": [1, 9_007_199_254_740_995u64]}), "/enum/1"),
        (json!({"const": {"a": [1e300]}}), "/const/a/0"),
        (json!({"maximum": 1e300}), "/maximum"),
        (json!({"exclusiveMaximum": true}), "/exclusiveMaximum"),
        (json!({"multipleOf": 0}), "/multipleOf"),
        (json!({"maxLength": -1}), "/maxLength"),
        (json!({"minLength": -1}), "/minLength"),
        (json!({"type": "string", "minLength": 3_001, "maxLength": 3_700}), "/minLength"),
        (json!({"maxItems": 4_000_000_000u64}), "/maxItems"),
        (json!({"minProperties": 2}), "/minProperties"),
        (json!({"format": "credit-card"}), "/format"),
        (json!({"pattern": "a(?=b)"}), "/pattern"),
        (json!({"pattern": r"(a)\1"}), "/pattern"),
        (json!({"pattern": "["}), "/pattern"),
        (json!({"pattern": "a".repeat(600)}), "/pattern"),
        (json!({"patternProperties": {"(?<!x)a": {}}}), "/patternProperties/(?<!x)a"),
        (
            json!({"allOf": [{"patternProperties": {"^a": {}}}, {"patternProperties": {"^b": {}}}]}),
            "/allOf/1/patternProperties/^b",
        ),
        (json!({"type": "string", "pattern": "^[a-c]+$", "format": "date"}), "/pattern"),
        (json!({"type": "string", "format": "date", "maxLength": 3}), "/format"),
        (json!({"$ref": "https://example.com/schema"}), "/$ref"),
        (json!({"$ref": "file:///etc/passwd"}), "/$ref"),
        (json!({"$ref": "#/$defs/none", "$defs": {}}), "/$ref"),
        (json!({"$ref": "#/$defs/a/title", "$defs": {"a": {"title": {"not": {}}}, "a/title": true}}), "/$ref"),
        (json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": true}}), "/$ref"),
        (json!({"$ref": "#/default", "default": {"not": {}}}), "/$ref"),
        (json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}), "/oneOf"),
        (json!({"properties": {"a": {}}, "maxProperties": 1}), "/maxProperties"),
        (json!({"type": "string", "minLength": 3, "maxLength": 2}), ""),
        (json!({"required": ["a"], "type": "object", "additionalProperties": false}), ""),
        (json!(false), ""),
        (json!([]), ""),
        (json!("{}"), ""),
    ] {
        let (at, problem) = of(schema.clone());
        assert_eq!(at, wanted, "{schema}: {problem}");
        assert!(problem.len() < 300 && !problem.contains('\n'), "{problem}");
    }
}

#[test]
fn hostile_schemas_are_bounded() {
    let (tokenizer, guides) = guides(byte_tokenizer());
    let nested = |key: &str, levels: usize| (0..levels).fold(json!(true), |inner, _| json!({ key: inner }));
    let chain: serde_json::Map<_, _> = (0..4_000)
        .map(|n| (format!("d{n}"), json!({"items": {"$ref": format!("#/$defs/d{}", (n + 1) % 4_000)}})))
        .collect();
    let doubling: serde_json::Map<_, _> = (0..30)
        .map(|n| {
            let next = json!({"$ref": format!("#/$defs/d{}", (n + 1).min(30)), "minProperties": 0});
            (
                format!("d{n}"),
                json!({"allOf": [{"properties": {"x": next, "y": next}}, {"properties": {"x": next, "y": next}}]}),
            )
        })
        .chain([("d30".to_owned(), json!({}))])
        .collect();
    // Each reference with a keyword beside it copies the definition.
    let copied = |inner: Value| {
        let one = json!({"$ref": "#/$defs/a", "type": "object"});
        json!({"$defs": {"a": {"properties": {"p": inner}}}, "prefixItems": vec![one; 1_000]})
    };
    let alternatives: Vec<_> = (0..60).map(|n| json!({"properties": {format!("p{n}"): {"const": n}}})).collect();
    let refused = [
        json!({"enum": ["a".repeat(10 << 20)]}),
        json!({"description": "a".repeat(10 << 20)}),
        nested("items", 100),
        nested("additionalProperties", 33),
        (0..100).fold(json!(1), |inner, _| json!([inner])),
        json!({"const": (0..100).fold(json!(1), |inner, _| json!([inner]))}),
        json!({"enum": (0..1_001).collect::<Vec<_>>()}),
        json!({"$ref": "#/$defs/d0", "$defs": chain}),
        json!({"$ref": "#/$defs/d0", "$defs": doubling}),
        json!({"allOf": [{"anyOf": alternatives}, {"anyOf": alternatives}, {"anyOf": alternatives}]}),
        json!({"prefixItems": vec![json!({"pattern": "a"}); 201]}),
        json!({"patternProperties": (0..17).map(|n| (format!("^{n}$"), json!(true))).collect::<serde_json::Map<_, _>>()}),
        json!({"$defs": {"p": {"items": {"pattern": "a"}}}, "anyOf": vec![json!({"$ref": "#/$defs/p"}); 200], "maxItems": 3}),
        copied(json!({"const": vec![0; 14_000]})),
        copied(json!({"enum": (0..900).collect::<Vec<_>>()})),
        copied(json!({"const": "a".repeat(60_000)})),
        copied(json!({"required": (0..2_000).map(|n| n.to_string()).collect::<Vec<_>>()})),
        json!({"properties": (0..5_001).map(|n| (format!("{n}"), json!(true))).collect::<serde_json::Map<_, _>>()}),
    ];
    for schema in refused {
        assert!(matches!(refusal(&guides, &schema), GuideError::Schema { .. }));
    }
    let long: Vec<_> = (0..1_000).map(|n| format!("{n}{}", "x".repeat(100))).collect();
    let optional: serde_json::Map<_, _> = (0..900).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
    let patterns = [
        "(a|a)*b",
        "(.*a){20}",
        "(a?){100}a{100}",
        "(x+x+)+y",
        "[ab]*a[ab]{200}",
        "((a{1,100}){1,100}){1,100}",
        "(.{0,1000}){0,1000}",
        "^(\\w+\\s?)*$",
        "^(([a-z])+.)+[A-Z]([a-z])+$",
        "(((((a*)*)*)*)*)*b",
        "[ab]*a[ab]{30}c|[ab]*b[ab]{30}",
        &format!("({})", (0..100).map(|n| format!(".*{n}")).collect::<Vec<_>>().join("|")),
        &"(".repeat(200)
            .to_owned()
            .chars()
            .chain("a".chars())
            .chain(")?".repeat(100).chars())
            .chain(")".repeat(100).chars())
            .collect::<String>(),
        &"a?".repeat(250),
        "\\p{L}{1,1000}\\p{N}*\\p{L}{1000}",
    ];
    let mut costly: Vec<Value> = patterns.iter().map(|p| json!({"type": "string", "pattern": p})).collect();
    costly.extend([
        json!({"enum": long}),
        json!({"properties": optional, "additionalProperties": false}),
        json!({"properties": optional}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 100_000}),
        json!({"type": "array", "minItems": 100_000, "items": {"type": "array", "minItems": 100_000, "items": {"type": "array", "minItems": 99_999}}}),
        json!({"type": "array", "prefixItems": vec![json!({"type": "string", "maxLength": 1000}); 1000]}),
        json!({"anyOf": (0..1_000).map(|n| json!({"type": "array", "items": {"type": "array", "items": {"const": n}}})).collect::<Vec<_>>()}),
        json!({"anyOf": (0..200).map(|n| json!({"type": "string", "pattern": format!(".*{n}.*a")})).collect::<Vec<_>>()}),
        json!({"type": "integer", "multipleOf": 9973}),
        json!({"type": "number", "multipleOf": 0.0007, "minimum": -1e15}),
        json!({"$defs": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}}, {"type": "array", "prefixItems": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}, {"type": "null"}]}}, "$ref": "#/$defs/a"}),
        json!({"anyOf": (0..30).map(|n| json!({"type":"object","properties": optional.iter().take(30 + n).map(|(k,v)| (k.clone(), v.clone())).collect::<serde_json::Map<_,_>>()})).collect::<Vec<_>>()}),
        json!({"patternProperties": (0..16).map(|n| (format!("^{n}.*a"), json!(true))).collect::<serde_json::Map<_, _>>()}),
        nested("items", 32),
        json!({"type": "object"}),
        json!(true),
    ]);
    for schema in costly {
        // The compiler refuses it, or an answer keeps to the limits or fails by them.
        let guide = match guides.compile(&schema) {
            Ok(guide) => guide,
            Err(GuideError::Schema { .. } | GuideError::TooComplex(_)) => continue,
            Err(other) => panic!("{schema:.100}: {other:?}"),
        };
        for seed in 0..2 {
            let outcome = follow(&tokenizer, guide.clone(), seed, 400);
            assert!(matches!(outcome, Ok(_) | Err(GuideError::TooComplex(_))), "{schema:.100}: {outcome:?}");
        }
    }
}

#[test]
fn vocabulary_that_is_too_large_is_refused() {
    let long = |count: u32| byte_tokenizer_with((0..count).map(|n| format!("{n:0>500}")));
    let (_, small) = guides(long(100));
    small.compile(&json!(true)).unwrap();
    let (_, large) = guides(long(17_000));
    for _ in 0..2 {
        let error = refusal(&large, &json!(true));
        assert_eq!(error.to_string(), "the tokens of the model have more than 8 MiB together");
    }
}

/// Takes up to `most` tokens by random logits. Answers how it ended.
fn follow(tokenizer: &Tokenizer, mut guide: Guide, seed: u64, most: usize) -> Result<Progress, GuideError> {
    let mut tokens = Vec::new();
    let free = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, ..sampling(seed) };
    let (sampler, mut scratch) = (Sampler::new(free, &[]), Scratch::default());
    for position in 0..most {
        let row = logits(&tokens, seed, tokenizer.vocab());
        let token = sampler.choose(&row, position as u64, None, Some(guide.allowed()), &mut scratch).unwrap().token;
        if tokenizer.end_tokens().contains(&token) {
            return Ok(Progress::Complete);
        }
        tokens.push(token);
        if guide.accept(token)? == Progress::Complete {
            return Ok(Progress::Complete);
        }
    }
    Ok(Progress::Going)
}

#[test]
fn an_answer_fails_where_its_schema_becomes_too_complex() {
    let (tokenizer, guides) = guides(byte_tokenizer());
    let guide = guides.compile(&json!({"type": "string", "pattern": "(.{0,1000}){0,1000}"})).unwrap();
    let error = follow(&tokenizer, guide, 1, 1_000).unwrap_err();
    assert_eq!(error.to_string(), "the schema is too complex: its patterns and lengths have too many states");
}

#[test]
fn text_with_a_length_that_always_fits_is_completed() {
    let (tokenizer, guides) = guides(byte_tokenizer());
    let schema = json!({"type": "string", "minLength": 1_000, "maxLength": 1_000});
    let guide = guides.compile(&schema).unwrap();
    // Random bytes take the most states: the beginnings of all characters.
    for seed in 0..2 {
        assert_eq!(follow(&tokenizer, guide.clone(), seed, 5_000), Ok(Progress::Complete));
    }
}

#[test]
fn refusals_have_words_of_their_own_and_a_place() {
    let (_, guides) = guides(byte_tokenizer());
    let contradiction = json!({"required": ["secretname"], "type": "object", "additionalProperties": false});
    let problem = "allows no answer: what it requires contradicts the rest".to_owned();
    assert_eq!(refusal(&guides, &contradiction), GuideError::Schema { at: String::new(), problem });
    let parts = schema::check(&json!({"properties": {"a": {"pattern": "b"}}, "allOf": [true]})).ok().unwrap();
    for (message, told) in [
        ("schema too large", "it combines too many alternatives"),
        ("initial lexer configuration (grammar) too big", "`/properties/a/pattern` has too many states, with"),
        ("fuel exhausted (And (Regex \"secretname\"))", "`/properties/a/pattern` has too many states, with"),
        ("grammar size (number of symbols) too big", "it has too many parts"),
        ("Unimplemented keys: secretname", "it has too many parts"),
    ] {
        let error = parts.located(message);
        assert!(matches!(&error, GuideError::TooComplex(why) if why.starts_with(told)), "{message}: {error:?}");
        assert!(!error.to_string().contains("secretname"), "{error}");
    }
}
