//! Refuses lines of an HTTP/1 message that end without CR. RFC 9112, 2.2 lets a recipient accept them, and hyper does;
//! programs that disagree about where a line ends also disagree about where a request ends. So this scanner finds the
//! lines of heads, chunks and trailers. It decides nothing else: hyper reads the same bytes and frames the requests.

use std::io;

use tokio::io::ReadBuf;

use super::inspect::Inspector;

/// How much of a line is kept: enough for the headers that frame a body.
const KEPT: usize = 256;
/// What hyper reads in place of a line that is refused: no character of a head, and the end of a head. It answers 400.
const REFUSED: &[u8] = b"\0\r\n\r\n";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct StrictLines {
    scanner: Scanner,
    refused: bool,
}

#[derive(Debug, Default)]
struct Scanner {
    part: Part,
    framing: Framing,
    /// The beginning of the current line.
    line: Vec<u8>,
    last: u8,
}

/// The part of a message that the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Part {
    #[default]
    Head,
    /// Bytes of a body, until the next head.
    Body(u64),
    ChunkSize,
    /// Bytes of a chunk, until its line end.
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// The framing of a body, by the current head.
#[derive(Debug, Clone, Copy, Default)]
enum Framing {
    #[default]
    None,
    Length(u64),
    Chunked,
}

impl Inspector for StrictLines {
    fn receive(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        if let Some(at) = self.scanner.feed(&buffer.filled()[before..]) {
            self.refused = true;
            buffer.set_filled(before + at);
            buffer.put_slice(&REFUSED[..REFUSED.len().min(buffer.remaining())]);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.refused
    }
}

impl Scanner {
    /// Where a line ends that is refused.
    fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Part::Body(left) | Part::Chunk(left) = &mut self.part {
                let skipped = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                *left -= skipped as u64;
                at += skipped;
                match self.part {
                    Part::Body(0) => self.part = Part::Head,
                    Part::Chunk(0) => self.part = Part::ChunkEnd,
                    _ => {}
                }
                continue;
            }
            let end = rest.iter().position(|byte| *byte == b'\n');
            let text = &rest[..end.unwrap_or(rest.len())];
            self.line.extend_from_slice(&text[..text.len().min(KEPT - self.line.len())]);
            self.last = text.last().copied().unwrap_or(self.last);
            at += text.len();
            if end.is_some() {
                if self.last != b'\r' || !self.end_line() {
                    return Some(at);
                }
                at += 1;
                self.line.clear();
                self.last = 0;
            }
        }
        None
    }

    /// False for a line that is too long to be understood.
    fn end_line(&mut self) -> bool {
        let (line, is_whole) = (self.line.trim_ascii(), self.line.len() < KEPT);
        self.part = match self.part {
            Part::Head if line.is_empty() => match std::mem::take(&mut self.framing) {
                Framing::Length(length @ 1..) => Part::Body(length),
                Framing::Chunked => Part::ChunkSize,
                Framing::None | Framing::Length(0) => Part::Head,
            },
            Part::Head => match framing_of(line) {
                Some(_) if !is_whole => return false,
                // Transfer-Encoding overrides Content-Length (RFC 9112, 6.3).
                Some(Framing::Length(_)) if matches!(self.framing, Framing::Chunked) => Part::Head,
                Some(framing) => {
                    self.framing = framing;
                    Part::Head
                }
                None => Part::Head,
            },
            Part::ChunkSize => match chunk_size(line) {
                0 => Part::Trailers,
                size => Part::Chunk(size),
            },
            Part::Trailers if line.is_empty() => Part::Head,
            Part::ChunkEnd => Part::ChunkSize,
            part => part,
        };
        true
    }
}

/// A value that is no number is refused by hyper.
fn framing_of(line: &[u8]) -> Option<Framing> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        return Some(Framing::Chunked);
    }
    let is_length = name.eq_ignore_ascii_case(b"content-length");
    is_length.then(|| Framing::Length(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)))
}

/// The same: no number, or one that is too large, ends the connection.
fn chunk_size(line: &[u8]) -> u64 {
    let digits = line.iter().map_while(|byte| char::from(*byte).to_digit(16));
    digits.fold(0, |size: u64, digit| size.saturating_mul(16).saturating_add(digit.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes pass before a line is refused; `None` if none is.
    fn refused(text: &str) -> Option<usize> {
        let whole = Scanner::default().feed(text.as_bytes());
        // However the bytes are cut.
        for cut in 1..text.len() {
            let mut scanner = Scanner::default();
            let mut passed = 0;
            let found = text.as_bytes().chunks(cut).find_map(|part| {
                let found = scanner.feed(part).map(|at| passed + at);
                passed += part.len();
                found
            });
            assert_eq!(found, whole, "{text:?} in parts of {cut}");
        }
        whole
    }

    #[test]
    fn lines_without_cr_are_found_in_every_part_of_a_message() {
        let valid = [
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\nContent-Length: 9\r\n\r\n3;x=y\r\n\n\n\n\r\n0\r\nt: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        ];
        for text in valid {
            assert_eq!(refused(text), None, "{text:?}");
            // Each line end in turn, unless it is a body's.
            for (at, _) in text.match_indices("\r\n") {
                let bare = format!("{}{}", &text[..at], &text[at + 1..]);
                assert_eq!(refused(&bare), Some(at), "{bare:?}");
            }
        }
        let padded = format!("POST / HTTP/1.1\r\ncontent-length:{}5\r\n\r\n", " ".repeat(KEPT));
        assert_eq!(refused(&padded), Some(padded.len() - 3));
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(10 * KEPT))), None);
    }

    #[test]
    fn hyper_reads_a_refused_line_as_no_line_and_nothing_after_it() {
        let mut rule = StrictLines::default();
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        buffer.put_slice(b"before");
        buffer.put_slice(b"GET / HTTP/1.1\nhost: x\r\n\r\n");
        rule.receive(&mut buffer, 6).unwrap();
        assert_eq!(buffer.filled(), b"beforeGET / HTTP/1.1\0\r\n\r\n");
        assert!(rule.is_over());
    }
}
