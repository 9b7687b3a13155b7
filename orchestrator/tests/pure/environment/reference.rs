//! The reference of all settings, made from the schema.

use std::fmt::Write as _;

use serde_json::Value;
use textnlp_orchestrator::environment;
use textnlp_orchestrator::gate::phases::PHASES;
use textnlp_tests::guide::expect_section;

#[test]
fn settings_reference_matches_the_schema() {
    let schema = serde_json::to_value(environment::schema()).unwrap();
    let mut reference = Reference { schema: &schema, text: String::new() };
    reference.section("", &schema);
    expect_section("docs/guide/settings.md", "settings", &reference.text);
}

/// Editors show what the table of phases says.
#[test]
fn phases_of_the_schema_have_the_objectives_of_the_table() {
    let schema = serde_json::to_value(environment::schema()).unwrap();
    let choices = schema["$defs"]["Phase"]["oneOf"].as_array().unwrap();
    assert_eq!(choices.len(), PHASES.len());
    for (choice, definition) in choices.iter().zip(&PHASES) {
        assert_eq!(choice["const"], definition.phase.to_string().as_str());
        let (text, objective) = (choice["description"].as_str().unwrap(), definition.objective);
        assert_eq!(text.get(1..), Some(format!("{}.", &objective[1..]).as_str()), "{}", definition.phase);
    }
}

struct Reference<'s> {
    schema: &'s Value,
    text: String,
}

impl<'s> Reference<'s> {
    /// A table of the settings of an object, and then those of the objects in it.
    fn section(&mut self, path: &str, object: &'s Value) {
        let title = if path.is_empty() { "Top level".to_owned() } else { format!("`{path}`") };
        write!(self.text, "\n## {title}\n\n").unwrap();
        if let (false, Some(description)) = (path.is_empty(), object["description"].as_str()) {
            write!(self.text, "{description}\n\n").unwrap();
        }
        self.text.push_str("| setting | value | default | meaning |\n|---|---|---|---|\n");
        let required = object["required"].as_array().map_or(&[][..], Vec::as_slice);
        let mut objects = Vec::new();
        for (name, setting) in object["properties"].as_object().expect("an object has settings") {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let value = self.value(&path, setting, &mut objects);
            let default = match &setting["default"] {
                _ if required.iter().any(|required| required == name.as_str()) => "required".to_owned(),
                Value::Null | Value::Object(_) => String::new(),
                Value::Array(list) if list.is_empty() => String::new(),
                Value::String(text) => format!("`{text}`"),
                other => format!("`{other}`"),
            };
            let meaning = self.meaning(setting);
            writeln!(self.text, "| `{name}` | {value} | {default} | {meaning} |").unwrap();
        }
        for (path, object) in objects {
            self.section(&path, object);
        }
    }

    /// The schema that a setting refers to, without `null`.
    fn resolve(&self, setting: &'s Value) -> &'s Value {
        let setting = setting["anyOf"].get(0).unwrap_or(setting);
        match setting["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            Some(name) => &self.schema["$defs"][name],
            None => setting,
        }
    }

    /// What a setting may be. Objects are added to `objects` with their path.
    fn value(&self, path: &str, setting: &'s Value, objects: &mut Vec<(String, &'s Value)>) -> String {
        let of = self.resolve(setting);
        if of["properties"].is_object() {
            let anchor: String = path.chars().filter(|c| c.is_alphanumeric() || *c == '_').collect();
            objects.push((path.to_owned(), of));
            return format!("[settings](#{})", anchor.to_lowercase());
        }
        if let Some(choices) = of["oneOf"].as_array() {
            let names: Vec<String> =
                choices.iter().filter_map(|choice| Some(format!("`{}`", choice["const"].as_str()?))).collect();
            return names.join(", ");
        }
        let kind = of["type"].as_str().or_else(|| of["type"][0].as_str());
        match kind.expect("a value has a type") {
            "array" => format!("list: {}", self.value(&format!("{path}[]"), &of["items"], objects)),
            "object" => {
                format!("by name: {}", self.value(&format!("{path}.NAME"), &of["additionalProperties"], objects))
            }
            "string" => of["examples"][0].as_str().map_or("text".to_owned(), |example| format!("such as `{example}`")),
            "boolean" => "`true` or `false`".to_owned(),
            number => match (of["minimum"].as_f64(), of["maximum"].as_f64()) {
                (Some(least), Some(most)) => format!("{number}, {least} to {most}"),
                (Some(least), None) => format!("{number}, at least {least}"),
                _ => number.to_owned(),
            },
        }
    }

    /// The description of a setting, and those of its choices.
    fn meaning(&self, setting: &'s Value) -> String {
        let of = self.resolve(setting);
        let mut meaning = setting["description"].as_str().or(of["description"].as_str()).unwrap_or_default().to_owned();
        for choice in of["oneOf"].as_array().into_iter().flatten() {
            if let (Some(name), Some(description)) = (choice["const"].as_str(), choice["description"].as_str()) {
                write!(meaning, " `{name}`: {description}").unwrap();
            }
        }
        meaning.replace('\n', " ").replace('|', "\\|")
    }
}
