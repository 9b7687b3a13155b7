//! The tenant of a request: the credential, `X-Tenant-ID` and the host name must agree.

use std::net::IpAddr;

/// The tenant of keys that were created without one.
pub const DEFAULT: &str = "default";

/// The header that names a tenant.
pub const HEADER: &str = "x-tenant-id";

/// Subdomains that are no tenants.
const NOT_TENANTS: &[&str] = &["www", "api"];

/// Whether a text is a valid tenant id. Ids become names of schemas and directories elsewhere, so other characters are
/// rejected.
pub fn is_tenant_id(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=40).contains(&text.len()) && text.bytes().all(inner) && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// The subdomain of a `Host` that may name a tenant.
///
/// With a base domain, the label before it names the tenant. Without one, it is the first label of a name with three or
/// more labels. It then counts only if that tenant exists, because `staging.example.com` may be just a host.
pub fn subdomain<'h>(host: &'h str, base: Option<&str>) -> Option<&'h str> {
    let name = match host.strip_prefix('[') {
        Some(_) => return None,
        None => host.split(':').next().unwrap_or_default().trim_end_matches('.'),
    };
    if name.parse::<IpAddr>().is_ok() || name.is_empty() {
        return None;
    }
    let label = match base {
        Some(base) => {
            let before = name.len().checked_sub(base.len() + 1)?;
            let (label, rest) = (name.get(..before)?, name.get(before..)?);
            if !rest.strip_prefix('.')?.eq_ignore_ascii_case(base) {
                return None;
            }
            label
        }
        None => {
            let (label, rest) = name.split_once('.')?;
            if !rest.contains('.') {
                return None;
            }
            label
        }
    };
    (!NOT_TENANTS.iter().any(|word| label.eq_ignore_ascii_case(word))).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_is_taken_from_a_non_reserved_subdomain() {
        for (host, base, want) in [
            ("acme.textnlp.example.com", None, Some("acme")),
            ("acme.textnlp.example.com:8443", None, Some("acme")),
            ("www.textnlp.example.com", None, None),
            ("API.textnlp.example.com", None, None),
            ("example.com", None, None),
            ("localhost:8080", None, None),
            ("10.0.0.7:8080", None, None),
            ("127.0.0.1", None, None),
            ("[::1]:8080", None, None),
            ("", None, None),
            ("acme.example.com", Some("example.com"), Some("acme")),
            ("acme.EXAMPLE.com.", Some("example.com"), Some("acme")),
            ("example.com", Some("example.com"), None),
            ("evilexample.com", Some("example.com"), None),
            ("acme.example.org", Some("example.com"), None),
            ("www.example.com", Some("example.com"), None),
            ("ä.b.c", Some("b.c"), Some("ä")),
        ] {
            assert_eq!(subdomain(host, base), want, "{host}");
        }
    }

    #[test]
    fn tenant_ids_are_safe_as_schema_and_directory_names() {
        for id in ["default", "acme", "a-1_b", "7eleven"] {
            assert!(is_tenant_id(id), "{id}");
        }
        for id in ["", "-a", "_a", "Acme", "a.b", "../x", "a b", "a;drop", "ü", &"x".repeat(41), "a/b", "a\0"] {
            assert!(!is_tenant_id(id), "{id}");
        }
    }
}
