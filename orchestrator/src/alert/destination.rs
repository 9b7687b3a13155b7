//! Where a message goes, checked before anything is sent.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;
use textnlp_provider::Secret;

/// Where a message goes. It is never printed as a whole: an address may hold a password or a token.
#[derive(Clone)]
pub enum Destination {
    /// A POST of JSON.
    Webhook(Url),
    /// A mail.
    Mail(Box<Mail>),
}

/// A mail server, and who writes to whom.
#[derive(Clone)]
pub struct Mail {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: MailTls,
    pub(super) login: Option<(String, Secret)>,
    pub(super) from: String,
    pub(super) to: Vec<String>,
}

/// How a connection to a mail server is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MailTls {
    /// From the first byte.
    Implicit,
    /// After `STARTTLS`, which the server must offer.
    Start,
    /// Not at all: on this machine itself.
    Off,
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub &'static str);

/// Somebody who writes to more is a mailing list.
const RECIPIENTS: usize = 20;

impl Destination {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        let url =
            Url::parse(text.trim()).map_err(|_| Unusable("it is no address such as `https://…` or `smtps://…`"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(Unusable("it names no host"));
        }
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match url.scheme() {
            "https" => Ok(Self::Webhook(url)),
            "http" if is_here => Ok(Self::Webhook(url)),
            "http" => Err(Unusable("without TLS only this machine itself is talked to: write `https://…`")),
            "smtps" => Self::mail(&url, host, MailTls::Implicit, 465),
            "smtp" if is_here => Self::mail(&url, host, MailTls::Off, 25),
            "smtp" => Self::mail(&url, host, MailTls::Start, 587),
            _ => Err(Unusable("its kind is none of `https`, `smtps` and `smtp`")),
        }
    }

    fn mail(url: &Url, host: String, tls: MailTls, port: u16) -> Result<Self, Unusable> {
        let (mut from, mut to) = (None, Vec::new());
        for (name, value) in url.query_pairs() {
            match &*name {
                "from" => from = Some(value.into_owned()),
                "to" => to.extend(value.split(',').map(|to| to.trim().to_owned())),
                _ => return Err(Unusable("behind its `?` stand `from=` and `to=`, and nothing else")),
            }
        }
        let Some(from) = from else { return Err(Unusable("it does not say from whom: add `?from=…`")) };
        if to.is_empty() || to.len() > RECIPIENTS {
            return Err(Unusable("it does not say to whom, or to too many: add `&to=…`"));
        }
        if to.iter().chain([&from]).any(|address| !is_mail_address(address)) {
            return Err(Unusable("a mail address in it is none"));
        }
        let decoded = |text: &str| percent_decoded(text).ok_or(Unusable("its name or password is wrongly encoded"));
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => {
                Some((decoded(user)?, Secret::new(decoded(password)?.into_bytes())))
            }
            _ => return Err(Unusable("it has a name without a password, or a password without a name")),
        };
        let port = url.port().unwrap_or(port);
        Ok(Self::Mail(Box::new(Mail { host, port, tls, login, from, to })))
    }
}

impl fmt::Display for Destination {
    /// Only who is asked, never how.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(url) => write!(f, "webhook at {}", authority(url)),
            Self::Mail(mail) => write!(f, "mail to {} through {}", mail.to.join(", "), mail.server()),
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Mail {
    pub(super) fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The host and the port of an address.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What may stand in an envelope as it is.
fn is_mail_address(text: &str) -> bool {
    let plain =
        text.len() <= 254 && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>()[],;:\\\"".contains(&byte));
    let halves =
        text.split_once('@').filter(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    plain && halves.is_some()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let said = match Destination::parse(text) {
            Ok(destination) => destination.to_string(),
            Err(why) => format!("refused: {why}"),
        };
        assert!(said.contains(expected), "{text}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn addresses_are_read_and_never_shown_whole() {
        check("https://hooks.example.com/services/hunter2?token=hunter2", "webhook at hooks.example.com");
        check("https://user:hunter2@hooks.example.com:8443/", "webhook at hooks.example.com:8443");
        check("http://127.0.0.1:8080/hunter2", "webhook at 127.0.0.1:8080");
        check("http://[::1]:8080/", "webhook at [::1]:8080");
        check("http://hooks.example.com/hunter2", "refused: without TLS only this machine");
        check(
            "smtps://ada:hunter2@mail.example.com?from=a@b.c&to=d@e.f,g@h.i",
            "mail to d@e.f, g@h.i through mail.example.com:465",
        );
        check("smtp://mail.example.com?from=a@b.c&to=d@e.f", "mail.example.com:587");
        check("smtp://localhost:2525?from=a@b.c&to=d@e.f", "localhost:2525");
        check("smtps://ada@mail.example.com?from=a@b.c&to=d@e.f", "refused: it has a name without a password");
        check("smtps://mail.example.com?to=d@e.f", "refused: it does not say from whom");
        check("smtps://mail.example.com?from=a@b.c", "refused: it does not say to whom");
        check("smtps://mail.example.com?from=a@b.c&to=d@e.f%0d%0aBcc:x@y.z", "refused: a mail address in it is none");
        check("smtps://mail.example.com?from=a@b.c&to=d@e.f&cc=x", "refused: behind its `?`");
        for bad in [
            "",
            "ops@example.com",
            "ftp://example.com/",
            "https://",
            "file:///etc/passwd",
            "smtps://?from=a@b.c&to=d@e.f",
        ] {
            check(bad, "refused");
        }
        let Ok(Destination::Mail(mail)) = Destination::parse("smtps://a%40b:p%3Aw%25@h?from=a@b.c&to=d@e.f") else {
            panic!()
        };
        let (user, password) = mail.login.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("a@b", &b"p:w%"[..]));
        assert_eq!((percent_decoded("%4"), percent_decoded("%zz"), percent_decoded("%00")), (None, None, None));
    }
}
