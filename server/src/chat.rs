//! Chat templates: renders a model's Jinja template into a prompt. The template is untrusted, so it runs with a bounded
//! amount of work and without access to anything else.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde::Serialize;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// A model's template, parsed.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Maximum steps of one rendering: a hundred times what long conversations need.
const FUEL: u64 = 2_000_000;

/// The longest prompt that a rendering may make.
const MAX_PROMPT: usize = 16 << 20;

impl ChatTemplate {
    /// Parses a template.
    pub(crate) fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // Printing an undefined value is an error; testing for it is allowed.
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_fuel(Some(FUEL));
        environment
            .set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source.to_owned())?;
        Ok(Self { environment, bos: bos.unwrap_or_default(), eos: eos.unwrap_or_default() })
    }

    /// The prompt of a conversation, up to the assistant's turn.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let template = self.environment.get_template("chat")?;
        let prompt = template.render(minijinja::context! {
            messages => minijinja::value::Value::from(minijinja::value::Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        })?;
        if prompt.len() > MAX_PROMPT {
            return Err(Error::new(ErrorKind::InvalidOperation, "the prompt became too long"));
        }
        Ok(prompt)
    }
}

/// The methods of Python's texts and dictionaries that templates use.
fn method(_: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("no method named {name}"));
    if value.kind() == ValueKind::Map {
        return match (name, args) {
            ("items", []) => {
                let pairs = value.try_iter()?.map(|key| value.get_item(&key).map(|item| Value::from(vec![key, item])));
                Ok(Value::from(pairs.collect::<Result<Vec<_>, _>>()?))
            }
            ("keys", []) => Ok(Value::from(value.try_iter()?.collect::<Vec<_>>())),
            ("get", [key, rest @ ..]) => {
                let item = value.get_item(key)?;
                Ok(if item.is_undefined() { rest.first().cloned().unwrap_or(Value::from(())) } else { item })
            }
            _ => Err(unknown()),
        };
    }
    let Some(text) = value.as_str() else { return Err(unknown()) };
    let arg = |n: usize| args.get(n).and_then(Value::as_str);
    let set = arg(0).map(|chars| chars.chars().collect::<Vec<_>>());
    let in_set = |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(&c));
    Ok(match (name, args.len()) {
        ("strip", 0 | 1) => text.trim_matches(in_set).into(),
        ("lstrip", 0 | 1) => text.trim_start_matches(in_set).into(),
        ("rstrip", 0 | 1) => text.trim_end_matches(in_set).into(),
        ("upper", 0) => text.to_uppercase().into(),
        ("lower", 0) => text.to_lowercase().into(),
        ("startswith", 1) => text.starts_with(arg(0).ok_or_else(unknown)?).into(),
        ("endswith", 1) => text.ends_with(arg(0).ok_or_else(unknown)?).into(),
        ("replace", 2) => text.replace(arg(0).ok_or_else(unknown)?, arg(1).ok_or_else(unknown)?).into(),
        ("split", 1) => {
            let by = arg(0).filter(|by| !by.is_empty()).ok_or_else(unknown)?;
            text.split(by).map(Value::from).collect::<Vec<_>>().into()
        }
        ("split", 0) => text.split_whitespace().map(Value::from).collect::<Vec<_>>().into(),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    const CHATML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}\n    {%- endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}\n{%- endif %}";

    #[test]
    fn chatml_template_renders_the_expected_prompt() {
        let template = ChatTemplate::new(CHATML, None, None).unwrap();
        let prompt =
            template.render(&[said("system", "Be kind."), said("user", " <b>Hello</b> & welcome \n")]).unwrap();
        assert_eq!(
            prompt,
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<b>Hello</b> & welcome<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn template_error_message_is_passed_on() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", None, None).unwrap();
        assert!(template.render(&[said("user", "x")]).unwrap_err().to_string().contains("roles must alternate"));
    }

    #[test]
    fn python_string_methods_work_in_templates() {
        let source = "{{ bos_token }}{% for m in messages %}{% for k, v in m.items() %}{{ k.upper() }}={{ v.strip('x').replace('a', 'b') }};{% endfor %}\
                      {{ m.get('name', 'nobody') }}{{ m.content.startswith('x') }}{{ m.content.split('a')[0] }}{% endfor %}";
        let template = ChatTemplate::new(source, Some("<s>".into()), None).unwrap();
        assert_eq!(template.render(&[said("user", "xxaxx")]).unwrap(), "<s>ROLE=user;CONTENT=b;nobodyTruexx");
    }

    #[test]
    fn endless_or_unsafe_templates_are_stopped() {
        for source in [
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
            "{% include '/etc/passwd' %}",
            "{{ missing }}",
            "{{ messages.__class__.__mro__ }}",
            "{{ messages[0].content.format(1) }}",
        ] {
            let template = ChatTemplate::new(source, None, None).unwrap();
            assert!(template.render(&[said("user", "x")]).is_err(), "{source}");
        }
        assert!(ChatTemplate::new("{% for %}", None, None).is_err());
    }
}
