//! Where tensors begin in the two formats of weights. Everything in a header is a claim; whatever does not add up is no header to us,
//! and the file is cut like any other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

use serde::de::{IgnoredAny, MapAccess, Visitor};

const MOST_HEADER: u64 = 16 << 20;
/// Each costs some sixty bytes in the manifest.
const MOST_TENSORS: usize = 1 << 16;

/// The offsets at which the data and its tensors begin.
pub(crate) fn safetensors(file: &File, size: u64) -> Option<Vec<u64>> {
    let mut length = [0u8; 8];
    file.read_exact_at(&mut length, 0).ok()?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER || length.checked_add(8)? > size {
        return None;
    }
    let mut header = vec![0u8; usize::try_from(length).ok()?];
    file.read_exact_at(&mut header, 8).ok()?;
    let Offsets(offsets) = serde_json::from_slice(&header).ok()?;
    starts(offsets, 8 + length, size)
}

fn starts(offsets: impl IntoIterator<Item = u64>, data: u64, size: u64) -> Option<Vec<u64>> {
    let mut starts = BTreeSet::from([data]);
    for offset in offsets {
        let start = data.checked_add(offset).filter(|start| *start <= size)?;
        starts.insert(start);
        if starts.len() > MOST_TENSORS {
            return None;
        }
    }
    Some(starts.into_iter().collect())
}

/// A safetensors header, of which only where tensors begin is kept.
struct Offsets(Vec<u64>);

#[derive(serde::Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

impl<'de> serde::Deserialize<'de> for Offsets {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Offsets, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Offsets;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Offsets, A::Error> {
                let mut offsets = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        offsets.push(map.next_value::<Tensor>()?.data_offsets.0);
                    }
                }
                Ok(Offsets(offsets))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// The same of a GGUF file, version 2 and 3.
pub(crate) fn gguf(file: &File, size: u64) -> Option<Vec<u64>> {
    let mut header = Gguf { input: BufReader::with_capacity(1 << 16, At { file, at: 0 }), at: 0 };
    if &header.array::<4>()? != b"GGUF" || !(2..=3).contains(&header.u32()?) {
        return None;
    }
    let tensors = usize::try_from(header.u64()?).ok().filter(|count| *count <= MOST_TENSORS)?;
    let keys = header.u64()?;
    let mut alignment = 32;
    for _ in 0..keys {
        let key = header.text()?;
        let kind = header.u32()?;
        if key == b"general.alignment" && kind == 4 {
            alignment = u64::from(header.u32()?);
        } else {
            header.skip_value(kind, 0)?;
        }
    }
    let mut offsets = Vec::new();
    for _ in 0..tensors {
        header.text()?;
        let dimensions = header.u32()?;
        if dimensions > 8 {
            return None;
        }
        header.skip(u64::from(dimensions) * 8 + 4)?;
        offsets.push(header.u64()?);
    }
    if alignment == 0 || alignment > 1 << 20 {
        return None;
    }
    starts(offsets, header.at.div_ceil(alignment) * alignment, size)
}

struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

struct Gguf<R> {
    input: R,
    at: u64,
}

impl<R: Read> Gguf<R> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.advance(N as u64)?;
        self.input.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The header as a whole is bounded, so every loop over it is.
    fn advance(&mut self, n: u64) -> Option<()> {
        self.at = self.at.checked_add(n).filter(|at| *at <= 4 * MOST_HEADER)?;
        Some(())
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = self.u64()?;
        self.advance(length)?;
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(length).read_to_end(&mut bytes).ok()?;
        (read as u64 == length).then_some(bytes)
    }

    fn skip(&mut self, n: u64) -> Option<()> {
        self.advance(n)?;
        let skipped = std::io::copy(&mut self.input.by_ref().take(n), &mut std::io::sink()).ok()?;
        (skipped == n).then_some(())
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = self.u64()?;
                self.skip(length)
            }
            9 if depth < 4 => {
                let inner = self.u32()?;
                let count = self.u64()?;
                for _ in 0..count {
                    self.skip_value(inner, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn check_safetensors(header: &str, data: usize) -> Option<Vec<u64>> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        safetensors(&file(&bytes), bytes.len() as u64)
    }

    #[test]
    fn safetensors_are_chunked_at_tensor_boundaries() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
        let data = 8 + header.len() as u64;
        assert_eq!(check_safetensors(header, 16), Some(vec![data, data + 8]));
    }

    #[test]
    fn invalid_weight_headers_are_ignored() {
        assert_eq!(check_safetensors(r#"{"a":{"data_offsets":[17,99]}}"#, 16), None);
        assert_eq!(check_safetensors(r#"{"a":{"data_offsets":[18446744073709551615,1]}}"#, 16), None);
        assert_eq!(check_safetensors("[]", 16), None);
        assert_eq!(safetensors(&file(&[255; 64]), 64), None);
        assert_eq!(safetensors(&file(b"abc"), 3), None);
        assert_eq!(gguf(&file(b"GGUF"), 4), None);
        let mut endless = b"GGUF\x03\0\0\0".to_vec();
        endless.extend_from_slice(&0u64.to_le_bytes());
        endless.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(gguf(&file(&endless), endless.len() as u64), None);
    }

    #[test]
    fn gguf_files_are_chunked_at_tensor_boundaries() {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let number = |bytes: &mut Vec<u8>, n: u64| bytes.extend_from_slice(&n.to_le_bytes());
        number(&mut bytes, 2);
        number(&mut bytes, 2);
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&mut bytes, "general.alignment");
        bytes.extend_from_slice(&4u32.to_le_bytes());
        bytes.extend_from_slice(&64u32.to_le_bytes());
        text(&mut bytes, "tokens");
        bytes.extend_from_slice(&9u32.to_le_bytes());
        bytes.extend_from_slice(&8u32.to_le_bytes());
        number(&mut bytes, 2);
        text(&mut bytes, "x");
        text(&mut bytes, "yz");
        for (name, offset) in [("a", 0u64), ("b", 128)] {
            text(&mut bytes, name);
            bytes.extend_from_slice(&1u32.to_le_bytes());
            number(&mut bytes, 32);
            bytes.extend_from_slice(&0u32.to_le_bytes());
            number(&mut bytes, offset);
        }
        let data = (bytes.len() as u64).div_ceil(64) * 64;
        bytes.resize(data as usize + 256, 1);
        assert_eq!(gguf(&file(&bytes), bytes.len() as u64), Some(vec![data, data + 128]));
    }
}
