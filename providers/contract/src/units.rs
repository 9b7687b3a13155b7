//! Values with units and references to secrets, parsed into types.

use std::fmt;
use std::io::Read as _;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text does not parse: cause and fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {fix}")]
pub struct ParseError {
    /// The cause.
    pub cause: String,
    /// The expected format.
    pub fix: String,
}

fn misread<T>(cause: impl Into<String>, fix: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError { cause: cause.into(), fix: fix.into() })
}

/// Quotes a word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A count with its noun: `1 site`, `3 sites`, `2 addresses`, `2 queries`.
pub fn counted<N: fmt::Display + From<u8> + PartialEq>(count: N, noun: &str) -> String {
    if count == N::from(1) {
        return format!("{count} {noun}");
    }
    match noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u'])) {
        Some(stem) => format!("{count} {stem}ies"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{count} {noun}es"),
        None => format!("{count} {noun}s"),
    }
}

/// Splits off the leading number: `1.5GB` gives 1.5 and `GB`.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

const SIZES: [(&str, u64); 9] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A number of bytes, written with a unit: `10MB`, `8GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as `10MB`";
        let Some((number, unit)) = number_and_unit(text.trim()) else {
            return misread(format!("`{}` is not a size", cut(text)), FIX);
        };
        if unit.is_empty() {
            return misread(format!("the size `{}` has no unit", cut(text)), FIX);
        }
        let Some((_, factor)) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return misread(format!("`{}` is not a unit of size", cut(unit)), FIX);
        };
        let bytes = number * *factor as f64;
        // 2^53: larger floats cannot represent every byte count, and no disk is that large.
        if bytes > 9_007_199_254_740_992.0 {
            return misread(format!("the size `{}` is too large", cut(text)), FIX);
        }
        Ok(Bytes(bytes.round() as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0.is_multiple_of(*factor) && self.0 >= *factor;
        match SIZES.iter().find(fits) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// CPU cores in thousandths, in Kubernetes notation: `2`, `0.5`, `500m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cores(pub u32);

impl FromStr for Cores {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write a number of cores, such as `2`, `0.5` or `500m`";
        let millicores = match number_and_unit(text.trim()) {
            Some((number, "")) => number * 1000.0,
            Some((number, "m")) => number,
            _ => return misread(format!("`{}` is not a number of CPU cores", cut(text)), FIX),
        };
        // No machine has more, and the notation ends at one thousandth.
        if !(1.0..=10_000_000.0).contains(&millicores) {
            return misread(format!("`{}` CPU cores is out of range", cut(text)), FIX);
        }
        Ok(Cores(millicores.round() as u32))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

const TIMES: [(&str, u64); 12] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
    ("days", 86_400_000),
    ("day", 86_400_000),
    ("hours", 3_600_000),
    ("hour", 3_600_000),
    ("minutes", 60_000),
    ("min", 60_000),
    ("seconds", 1_000),
];

/// A duration: seconds as a number, or with a unit: `500ms`, `5s`, `15m`, `1h`, `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// A duration of this many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Whole seconds, rounded up: a limit is never shorter than written.
    pub fn as_seconds(self) -> u64 {
        self.0.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write seconds as a number, or a number and one of ms, s, m, h, d, such as `5m`";
        let Some((number, unit)) = number_and_unit(text.trim()) else {
            return misread(format!("`{}` is not a length of time", cut(text)), FIX);
        };
        let unit = if unit.is_empty() { "s" } else { unit };
        let Some((_, factor)) = TIMES.iter().find(|(name, _)| *name == unit) else {
            return misread(format!("`{}` is not a unit of time", cut(unit)), FIX);
        };
        let millis = number * *factor as f64;
        // About a hundred years.
        if millis > 3.2e12 {
            return misread(format!("`{}` is longer than a hundred years", cut(text)), FIX);
        }
        Ok(Span(Duration::from_millis(millis.round() as u64)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        let fits = |(_, factor): &&(&str, u64)| millis.is_multiple_of(*factor) && millis >= *factor;
        match TIMES[..5].iter().find(fits) {
            Some((unit, factor)) => write!(f, "{}{unit}", millis / factor),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// A rate per second, minute, hour or day: `1000/hour`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The count per period.
    pub count: u64,
    /// The period in seconds.
    pub per_seconds: u64,
}

const PERIODS: [(&str, u64); 4] = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)];

impl FromStr for Rate {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write a whole number, a slash and one of second, minute, hour, day, such as `1000/hour`";
        let parts = text.split_once('/').and_then(|(count, period)| Some((count.trim().parse().ok()?, period.trim())));
        let Some((count, period)) = parts else {
            return misread(format!("`{}` is not a rate", cut(text)), FIX);
        };
        let Some((_, per_seconds)) = PERIODS.iter().find(|(name, _)| *name == period) else {
            return misread(format!("`{}` is not a period of a rate", cut(period)), FIX);
        };
        if count == 0 {
            return misread("a rate of 0 would refuse everything", FIX);
        }
        Ok(Rate { count, per_seconds: *per_seconds })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = PERIODS.iter().find(|(_, s)| *s == self.per_seconds).map_or("second", |(name, _)| name);
        write!(f, "{}/{period}", self.count)
    }
}

/// A time of day in minutes after midnight: `03:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(pub u32);

impl FromStr for TimeOfDay {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = |digits: &str, bound: u32| {
            let is_number = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u32>().ok().filter(|number| is_number && *number < bound)
        };
        let parts = text.split_once(':').and_then(|(hour, minute)| Some((number(hour, 24)?, number(minute, 60)?)));
        match parts {
            Some((hour, minute)) => Ok(Self(hour * 60 + minute)),
            None => misread(format!("`{}` is not a time of day", cut(text)), "write hour and minute, such as `03:00`"),
        }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// A reference to a secret. The environment never holds the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// `secret:env:NAME`: an environment variable of the caller.
    Variable(String),
    /// `secret:file:PATH`: a file with access for its owner only.
    File(String),
    /// `secret:store:NAME`: the environment's own secret store.
    Store(String),
}

impl FromStr for SecretSource {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write `secret:env:NAME` or `secret:file:PATH`, and keep the value there";
        if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            return Self::variable(name);
        }
        let Some(reference) = text.strip_prefix("secret:") else {
            // The text may be the secret itself, so the error does not quote it.
            return misread("this is a secret in plain text", FIX);
        };
        match reference.split_once(':') {
            Some(("env", name)) => Self::variable(name),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            Some(("store", name)) if !name.is_empty() => Ok(Self::Store(name.to_owned())),
            _ => misread("this is not a reference to a secret", FIX),
        }
    }
}

/// Whether a path is a file of the kernel, such as `/proc/self/environ` with all variables of this process.
pub fn is_of_kernel(path: &str) -> bool {
    let path = std::path::Path::new(path);
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_inside = |folder: &str| path.starts_with(folder) || real.starts_with(folder);
    ["/proc", "/sys"].into_iter().any(is_inside) || (is_inside("/dev") && !real.starts_with("/dev/shm"))
}

impl SecretSource {
    /// Reads the secret; `None` if it does not exist or is none: a file of the kernel, or one with control characters. The
    /// caller reads the environment's secret store.
    pub fn read(&self) -> Option<String> {
        const MOST: u64 = 64 << 10;
        let text = match self {
            Self::Variable(name) => std::env::var(name).ok()?,
            Self::File(path) if is_of_kernel(path) => return None,
            Self::File(path) => {
                let mut text = String::new();
                std::io::Read::take(std::fs::File::open(path).ok()?, MOST).read_to_string(&mut text).ok()?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            Self::Store(_) => return None,
        };
        let is_text = |c: char| !c.is_control() || "\t\n\r".contains(c);
        Some(text).filter(|text| !text.is_empty() && text.chars().all(is_text))
    }

    fn variable(name: &str) -> Result<Self, ParseError> {
        if is_variable(name) {
            return Ok(Self::Variable(name.to_owned()));
        }
        misread("this is not the name of a variable", "use letters, digits and underscores, a letter first")
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "secret:env:{name}"),
            Self::File(path) => write!(f, "secret:file:{path}"),
            Self::Store(name) => write!(f, "secret:store:{name}"),
        }
    }
}

/// The address of a database or cache: a reference to a secret, or a URL without a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlSource {
    /// The whole address is secret.
    Secret(SecretSource),
    /// A URL without a password.
    Url(String),
}

impl UrlSource {
    /// Reads the address; `None` if it is a secret that does not exist.
    pub fn read(&self) -> Option<String> {
        match self {
            Self::Secret(secret) => secret.read(),
            Self::Url(url) => Some(url.clone()),
        }
    }
}

impl FromStr for UrlSource {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const FIX: &str = "write `secret:env:NAME`, with the whole address in the variable";
        if text.starts_with("secret:") || text.starts_with("${") {
            return text.parse().map(Self::Secret);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return misread("this is neither a URL nor a reference to a secret", FIX);
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let names_password = query.split(['&', '#']).any(|pair| pair.to_ascii_lowercase().starts_with("password="));
        if names_password || authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return misread("this URL contains a password in plain text", FIX);
        }
        let plain = |c: char| c.is_ascii_graphic();
        if scheme.is_empty()
            || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
            || !rest.chars().all(plain)
        {
            return misread("this is not a URL", FIX);
        }
        Ok(Self::Url(text.to_owned()))
    }
}

impl fmt::Display for UrlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(secret) => secret.fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Whether a text is a valid name of an environment variable.
pub fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.as_bytes()[0].is_ascii_digit()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The start of an untrusted text, for a message.
pub fn cut(text: &str) -> String {
    const MOST: usize = 60;
    let shown: String = text.chars().take(MOST).map(|c| if c.is_control() { '·' } else { c }).collect();
    if text.chars().count() > MOST { format!("{shown}…") } else { shown }
}

/// Implements Serde and JSON Schema for a type with a text form. `number`: a bare number is accepted too.
macro_rules! written_as_text {
    ($type:ident, $format:literal, $number:literal, $doc:literal, $example:literal) => {
        impl $type {
            /// The `format` of the schema.
            pub const FORMAT: &'static str = $format;
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match serde_json::Value::deserialize(deserializer)? {
                    serde_json::Value::String(text) => text,
                    serde_json::Value::Number(number) if $number => number.to_string(),
                    other => return Err(de::Error::custom(format!("{other} is not {}", $doc))),
                };
                text.parse().map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                if $number {
                    json_schema!({"type": ["string", "number"], "format": $format, "examples": [$example]})
                } else {
                    json_schema!({"type": "string", "format": $format, "examples": [$example]})
                }
            }
        }
    };
}

written_as_text!(Bytes, "textnlp-size", false, "a size", "10MB");
written_as_text!(Cores, "textnlp-cores", true, "a number of CPU cores", "500m");
written_as_text!(Span, "textnlp-time", true, "a length of time", "5m");
written_as_text!(Rate, "textnlp-rate", false, "a rate", "1000/hour");
written_as_text!(TimeOfDay, "textnlp-time-of-day", false, "a time of day", "03:00");
written_as_text!(SecretSource, "textnlp-secret", false, "a reference to a secret", "secret:env:NAME");
written_as_text!(UrlSource, "textnlp-address", false, "an address", "secret:env:DATABASE_URL");

/// Validates a text by the schema's `format`; unknown formats are accepted.
pub fn check_format(format: &str, text: &str) -> Result<(), ParseError> {
    let name = |e: crate::InvalidName| ParseError { cause: e.to_string(), fix: "choose such a name".to_owned() };
    match format {
        Bytes::FORMAT => text.parse::<Bytes>().map(drop),
        Cores::FORMAT => text.parse::<Cores>().map(drop),
        Span::FORMAT => text.parse::<Span>().map(drop),
        Rate::FORMAT => text.parse::<Rate>().map(drop),
        TimeOfDay::FORMAT => text.parse::<TimeOfDay>().map(drop),
        SecretSource::FORMAT => text.parse::<SecretSource>().map(drop),
        UrlSource::FORMAT => text.parse::<UrlSource>().map(drop),
        "textnlp-environment-name" => crate::EnvironmentName::new(text).map(drop).map_err(name),
        "textnlp-label" => crate::SiteName::new(text).map(drop).map_err(|_| ParseError {
            cause: format!("`{}` is not a valid name", cut(text)),
            fix: "use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Whether a field of this format holds a secret or may hold one.
pub fn is_secret_format(format: &str) -> bool {
    format == SecretSource::FORMAT || format == UrlSource::FORMAT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_and_binary_files_are_no_secrets() {
        let dir = std::env::temp_dir().join(format!("textnlp-units-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let link = dir.join("link");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("/proc/self/environ", &link).unwrap();
        let link = link.to_str().unwrap();
        for path in [
            "/proc/self/environ",
            "/proc/self/root/../proc/self/environ",
            "/dev/stdin",
            "/sys/kernel/uevent_seqnum",
            link,
        ] {
            assert!(is_of_kernel(path), "{path}");
            assert_eq!(SecretSource::File(path.to_owned()).read(), None, "{path}");
        }
        let file = dir.join("file");
        for (content, expected) in
            [(&b"one\n"[..], Some("one")), (b"a=1\0b=2", None), (b"-----\nkey\n-----\n", Some("-----\nkey\n-----"))]
        {
            std::fs::write(&file, content).unwrap();
            assert_eq!(SecretSource::File(file.to_str().unwrap().to_owned()).read().as_deref(), expected);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nouns_follow_their_count() {
        let all = [(1, "site"), (0, "site"), (2, "site"), (2, "address"), (3, "log entry"), (2, "day"), (2, "match")];
        let words = all.map(|(count, noun)| counted(count, noun));
        assert_eq!(words, ["1 site", "0 sites", "2 sites", "2 addresses", "3 log entries", "2 days", "2 matches"]);
        assert_eq!(counted(1_usize, "address"), "1 address");
    }

    #[test]
    fn cores_are_parsed_like_kubernetes_quantities() {
        for (text, millicores, written) in
            [("2", 2000, "2"), ("0.5", 500, "500m"), ("1500m", 1500, "1500m"), ("4000m", 4000, "4")]
        {
            let cores: Cores = text.parse().unwrap();
            assert_eq!((cores, cores.to_string()), (Cores(millicores), written.to_owned()), "{text}");
        }
        for text in ["", "two", "2x", "-1", "0", "0.0001", "20000"] {
            assert!(text.parse::<Cores>().is_err(), "{text}");
        }
    }

    #[test]
    fn byte_sizes_are_parsed_and_written_with_their_unit() {
        for (text, bytes, written) in [
            ("10MB", 10_000_000, "10MB"),
            ("1.5 GB", 1_500_000_000, "1500MB"),
            ("8GiB", 8 << 30, "8GiB"),
            ("7b", 7, "7B"),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string(), written);
        }
        for bad in ["10", "MB", "10 monkeys", "-1MB", "1.2.3MB", "NaNMB", "99999999999999999999999TB", ""] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_and_rates_are_parsed() {
        assert_eq!("300".parse(), Ok(Span::seconds(300)));
        assert_eq!("15min".parse(), Ok(Span::seconds(900)));
        assert_eq!(Span(Duration::from_millis(1500)).to_string(), "1500ms");
        assert_eq!(Span(Duration::from_millis(1500)).as_seconds(), 2);
        assert_eq!("1000/hour".parse(), Ok(Rate { count: 1000, per_seconds: 3600 }));
        for bad in ["10MB", "5 fortnights", "-1s", "1e99", "999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["1000", "1000/fortnight", "0/hour", "-1/hour", "1.5/hour"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_day_have_two_digits_each() {
        for (text, minutes) in [("00:00", 0), ("03:30", 210), ("23:59", 1_439)] {
            let time: TimeOfDay = text.parse().unwrap();
            assert_eq!((time, time.to_string().as_str()), (TimeOfDay(minutes), text));
        }
        for bad in ["3:00", "24:00", "03:60", "03", "03:00:00", "+3:00", "3am", ""] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    #[test]
    fn plaintext_secret_is_refused_and_never_repeated() {
        let error = "hunter2".parse::<SecretSource>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!("${DB_PASSWORD}".parse(), Ok(SecretSource::Variable("DB_PASSWORD".to_owned())));
        for bad in ["secret:env:", "secret:env:A B", "secret:file:", "secret:vault:x", "${}", "${A}${B}"] {
            assert!(bad.parse::<SecretSource>().is_err(), "{bad}");
        }
        let error = "postgresql://bob:hunter2@db/x".parse::<UrlSource>().unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!("postgresql://bob@db:5432/x".parse::<UrlSource>().is_ok());
        for hidden in ["?password=hunter2", "?sslmode=require&Password=hunter2"] {
            let error = format!("postgresql://bob@db/x{hidden}").parse::<UrlSource>().unwrap_err().to_string();
            assert!(error.contains("password in plain text") && !error.contains("hunter2"), "{error}");
        }
    }
}
