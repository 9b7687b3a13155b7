//! The startup message of a PostgreSQL connection: identifies the client before the server is contacted.
//!
//! The server uses peer authentication for its owner, and behind a proxy the peer is always this process. So the proxy
//! admits only the service and the replicas, which authenticate by password.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::config::{REPLICATION, SERVICE};

/// Maximum size in bytes, as in PostgreSQL itself.
const MAX_MESSAGE_BYTES: usize = 10_000;
/// Protocol version 3.0, and the special request codes in its place.
const VERSION: u32 = 196_608;
const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// The kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientKind {
    /// The service, or the end of one of its statements.
    Service,
    /// A replica.
    Copy,
}

/// A first message that may be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Startup {
    pub(super) who: ClientKind,
    pub(super) bytes: Vec<u8>,
}

/// Reads the message. Encryption is refused: the connection between sites is encrypted already.
pub(super) async fn read(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> io::Result<Startup> {
    // Each kind of encryption may be requested once.
    for _ in 0..3 {
        let length = stream.read_u32().await? as usize;
        if !(8..=MAX_MESSAGE_BYTES).contains(&length) {
            return Err(io::Error::other("it is not a PostgreSQL connection"));
        }
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await?;
        let (code, rest) = body.split_at(4);
        let code = u32::from_be_bytes([code[0], code[1], code[2], code[3]]);
        let who = match code {
            TLS | GSS => {
                stream.write_all(b"N").await?;
                continue;
            }
            CANCEL => Some(ClientKind::Service),
            VERSION => who(rest),
            _ => None,
        };
        let who = who.ok_or_else(|| io::Error::other("only the service and copies may use this socket"))?;
        let mut bytes = (length as u32).to_be_bytes().to_vec();
        bytes.extend(&body);
        return Ok(Startup { who, bytes });
    }
    Err(io::Error::other("it requests encryption repeatedly"))
}

/// Parses NUL-terminated names and values up to an empty name. An ambiguous message yields `None`.
fn who(parameters: &[u8]) -> Option<ClientKind> {
    let mut words = parameters.strip_suffix(&[0, 0])?.split(|byte| *byte == 0);
    let mut user = None;
    while let Some(name) = words.next() {
        let value = words.next()?;
        // An empty name would be the end, for the server.
        if name.is_empty() || (name == b"user" && user.replace(value).is_some()) {
            return None;
        }
    }
    match user? {
        user if user == SERVICE.as_bytes() => Some(ClientKind::Service),
        user if user == REPLICATION.as_bytes() => Some(ClientKind::Copy),
        _ => None,
    }
}

/// An error response of PostgreSQL: SQLSTATE code and message.
pub(super) fn refusal(code: &str, message: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (field, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', message)] {
        fields.push(field);
        fields.extend(text.bytes().filter(|byte| *byte != 0));
        fields.push(0);
    }
    fields.push(0);
    let mut bytes = vec![b'E'];
    bytes.extend((fields.len() as u32 + 4).to_be_bytes());
    bytes.extend(fields);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut bytes = (8 + rest.len() as u32).to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    async fn check(bytes: &[u8], expect: Option<ClientKind>) {
        let (mut client, mut server_end) = tokio::io::duplex(32 << 10);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let read = read(&mut server_end).await.ok();
        assert_eq!(read.as_ref().map(|startup| startup.who), expect, "{}", String::from_utf8_lossy(bytes));
        if let Some(read) = read {
            assert!(bytes.ends_with(&read.bytes), "what is passed on is what came");
        }
    }

    #[tokio::test]
    async fn startup_admits_only_the_service_and_replication() {
        let service = message(VERSION, b"user\0textnlp\0database\0textnlp\0\0");
        check(&service, Some(ClientKind::Service)).await;
        check(&message(VERSION, b"replication\0true\0user\0textnlp_copies\0\0"), Some(ClientKind::Copy)).await;
        check(&message(CANCEL, &[0; 8]), Some(ClientKind::Service)).await;
        let encrypted = [message(TLS, b""), message(GSS, b""), service.clone()].concat();
        check(&encrypted, Some(ClientKind::Service)).await;
        check(&[message(TLS, b""), message(TLS, b""), message(TLS, b""), service].concat(), None).await;
        for strange in [
            // The owner, and whoever hides behind another name.
            &b"user\0textnlp_owner\0\0"[..],
            b"user\0textnlp\0user\0textnlp_owner\0\0",
            b"user\0textnlp_owner\0user\0textnlp\0\0",
            b"x\0\0\0user\0textnlp\0\0",
            b"database\0textnlp\0\0",
            b"user\0textnlp\0",
            b"user\0\0",
            b"\0",
            b"",
        ] {
            check(&message(VERSION, strange), None).await;
        }
        check(&message(131_072, b"user\0textnlp\0\0"), None).await;
        check(&[0xff; 64], None).await;
        check(b"GET / HTTP/1.1\r\n\r\n", None).await;
        check(&[0, 0, 0, 4], None).await;
    }

    #[test]
    fn refusal_has_the_postgresql_message_format() {
        let bytes = refusal("57P03", "not now");
        assert_eq!(bytes[0], b'E');
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 1);
        assert!(bytes.ends_with(b"C57P03\0Mnot now\0\0"));
    }
}
