use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

const BUFFER: usize = 256 << 10;

/// The SHA-256 of some bytes, and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    /// The SHA-256.
    pub sha256: [u8; 32],
    /// How many bytes were hashed.
    pub bytes: u64,
}

impl FileDigest {
    /// The SHA-256 in hexadecimal, as `sha256sum` prints it.
    pub fn hex(&self) -> String {
        hex::encode(self.sha256)
    }
}

/// Takes the digest of a file.
pub fn sha256(path: impl AsRef<Path>) -> Result<FileDigest> {
    let path = path.as_ref();
    let mut file = std::fs::File::open(path).map_err(Error::at("open", path))?;
    copy_sha256(&mut file, &mut io::sink()).map_err(Error::at("read", path))
}

/// Copies everything and takes the digest of it. Memory is one buffer, whatever the length.
pub fn copy_sha256(from: &mut impl Read, to: &mut (impl Write + ?Sized)) -> io::Result<FileDigest> {
    let mut hashing = Hashing::new(to);
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hashing.finish().1),
            Ok(n) => hashing.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A reader or writer that hashes what passes.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    /// Nothing has passed yet.
    pub fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// The reader or writer, and the digest of what passed.
    pub fn finish(self) -> (T, FileDigest) {
        (self.inner, FileDigest { sha256: self.hash.finalize().into(), bytes: self.bytes })
    }

    fn passed(&mut self, bytes: &[u8]) -> usize {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        bytes.len()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        Ok(self.passed(&buffer[..n]))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        Ok(self.passed(&bytes[..n]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const MILLION: &str = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

    #[test]
    fn sha256_matches_the_standard_vectors_for_every_input_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("million");
        let million = vec![b'a'; 1_000_000];
        std::fs::write(&path, &million).unwrap();
        let found = sha256(&path).unwrap();
        assert_eq!((found.hex().as_str(), found.bytes), (MILLION, 1_000_000));
        let mut copy = Vec::new();
        assert_eq!(copy_sha256(&mut &million[..], &mut copy).unwrap(), found);
        assert_eq!(copy, million);
        let mut reader = Hashing::new(&b"abcd"[..]);
        reader.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(reader.finish().1.hex(), ABC);
    }

    /// Takes few bytes at a time, and is interrupted.
    struct Slow(Vec<u8>, bool);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = bytes.len().min(2);
            self.0.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_writes_are_hashed_once() {
        let mut writer = Hashing::new(Slow(Vec::new(), false));
        writer.write_all(b"abc").unwrap();
        let (slow, digest) = writer.finish();
        assert_eq!((slow.0, digest.hex().as_str(), digest.bytes), (b"abc".to_vec(), ABC, 3));
    }

    #[test]
    fn error_for_a_missing_file_names_the_path() {
        let error = sha256("/nothing/here").unwrap_err();
        assert_eq!((error.to_string().as_str(), error.source.kind()), ("open /nothing/here", io::ErrorKind::NotFound));
    }
}
