//! Requests are signed with a shared key, and answers are believed when the same key signed them (RFC 8945).

use std::fmt;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError, signed_bitmessage_to_buf};
use hickory_proto::rr::{DNSClass, Name, TSigner};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use serde::Deserialize;

use super::failed::Failed;

/// How far apart two clocks may be, in seconds: the RFC's proposal.
pub(super) const FUDGE: u16 = 300;

/// The signature algorithm of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// Every server has it.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// The longest one.
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

impl Algorithm {
    /// Its name in configuration files, as other DNS software writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha512 => "hmac-sha512",
        }
    }
}

/// A key that does not show its secret.
pub(super) struct Key(TSigner);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.0.signer_name(), self.0.algorithm())
    }
}

/// A request with its signature; the answer's signature covers it.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) bytes: Vec<u8>,
    message: Message,
    mac: Vec<u8>,
}

impl Key {
    pub(super) fn new(name: Name, algorithm: Algorithm, secret: Vec<u8>) -> Self {
        let algorithm = match algorithm {
            Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
            Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        Self(TSigner::new(secret, algorithm, name, FUDGE).expect("a supported algorithm"))
    }

    /// Signs a message that has no signature. `now` is in seconds since 1970.
    pub(super) fn sign(&self, mut message: Message, now: u64) -> Signed {
        let (signature, _) = self.0.sign_message(&message, now).expect("a message of a few names");
        let mac = signature.data.mac.clone();
        message.set_signature(signature);
        Signed { bytes: message.to_vec().expect("a message of a few names"), message, mac }
    }

    /// Verifies the signature of an answer. The response code of the request is left to the caller.
    pub(super) fn open(&self, answer: &[u8], request: &Signed, now: u64) -> Result<Message, Failed> {
        let mut decoder = BinDecoder::new(answer);
        let read = Message::read(&mut decoder).ok().filter(|_| decoder.is_empty());
        let read = read.ok_or(Failed::Malformed("it is not a DNS message"))?;
        let ours = (request.message.id, MessageType::Response, request.message.op_code);
        if (read.id, read.message_type, read.op_code) != ours {
            return Err(Failed::Malformed("it is the answer to another request"));
        }
        let unsigned = Failed::Unsigned { rcode: read.response_code.low() };
        let Some(record) = read.signature() else { return Err(unsigned) };
        let signature = &record.data;
        match (signature.mac.is_empty(), signature.error) {
            // These two cannot be signed (RFC 8945, 5.3.2). A forged one only causes a retry.
            (true, Some(TsigError::BadKey)) => return Err(Failed::BadKey),
            (true, Some(TsigError::BadSig)) => return Err(Failed::BadSignature),
            (true, _) => return Err(unsigned),
            (false, _) => {}
        }
        // The signature covers neither its own class and TTL nor the reserved flag.
        let constant = record.dns_class == DNSClass::ANY && record.ttl == 0 && answer[3] & 0x40 == 0;
        let ours = record.name == *self.0.signer_name() && signature.algorithm == *self.0.algorithm();
        // `TSigner::verify_message_byte` subtracts the fudge from the time unchecked.
        let signed = signed_bitmessage_to_buf(answer, Some(&request.mac), true);
        if !constant || !ours || !signed.is_ok_and(|(signed, _)| self.0.verify(&signed, &signature.mac).is_ok()) {
            return Err(Failed::Forged);
        }
        match signature.error {
            None if now.abs_diff(signature.time) <= u64::from(FUDGE) => Ok(read),
            None => Err(Failed::Clock { server: signature.time, here: now }),
            Some(TsigError::BadTime) => {
                let server = <[u8; 6]>::try_from(signature.other.as_slice());
                let seconds = |clock: [u8; 6]| clock.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                Err(Failed::Clock { server: server.map_or(signature.time, seconds), here: now })
            }
            Some(error) => Err(Failed::Signature { error: error.into() }),
        }
    }
}
