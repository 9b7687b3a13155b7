//! How weights are stored in files, and how a row becomes numbers.

use half::{bf16, f16};

/// How the numbers of a tensor are stored. The block types are those of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Dtype {
    /// Numbers in a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4_1 => (32, 20),
            Dtype::Q5_0 => (32, 22),
            Dtype::Q5_1 => (32, 24),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
        }
    }

    /// Bytes of `count` numbers, when they are whole blocks and the result fits.
    pub fn bytes(self, count: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        if count.is_multiple_of(numbers) { (count / numbers).checked_mul(bytes) } else { None }
    }

    /// The type of a tensor by ggml's number, or the name of one that is not supported.
    pub(crate) fn from_ggml(number: u32) -> Result<Dtype, String> {
        Ok(match number {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            3 => Dtype::Q4_1,
            6 => Dtype::Q5_0,
            7 => Dtype::Q5_1,
            8 => Dtype::Q8_0,
            12 => Dtype::Q4K,
            13 => Dtype::Q5K,
            14 => Dtype::Q6K,
            30 => Dtype::Bf16,
            _ => return Err(ggml_name(number).map_or_else(|| format!("number {number}"), str::to_owned)),
        })
    }

    /// The type of a safetensors tensor.
    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Dtype> {
        match dtype {
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            safetensors::Dtype::BF16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// Turns whole blocks into numbers. `from` holds exactly the blocks of `to.len()` numbers.
    pub(crate) fn decode(self, from: &[u8], to: &mut [f32]) {
        let (numbers, bytes) = self.block();
        debug_assert_eq!(self.bytes(to.len()), Some(from.len()));
        for (block, out) in from.chunks_exact(bytes).zip(to.chunks_exact_mut(numbers)) {
            match self {
                Dtype::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Dtype::F16 => out[0] = half(block, 0),
                Dtype::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Dtype::Q8_0 => {
                    let d = half(block, 0);
                    for (y, q) in out.iter_mut().zip(&block[2..]) {
                        *y = f32::from(*q as i8) * d;
                    }
                }
                Dtype::Q4_0 => five(out, &block[2..], 0, |q| (q as f32 - 8.0) * half(block, 0)),
                Dtype::Q4_1 => five(out, &block[4..], 0, |q| q as f32 * half(block, 0) + half(block, 2)),
                Dtype::Q5_0 => {
                    five(out, &block[6..], fifths(block, 2), |q| (q as f32 - 16.0) * half(block, 0));
                }
                Dtype::Q5_1 => {
                    five(out, &block[8..], fifths(block, 4), |q| q as f32 * half(block, 0) + half(block, 2));
                }
                Dtype::Q4K => wide(out, block, &block[16..], None),
                Dtype::Q5K => wide(out, block, &block[48..], Some(&block[16..48])),
                Dtype::Q6K => six(out, block),
            }
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::Q8_0 => "q8_0",
            Dtype::Q4_0 => "q4_0",
            Dtype::Q4_1 => "q4_1",
            Dtype::Q5_0 => "q5_0",
            Dtype::Q5_1 => "q5_1",
            Dtype::Q4K => "q4_k",
            Dtype::Q5K => "q5_k",
            Dtype::Q6K => "q6_k",
        })
    }
}

fn ggml_name(number: u32) -> Option<&'static str> {
    const NAMES: [(u32, &str); 22] = [
        (9, "q8_1"),
        (10, "q2_k"),
        (11, "q3_k"),
        (15, "q8_k"),
        (16, "iq2_xxs"),
        (17, "iq2_xs"),
        (18, "iq3_xxs"),
        (19, "iq1_s"),
        (20, "iq4_nl"),
        (21, "iq3_s"),
        (22, "iq2_s"),
        (23, "iq4_xs"),
        (24, "i8"),
        (25, "i16"),
        (26, "i32"),
        (27, "i64"),
        (28, "f64"),
        (29, "iq1_m"),
        (34, "tq1_0"),
        (35, "tq2_0"),
        (39, "mxfp4"),
        (40, "nvfp4"),
    ];
    NAMES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The fifth bits of 32 numbers.
fn fifths(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 numbers of four bits, low halves first, each with a fifth bit.
fn five(out: &mut [f32], nibbles: &[u8], fifths: u32, number: impl Fn(u32) -> f32) {
    for (i, byte) in nibbles.iter().take(16).enumerate() {
        out[i] = number(u32::from(byte & 15) | (fifths >> i & 1) << 4);
        out[i + 16] = number(u32::from(byte >> 4) | (fifths >> (i + 16) & 1) << 4);
    }
}

/// 256 numbers of four bits (or five, with `high`), scales and minima of six bits for each 32.
fn wide(out: &mut [f32], block: &[u8], nibbles: &[u8], high: Option<&[u8]>) {
    let (d, least) = (half(block, 0), half(block, 2));
    let six_bits = &block[4..16];
    for (i, part) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = if i < 4 {
            (six_bits[i] & 63, six_bits[i + 4] & 63)
        } else {
            let (low, s, m) = (six_bits[i + 4], six_bits[i - 4], six_bits[i]);
            ((low & 15) | (s >> 6) << 4, (low >> 4) | (m >> 6) << 4)
        };
        let (scale, minimum) = (d * f32::from(scale), least * f32::from(minimum));
        for (j, y) in part.iter_mut().enumerate() {
            let byte = nibbles[i / 2 * 32 + j];
            let low = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
            let fifth = high.map_or(0, |h| h[j] >> i & 1);
            *y = scale * f32::from(low | fifth << 4) - minimum;
        }
    }
}

/// 256 numbers of six bits, a scale of eight bits for each 16.
fn six(out: &mut [f32], block: &[u8]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, y) in out.iter_mut().enumerate() {
        let (part, within) = (i / 128, i % 128);
        let (quarter, j) = (within / 32, within % 32);
        let nibbles = low[part * 64 + (quarter % 2) * 32 + j];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let top = high[part * 32 + j] >> (2 * quarter) & 3;
        let scale = d * f32::from(scales[part * 8 + quarter * 2 + j / 16] as i8);
        *y = scale * (f32::from(nibble | top << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::Header;
    use std::path::Path;

    #[test]
    fn every_block_type_decodes_like_gguf_py() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/blocks.gguf");
        let bytes = std::fs::read(&file).unwrap();
        let tensors = Header::parse(&file, &bytes).unwrap().tensors;
        let numbers = |name: &str| {
            let t = tensors.iter().find(|t| t.name == name).unwrap();
            let mut out = vec![0.0; t.shape.iter().product()];
            t.dtype.decode(&bytes[t.bytes.clone()], &mut out);
            (t.dtype, out)
        };
        let mut seen = Vec::new();
        for t in tensors.iter().filter(|t| !t.name.ends_with(".expected")) {
            let ((dtype, ours), (_, expected)) = (numbers(&t.name), numbers(&format!("{}.expected", t.name)));
            assert_eq!(dtype.to_string(), t.name);
            assert!(expected.iter().any(|v| *v != 0.0));
            for (a, b) in ours.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{}: {a} for {b}", t.name);
            }
            seen.push(dtype);
        }
        seen.sort();
        use Dtype::*;
        assert_eq!(seen, [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K]);
    }
}
