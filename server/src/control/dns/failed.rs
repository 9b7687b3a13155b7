//! Why the name is not as it should be, and what to do about it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::settings::DnsConfig;
use super::tsig::FUDGE;

/// What became of a query or an update.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("read the key's secret: {0}")]
    Secret(String),
    #[error("the name server does not answer: {0}")]
    Silent(String),
    #[error("what the name server sent cannot be used: {0}")]
    Malformed(&'static str),
    #[error("the name server's answer ({}) is not signed, and nothing is believed that is not", rcode_text(*.rcode))]
    Unsigned { rcode: u8 },
    #[error("the name server's answer has a signature that this key did not make")]
    Forged,
    #[error("BADKEY: the name server knows no such key")]
    BadKey,
    #[error("BADSIG: the name server has another secret for this key")]
    BadSignature,
    #[error("BADTIME: the name server's clock says {}, the one here {}", clock(*.server), clock(*.here))]
    Clock { server: u64, here: u64 },
    #[error("the name server refused the signature with error {error}")]
    Signature { error: u16 },
    #[error("the name server refused the {what}: {}", rcode_text(*.rcode))]
    Refused { what: &'static str, rcode: u8 },
    #[error("the name server does not speak for the zone: its answers come from elsewhere")]
    NotAuthoritative,
    #[error("the name is an alias (CNAME) and can have no addresses")]
    Alias,
    #[error("the name has other addresses than it was given: {}", listed(.there))]
    Different { there: BTreeSet<IpAddr> },
}

pub(super) const SERVFAIL: u8 = 2;
pub(super) const NXDOMAIN: u8 = 3;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;
const NOTAUTH: u8 = 9;
const NOTZONE: u8 = 10;

impl Failed {
    /// A word for programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Secret(_) => "secret",
            Self::Silent(_) => "unanswered",
            Self::Malformed(_) => "malformed",
            Self::Unsigned { .. } => "unsigned",
            Self::Forged => "forged",
            Self::BadKey => "badkey",
            Self::BadSignature => "badsig",
            Self::Clock { .. } => "badtime",
            Self::Signature { .. } => "bad_signature",
            Self::Refused { rcode: SERVFAIL, .. } => "servfail",
            Self::Refused { rcode: NOTIMP, .. } => "notimp",
            Self::Refused { rcode: REFUSED, .. } => "refused",
            Self::Refused { rcode: NOTAUTH, .. } => "notauth",
            Self::Refused { rcode: NOTZONE, .. } => "notzone",
            Self::Refused { .. } => "rcode",
            Self::NotAuthoritative => "not_authoritative",
            Self::Alias => "alias",
            Self::Different { .. } => "different",
        }
    }

    /// What a person does about it.
    pub(super) fn hint(&self, config: &DnsConfig) -> String {
        let DnsConfig { server, zone, name, key, .. } = config;
        let (key_name, algorithm) = (&key.name, key.algorithm.as_str());
        match self {
            Self::Secret(_) => format!("put the secret in base64 into {} and `chmod 600` it", key.secret_file),
            Self::Silent(_) => {
                format!("start the name server, or let TCP and UDP through from the witness to {server}")
            }
            Self::Malformed(_) => {
                format!("look at what listens on {server}: it should be the zone's primary name server")
            }
            Self::Unsigned { .. } | Self::Signature { .. } => {
                format!("look at the name server's log, and give it the key `{key_name}` ({algorithm})")
            }
            Self::Forged => format!("look for what stands between the witness and {server} and changes answers"),
            Self::BadKey => {
                format!(
                    "give the name server a key named `{key_name}` with the algorithm {algorithm}, or change `dns.key` here"
                )
            }
            Self::BadSignature => {
                format!("put the secret that the name server has for `{key_name}` into {}", key.secret_file)
            }
            Self::Clock { .. } => {
                format!("set both clocks, by NTP for instance: they may be {FUDGE} s apart at most")
            }
            Self::Refused { rcode: SERVFAIL, .. } => {
                "look at the name server's log: it may be unable to write the zone's journal".to_owned()
            }
            Self::Refused { rcode: NOTIMP, .. } => {
                format!("the server at {server} knows no dynamic updates: give the address of one that does")
            }
            Self::Refused { rcode: REFUSED, what: "update" } => {
                format!("allow it at the name server: `update-policy {{ grant {key_name} name {name}. A AAAA; }};`")
            }
            Self::Refused { rcode: REFUSED, .. } => {
                format!("let the witness ask there: `allow-query {{ key {key_name}; }};` or its address")
            }
            Self::Refused { rcode: NOTAUTH | NOTZONE, .. } | Self::NotAuthoritative => {
                format!(
                    "give `dns.server` the zone's primary name server, and `dns.zone` the zone that holds {name}; here it is {zone}"
                )
            }
            Self::Refused { .. } => "look at the name server's log".to_owned(),
            Self::Alias => format!("remove the CNAME at {name}, or give `dns.name` another name"),
            Self::Different { .. } => {
                format!("look for who else changes {name}; give `dns.server` the primary name server and not a copy")
            }
        }
    }

    /// Whether the name is known to be wrong.
    pub(super) fn tells_difference(&self) -> bool {
        matches!(self, Self::Alias | Self::Different { .. })
    }
}

fn rcode_text(rcode: u8) -> String {
    let (name, meaning) = match rcode {
        0 => ("NOERROR", "it says that all is well"),
        1 => ("FORMERR", "it does not understand the request"),
        SERVFAIL => ("SERVFAIL", "something failed inside it"),
        NXDOMAIN => ("NXDOMAIN", "it knows no such name"),
        NOTIMP => ("NOTIMP", "it does not do that"),
        REFUSED => ("REFUSED", "its rules do not allow it"),
        NOTAUTH => ("NOTAUTH", "it is not the zone's primary name server"),
        NOTZONE => ("NOTZONE", "the name is not in the zone"),
        _ => return format!("code {rcode}"),
    };
    format!("{name}, {meaning}")
}

fn clock(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    at.map_or_else(|| format!("{seconds} s since 1970"), |at| at.to_string())
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
