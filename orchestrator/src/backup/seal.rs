//! Encryption of backups in the format of the tool `age`: that tool decrypts them without this program.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use camino::Utf8Path;
use textnlp_bundle::PublicKey;
use textnlp_provider::{EnvironmentName, Secret};

use super::Error;

/// Begins the line of a key file with the key that signs the backups.
const SIGNED_BY: &str = "# signed by: ";
const SEALED: &[u8] = b"age-encryption.org/v1\n";
const SEALED_LATER: &[u8] = b"age-encryption.org/";
const PLAIN: &[u8] = b"backup.json\0";
/// log₂ of scrypt's cost for a passphrase, as the stock tool chooses it (256 MiB). The library measures the machine instead: what a
/// fast one wrote, a slow or busy one refused to read.
const WORK_FACTOR: u8 = 18;
/// The largest that is read, as by the stock tool (4 GiB).
const MAX_WORK_FACTOR: u8 = 22;

/// How a backup is encrypted.
pub enum EncryptionMode {
    /// To these public keys; each of their private keys decrypts it.
    Keys(Vec<Recipient>),
    /// With a passphrase.
    Passphrase(Secret),
    /// Not encrypted.
    Plain,
}

/// What decrypts a backup.
pub enum Decryptor {
    /// Nothing: only plain backups can be read.
    Nothing,
    /// These keys.
    Keys(Vec<Key>),
    /// This passphrase.
    Passphrase(Secret),
}

/// A public key, `age1…`: it encrypts and cannot decrypt.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

impl FromStr for Recipient {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Key(format!("`{}` is not a recipient: {why}", super::manifest::shown(text)));
        text.trim().parse().map(Self).map_err(wrong)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A private key, `AGE-SECRET-KEY-1…`. Its `Debug` output is the public half.
pub struct Key(age::x25519::Identity);

impl Key {
    /// A fresh key.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Parses the file that `age-keygen` or `backup key show` wrote. Lines that start with `#` are comments.
    pub fn parse(text: &Secret) -> Result<Vec<Self>, Error> {
        let text = text.expose_text().ok_or_else(|| Error::Key("the key file is not text".to_owned()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<Self> = lines
            // Errors about a secret do not quote it.
            .map(|line| {
                line.parse().map(Self).map_err(|_| Error::Key("the key file has a line that is not a key".to_owned()))
            })
            .collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(Error::Key("the key file holds no key".to_owned())) } else { Ok(keys) }
    }

    /// The key that signs the backups, if the file names it: `backup key show` writes it as a comment.
    pub fn signer(text: &Secret) -> Result<Option<PublicKey>, Error> {
        let mut lines = text.expose_text().into_iter().flat_map(str::lines);
        let Some(line) = lines.find_map(|line| line.trim().strip_prefix(SIGNED_BY)) else { return Ok(None) };
        PublicKey::parse(line).map(Some).map_err(|error| Error::Key(format!("`{}`: {error}", SIGNED_BY.trim())))
    }

    /// The content of a key file: the key that signs the backups, and keys with their public halves. The first one encrypts new
    /// backups, the others decrypt older ones.
    pub fn file(keys: &[Self], environment: &EnvironmentName, signer: &PublicKey) -> Secret {
        let mut text = format!("# backups of {environment}\n{SIGNED_BY}{}\n", signer.to_base64());
        for (at, key) in keys.iter().enumerate() {
            let note = if at == 0 { "" } else { ", replaced: for older backups" };
            let secret = key.secret();
            text.push_str(&format!("# public key: {}{note}\n", key.recipient()));
            text.push_str(secret.expose_text().unwrap_or_default());
            text.push('\n');
        }
        Secret::new(text.into_bytes())
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The private key, to store it or to print it once.
    pub fn secret(&self) -> Secret {
        Secret::new(self.0.to_string().expose_secret().as_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.recipient())
    }
}

textnlp_provider::words! {
    /// How a backup is encrypted.
    pub enum EncryptionKind {
        /// To public keys.
        Keys = "keys",
        /// With a passphrase.
        Passphrase = "passphrase",
        /// Not at all.
        Plain = "plain",
    }
}

impl EncryptionMode {
    /// Its kind, without keys.
    pub fn kind(&self) -> EncryptionKind {
        match self {
            Self::Keys(_) => EncryptionKind::Keys,
            Self::Passphrase(_) => EncryptionKind::Passphrase,
            Self::Plain => EncryptionKind::Plain,
        }
    }

    /// Calls `fill` with a writer that encrypts.
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
            Self::Passphrase(passphrase) => {
                let mut recipient = age::scrypt::Recipient::new(text_of(passphrase)?);
                recipient.set_work_factor(WORK_FACTOR);
                age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
                    .map_err(|error| Error::Key(error.to_string()))?
            }
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
        Some("") | None => Err(Error::Key("the passphrase is empty or not text".to_owned())),
        Some(text) => Ok(SecretString::from(text.to_owned())),
    }
}

/// A reader of the decrypted content. Fails at once for a file that is no backup or cannot be decrypted.
pub fn opened<'a>(name: &Utf8Path, from: impl Read + 'a, opener: &Decryptor) -> Result<Box<dyn Read + 'a>, Error> {
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
        let why = if later { "it is encrypted by a later version of age" } else { "it has no age header" };
        return Err(Error::Foreign { path, why: why.to_owned() });
    }
    let decryptor = age::Decryptor::new_buffered(from).map_err(|error| unsealed(name, error))?;
    let why = |text: &str| Error::Sealed { path: name.to_owned(), why: text.to_owned() };
    let opened = match (opener, decryptor.is_scrypt()) {
        (Decryptor::Nothing, true) => return Err(why("it is encrypted with a passphrase, and none was given")),
        (Decryptor::Nothing, false) => return Err(why("it is encrypted with a key, and none was given")),
        (Decryptor::Keys(_), true) => return Err(why("it is encrypted with a passphrase, not with a key")),
        (Decryptor::Passphrase(_), false) => return Err(why("it is encrypted with a key, not with a passphrase")),
        (Decryptor::Keys(keys), false) => decryptor.decrypt(keys.iter().map(|key| &key.0 as &dyn age::Identity)),
        (Decryptor::Passphrase(passphrase), true) => {
            let mut identity = age::scrypt::Identity::new(text_of(passphrase)?);
            identity.set_max_work_factor(MAX_WORK_FACTOR);
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
            Error::Sealed { path, why: "it is encrypted for another key or passphrase".to_owned() }
        }
        Age::ExcessiveWork { .. } => {
            let why = format!("the work factor of its passphrase is above {MAX_WORK_FACTOR}");
            Error::Sealed { path, why }
        }
        Age::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::Truncated { path, what: "its encryption header is cut off".to_owned() }
        }
        Age::Io(source) if source.kind() != io::ErrorKind::InvalidData => Error::Io { action: "read", path, source },
        other => Error::Damaged { path, what: format!("its encryption header is invalid: {other}") },
    }
}
