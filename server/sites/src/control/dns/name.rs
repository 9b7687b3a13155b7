//! Domain names, compared case-insensitively, and parsing of untrusted messages.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A name in its canonical form: labels with their lengths, in lower case, the root's at the end.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name {
    wire: Vec<u8>,
}

/// The longest name, in bytes of its wire form (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 255;
const LONGEST_LABEL: usize = 63;

impl Name {
    /// The uncompressed wire format.
    pub(super) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The labels before `zone` in wire format; `None` when the name is not in the zone.
    pub(super) fn before(&self, zone: &Self) -> Option<&[u8]> {
        let mut at = 0;
        loop {
            let (before, rest) = self.wire.split_at(at);
            match rest.first() {
                _ if rest == zone.wire => return Some(before),
                None | Some(0) => return None,
                Some(length) => at += 1 + usize::from(*length),
            }
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut wire = Vec::new();
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !(1..=LONGEST_LABEL).contains(&label.len()) || !label.bytes().all(known) {
                return Err(format!(
                    "`{text}` is not a domain name: its parts have 1 to 63 letters, digits, `-` or `_`, with dots between"
                ));
            }
            wire.push(label.len() as u8);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        if wire.len() > MAX_NAME_BYTES {
            return Err(format!("`{text}` is longer than a domain name can be"));
        }
        Ok(Self { wire })
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut dot) = (self.wire.as_slice(), "");
        while let Some((length, more)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, after) = more.split_at(usize::from(*length));
            write!(f, "{dot}{}", label.escape_ascii())?;
            (rest, dot) = (after, ".");
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

/// Reads from the front; `None` where the input is truncated or invalid.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Seconds since 1970, as signatures have them.
    pub(super) fn u48(&mut self) -> Option<u64> {
        Some(self.take(6)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A name, following pointers.
    pub(super) fn name(&mut self) -> Option<Name> {
        let mut wire = Vec::new();
        // Each pointer must lead to before the previous one, which excludes loops.
        let (mut at, mut before, mut after) = (self.at, self.at, None);
        loop {
            let length = *self.bytes.get(at)?;
            match usize::from(length) {
                0 => {
                    wire.push(0);
                    self.at = after.unwrap_or(at + 1);
                    return (wire.len() <= MAX_NAME_BYTES).then_some(Name { wire });
                }
                label @ 1..=LONGEST_LABEL => {
                    wire.push(length);
                    wire.extend(self.bytes.get(at + 1..at + 1 + label)?.iter().map(u8::to_ascii_lowercase));
                    at += 1 + label;
                    if wire.len() >= MAX_NAME_BYTES {
                        return None;
                    }
                }
                high @ 0xC0..=0xFF => {
                    let to = (high & 0x3F) << 8 | usize::from(*self.bytes.get(at + 1)?);
                    if to >= before {
                        return None;
                    }
                    after.get_or_insert(at + 2);
                    (before, at) = (to, to);
                }
                _ => return None,
            }
        }
    }
}
