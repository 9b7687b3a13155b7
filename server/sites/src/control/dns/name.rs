//! Domain names of the settings.

use std::fmt;

use hickory_proto::rr;
use serde::Deserialize;

/// A fully qualified domain name in lower case.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(pub(super) rr::Name);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let labels = lower.strip_suffix('.').unwrap_or(&lower).split('.');
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !labels.clone().all(|label| (1..=63).contains(&label.len()) && label.bytes().all(known)) {
            return Err(format!(
                "`{text}` is not a domain name: its parts have 1 to 63 letters, digits, `-` or `_`, with dots between"
            ));
        }
        let name = rr::Name::from_labels(labels.map(str::as_bytes));
        name.map(Self).map_err(|_| format!("`{text}` is longer than a domain name can be"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_ascii().trim_end_matches('.'))
    }
}
