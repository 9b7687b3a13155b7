//! Addresses of listeners.

use std::fmt;
use std::str::FromStr;

use camino::Utf8PathBuf;

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address, `host:port`; port 0 picks a free one.
    Tcp(String),
    /// A Unix socket, `unix:/path`.
    Unix(Utf8PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // The kernel's sockaddr_un holds 108 bytes with the closing zero.
            if path.is_empty() || path.len() > 107 {
                return Err(format!("has a socket path of {} bytes; 1 to 107 bytes are allowed", path.len()));
            }
            return Ok(Self::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(text.to_owned())),
            _ => Err(format!("is not an address: `{text}`; write `unix:/path/to.sock` or `127.0.0.1:8080`")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_unix_paths_or_host_and_port() {
        assert_eq!("unix:/a b/c.sock".parse(), Ok(Address::Unix("/a b/c.sock".into())));
        assert_eq!("127.0.0.1:0".parse(), Ok(Address::Tcp("127.0.0.1:0".into())));
        assert_eq!("[::1]:80".parse(), Ok(Address::Tcp("[::1]:80".into())));
        for text in ["unix:", "localhost", "localhost:99999", ":80", &format!("unix:/{}", "x".repeat(200))] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
