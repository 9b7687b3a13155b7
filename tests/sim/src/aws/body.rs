//! What SDKs wrap bodies in: chunks with signatures and checksums, and gzip.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html>

use std::io::Read;

use aws_smithy_checksums::ChecksumAlgorithm;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use md5::Digest;

use super::protocol::Request;
use super::signature::Signed;
use crate::Fault;

/// The most bytes that a compressed body may hold.
const MAX_INFLATED: u64 = 64 << 20;

/// The body as the operation takes it, after its checksums were verified.
pub(super) fn decode(service: &str, request: &Request, signed: Option<&Signed>) -> Result<Bytes, Fault> {
    let payload = request.header("x-amz-content-sha256").unwrap_or_default();
    let mut sums = Vec::new();
    for (name, value) in &request.headers {
        if let (Some(algorithm), Ok(value)) = (name.as_str().strip_prefix("x-amz-checksum-"), value.to_str()) {
            sums.push((algorithm.to_owned(), value.to_owned()));
        }
    }
    let mut body = request.body.clone();
    if payload.starts_with("STREAMING-") {
        let chain = match payload {
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => None,
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" | "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => signed.cloned(),
            other => return Err(Fault::new("InvalidRequest", format!("The payload {other} is not supported."))),
        };
        let (whole, trailers) = chunks(&body, chain)?;
        let announced = request.header("x-amz-decoded-content-length").and_then(|length| length.parse().ok());
        if announced != Some(whole.len()) {
            return Err(incomplete("its length is not that of x-amz-decoded-content-length"));
        }
        for (name, value) in trailers {
            if !request.header("x-amz-trailer").is_some_and(|names| names.split(',').any(|one| one.trim() == name)) {
                return Err(Fault::new("MalformedTrailerError", format!("{name} is not in x-amz-trailer")));
            }
            sums.extend(name.strip_prefix("x-amz-checksum-").map(|algorithm| (algorithm.to_owned(), value)));
        }
        body = whole;
    }
    for (algorithm, wanted) in sums {
        // Those that are no algorithm say how the others were made.
        let Ok(algorithm) = algorithm.parse::<ChecksumAlgorithm>() else { continue };
        // Of many parts it is a sum of sums, which only the service knows.
        if wanted.contains('-') || request.method == "POST" && request.query.iter().any(|(name, _)| name == "uploadId")
        {
            continue;
        }
        let mut checksum = algorithm.into_impl();
        checksum.update(&body);
        if STANDARD.encode(checksum.finalize()) != wanted {
            let message = format!("The {} you specified did not match the calculated checksum.", algorithm.as_str());
            return Err(Fault::new("BadDigest", message));
        }
    }
    let wanted = request.header("content-md5");
    if wanted.is_some_and(|wanted| STANDARD.encode(md5::Md5::digest(&body)) != wanted) {
        return Err(Fault::new("BadDigest", "The Content-MD5 you specified did not match what we received."));
    }
    // Objects keep their encoding.
    if service != "s3" && request.header("content-encoding") == Some("gzip") {
        let mut inflated = Vec::new();
        let mut reader = flate2::read::GzDecoder::new(body.as_ref()).take(MAX_INFLATED);
        reader.read_to_end(&mut inflated).map_err(|_| Fault::new("SerializationException", "The body is not gzip."))?;
        body = inflated.into();
    }
    Ok(body)
}

fn incomplete(why: &str) -> Fault {
    Fault::new("IncompleteBody", format!("The request body terminated unexpectedly: {why}"))
}

type Trailers = Vec<(String, String)>;

/// The bytes of chunks, and the headers after them. `chain` verifies signatures of chunks.
fn chunks(body: &Bytes, mut chain: Option<Signed>) -> Result<(Bytes, Trailers), Fault> {
    let mut rest = body.clone();
    let mut whole = BytesMut::new();
    loop {
        let head = line(&mut rest)?;
        let (size, extension) = head.split_once(';').unwrap_or((&head, ""));
        let size = usize::from_str_radix(size, 16).map_err(|_| incomplete("a chunk has no size"))?;
        if rest.len() < size {
            return Err(incomplete("a chunk is too short"));
        }
        let chunk = rest.split_to(size);
        if let Some(chain) = &mut chain {
            chain.chunk(&chunk, extension.strip_prefix("chunk-signature=").unwrap_or_default())?;
        }
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&chunk);
        if !line(&mut rest)?.is_empty() {
            return Err(incomplete("a chunk does not end"));
        }
    }
    let mut trailers = Vec::new();
    while !rest.is_empty() {
        let header = line(&mut rest)?;
        let Some((name, value)) = header.split_once(':') else { break };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        match (name.as_str(), &mut chain) {
            ("x-amz-trailer-signature", Some(chain)) => chain.trailers(&trailers, &value)?,
            ("x-amz-trailer-signature", None) => {}
            _ => trailers.push((name, value)),
        }
    }
    Ok((whole.freeze(), trailers))
}

fn line(rest: &mut Bytes) -> Result<String, Fault> {
    let end = rest.windows(2).position(|two| two == b"\r\n").ok_or_else(|| incomplete("a line does not end"))?;
    let line = rest.split_to(end);
    let _ = rest.split_to(2);
    String::from_utf8(line.to_vec()).map_err(|_| incomplete("a line is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>.
    fn example() -> (Signed, Vec<u8>) {
        let signatures = [
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ];
        let mut body = Vec::new();
        for (signature, size) in signatures.into_iter().zip([65536, 1024, 0]) {
            body.extend(format!("{size:x};chunk-signature={signature}\r\n").bytes());
            body.extend(std::iter::repeat_n(b'a', size));
            body.extend(b"\r\n");
        }
        (Signed::example("4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"), body)
    }

    #[test]
    fn signed_chunks_are_those_of_the_documentation() {
        let (signed, body) = example();
        let (whole, trailers) = chunks(&body.clone().into(), Some(signed.clone())).unwrap();
        assert_eq!((whole.len(), trailers.len()), (66560, 0));
        let mut changed = body.clone();
        changed[200] = b'b';
        assert_eq!(chunks(&changed.into(), Some(signed.clone())).unwrap_err().code, "SignatureDoesNotMatch");
        for end in [0, 10, 100, 65700, body.len() - 100] {
            assert!(chunks(&Bytes::copy_from_slice(&body[..end]), Some(signed.clone())).is_err(), "{end}");
        }
    }

    #[test]
    fn checksums_in_trailers_are_verified() {
        let request = |body: &str, length: &str| {
            let mut request = Request { method: "PUT".to_owned(), body: body.to_owned().into(), ..Request::default() };
            for (name, value) in [
                ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
                ("x-amz-decoded-content-length", length),
                ("x-amz-trailer", "x-amz-checksum-crc32"),
            ] {
                request.headers.insert(name, value.parse().unwrap());
            }
            decode("s3", &request, None).map_err(|fault| fault.code)
        };
        // CRC-32 of `123456789` is cbf43926, its check value.
        let body = "4\r\n1234\r\n5\r\n56789\r\n0\r\nx-amz-checksum-crc32:y/Q5Jg==\r\n\r\n";
        assert_eq!(request(body, "9"), Ok(Bytes::from("123456789")));
        assert_eq!(request(&body.replace("56789", "56780"), "9"), Err("BadDigest".to_owned()));
        assert_eq!(request(body, "8"), Err("IncompleteBody".to_owned()));
        assert_eq!(request(&body.replace("crc32:", "sha1:"), "9"), Err("MalformedTrailerError".to_owned()));
    }
}
