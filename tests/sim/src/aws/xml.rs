//! XML as AWS's protocols use it.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

/// An element without its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    pub(crate) text: String,
}

/// How deep elements may lie in each other.
const MAX_DEPTH: usize = 64;

impl Element {
    /// The root of a document.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = quick_xml::Reader::from_str(text);
        // The first is the document around the root.
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().map_err(|e| e.to_string())? {
                Event::Start(start) if open.len() > MAX_DEPTH => {
                    return Err(format!("elements are nested too deep at {:?}", start.local_name()));
                }
                Event::Start(start) => open.push(Self::start(&start)?),
                Event::Empty(start) => Self::close(&mut open, Self::start(&start)?),
                Event::End(_) => {
                    let element = open.pop().ok_or("an element ends that never started")?;
                    Self::close(&mut open, element);
                }
                Event::Text(text) => Self::write(&mut open, &text.xml10_content().map_err(|e| e.to_string())?),
                Event::CData(text) => Self::write(&mut open, &text.xml10_content().map_err(|e| e.to_string())?),
                Event::GeneralRef(name) => {
                    let character = name.resolve_char_ref().map_err(|e| e.to_string())?;
                    let name = name.decode().map_err(|e| e.to_string())?;
                    match character {
                        Some(c) => Self::write(&mut open, c.encode_utf8(&mut [0; 4])),
                        None => {
                            let known = quick_xml::escape::resolve_predefined_entity(&name);
                            Self::write(&mut open, known.ok_or_else(|| format!("the entity {name} is unknown"))?);
                        }
                    }
                }
                Event::DocType(_) => return Err("a document type is not allowed".to_owned()),
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        match (open.len(), open.pop().and_then(|mut document| document.children.pop())) {
            (1, Some(root)) => Ok(root),
            _ => Err("the document is not complete".to_owned()),
        }
    }

    fn start(start: &BytesStart<'_>) -> Result<Self, String> {
        let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| e.to_string())?;
            let key = String::from_utf8_lossy(attribute.key.as_ref()).into_owned();
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|e| e.to_string())?;
            attributes.push((key, value.into_owned()));
        }
        Ok(Self { name, attributes, ..Self::default() })
    }

    fn close(open: &mut [Self], element: Self) {
        if let Some(parent) = open.last_mut() {
            parent.children.push(element);
        }
    }

    fn write(open: &mut [Self], text: &str) {
        if let Some(element) = open.last_mut() {
            element.text.push_str(text);
        }
    }
}

/// Text between tags and in attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // A parser would make line feeds of these.
            '\r' => escaped.push_str("&#xD;"),
            c => escaped.push(c),
        }
    }
    escaped
}
