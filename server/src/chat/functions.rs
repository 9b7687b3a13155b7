//! Filters, functions and methods of templates that transformers has and the engine lacks or renders differently.

use std::collections::BTreeSet;
use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

fn wrong(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.into())
}

pub(super) fn register(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("indent", indent);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(wrong(message)) });
    environment.add_function("strftime_now", |format: &str| {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| wrong(error.to_string()))
    });
}

/// Jinja's `indent`: the first line and empty lines stay as they are unless asked for. The engine's loses a line end.
fn indent(
    text: &str,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = options.get::<Option<usize>>("width")?.or(width).unwrap_or(4);
    let first = options.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = options.get::<Option<bool>>("blank")?.or(blank).unwrap_or(false);
    options.assert_all_used()?;
    let margin = " ".repeat(width);
    let mut indented = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            indented.push('\n');
        }
        if if number == 0 { first } else { blank || !line.is_empty() } {
            indented.push_str(&margin);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// Python's `json.dumps` without escapes of letters: a blank after each comma and colon.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// transformers' `tojson`. Fields of messages stay in their order; the engine sorts the keys of maps that a template makes.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?.or(indent);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    if ascii {
        return Err(wrong("`tojson` with `ensure_ascii` is not supported"));
    }
    if !sorted {
        return json(value, indent);
    }
    let mut value = serde_json::to_value(value).map_err(|error| wrong(error.to_string()))?;
    value.sort_all_objects();
    json(&value, indent)
}

fn json(value: &impl Serialize, indent: Option<usize>) -> Result<String, Error> {
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let margin = " ".repeat(width);
            value.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(margin.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Python)),
    };
    written.map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(text).map_err(|_| wrong("a value is not text"))
}

/// Python's `str.title`: a letter behind anything but a letter is upper case, others are lower case.
fn title(text: &str) -> String {
    let mut title = String::with_capacity(text.len());
    let mut within = false;
    for letter in text.chars() {
        if within {
            title.extend(letter.to_lowercase());
        } else {
            title.extend(letter.to_uppercase());
        }
        within = letter.is_alphabetic();
    }
    title
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
    let set = arg(0).filter(|_| name.ends_with("strip")).map(|chars| chars.chars().collect::<BTreeSet<_>>());
    let in_set = |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(&c));
    Ok(match (name, args.len()) {
        ("strip", 0 | 1) => text.trim_matches(in_set).into(),
        ("lstrip", 0 | 1) => text.trim_start_matches(in_set).into(),
        ("rstrip", 0 | 1) => text.trim_end_matches(in_set).into(),
        ("upper", 0) => text.to_uppercase().into(),
        ("lower", 0) => text.to_lowercase().into(),
        ("title", 0) => title(text).into(),
        ("startswith", 1) => text.starts_with(arg(0).ok_or_else(unknown)?).into(),
        ("endswith", 1) => text.ends_with(arg(0).ok_or_else(unknown)?).into(),
        ("replace", 2) => text.replace(arg(0).ok_or_else(unknown)?, arg(1).ok_or_else(unknown)?).into(),
        ("split", 0) => text.split_whitespace().map(Value::from).collect::<Vec<_>>().into(),
        ("split", 1) => match arg(0).ok_or_else(unknown)? {
            "" => return Err(wrong("a text cannot be split at an empty text")),
            by => text.split(by).map(Value::from).collect::<Vec<_>>().into(),
        },
        _ => return Err(unknown()),
    })
}
