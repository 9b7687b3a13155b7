//! Tools in conversations: how templates get them, and how models write calls of them.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A tool, as templates get it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tool {
    /// `function`.
    pub r#type: &'static str,
    /// What the model may call.
    pub function: Function,
}

/// A function that a model may call.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Function {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The schema of its arguments, an object.
    pub parameters: Value,
}

impl Function {
    /// The parameters of a function that has none.
    pub(crate) fn no_parameters() -> Value {
        json!({ "type": "object", "properties": {}, "additionalProperties": false })
    }
}

/// A call of an earlier answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ToolCall {
    /// Names the call in the message with its result.
    pub id: String,
    /// `function`.
    pub r#type: &'static str,
    /// What was called.
    pub function: CalledFunction,
}

/// A function with arguments.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CalledFunction {
    /// The name of the function.
    pub name: String,
    /// An object. Templates get it as one, and not as a text of JSON.
    pub arguments: Box<RawValue>,
}

/// How a family of models writes calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ToolFormat {
    /// Texts that all its templates have.
    marks: &'static [&'static str],
    /// Texts of templates with the same marks and another format.
    others: &'static [&'static str],
    /// What is around a call; without it, an answer is one call and nothing else.
    pub tags: Option<(&'static str, &'static str)>,
    /// The field with the arguments.
    pub arguments: &'static str,
}

const FORMATS: [ToolFormat; 2] = [
    // Hermes 2 Pro and 3, Qwen 2.5 and 3. Qwen 3 Coder and GLM 4.5 have other calls between the same tags.
    ToolFormat {
        marks: &["<tool_call>", "</tool_call>", "arguments"],
        others: &["<function=", "<arg_key>"],
        tags: Some(("<tool_call>", "</tool_call>")),
        arguments: "arguments",
    },
    // Llama 3.1 to 3.3: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
    ToolFormat {
        marks: &["{\"name\": function name, \"parameters\":"],
        others: &[],
        tags: None,
        arguments: "parameters",
    },
];

/// What a template does with tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolSupport {
    /// It does not show them to the model.
    None,
    /// It shows them; how the model writes calls is not known.
    Shown,
    /// The model writes calls in this format.
    Calls(&'static ToolFormat),
}

impl ToolSupport {
    /// From the text of a template.
    pub(crate) fn of(template: &str) -> Self {
        if !template.contains("tools") {
            return Self::None;
        }
        let has = |texts: &[&str]| texts.iter().filter(|text| template.contains(**text)).count();
        let format = FORMATS.iter().find(|format| has(format.marks) == format.marks.len() && has(format.others) == 0);
        format.map_or(Self::Shown, Self::Calls)
    }

    /// The format of calls that the model knows.
    pub(crate) fn format(self) -> Option<&'static ToolFormat> {
        match self {
            Self::Calls(format) => Some(format),
            Self::None | Self::Shown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_of_calls_follows_from_the_template() {
        let field = |template: &str| ToolSupport::of(template).format().map(|format| format.arguments);
        let hermes =
            "{% if tools %}<tool_call>\\n{\\\"name\\\": <function-name>, \\\"arguments\\\": <args>}\\n</tool_call>";
        let llama = "{% if tools is not none %}{{- 'Respond in the format {\"name\": function name, \"parameters\": \
                     dictionary of argument name and its value}.' }}";
        assert_eq!((field(hermes), field(llama)), (Some("arguments"), Some("parameters")));
        for other in [
            "{% if tools %}<tool_call>\n<function=name>\n</function>\n</tool_call>{{ call.arguments }}",
            "{% if tools %}<tool_call>{{ name }}<arg_key></tool_call>{{ call.arguments }}",
            "{% if tools %}[AVAILABLE_TOOLS]",
        ] {
            assert_eq!(ToolSupport::of(other), ToolSupport::Shown, "{other}");
        }
        assert_eq!(ToolSupport::of("{% for m in messages %}{{ m.content }}{% endfor %}"), ToolSupport::None);
    }
}
