//! Destinations of alerts, validated before anything is sent.

use std::fmt;

use reqwest::Url;
use textnlp_net::network::is_loopback;
use textnlp_provider::Secret;

/// Where an alert is sent. Never printed as a whole: the URL may hold a password or a token.
#[derive(Clone)]
pub enum Destination {
    /// A webhook: a POST of JSON.
    Webhook(Url),
    /// A mail by SMTP.
    Mail(Box<Mail>),
}

/// A mail server with credentials, sender and recipients.
#[derive(Clone)]
pub struct Mail {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: MailTls,
    pub(super) login: Option<(String, Secret)>,
    /// From the URL; otherwise the first that the server offers.
    pub(super) mechanism: Option<Mechanism>,
    pub(super) from: String,
    pub(super) to: Vec<String>,
}

/// TLS of a connection to a mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MailTls {
    /// Implicit TLS, from the first byte.
    Implicit,
    /// After `STARTTLS`, which the server must support.
    Start,
    /// No TLS; for a server on this machine only.
    Off,
}

/// The SASL mechanism of the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    /// `PLAIN`, RFC 4616.
    Plain,
    /// `LOGIN`: user and password in two prompts. Some servers offer only this.
    Login,
    /// `XOAUTH2`: the password is an OAuth access token,
    /// <https://developers.google.com/workspace/gmail/imap/xoauth2-protocol>.
    Xoauth2,
}

impl Mechanism {
    /// By preference.
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Login, Self::Xoauth2];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::Xoauth2 => "XOAUTH2",
        }
    }
}

/// Why a URL is not a valid destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDestination(pub &'static str);

/// More recipients need a mailing list.
const RECIPIENTS: usize = 20;

impl Destination {
    /// Parses a URL.
    pub fn parse(text: &str) -> Result<Self, InvalidDestination> {
        let url = Url::parse(text.trim())
            .map_err(|_| InvalidDestination("it is not an address such as `https://…` or `smtps://…`"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(InvalidDestination("it has no host"));
        }
        let is_here = is_loopback(&host);
        match url.scheme() {
            "https" => Ok(Self::Webhook(url)),
            "http" if is_here => Ok(Self::Webhook(url)),
            "http" => {
                Err(InvalidDestination("without TLS only an address of this machine is allowed: write `https://…`"))
            }
            "smtps" => Self::mail(&url, host, MailTls::Implicit, 465),
            "smtp" if is_here => Self::mail(&url, host, MailTls::Off, 25),
            "smtp" => Self::mail(&url, host, MailTls::Start, 587),
            _ => Err(InvalidDestination("its scheme is not `https`, `smtps` or `smtp`")),
        }
    }

    /// Whether the path or query of a webhook may hold a token. On this machine no token is needed.
    pub fn may_hold_token(&self) -> bool {
        matches!(self, Self::Webhook(url) if url.scheme() == "https" && (url.path() != "/" || url.query().is_some()))
    }

    fn mail(url: &Url, host: String, tls: MailTls, port: u16) -> Result<Self, InvalidDestination> {
        let (mut from, mut to, mut mechanism) = (None, Vec::new(), None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "from" => from = Some(value.into_owned()),
                "to" => to.extend(value.split(',').map(|to| to.trim().to_owned())),
                "auth" => {
                    let known = Mechanism::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(&value));
                    mechanism =
                        Some(known.ok_or(InvalidDestination("its `auth=` is not `plain`, `login` or `xoauth2`"))?);
                }
                _ => return Err(InvalidDestination("only `from=`, `to=` and `auth=` are allowed after `?`")),
            }
        }
        let Some(from) = from else { return Err(InvalidDestination("the sender is missing: add `?from=…`")) };
        if to.is_empty() || to.len() > RECIPIENTS {
            return Err(InvalidDestination("the recipients are missing or too many: add `&to=…`"));
        }
        if to.iter().chain([&from]).any(|address| !is_mail_address(address)) {
            return Err(InvalidDestination("a mail address in it is invalid"));
        }
        let decoded =
            |text: &str| percent_decoded(text).ok_or(InvalidDestination("its name or password is wrongly encoded"));
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => {
                Some((decoded(user)?, Secret::new(decoded(password)?.into_bytes())))
            }
            _ => return Err(InvalidDestination("it has a name without a password, or a password without a name")),
        };
        if mechanism.is_some() && login.is_none() {
            return Err(InvalidDestination("it sets `auth=` without a name and a password"));
        }
        let port = url.port().unwrap_or(port);
        Ok(Self::Mail(Box::new(Mail { host, port, tls, login, mechanism, from, to })))
    }
}

impl fmt::Display for Destination {
    /// Only the host: a URL may hold a secret.
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

/// The host and the port of a URL.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether the address can be used in an SMTP envelope without quoting.
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
        let shown = match Destination::parse(text) {
            Ok(destination) => destination.to_string(),
            Err(why) => format!("refused: {why}"),
        };
        assert!(shown.contains(expected), "{text}: {shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn alert_addresses_are_parsed_and_never_shown_in_full() {
        check("https://hooks.example.com/services/hunter2?token=hunter2", "webhook at hooks.example.com");
        check("https://user:hunter2@hooks.example.com:8443/", "webhook at hooks.example.com:8443");
        check("http://127.0.0.1:8080/hunter2", "webhook at 127.0.0.1:8080");
        check("http://[::1]:8080/", "webhook at [::1]:8080");
        check("http://hooks.example.com/hunter2", "refused: without TLS only an address of this machine");
        check(
            "smtps://ada:hunter2@mail.example.com?from=a@b.c&to=d@e.f,g@h.i",
            "mail to d@e.f, g@h.i through mail.example.com:465",
        );
        check("smtp://mail.example.com?from=a@b.c&to=d@e.f", "mail.example.com:587");
        check("smtp://localhost:2525?from=a@b.c&to=d@e.f", "localhost:2525");
        check("smtps://ada@mail.example.com?from=a@b.c&to=d@e.f", "refused: it has a name without a password");
        check("smtps://mail.example.com?to=d@e.f", "refused: the sender is missing");
        check("smtps://mail.example.com?from=a@b.c", "refused: the recipients are missing");
        check(
            "smtps://mail.example.com?from=a@b.c&to=d@e.f%0d%0aBcc:x@y.z",
            "refused: a mail address in it is invalid",
        );
        check("smtps://mail.example.com?from=a@b.c&to=d@e.f&cc=x", "refused: only `from=`");
        check("smtps://ada:hunter2@h?from=a@b.c&to=d@e.f&auth=XOAUTH2", "mail to d@e.f through h:465");
        check("smtps://ada:hunter2@h?from=a@b.c&to=d@e.f&auth=cram-md5", "refused: its `auth=` is not");
        check("smtps://h?from=a@b.c&to=d@e.f&auth=login", "refused: it sets `auth=`");
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
