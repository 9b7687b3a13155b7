//! A compiled chat template, rendered as transformers does.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{MAX_PROMPT, functions};

/// A template and the texts of a model's special tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Definition {
    pub(super) source: String,
    pub(super) bos: String,
    pub(super) eos: String,
}

/// A compiled template. Compiling and rendering one of another author is for a process of its own: it may take all
/// memory, never end, or overflow the stack.
pub(super) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    pub(super) fn new(definition: Definition) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // Templates of tools rely on it: an undefined value is an empty text and an empty list. Its fields are an error.
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        functions::register(&mut environment);
        environment.add_template_owned("chat", without_generation(&definition.source))?;
        Ok(Self { environment, bos: definition.bos, eos: definition.eos })
    }

    /// The prompt of a [`super::Conversation`] as JSON, up to the assistant's turn.
    pub(super) fn render(&self, conversation: &Json) -> Result<String, Error> {
        let template = self.environment.get_template("chat")?;
        let context = minijinja::context! {
            messages => value(&conversation["messages"]),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => value(&conversation["tools"]),
            documents => (),
        };
        let mut prompt = Prompt::default();
        template.render_captured_to(context, &mut prompt).map(drop).map_err(|error| match error.kind() {
            ErrorKind::WriteFailure => Error::new(ErrorKind::InvalidOperation, "the prompt became too long"),
            _ => error,
        })?;
        String::from_utf8(prompt.0).map_err(|_| Error::new(ErrorKind::InvalidOperation, "the prompt is not text"))
    }
}

/// A value of JSON, with its keys in their order: models have learned schemas of tools in the order of their authors, and
/// the engine's maps sort.
fn value(json: &Json) -> Value {
    match json {
        Json::Array(list) => Value::from(list.iter().map(value).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_object(OrderedMap {
            keys: map.keys().map(|key| Value::from(key.as_str())).collect(),
            values: map.iter().map(|(key, one)| (key.clone(), value(one))).collect(),
        }),
        other => Value::from(Serde(other)),
    }
}

#[derive(Debug)]
struct OrderedMap {
    keys: Vec<Value>,
    values: HashMap<String, Value>,
}

impl Object for OrderedMap {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.values.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.keys.clone())
    }
}

/// Refuses what would make it longer than [`MAX_PROMPT`].
#[derive(Default)]
struct Prompt(Vec<u8>);

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > MAX_PROMPT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Without the tags of `{% generation %}` blocks, which mark the assistant's tokens for training and render their
/// content.
fn without_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let replaced = match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        };
        text.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Message;
    use super::*;

    fn said(role: &'static str, content: &str) -> Message {
        Message { role, content: content.into(), ..Message::default() }
    }

    fn template(source: &str) -> Result<Template, Error> {
        Template::new(Definition { source: source.into(), bos: "<s>".into(), eos: "</s>".into() })
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
        template(source)?.render(&json!({ "messages": messages }))
    }

    const CHATML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}\n    {%- endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}\n{%- endif %}";

    #[test]
    fn chatml_template_renders_the_expected_prompt() {
        let talk = [said("system", "Be kind."), said("user", " <b>Hello</b> & welcome \n")];
        assert_eq!(
            render(CHATML, &talk).unwrap(),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<b>Hello</b> & welcome<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn template_error_message_is_passed_on() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[said("user", "x")]).unwrap_err();
        assert_eq!(error.detail(), Some("roles must alternate"));
    }

    #[test]
    fn python_string_methods_work_in_templates() {
        let source = "{{ bos_token }}{% for m in messages %}{% for k, v in m.items() %}{{ k.upper() }}={{ v.strip('x').replace('a', 'b') }};{% endfor %}\
                      {{ m.get('name', 'nobody') }}{{ m.content.startswith('x') }}{{ m.content.split('a')[0] }}{% endfor %}";
        assert_eq!(render(source, &[said("user", "xxaxx")]).unwrap(), "<s>ROLE=user;CONTENT=b;nobodyTruexx");
    }

    #[test]
    fn template_gets_tools_and_calls_in_the_order_of_their_fields() {
        let conversation = json!({
            "messages": [
                { "role": "assistant", "content": "", "tool_calls": [
                    { "id": "c", "type": "function", "function": { "name": "f", "arguments": { "z": 1, "a": [true] } } },
                ] },
                { "role": "tool", "content": "9", "tool_call_id": "c", "name": "f" },
            ],
            "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "b": null } } }],
        });
        let source = "{% if tools %}{{ tools[0] | tojson }}{% endif %}{% for m in messages %}\
                      {% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}={{ c.function.arguments | tojson }};\
                      {% for k, v in c.function.arguments | items %}{{ k }},{% endfor %}{% endfor %}\
                      {% elif 'tool_call_id' in m and m is mapping %}{{ m.name }}:{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(
            template(source).unwrap().render(&conversation).unwrap(),
            "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"b\": null}}}\
             f={\"z\": 1, \"a\": [true]};z,a,f:9"
        );
        assert_eq!(
            render("{{ tools is none }}{{ messages[0].tool_calls is defined }}", &[said("user", "x")]).unwrap(),
            "TrueFalse"
        );
    }

    #[test]
    fn wrong_and_endless_templates_are_refused() {
        let talk = [said("user", "x")];
        for source in [
            "{% include '/etc/passwd' %}",
            "{{ missing.field }}",
            "{{ messages.__class__.__mro__ }}",
            "{{ messages[0].content.format(1) }}",
            "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ] {
            assert!(render(source, &talk).is_err(), "{source}");
        }
        assert!(template("{% for %}").is_err());
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}";
        assert_eq!(render(endless, &talk).unwrap_err().detail(), Some("the prompt became too long"));
    }

    #[test]
    fn templates_render_what_transformers_renders() {
        let talk = [said("user", "a <b>\nü"), said("assistant", "x")];
        for (source, expected) in [
            ("{% for m in messages %}{% generation %}{{ m.role }},{% endgeneration %}{% endfor %}", "user,assistant,"),
            (
                "{%- for m in messages -%}\n{%- generation -%}\n{{ m.role }}{%- endgeneration -%}\n{% endfor %}",
                "userassistant",
            ),
            (
                "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}<{{ m.role ~ '|' ~ (m.content.split(' ')[-1] | upper) }}>{%- endfor -%}{{ ns.n }}{{ eos_token }}",
                "<user|<B>\nÜ><assistant|X>2</s>",
            ),
            (
                "{% macro turn(role, text='none') %}<{{ role }}>{{ text }}\n{% endmacro %}{% for m in messages[1:] %}{{ turn(m.role, text=m.content) }}{% endfor %}{{ turn('a') }}",
                "<assistant>x\n<a>none\n",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role.title() }}{% break %}{% endfor %}{{ messages[-1]['content'] * 2 }}",
                "Assistantxx",
            ),
            (
                "{% set c %}  {{ messages[1].content }}\n{% endset %}{{ c | trim }}{% filter upper %}a{% endfilter %}",
                "xA",
            ),
            ("{{ \"they're bill's FRIENDS 3rd x-ray\".title() }}", "They'Re Bill'S Friends 3Rd X-Ray"),
            ("{{ messages[0].content | tojson }}", "\"a <b>\\nü\""),
            ("{{ {'a': [1, true, none], 'b': 1.5} | tojson }}", "{\"a\": [1, true, null], \"b\": 1.5}"),
            ("{{ messages[1] | tojson }}", "{\"role\": \"assistant\", \"content\": \"x\"}"),
            ("{{ messages[1] | tojson(sort_keys=true) }}", "{\"content\": \"x\", \"role\": \"assistant\"}"),
            ("{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true, ensure_ascii=false) }}", "{\"a\": \"ü\", \"b\": 1}"),
            ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
            ("{{ missing }}{% for m in missing %}x{% endfor %}{{ messages[0].missing }}.", "."),
            ("{{ strftime_now('%Y') | length }}", "4"),
            (
                "{{ 'a\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(width=1, blank=true) }}",
                "a\n  b|  a\n  b|a\n \n b",
            ),
            ("{{ 'a\\n' | indent }}|", "a\n|"),
            ("{{ [1, 'b', none] | join('-') }}{{ 'aXbX' | replace('X', '') }}{{ 5 | string }}", "1-b-Noneab5"),
        ] {
            assert_eq!(render(source, &talk).unwrap(), expected, "{source}");
        }
        assert!(render("{{ strftime_now('%Q%!') }}", &talk).is_err());
        let why = render("{{ 'ü' | tojson(ensure_ascii=true) }}", &talk).unwrap_err();
        assert!(why.to_string().contains("`ensure_ascii` is not supported"), "{why}");
    }
}
