//! Which JSON Schemas can be guaranteed: every keyword is known, every number bounded.
//!
//! The library ignores keywords that it does not know. Here they are refused, with their place: an answer must be valid for
//! the schema that was sent, not for a part of it.

use std::collections::{HashMap, HashSet};

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use super::GuideError;

/// Bytes of a schema as JSON, values nested in values, and schemas in it.
const MAX_BYTES: usize = 128 << 10;
const MAX_DEPTH: usize = 32;
const MAX_SCHEMAS: usize = 5_000;
/// Places that `$ref` names.
const MAX_REFS: usize = 32;
/// Values of one `enum`.
const MAX_VALUES: usize = 1_000;
/// `maxLength`, `minItems` and their like.
const MAX_COUNT: u64 = 100_000;
/// `minLength`: the lexer counts the characters. It reached its limit after 3,166 to 3,312 of them; one has at most nine states, for the
/// beginnings of an escape and of UTF-8.
const MAX_MIN_LENGTH: u64 = 3_000;
/// JSON numbers are exact up to 2⁵³.
const MAX_NUMBER: f64 = 9_007_199_254_740_992.0;
/// Bytes of a pattern.
const MAX_PATTERN: usize = 512;
/// Patterns and formats: the compiler looks for a text that each matches, for up to 5 ms.
const MAX_PATTERNS: usize = 200;
/// Patterns of names, in all and beside combinations: the compiler compares each with each, again in each combination.
const MAX_NAME_PATTERNS: usize = 16;
const MAX_COMBINED_NAME_PATTERNS: usize = 1;
/// Schemas that a schema may become when its alternatives are combined; a pattern counts as [`PATTERN_SIZE`].
const MAX_COMBINED: u64 = 10_000;
const PATTERN_SIZE: u64 = 20;

const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
const TYPES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];

/// What the value of a keyword is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Says nothing about answers.
    Note,
    Schema,
    /// A list of schemas, at least one.
    Schemas,
    /// `items` of older drafts may be a list.
    SchemaOrSchemas,
    /// Schemas by name.
    Named,
    /// Schemas by pattern.
    Patterns,
    /// Schemas for `$ref` only.
    Definitions,
    Reference,
    Types,
    Names,
    Values,
    Value,
    Count,
    MinLength,
    Number,
    Multiple,
    Pattern,
    Format,
}

fn shape(keyword: &str, at_root: bool) -> Option<Shape> {
    Some(match keyword {
        "title" | "description" | "default" | "examples" | "$comment" | "readOnly" | "writeOnly" | "deprecated" => {
            Shape::Note
        }
        "$schema" | "$id" if at_root => Shape::Note,
        "$defs" | "definitions" => Shape::Definitions,
        "$ref" => Shape::Reference,
        "type" => Shape::Types,
        "enum" => Shape::Values,
        "const" => Shape::Value,
        "anyOf" | "oneOf" | "allOf" | "prefixItems" => Shape::Schemas,
        "items" => Shape::SchemaOrSchemas,
        "additionalItems" | "additionalProperties" => Shape::Schema,
        "properties" => Shape::Named,
        "patternProperties" => Shape::Patterns,
        "required" => Shape::Names,
        "minItems" | "maxItems" | "maxLength" | "minProperties" | "maxProperties" => Shape::Count,
        "minLength" => Shape::MinLength,
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => Shape::Number,
        "multipleOf" => Shape::Multiple,
        "pattern" => Shape::Pattern,
        "format" => Shape::Format,
        _ => return None,
    })
}

/// Keywords that combine schemas at one place.
const COMBINING: [&str; 6] = ["$ref", "enum", "const", "anyOf", "oneOf", "allOf"];

/// A schema that may be compiled.
pub(super) struct ValidSchema {
    /// Without the notes at its root that would change its dialect.
    pub(super) schema: Value,
    /// The first place of each keyword.
    places: HashMap<&'static str, String>,
    /// The first schema that combines others.
    combined: Option<String>,
}

/// Words of the compiler's messages, and the keyword that each is about.
const BLAMED: [(&str, &str, &str); 9] = [
    ("oneOf", "oneOf", "has options that are not clearly different; use `anyOf`"),
    ("min/maxProperties", "minProperties", "can be guaranteed only when all properties are required"),
    ("min/maxProperties", "maxProperties", "can be guaranteed only when all properties are required"),
    ("patternProperty", "patternProperties", "has patterns that may match the same name"),
    ("circular references", "$ref", "refers to itself beside other keywords"),
    ("determine if regex is empty", "pattern", "is too complex together with its lengths"),
    ("determine if regex is empty", "format", "is too complex together with its lengths"),
    ("Regex is empty", "pattern", "matches no text of these lengths and formats"),
    ("Regex is empty", "format", "matches no text of these lengths"),
];

impl ValidSchema {
    /// The compiler's message with a place.
    pub(super) fn located(&self, message: &str) -> GuideError {
        for (word, keyword, problem) in BLAMED {
            if message.contains(word)
                && let Some(at) = self.places.get(keyword)
            {
                return GuideError::Schema { at: at.clone(), problem: problem.to_owned() };
            }
        }
        // The rest of a message has parts of the schema in the library's notation.
        if message.contains("nsatisfiable") {
            return refused("", "allows no answer: what it requires contradicts the rest".to_owned());
        }
        let is_of = |words: &[&str]| words.iter().any(|word| message.contains(word));
        let (at, problem) = if is_of(&["schema too large", "stack level"]) {
            (self.combined.as_ref(), "combines too many alternatives")
        } else if is_of(&["lexer", "fuel", "egex"]) {
            let pattern =
                ["pattern", "format", "patternProperties"].iter().find_map(|keyword| self.places.get(keyword));
            (pattern, "has too many states, with the other patterns, lengths and numbers")
        } else {
            (None, "has too many parts")
        };
        let at = at.filter(|at| !at.is_empty()).map_or("it".to_owned(), |at| format!("`{at}`"));
        GuideError::TooComplex(format!("{at} {problem}"))
    }
}

/// Whether a schema is too large to be kept until it is compiled. Takes no memory, and little time for the largest.
pub fn is_too_large(schema: &Value) -> bool {
    fn fits(value: &Value, left: &mut usize) -> bool {
        let bytes = match value {
            Value::String(text) => text.len(),
            Value::Object(map) => map.keys().fold(0, |sum, key| sum + key.len() + 4),
            Value::Array(list) => list.len(),
            _ => 1,
        };
        *left = left.saturating_sub(bytes + 2);
        *left > 0
            && match value {
                Value::Array(list) => list.iter().all(|item| fits(item, left)),
                Value::Object(map) => map.values().all(|item| fits(item, left)),
                _ => true,
            }
    }
    !fits(schema, &mut { MAX_BYTES })
}

/// The schema of a call of one of these functions, each a name and the schema of its arguments: an object with the `name`,
/// then the arguments in a field of this name.
pub fn call_schema<'a>(arguments: &str, functions: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Value {
    let call = |(number, (name, schema)): (usize, (&str, &Value))| {
        let mut schema = schema.clone();
        relocate(&mut schema, &format!("/anyOf/{number}/properties/{arguments}"));
        if let Some(map) = schema.as_object_mut() {
            map.retain(|key, _| !matches!(key.as_str(), "$schema" | "$id"));
        }
        json!({
            "type": "object",
            "properties": { "name": { "const": name }, arguments: schema },
            "required": ["name", arguments],
            "additionalProperties": false,
        })
    };
    json!({ "anyOf": functions.into_iter().enumerate().map(call).collect::<Vec<_>>() })
}

/// Makes the references of a schema those of a schema that has it at this place.
fn relocate(schema: &mut Value, at: &str) {
    let Some(map) = schema.as_object_mut() else { return };
    for (keyword, value) in map {
        match (shape_of(keyword), value) {
            (Some(Shape::Reference), Value::String(name)) => {
                if let Some(place) = name.strip_prefix('#') {
                    *name = format!("#{at}{}", place.trim_end_matches('/'));
                }
            }
            (Some(Shape::Schemas | Shape::SchemaOrSchemas), Value::Array(list)) => {
                list.iter_mut().for_each(|one| relocate(one, at));
            }
            (Some(Shape::Named | Shape::Patterns | Shape::Definitions), Value::Object(map)) => {
                map.values_mut().for_each(|one| relocate(one, at));
            }
            (Some(Shape::Schema | Shape::SchemaOrSchemas), one) => relocate(one, at),
            _ => {}
        }
    }
}

/// Refuses what cannot be guaranteed.
pub(super) fn check(schema: &Value) -> Result<ValidSchema, GuideError> {
    if is_too_large(schema) {
        return Err(refused("", format!("has more than {MAX_BYTES} bytes")));
    }
    let mut walk = Walk {
        root: schema,
        seen: HashSet::new(),
        refs: Vec::new(),
        places: HashMap::new(),
        combined: None,
        patterns: Vec::new(),
        name_patterns: Vec::new(),
    };
    walk.schema(schema, "", 0)?;
    walk.references()?;
    walk.patterns()?;
    let sizes = &mut HashMap::new();
    if let Some(at) = &walk.combined
        && walk.size(schema, sizes).size > MAX_COMBINED
    {
        return Err(refused(at, "combines too many alternatives".to_owned()));
    }
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.retain(|key, _| !matches!(key.as_str(), "$schema" | "$id"));
    }
    Ok(ValidSchema { schema, places: walk.places, combined: walk.combined })
}

fn refused(at: &str, problem: String) -> GuideError {
    GuideError::Schema { at: at.to_owned(), problem }
}

struct Walk<'a> {
    root: &'a Value,
    /// The schemas that were checked, by address: the text of a place may name another one, too.
    seen: HashSet<*const Value>,
    /// Where each `$ref` is, and what it names.
    refs: Vec<(String, &'a str)>,
    /// The first place of each keyword of [`BLAMED`].
    places: HashMap<&'static str, String>,
    /// The first schema that combines others.
    combined: Option<String>,
    /// Places of patterns and formats, and of patterns of names.
    patterns: Vec<String>,
    name_patterns: Vec<String>,
}

/// How large a schema becomes, and how many alternatives it has at its place.
#[derive(Clone, Copy)]
struct Size {
    size: u64,
    options: u64,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value, at: &str, depth: usize) -> Result<(), GuideError> {
        if depth > MAX_DEPTH {
            return Err(refused(at, format!("is nested more than {MAX_DEPTH} levels deep")));
        }
        self.seen.insert(std::ptr::from_ref(schema));
        if self.seen.len() > MAX_SCHEMAS {
            return Err(refused(at, format!("is one of more than {MAX_SCHEMAS} schemas")));
        }
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            _ => return Err(refused(at, "must be a schema: an object, true or false".to_owned())),
        };
        for (keyword, value) in map {
            let inner = format!("{at}/{}", shown(keyword));
            let Some(shape) = shape(keyword, at.is_empty()) else {
                return Err(refused(&inner, "is a keyword that is not supported".to_owned()));
            };
            self.keyword(shape, value, &inner, depth)?;
            for (_, known, _) in BLAMED {
                if known == keyword {
                    self.places.entry(known).or_insert_with(|| inner.clone());
                }
            }
        }
        if combines(map) {
            self.combined.get_or_insert_with(|| at.to_owned());
        }
        least_properties(map, at)
    }

    fn keyword(&mut self, shape: Shape, value: &'a Value, at: &str, depth: usize) -> Result<(), GuideError> {
        let wrong = |what: &str| Err(refused(at, format!("must be {what}")));
        match shape {
            Shape::Note => Ok(()),
            Shape::Schema => self.schema(value, at, depth + 1),
            Shape::SchemaOrSchemas if !value.is_array() => self.schema(value, at, depth + 1),
            Shape::Schemas | Shape::SchemaOrSchemas => match value.as_array() {
                Some(list) if !list.is_empty() => {
                    list.iter().enumerate().try_for_each(|(n, one)| self.schema(one, &format!("{at}/{n}"), depth + 1))
                }
                _ => wrong("a list of schemas, at least one"),
            },
            Shape::Named | Shape::Definitions | Shape::Patterns => {
                let Some(map) = value.as_object() else { return wrong("an object of schemas") };
                map.iter().try_for_each(|(name, one)| {
                    let inner = format!("{at}/{}", shown(name));
                    if shape == Shape::Patterns {
                        self.name_patterns.push(inner.clone());
                        pattern(name, &inner)?;
                    }
                    self.schema(one, &inner, depth + 1)
                })
            }
            Shape::Reference => match value.as_str() {
                Some(name) => {
                    self.refs.push((at.to_owned(), name));
                    Ok(())
                }
                None => wrong("a text"),
            },
            Shape::Types => {
                let known = |one: &Value| one.as_str().is_some_and(|name| TYPES.contains(&name));
                match value {
                    Value::Array(list) if !list.is_empty() && list.len() <= TYPES.len() && list.iter().all(known) => {
                        Ok(())
                    }
                    one if known(one) => Ok(()),
                    _ => wrong("a type of JSON Schema, or a list of them"),
                }
            }
            Shape::Names => match value.as_array() {
                Some(list) if list.iter().all(Value::is_string) => Ok(()),
                _ => wrong("a list of texts"),
            },
            Shape::Values => match value.as_array() {
                Some(list) if list.is_empty() || list.len() > MAX_VALUES => {
                    wrong(&format!("a list of 1 to {MAX_VALUES} values; it has {}", list.len()))
                }
                Some(list) => list.iter().enumerate().try_for_each(|(n, one)| exact(one, &format!("{at}/{n}"), depth)),
                None => wrong("a list"),
            },
            Shape::Value => exact(value, at, depth),
            Shape::Count => match value.as_u64() {
                Some(count) if count <= MAX_COUNT => Ok(()),
                _ => wrong(&format!("a whole number from 0 to {MAX_COUNT}")),
            },
            Shape::MinLength => match value.as_u64() {
                Some(length) if length <= MAX_MIN_LENGTH => Ok(()),
                Some(length) => {
                    let problem =
                        format!("is {length}; a text of more than {MAX_MIN_LENGTH} characters cannot be guaranteed");
                    Err(refused(at, problem))
                }
                None => wrong(&format!("a whole number from 0 to {MAX_MIN_LENGTH}")),
            },
            Shape::Number => match value.as_f64() {
                Some(number) if number.abs() <= MAX_NUMBER => Ok(()),
                _ => wrong("a number of at most 2^53"),
            },
            Shape::Multiple => match value.as_f64() {
                Some(number) if (1e-4..=1e4).contains(&number) => Ok(()),
                _ => wrong("a number from 0.0001 to 10000"),
            },
            Shape::Pattern => {
                self.patterns.push(at.to_owned());
                value.as_str().map_or_else(|| wrong("a text"), |text| pattern(text, at))
            }
            Shape::Format => {
                self.patterns.push(at.to_owned());
                match value.as_str() {
                    Some(name) if FORMATS.contains(&name) => Ok(()),
                    _ => wrong(&format!("one of {}", FORMATS.join(", "))),
                }
            }
        }
    }

    /// What is not at the place of a schema was not checked.
    fn references(&self) -> Result<(), GuideError> {
        let mut named = HashSet::new();
        for (at, name) in &self.refs {
            let place = name.strip_prefix('#').map(|place| if place == "/" { "" } else { place });
            if name.contains(['%', '~']) {
                let problem = "has an escaped character: name definitions without `/`, `~`, `%` and spaces";
                return Err(refused(at, problem.to_owned()));
            }
            let target = place.and_then(|place| self.target(place));
            if target.is_none_or(|target| !self.seen.contains(&std::ptr::from_ref(target))) {
                return Err(refused(at, "must name a schema within this one, such as `#/$defs/name`".to_owned()));
            }
            named.insert(*name);
            if named.len() > MAX_REFS {
                return Err(refused(at, format!("is one of more than {MAX_REFS} different references")));
            }
        }
        Ok(())
    }

    fn patterns(&self) -> Result<(), GuideError> {
        let names = if self.combined.is_some() { MAX_COMBINED_NAME_PATTERNS } else { MAX_NAME_PATTERNS };
        for (places, most) in [(&self.patterns, MAX_PATTERNS), (&self.name_patterns, names)] {
            if let Some(at) = places.get(most) {
                return Err(refused(at, format!("is one of more than {most} patterns")));
            }
        }
        Ok(())
    }

    fn target(&self, place: &str) -> Option<&'a Value> {
        let steps = place.split('/').skip(1);
        steps.into_iter().try_fold(self.root, |value, step| match value {
            Value::Array(list) => list.get(step.parse::<usize>().ok()?),
            other => other.get(step),
        })
    }

    /// How large a schema becomes when references are followed and alternatives multiplied. A reference within itself
    /// counts once: the compiler keeps it.
    fn size(&self, schema: &'a Value, sizes: &mut HashMap<*const Value, Size>) -> Size {
        let key = std::ptr::from_ref(schema);
        if let Some(&known) = sizes.get(&key) {
            return known;
        }
        sizes.insert(key, Size { size: 1, options: 1 });
        let Some(map) = schema.as_object() else { return Size { size: 1, options: 1 } };
        let mut total = Size { size: 1, options: 1 };
        let (mut literals, mut values) = (0u64, 1u64);
        for (keyword, value) in map {
            let Some(shape) = shape_of(keyword) else { continue };
            if matches!(shape, Shape::Values | Shape::Value | Shape::Names) {
                literals = literals.saturating_add(weight(value));
            }
            let mut one = |value: &'a Value| self.size(value, sizes);
            let parts: Vec<Size> = match shape {
                Shape::Schema => vec![one(value)],
                Shape::Schemas | Shape::SchemaOrSchemas => match value {
                    Value::Array(list) => list.iter().map(one).collect(),
                    value => vec![one(value)],
                },
                Shape::Named | Shape::Patterns => {
                    let map = value.as_object().into_iter().flatten();
                    map.map(|(name, value)| {
                        literals = literals.saturating_add(text_weight(name));
                        one(value)
                    })
                    .collect()
                }
                Shape::Reference => {
                    let place = value.as_str().unwrap_or_default().trim_start_matches('#').trim_end_matches('/');
                    self.target(place).map(one).into_iter().collect()
                }
                Shape::Pattern | Shape::Format => vec![Size { size: PATTERN_SIZE, options: 1 }],
                Shape::Values => {
                    values = value.as_array().map_or(1, |list| list.len() as u64);
                    vec![Size { size: 0, options: values }]
                }
                _ => continue,
            };
            let size = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
            let options = match keyword.as_str() {
                "anyOf" | "oneOf" | "enum" => parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.options)),
                "allOf" | "$ref" => parts.iter().fold(1u64, |all, part| all.saturating_mul(part.options)),
                _ => 1,
            };
            total.options = total.options.saturating_mul(options.max(1));
            total.size = total.size.saturating_add(size);
        }
        if combines(map) {
            total.size = total.size.saturating_mul(total.options);
            // Each alternative has one of the values, and all of the other literals.
            literals = literals.saturating_mul(total.options / values.max(1));
        }
        total.size = total.size.saturating_add(literals);
        sizes.insert(key, total);
        total
    }
}

/// How much of the compiler's memory a literal takes, in schemas: it is copied with each schema that is combined.
fn weight(value: &Value) -> u64 {
    match value {
        Value::Array(list) => list.iter().map(weight).sum::<u64>() + 1,
        Value::Object(map) => map.iter().map(|(name, value)| text_weight(name) + weight(value)).sum::<u64>() + 1,
        Value::String(text) => text_weight(text) + 1,
        _ => 1,
    }
}

/// The bytes of a schema without literals are about those of so long a text.
fn text_weight(text: &str) -> u64 {
    text.len() as u64 / 64
}

fn shape_of(keyword: &str) -> Option<Shape> {
    shape(keyword, true)
}

/// Whether the compiler merges a schema at this place with others.
fn combines(map: &Map<String, Value>) -> bool {
    let counts = |key: &&String| !matches!(shape_of(key), Some(Shape::Note | Shape::Definitions));
    map.contains_key("allOf")
        || (map.keys().any(|key| COMBINING.contains(&key.as_str())) && map.keys().filter(counts).count() > 1)
}

/// The beginning of a key, for messages and places.
fn shown(key: &str) -> &str {
    &key[..key.floor_char_boundary(64)]
}

/// An object may repeat an additional name, so two additional properties may be one.
fn least_properties(map: &Map<String, Value>, at: &str) -> Result<(), GuideError> {
    let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    if least > required.max(1) {
        let problem = "cannot be guaranteed above 1, or above the number of required properties";
        return Err(refused(&format!("{at}/minProperties"), problem.to_owned()));
    }
    Ok(())
}

/// A value that an answer can repeat exactly.
fn exact(value: &Value, at: &str, depth: usize) -> Result<(), GuideError> {
    if depth > MAX_DEPTH {
        return Err(refused(at, format!("is nested more than {MAX_DEPTH} levels deep")));
    }
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() > MAX_NUMBER) => {
            Err(refused(at, "must be a number of at most 2^53".to_owned()))
        }
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(n, one)| exact(one, &format!("{at}/{n}"), depth + 1))
        }
        Value::Object(map) => {
            map.iter().try_for_each(|(name, one)| exact(one, &format!("{at}/{}", shown(name)), depth + 1))
        }
        _ => Ok(()),
    }
}

fn pattern(text: &str, at: &str) -> Result<(), GuideError> {
    if text.len() > MAX_PATTERN {
        return Err(refused(at, format!("has a pattern of {} bytes; {MAX_PATTERN} is the limit", text.len())));
    }
    let known = RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(text, "dw"));
    known.map(drop).map_err(|error| {
        let why = error.to_string();
        let line = why.lines().last().unwrap_or_default();
        refused(at, format!("has a pattern that is not supported: {}", &line[..line.floor_char_boundary(120)]))
    })
}
