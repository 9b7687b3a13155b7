//! Requests to a host of a cloud, sent to its simulator as a proxy passes them on.

use std::io::{Read, Write};
use std::net::TcpStream;

/// An answer.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: String,
}

impl Plain {
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(one, _)| one.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The status and the code of an error.
    pub(crate) fn code(&self) -> (u16, &str) {
        (self.status, self.values("Code").first().copied().unwrap_or_default())
    }

    /// The texts of elements of a name.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let open = format!("<{name}>");
        self.body.split(open.as_str()).skip(1).filter_map(|rest| rest.split('<').next()).collect()
    }
}

/// Sends a request, and reads the whole answer.
pub(crate) fn send(
    url: &str,
    host: &str,
    (method, target): (&str, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> Plain {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (headers, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = headers.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    Plain { status, headers: headers.to_owned(), body: body.to_owned() }
}
