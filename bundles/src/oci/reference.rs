//! Image references: `postgres:15`, `registry.example.com:5000/a/b@sha256:…`.

use std::fmt;
use std::str::FromStr;

use textnlp_models::Digest;

use super::error::{Error, Result};

/// A registry, a repository in it, and a tag or digest or both. With both, the digest decides, and the tag is
/// informational.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and port: `docker.io`, `127.0.0.1:5000`.
    pub host: String,
    /// `library/postgres`.
    pub repository: String,
    /// `15`.
    pub tag: Option<String>,
    /// The digest of the image.
    pub digest: Option<Digest>,
}

/// The registry of a name without a host.
const PUBLIC: &str = "docker.io";

impl Reference {
    /// The name in the layout: with host and tag, without digest.
    pub fn name(&self) -> String {
        let tag = self.tag.as_deref().unwrap_or("latest");
        match (&self.tag, &self.digest) {
            (None, Some(digest)) => format!("{}/{}:sha256-{}", self.host, self.repository, &digest.hex()[..12]),
            _ => format!("{}/{}:{tag}", self.host, self.repository),
        }
    }

    /// The same image by this digest.
    pub fn pin(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let no = |why: &str| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(Error::malformed(format!("the image `{shown}`"), why))
        };
        if text.len() > 512 {
            return no("it is longer than 512 characters");
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) if digest.starts_with("sha256:") => match digest.parse() {
                Ok(digest) => (rest, Some(digest)),
                Err(_) => return no("`sha256:` and 64 hexadecimal digits must follow the `@`"),
            },
            Some(_) => return no("`sha256:` and 64 hexadecimal digits must follow the `@`"),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (rest, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return no("its tag is invalid");
        }
        // The first part is a host if it could not be a repository's.
        let (host, repository) = match rest.split_once('/') {
            Some((first, others)) if first.contains(['.', ':']) || first == "localhost" => (first, others.to_owned()),
            Some(_) => (PUBLIC, rest.to_owned()),
            None => (PUBLIC, format!("library/{rest}")),
        };
        let host = if host == "index.docker.io" { PUBLIC } else { host };
        if !is_host(host) {
            return no("its host is invalid");
        }
        if !is_repository(&repository) {
            return no("a repository has lower-case letters, digits, and `.`, `_`, `-`, `/` between them");
        }
        Ok(Reference { host: host.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

fn is_host(text: &str) -> bool {
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some((_, _)) if text.starts_with('[') && text.ends_with(']') => text,
        Some(_) => return false,
        None => text,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(six) => six.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(plain),
    }
}

/// A tag by the specification.
pub(crate) fn is_tag(text: &str) -> bool {
    let first = text.bytes().next();
    text.len() <= 128
        && first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// A repository name by the specification.
pub(crate) fn is_repository(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        // Separators are between words: one `.`, one or two `_`, any number of `-`.
        bytes.first().is_some_and(|b| word(*b))
            && bytes.last().is_some_and(|b| word(*b))
            && bytes.iter().all(|b| word(*b) || b"._-".contains(b))
            && !["..", "___", "._", "_.", "-.", ".-", "_-", "-_"].iter().any(|no| part.contains(no))
    };
    !text.is_empty() && text.len() <= 255 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_parsed_as_container_engines_do() {
        let digest = Digest::of(b"x");
        for (text, expected) in [
            ("postgres", "docker.io/library/postgres".to_owned()),
            ("postgres:15", "docker.io/library/postgres:15".to_owned()),
            ("bitnami/redis:7", "docker.io/bitnami/redis:7".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b".to_owned()),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x".to_owned()),
            ("[::1]:5000/x:t", "[::1]:5000/x:t".to_owned()),
            ("localhost/x", "localhost/x".to_owned()),
            (&format!("ghcr.io/a/b_c/d--e:1.0@{digest}"), format!("ghcr.io/a/b_c/d--e:1.0@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected, "{text}");
        }
        let pinned: Reference = format!("a.b/c@{digest}").parse().unwrap();
        assert_eq!(pinned.name(), format!("a.b/c:sha256-{}", &digest.hex()[..12]));
        assert_eq!("redis:7".parse::<Reference>().unwrap().name(), "docker.io/library/redis:7");
    }

    #[test]
    fn malformed_image_references_are_refused() {
        for text in [
            "",
            "/",
            "a//b",
            "../../etc",
            "a/../b",
            "A/b",
            "a:",
            "a:-t",
            "a@sha256:12",
            "a@md5:00",
            "user@host/x",
            "h:99999999/x",
            "http://a/b",
            "a b",
            "a\n",
            "x.y:p/z",
            "a.b/_c",
            "a.b/c?d=e",
            "a.b/c#d",
            "[zz]/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
