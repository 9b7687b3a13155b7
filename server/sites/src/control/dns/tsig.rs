//! Requests are signed with a shared key, and answers are believed when the same key signed them (RFC 8945).

use aws_lc_rs::hmac;
use serde::Deserialize;

use super::failed::Failed;
use super::message::{ANY, Answer, HEADER, Signature};
use super::name::{Name, Reader};

/// How far apart two clocks may be, in seconds: the RFC's proposal.
pub(super) const FUDGE: u16 = 300;

const BADSIG: u16 = 16;
const BADKEY: u16 = 17;
const BADTIME: u16 = 18;

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

    fn name(self) -> Name {
        self.as_str().parse().expect("a domain name")
    }
}

#[derive(Debug)]
pub(super) struct Key {
    name: Name,
    algorithm: Name,
    /// `Debug` shows only the algorithm.
    secret: hmac::Key,
}

/// A request with its signature; the answer's signature covers it.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) bytes: Vec<u8>,
    mac: Vec<u8>,
}

impl Key {
    pub(super) fn new(name: Name, algorithm: Algorithm, secret: &[u8]) -> Self {
        let hash = match algorithm {
            Algorithm::HmacSha256 => hmac::HMAC_SHA256,
            Algorithm::HmacSha512 => hmac::HMAC_SHA512,
        };
        Self { name, algorithm: algorithm.name(), secret: hmac::Key::new(hash, secret) }
    }

    /// Signs a message that has no signature. `now` is in seconds since 1970.
    pub(super) fn sign(&self, message: Vec<u8>, now: u64) -> Signed {
        let mut signature = Signature {
            begins: message.len(),
            key: self.name.clone(),
            algorithm: self.algorithm.clone(),
            time: now,
            fudge: FUDGE,
            mac: Vec::new(),
            original_id: u16::from_be_bytes([message[0], message[1]]),
            error: 0,
            other: Vec::new(),
        };
        let mac = hmac::sign(&self.secret, &[message.clone(), signature.variables()].concat()).as_ref().to_vec();
        signature.mac.clone_from(&mac);
        let mut bytes = message;
        // Signatures are the only thing in our additional sections.
        bytes[11] = 1;
        bytes.extend(signature.record());
        Signed { bytes, mac }
    }

    /// Verifies the signature of an answer. The response code of the request is left to the caller.
    pub(super) fn open(&self, answer: &[u8], request: &Signed, now: u64) -> Result<Answer, Failed> {
        let read = Answer::read(answer).ok_or(Failed::Malformed("it is not a DNS message"))?;
        if read.id.to_be_bytes() != request.bytes[..2] || read.opcode != Some(request.bytes[2] >> 3) {
            return Err(Failed::Malformed("it is the answer to another request"));
        }
        let Some(signature) = &read.signature else { return Err(Failed::Unsigned { rcode: read.rcode }) };
        match (signature.mac.is_empty(), signature.error) {
            // These two cannot be signed (RFC 8945, 5.3.2). A forged one only causes a retry.
            (true, BADKEY) => return Err(Failed::BadKey),
            (true, BADSIG) => return Err(Failed::BadSignature),
            (true, _) => return Err(Failed::Unsigned { rcode: read.rcode }),
            (false, _) => {}
        }
        let digested = signature.digested(answer, &request.mac);
        let ours = signature.key == self.name && signature.algorithm == self.algorithm;
        if !ours || hmac::verify(&self.secret, &digested, &signature.mac).is_err() {
            return Err(Failed::Forged);
        }
        match signature.error {
            0 if now.abs_diff(signature.time) <= u64::from(FUDGE) => Ok(read),
            0 => Err(Failed::Clock { server: signature.time, here: now }),
            BADTIME => {
                let server = Reader::new(&signature.other).u48();
                Err(Failed::Clock { server: server.unwrap_or(signature.time), here: now })
            }
            error => Err(Failed::Signature { error }),
        }
    }
}

impl Signature {
    /// The TSIG variables, signed in addition to the message (4.3.3).
    fn variables(&self) -> Vec<u8> {
        let mut out = self.key.wire().to_vec();
        out.extend(ANY.to_be_bytes());
        out.extend([0; 4]);
        out.extend(self.algorithm.wire());
        out.extend(self.clock());
        out.extend(self.error.to_be_bytes());
        out.extend(sized(&self.other));
        out
    }

    fn clock(&self) -> Vec<u8> {
        [&self.time.to_be_bytes()[2..], &self.fudge.to_be_bytes()].concat()
    }

    fn record(&self) -> Vec<u8> {
        let rest = [self.original_id.to_be_bytes(), self.error.to_be_bytes()].concat();
        let data = [self.algorithm.wire(), &self.clock(), &sized(&self.mac), &rest, &sized(&self.other)].concat();
        // Type, class and TTL.
        let head = [0, 250, 0, 255, 0, 0, 0, 0];
        [self.key.wire(), &head, &sized(&data)].concat()
    }

    /// The signed data: the request's MAC, the answer before it was signed, and the TSIG variables.
    fn digested(&self, answer: &[u8], request_mac: &[u8]) -> Vec<u8> {
        let mut message = answer[..self.begins].to_vec();
        message[..2].copy_from_slice(&self.original_id.to_be_bytes());
        let additional = u16::from_be_bytes([message[10], message[11]]) - 1;
        message[10..HEADER].copy_from_slice(&additional.to_be_bytes());
        [sized(request_mac), message, self.variables()].concat()
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}
