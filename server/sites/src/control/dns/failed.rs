//! Why the records are not as wanted, and how to fix it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::settings::DnsConfig;
use super::tsig::FUDGE;

/// Why a query or an update failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("read the key's secret: {0}")]
    Secret(String),
    #[error("the name server does not answer: {0}")]
    Silent(String),
    #[error("what the name server sent cannot be used: {0}")]
    Malformed(&'static str),
    #[error("the name server's answer ({}) is not signed, and unsigned answers are not trusted", rcode_text(*.rcode))]
    Unsigned { rcode: u8 },
    #[error("the name server's answer has a signature of another key")]
    Forged,
    #[error("BADKEY: the name server does not know this key")]
    BadKey,
    #[error("BADSIG: the name server has another secret for this key")]
    BadSignature,
    #[error("BADTIME: the name server's clock says {}, the one here {}", clock(*.server), clock(*.here))]
    Clock { server: u64, here: u64 },
    #[error("the name server refused the signature with error {error}")]
    Signature { error: u16 },
    #[error("the name server refused the {what}: {}", rcode_text(*.rcode))]
    Refused { what: &'static str, rcode: u8 },
    #[error("the name server is not authoritative for the zone")]
    NotAuthoritative,
    #[error("the name is an alias (CNAME) and can have no addresses")]
    Alias,
    #[error("the name has other addresses than those that were set: {}", listed(.there))]
    Different { there: BTreeSet<IpAddr> },
}

pub(super) const SERVFAIL: u8 = 2;
pub(super) const NXDOMAIN: u8 = 3;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;
const NOTAUTH: u8 = 9;
const NOTZONE: u8 = 10;

impl Failed {
    /// The machine-readable error code.
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

    /// The hint for the operator.
    pub(super) fn hint(&self, config: &DnsConfig) -> String {
        let DnsConfig { server, zone, name, key, .. } = config;
        let (key_name, algorithm) = (&key.name, key.algorithm.as_str());
        match self {
            Self::Secret(_) => format!("put the secret in base64 into {} and `chmod 600` it", key.secret_file),
            Self::Silent(_) => {
                format!("start the name server, or allow TCP and UDP from the witness to {server}")
            }
            Self::Malformed(_) => {
                format!("check what listens on {server}: it must be the zone's primary name server")
            }
            Self::Unsigned { .. } | Self::Signature { .. } => {
                format!("check the name server's log, and add the key `{key_name}` ({algorithm}) to it")
            }
            Self::Forged => format!("check for a device between the witness and {server} that changes answers"),
            Self::BadKey => {
                format!(
                    "add a key named `{key_name}` with the algorithm {algorithm} to the name server, or change `dns.key`"
                )
            }
            Self::BadSignature => {
                format!("put the secret that the name server has for `{key_name}` into {}", key.secret_file)
            }
            Self::Clock { .. } => {
                format!("synchronize both clocks, for example with NTP: they may differ by {FUDGE} s at most")
            }
            Self::Refused { rcode: SERVFAIL, .. } => {
                "check the name server's log: it may be unable to write the zone's journal".to_owned()
            }
            Self::Refused { rcode: NOTIMP, .. } => {
                format!("the server at {server} does not support dynamic updates: give the address of one that does")
            }
            Self::Refused { rcode: REFUSED, what: "update" } => {
                format!("allow it at the name server: `update-policy {{ grant {key_name} name {name}. A AAAA; }};`")
            }
            Self::Refused { rcode: REFUSED, .. } => {
                format!("allow queries of the witness: `allow-query {{ key {key_name}; }};` or its address")
            }
            Self::Refused { rcode: NOTAUTH | NOTZONE, .. } | Self::NotAuthoritative => {
                format!(
                    "set `dns.server` to the zone's primary name server, and `dns.zone` to the zone of {name}; it is {zone} now"
                )
            }
            Self::Refused { .. } => "check the name server's log".to_owned(),
            Self::Alias => format!("remove the CNAME at {name}, or set `dns.name` to another name"),
            Self::Different { .. } => {
                format!(
                    "find what else changes {name}; set `dns.server` to the primary name server, not to a secondary"
                )
            }
        }
    }

    /// Whether the records are known to differ.
    pub(super) fn tells_difference(&self) -> bool {
        matches!(self, Self::Alias | Self::Different { .. })
    }
}

fn rcode_text(rcode: u8) -> String {
    let (name, meaning) = match rcode {
        0 => ("NOERROR", "it reports no error"),
        1 => ("FORMERR", "it does not understand the request"),
        SERVFAIL => ("SERVFAIL", "something failed inside it"),
        NXDOMAIN => ("NXDOMAIN", "it does not know the name"),
        NOTIMP => ("NOTIMP", "it does not support that"),
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
