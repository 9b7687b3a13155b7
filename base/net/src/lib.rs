//! The network layer that all crates share. It has no domain words and imports no other crate of this workspace.
//!
//! | module | feature | what it decides |
//! |---|---|---|
//! | [`retry`] | – | which failures are retried, how often, and after which pause |
//! | [`trust`] | `client` | which certificate authorities a client trusts |
//! | [`client`] | `client` | proxies, timeouts, redirects, credentials and the size of bodies |
//! | [`listen`] | `listen` | how many connections a listener serves, and how it stops |
//! | [`network`] | – | which addresses a network has |
//! | [`redis`] | `client` | which addresses of a Redis are accepted |
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "listen")]
pub mod listen;
pub mod network;
#[cfg(feature = "client")]
pub mod redis;
pub mod retry;
#[cfg(feature = "client")]
pub mod trust;

/// An error with its causes in one line. A cause that the line already contains is left out: many libraries repeat the cause in their
/// own message.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Layer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn error_chain_joins_causes_and_drops_repeated_ones() {
        let layers = |texts: &[&'static str]| {
            texts.iter().rev().fold(None, |inner, &text| Some(Box::new(Layer(text, inner)))).unwrap()
        };
        let line = |texts| error_chain(&*layers(texts));
        assert_eq!(line(&["send the request", "connect", "refused"]), "send the request: connect: refused");
        assert_eq!(line(&["connect: refused", "refused"]), "connect: refused");
        assert_eq!(line(&["alone"]), "alone");
    }
}
