//! Who can open a copy. The format is that of the tool `age`: what is sealed here opens there, without this program.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use camino::Utf8Path;
use textnlp_provider::Secret;

use super::Error;

const SEALED: &[u8] = b"age-encryption.org/v1\n";
const SEALED_LATER: &[u8] = b"age-encryption.org/";
const PLAIN: &[u8] = b"backup.json\0";

/// How a copy is sealed.
pub enum Seal {
    /// Each holder of one of the keys opens it.
    Keys(Vec<Recipient>),
    /// Whoever knows the passphrase opens it.
    Passphrase(Secret),
    /// Anybody who can read the file.
    Plain,
}

/// What opens a copy.
pub enum Opener {
    /// Only what is not sealed.
    Nothing,
    /// These keys.
    Keys(Vec<Key>),
    /// This passphrase.
    Passphrase(Secret),
}

/// The public half of a key: `age1…`. It seals, and opens nothing.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

impl FromStr for Recipient {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Key(format!("`{}` is no recipient: {why}", super::manifest::shown(text)));
        text.trim().parse().map(Self).map_err(wrong)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key that opens: `AGE-SECRET-KEY-1…`. It prints as its public half.
pub struct Key(age::x25519::Identity);

impl Key {
    /// A fresh one.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Reads the file that `age-keygen` or `backup key show` made: lines with `#` are remarks.
    pub fn parse(text: &Secret) -> Result<Vec<Self>, Error> {
        let text = text.expose_text().ok_or_else(|| Error::Key("the key file is no text".to_owned()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<Self> = lines
            // What is wrong with a secret is said without it.
            .map(|line| {
                line.parse().map(Self).map_err(|_| Error::Key("the key file holds a line that is no key".to_owned()))
            })
            .collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(Error::Key("the key file holds no key".to_owned())) } else { Ok(keys) }
    }

    /// The half that seals.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The key itself, for its store and for the one time that it is shown.
    pub fn secret(&self) -> Secret {
        Secret::new(self.0.to_string().expose_secret().as_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.recipient())
    }
}

impl Seal {
    /// In one word, for lists.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Keys(_) => "keys",
            Self::Passphrase(_) => "passphrase",
            Self::Plain => "plain",
        }
    }

    /// Has `fill` write through the seal.
    pub fn write<T>(
        &self,
        to: &mut dyn Write,
        fill: impl FnOnce(&mut dyn Write) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let encryptor = match self {
            Self::Plain => return fill(to),
            Self::Keys(recipients) => {
                age::Encryptor::with_recipients(recipients.iter().map(|r| &r.0 as &dyn age::Recipient))
                    .map_err(|error| Error::Key(error.to_string()))?
            }
            Self::Passphrase(passphrase) => age::Encryptor::with_user_passphrase(text_of(passphrase)?),
        };
        let fails = || Error::io("write", "the copy");
        let mut sealed = encryptor.wrap_output(to).map_err(fails())?;
        let filled = fill(&mut sealed)?;
        sealed.finish().map_err(fails())?;
        Ok(filled)
    }
}

fn text_of(passphrase: &Secret) -> Result<SecretString, Error> {
    match passphrase.expose_text().map(|text| text.trim_end_matches(['\n', '\r'])) {
        Some("") | None => Err(Error::Key("the passphrase is empty, or no text".to_owned())),
        Some(text) => Ok(SecretString::from(text.to_owned())),
    }
}

/// The content of a copy, opened. Says at once what is no copy, and what cannot be opened.
pub fn opened<'a>(name: &Utf8Path, from: impl Read + 'a, opener: &Opener) -> Result<Box<dyn Read + 'a>, Error> {
    let mut from = BufReader::with_capacity(256 << 10, from);
    let begins = from.fill_buf().map_err(Error::io("read", name))?;
    let (sealed, later, plain) =
        (begins.starts_with(SEALED), begins.starts_with(SEALED_LATER), begins.starts_with(PLAIN));
    let empty = begins.is_empty();
    let path = name.to_owned();
    if plain {
        return Ok(Box::new(from));
    }
    if empty {
        return Err(Error::Truncated { path, what: "it is empty".to_owned() });
    }
    if !sealed {
        let why = if later { "it is sealed by a later version of age" } else { "it begins with something else" };
        return Err(Error::Foreign { path, why: why.to_owned() });
    }
    let decryptor = age::Decryptor::new_buffered(from).map_err(|error| unsealed(name, error))?;
    let why = |text: &str| Error::Sealed { path: name.to_owned(), why: text.to_owned() };
    let opened = match (opener, decryptor.is_scrypt()) {
        (Opener::Nothing, true) => return Err(why("it is sealed with a passphrase, and none was given")),
        (Opener::Nothing, false) => return Err(why("it is sealed with a key, and none was given")),
        (Opener::Keys(_), true) => return Err(why("it is sealed with a passphrase, not with a key")),
        (Opener::Passphrase(_), false) => return Err(why("it is sealed with a key, not with a passphrase")),
        (Opener::Keys(keys), false) => decryptor.decrypt(keys.iter().map(|key| &key.0 as &dyn age::Identity)),
        (Opener::Passphrase(passphrase), true) => {
            let identity = age::scrypt::Identity::new(text_of(passphrase)?);
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
        }
    };
    Ok(Box::new(opened.map_err(|error| unsealed(name, error))?))
}

fn unsealed(name: &Utf8Path, error: age::DecryptError) -> Error {
    use age::DecryptError as Age;
    let path = name.to_owned();
    match error {
        Age::NoMatchingKeys | Age::DecryptionFailed | Age::KeyDecryptionFailed => {
            Error::Sealed { path, why: "it is sealed for another key or passphrase".to_owned() }
        }
        Age::ExcessiveWork { .. } => {
            Error::Sealed { path, why: "its passphrase would take too long to try".to_owned() }
        }
        Age::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::Truncated { path, what: "it ends within its seal".to_owned() }
        }
        Age::Io(source) if source.kind() != io::ErrorKind::InvalidData => Error::Io { action: "read", path, source },
        other => Error::Damaged { path, what: format!("its seal does not hold: {other}") },
    }
}
