//! Signatures of requests: AWS Signature Version 4, in a header or in a presigned URL.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>

use std::time::{Duration, SystemTime};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::model::Protocol;
use super::protocol::Request;
use crate::{Credential, Fault, World};

/// How far the clock of a caller may be off, and how old a request may be.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What a request says of its signature.
#[derive(Debug)]
pub(crate) struct Signature {
    access_key: String,
    date: String,
    pub(crate) region: String,
    pub(crate) service: String,
    time: String,
    signed_headers: Vec<String>,
    signature: String,
    token: Option<String>,
    payload: String,
    /// How long it is valid, of a presigned URL.
    expires: Option<i64>,
}

impl Signature {
    /// What a request is signed with; `None` if it is not.
    ///
    /// # Errors
    /// It is signed in a way that cannot be read.
    pub(crate) fn of(request: &Request) -> Result<Option<Self>, String> {
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(request.raw_query.as_bytes()).into_owned().collect();
        let parameter = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let (credential, signed_headers, signature, time, token, payload, expires);
        if let Some(header) = request.header("authorization").filter(|header| header.starts_with("AWS4-")) {
            let parts = header.strip_prefix("AWS4-HMAC-SHA256").ok_or("the algorithm is not AWS4-HMAC-SHA256")?;
            let part = |name: &str| {
                let found = parts.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
                found.map(str::to_owned).ok_or(format!("Authorization header requires '{name}' parameter."))
            };
            credential = part("Credential")?;
            signed_headers = part("SignedHeaders")?;
            signature = part("Signature")?;
            time = request.header("x-amz-date").ok_or("the header X-Amz-Date is missing")?.to_owned();
            token = request.header("x-amz-security-token").map(str::to_owned);
            payload = request.header("x-amz-content-sha256").map(str::to_owned);
            expires = None;
        } else if parameter("X-Amz-Algorithm").is_some() {
            let part = |name: &str| parameter(name).ok_or(format!("the parameter {name} is missing"));
            credential = part("X-Amz-Credential")?;
            signed_headers = part("X-Amz-SignedHeaders")?;
            signature = part("X-Amz-Signature")?;
            time = part("X-Amz-Date")?;
            token = parameter("X-Amz-Security-Token");
            payload = request.header("x-amz-content-sha256").map(str::to_owned);
            expires = Some(part("X-Amz-Expires")?.parse().map_err(|_| "X-Amz-Expires is no number")?);
        } else {
            return Ok(None);
        }
        let [access_key, date, region, service, "aws4_request"] = credential.split('/').collect::<Vec<_>>()[..] else {
            return Err("the credential has no scope".to_owned());
        };
        let payload = match (payload, expires, service) {
            (Some(payload), _, _) => payload,
            (None, Some(_), "s3") => "UNSIGNED-PAYLOAD".to_owned(),
            (None, _, _) => hash(&request.body),
        };
        Ok(Some(Self {
            access_key: access_key.to_owned(),
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            time,
            signed_headers: signed_headers.split(';').map(str::to_owned).collect(),
            signature,
            token,
            payload,
            expires,
        }))
    }

    /// Whose key it is, if it is right. The request's body is as it was sent.
    pub(crate) fn verify(&self, request: &Request, world: &World, protocol: Protocol) -> Result<Signed, Fault> {
        let refuse = |refusal| refusal_of(&self.service, protocol, refusal);
        let credential = world.credentials.get(&self.access_key).ok_or_else(|| refuse(Refusal::UnknownKey))?;
        if credential.token != self.token {
            return Err(refuse(Refusal::UnknownToken));
        }
        if credential.expires.is_some_and(|expires| expires <= world.now()) {
            return Err(refuse(Refusal::ExpiredToken));
        }
        let parsed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &self.time);
        let time = parsed.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC));
        let time = time.map_err(|_| refuse(Refusal::WrongSignature))?.timestamp();
        let age = Timestamp::now().duration_since(time);
        let lifetime = self.expires.map_or(MAX_SKEW, SignedDuration::from_secs);
        if age > lifetime || age < -MAX_SKEW {
            return Err(refuse(Refusal::WrongTime));
        }
        if !self.time.starts_with(&self.date) || !self.signed_headers.iter().any(|name| name == "host") {
            return Err(refuse(Refusal::WrongSignature));
        }
        let is_hash = self.payload.len() == 64 && self.payload.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash && self.payload != hash(&request.body) {
            return Err(refuse(Refusal::WrongBody));
        }
        // S3 alone takes bodies that are not part of the signature, or signed chunk by chunk.
        if !is_hash && self.service != "s3" {
            return Err(refuse(Refusal::WrongSignature));
        }
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", self.time, hash(self.canonical(request).as_bytes()));
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
        let key = generate_signing_key(&credential.secret, day, &self.region, &self.service);
        if calculate_signature(&key, text.as_bytes()) != self.signature {
            return Err(refuse(Refusal::WrongSignature));
        }
        Ok(Signed {
            access_key: self.access_key.clone(),
            credential: credential.clone(),
            key: key.as_ref().to_vec(),
            scope,
            time,
            last: self.signature.clone(),
        })
    }

    fn canonical(&self, request: &Request) -> String {
        // All services but S3 encode the path once more.
        let path = match self.service.as_str() {
            "s3" => request.path.clone(),
            _ => encode(&request.path, true),
        };
        let raw = request.raw_query.split('&').filter(|part| !part.is_empty());
        let pairs = raw.map(|part| part.split_once('=').unwrap_or((part, "")));
        let decoded = |text: &str| super::protocol::decode(&text.replace('+', " "));
        let pairs = pairs.map(|(key, value)| (encode(&decoded(key), false), encode(&decoded(value), false)));
        let mut pairs: Vec<(String, String)> = pairs.filter(|(key, _)| key != "X-Amz-Signature").collect();
        pairs.sort();
        let query: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        let headers = self.signed_headers.iter().map(|name| {
            let values = request.headers.get_all(name.as_str()).iter().filter_map(|value| value.to_str().ok());
            let values: Vec<String> =
                values.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            format!("{name}:{}\n", values.join(","))
        });
        let (headers, names): (String, String) = (headers.collect(), self.signed_headers.join(";"));
        format!("{}\n{path}\n{}\n{headers}\n{names}\n{}", request.method, query.join("&"), self.payload)
    }
}

/// A request whose signature is right.
#[derive(Clone)]
pub(crate) struct Signed {
    pub(crate) access_key: String,
    pub(crate) credential: Credential,
    key: Vec<u8>,
    scope: String,
    time: Timestamp,
    /// The signature that the next chunk's is made with.
    last: String,
}

impl Signed {
    /// The signer of the examples in S3's documentation.
    #[cfg(test)]
    pub(super) fn example(last: &str) -> Self {
        let time: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let key = generate_signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", day, "us-east-1", "s3");
        let credential = Credential {
            secret: String::new(),
            token: None,
            account: String::new(),
            identity: String::new(),
            id: String::new(),
            expires: None,
        };
        let scope = "20130524/us-east-1/s3/aws4_request".to_owned();
        Self { access_key: String::new(), credential, key: key.as_ref().to_vec(), scope, time, last: last.to_owned() }
    }

    /// Verifies the signature of the next chunk of a body.
    pub(super) fn chunk(&mut self, chunk: &[u8], signature: &str) -> Result<(), Fault> {
        self.next("AWS4-HMAC-SHA256-PAYLOAD", &format!("{}\n{}", hash(b""), hash(chunk)), signature)
    }

    /// Verifies the signature of the headers after the chunks.
    pub(super) fn trailers(&mut self, trailers: &[(String, String)], signature: &str) -> Result<(), Fault> {
        let lines: String = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        self.next("AWS4-HMAC-SHA256-TRAILER", &hash(lines.as_bytes()), signature)
    }

    fn next(&mut self, algorithm: &str, payload: &str, signature: &str) -> Result<(), Fault> {
        let is_right = |time: Timestamp| {
            let time = time.strftime("%Y%m%dT%H%M%SZ");
            let text = format!("{algorithm}\n{time}\n{}\n{}\n{payload}", self.scope, self.last);
            calculate_signature(&self.key, text.as_bytes()) == signature
        };
        // The Rust SDK signs each chunk with the time of the chunk, not with that of the request.
        let seconds = Timestamp::now().duration_since(self.time).as_secs().clamp(0, MAX_SKEW.as_secs());
        if !(0..=seconds).any(|after| is_right(self.time + SignedDuration::from_secs(after))) {
            return Err(refusal_of("s3", Protocol::RestXml, Refusal::WrongSignature));
        }
        signature.clone_into(&mut self.last);
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn encode(text: &str, is_path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if is_path => out.push('/'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Why a request is not its signer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoSignature,
    UnknownKey,
    UnknownToken,
    ExpiredToken,
    WrongTime,
    WrongSignature,
    WrongBody,
}

/// The error with which a service answers, by its protocol where services agree.
///
/// Common errors: <https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html>,
/// EC2: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>,
/// S3: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.
pub(crate) fn refusal_of(service: &str, protocol: Protocol, refusal: Refusal) -> Fault {
    use Refusal::{ExpiredToken, NoSignature, UnknownKey, UnknownToken, WrongBody, WrongSignature, WrongTime};
    let is_s3 = service == "s3";
    let (code, status) = match (protocol, refusal) {
        (Protocol::Ec2, NoSignature | UnknownKey | UnknownToken) => ("AuthFailure", 401),
        (Protocol::Ec2, ExpiredToken | WrongTime) => ("RequestExpired", 400),
        (Protocol::Ec2, WrongSignature | WrongBody) => ("SignatureDoesNotMatch", 403),
        (_, NoSignature) if is_s3 => ("AccessDenied", 403),
        (_, UnknownKey) if is_s3 => ("InvalidAccessKeyId", 403),
        (_, UnknownToken) if is_s3 => ("InvalidToken", 400),
        (_, ExpiredToken) if is_s3 => ("ExpiredToken", 400),
        (_, WrongTime) if is_s3 => ("RequestTimeTooSkewed", 403),
        (_, WrongBody) if is_s3 => ("XAmzContentSHA256Mismatch", 400),
        (Protocol::Query | Protocol::RestXml, NoSignature) => ("MissingAuthenticationToken", 403),
        (Protocol::Query | Protocol::RestXml, UnknownKey | UnknownToken) => ("InvalidClientTokenId", 403),
        (Protocol::Query | Protocol::RestXml, ExpiredToken) => ("ExpiredToken", 403),
        (Protocol::Query | Protocol::RestXml, _) => ("SignatureDoesNotMatch", 403),
        (protocol, refusal) => {
            let code = match refusal {
                NoSignature => "MissingAuthenticationTokenException",
                UnknownKey | UnknownToken => "UnrecognizedClientException",
                ExpiredToken => "ExpiredTokenException",
                WrongTime | WrongSignature | WrongBody => "InvalidSignatureException",
            };
            (code, if protocol == Protocol::RestJson { 403 } else { 400 })
        }
    };
    let message = match refusal {
        NoSignature => "Request is missing Authentication Token",
        UnknownKey => "The security token included in the request is invalid.",
        UnknownToken => "The security token included in the request is invalid",
        ExpiredToken => "The security token included in the request is expired",
        WrongTime => "Signature expired: the request's time differs from the current time by more than 5 minutes",
        WrongSignature => "The request signature we calculated does not match the signature you provided.",
        WrongBody => "The provided 'x-amz-content-sha256' header does not match what was computed.",
    };
    Fault::new(code, message).status(status)
}
