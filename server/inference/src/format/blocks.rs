//! How weights are stored in files, and how a row becomes numbers.

use half::{bf16, f16};

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    /// ggml's blocks of 32 bytes with a scale.
    Q8_0,
    /// ggml's blocks of less than 8 bits.
    Coded(Code),
}

/// A block type of ggml whose numbers are codes of 2 to 6 bits. The order is that of the table of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Code {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// The scales of a block. A number is `scale · (code - offset) - minimum`, or `scale · table[code]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// One f16 for the block.
    One,
    /// One f16, and an f16 that is added.
    OneAndBase,
    /// For each 32 numbers a scale and a minimum of six bits, in units of two f16.
    SixBitPairs,
    /// For each 16 numbers a scale of four bits and a minimum of four bits, in units of two f16.
    FourBitPairs,
    /// For each 16 numbers a scale of six bits with 32 added, in units of an f16.
    SixBits,
    /// For each 16 numbers a signed byte, in units of an f16.
    Bytes,
    /// For each 32 numbers a scale of six bits with 32 added, in units of an f16; the upper two bits are in 16 bits behind
    /// it.
    SixBitsApart,
}

impl Scales {
    /// How many numbers share a scale, of a block's `numbers`.
    pub(crate) const fn share(self, numbers: usize) -> usize {
        match self {
            Scales::One | Scales::OneAndBase => numbers,
            Scales::SixBitPairs | Scales::SixBitsApart => 32,
            Scales::FourBitPairs | Scales::SixBits | Scales::Bytes => 16,
        }
    }

    /// Whether something is subtracted from all numbers.
    pub(crate) const fn has_minimum(self) -> bool {
        matches!(self, Scales::OneAndBase | Scales::SixBitPairs | Scales::FourBitPairs)
    }
}

/// A block type: its sizes, and where a block keeps what.
pub(crate) struct Format {
    code: Code,
    name: &'static str,
    /// ggml's number of the type.
    ggml: u32,
    /// Numbers in a block.
    pub(crate) numbers: usize,
    /// Bits of a code.
    pub(crate) bits: usize,
    /// What is subtracted from codes.
    pub(crate) offset: u8,
    /// What codes stand for, if it is not the code itself.
    pub(crate) table: Option<&'static [i8; 16]>,
    pub(crate) scales: Scales,
    /// Where the fields of 16 bits begin, and their number.
    halves: (usize, usize),
    /// Where the packed scales begin, and how many 32-bit words they take.
    words: (usize, usize),
    /// Reads the codes of a block.
    codes: fn(&[u8], &mut [u8]),
}

/// All block types, by [`Code`]. The layouts are those of `ggml-common.h` and `ggml-quants.c`.
#[rustfmt::skip]
pub(crate) const FORMATS: [Format; 11] = [
    Format { code: Code::Q4_0, name: "q4_0", ggml: 2, numbers: 32, bits: 4, offset: 8, table: None, scales: Scales::One, halves: (0, 1), words: (2, 0), codes: |b, to| small(&b[2..], 0, to) },
    Format { code: Code::Q4_1, name: "q4_1", ggml: 3, numbers: 32, bits: 4, offset: 0, table: None, scales: Scales::OneAndBase, halves: (0, 2), words: (4, 0), codes: |b, to| small(&b[4..], 0, to) },
    Format { code: Code::Q5_0, name: "q5_0", ggml: 6, numbers: 32, bits: 5, offset: 16, table: None, scales: Scales::One, halves: (0, 1), words: (2, 0), codes: |b, to| small(&b[6..], word(b, 2), to) },
    Format { code: Code::Q5_1, name: "q5_1", ggml: 7, numbers: 32, bits: 5, offset: 0, table: None, scales: Scales::OneAndBase, halves: (0, 2), words: (4, 0), codes: |b, to| small(&b[8..], word(b, 4), to) },
    Format { code: Code::Q2K, name: "q2_k", ggml: 10, numbers: 256, bits: 2, offset: 0, table: None, scales: Scales::FourBitPairs, halves: (80, 2), words: (0, 4), codes: |b, to| quarters(&b[16..80], to) },
    Format { code: Code::Q3K, name: "q3_k", ggml: 11, numbers: 256, bits: 3, offset: 4, table: None, scales: Scales::SixBits, halves: (108, 1), words: (96, 3), codes: three },
    Format { code: Code::Q4K, name: "q4_k", ggml: 12, numbers: 256, bits: 4, offset: 0, table: None, scales: Scales::SixBitPairs, halves: (0, 2), words: (4, 3), codes: |b, to| wide(&b[16..], None, to) },
    Format { code: Code::Q5K, name: "q5_k", ggml: 13, numbers: 256, bits: 5, offset: 0, table: None, scales: Scales::SixBitPairs, halves: (0, 2), words: (4, 3), codes: |b, to| wide(&b[48..], Some(&b[16..48]), to) },
    Format { code: Code::Q6K, name: "q6_k", ggml: 14, numbers: 256, bits: 6, offset: 32, table: None, scales: Scales::Bytes, halves: (208, 1), words: (192, 4), codes: six },
    Format { code: Code::Iq4Nl, name: "iq4_nl", ggml: 20, numbers: 32, bits: 4, offset: 0, table: Some(&UNEVEN), scales: Scales::One, halves: (0, 1), words: (2, 0), codes: |b, to| small(&b[2..], 0, to) },
    Format { code: Code::Iq4Xs, name: "iq4_xs", ggml: 23, numbers: 256, bits: 4, offset: 0, table: Some(&UNEVEN), scales: Scales::SixBitsApart, halves: (0, 2), words: (4, 1), codes: smalls },
];

/// The numbers of ggml's codes without even steps (`kvalues_iq4nl`): denser around zero, as weights are.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Format {
    /// Bytes of the fields of 16 bits and of the packed scales.
    pub(crate) const fn head(&self) -> usize {
        2 * self.halves.1 + 4 * self.words.1
    }

    /// Bytes of a block.
    pub(crate) const fn bytes(&self) -> usize {
        self.numbers * self.bits / 8 + self.head()
    }

    /// Whether a number takes at most the bits of another format's.
    pub(crate) const fn is_no_larger(&self, other: &Format) -> bool {
        self.bytes() * other.numbers <= other.bytes() * self.numbers
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Where the f16 fields are.
    #[cfg(test)]
    pub(crate) fn half_places(&self) -> impl Iterator<Item = usize> + use<> {
        let (start, count) = (self.halves.0, self.floats());
        (0..count).map(move |i| start + 2 * i)
    }

    /// What a code stands for, before its scale.
    pub(crate) fn step(&self, code: u8) -> f32 {
        match self.table {
            Some(table) => f32::from(table[usize::from(code)]),
            None => f32::from(code) - f32::from(self.offset),
        }
    }

    /// The number of fields of 16 bits.
    pub(crate) const fn halves(&self) -> usize {
        self.halves.1
    }

    /// The number of these that are f16; they come first.
    const fn floats(&self) -> usize {
        if matches!(self.scales, Scales::SixBitsApart) { 1 } else { self.halves.1 }
    }
}

impl Code {
    /// The row of the table.
    pub(crate) const fn format(self) -> &'static Format {
        const TABLE: &[Format; FORMATS.len()] = &FORMATS;
        &TABLE[self as usize]
    }
}

/// A block whose fields are taken apart.
pub(crate) struct Block {
    pub(crate) halves: [f16; 2],
    pub(crate) words: [u32; 4],
    pub(crate) codes: [u8; 256],
}

impl Block {
    pub(crate) const EMPTY: Block = Block { halves: [f16::ZERO; 2], words: [0; 4], codes: [0; 256] };

    /// Reads a block of a file.
    pub(crate) fn read(&mut self, format: &Format, from: &[u8]) {
        for (i, to) in self.halves.iter_mut().enumerate().take(format.halves.1) {
            *to = half(from, format.halves.0 + 2 * i);
        }
        for (i, to) in self.words.iter_mut().enumerate().take(format.words.1) {
            *to = word(from, format.words.0 + 4 * i);
        }
        (format.codes)(from, &mut self.codes[..format.numbers]);
    }

    /// Whether all f16 fields are finite: then all numbers are.
    pub(crate) fn is_finite(&self, format: &Format) -> bool {
        self.halves[..format.floats()].iter().all(|h| h.is_finite())
    }

    /// The scale and the minimum of the numbers of a part.
    pub(crate) fn scale(&self, format: &Format, part: usize) -> (f32, f32) {
        let [d, least] = self.halves.map(f16::to_f32);
        let byte = |i: usize| (self.words[i / 4] >> (8 * (i % 4))) as u8;
        match format.scales {
            Scales::One => (d, 0.0),
            Scales::OneAndBase => (d, -least),
            Scales::SixBitPairs => {
                let (scale, minimum) = if part < 4 {
                    (byte(part) & 63, byte(part + 4) & 63)
                } else {
                    let (low, scale, minimum) = (byte(part + 4), byte(part - 4), byte(part));
                    ((low & 15) | (scale >> 6) << 4, (low >> 4) | (minimum >> 6) << 4)
                };
                (d * f32::from(scale), least * f32::from(minimum))
            }
            Scales::FourBitPairs => (d * f32::from(byte(part) & 15), least * f32::from(byte(part) >> 4)),
            Scales::SixBits => {
                let low = byte(part % 8) >> (4 * (part / 8)) & 15;
                let high = byte(8 + part % 4) >> (2 * (part / 4)) & 3;
                (d * (f32::from(low | high << 4) - 32.0), 0.0)
            }
            Scales::Bytes => (d * f32::from(byte(part) as i8), 0.0),
            Scales::SixBitsApart => {
                let low = self.words[0] >> (4 * part) & 15;
                let high = self.halves[1].to_bits() >> (2 * part) & 3;
                (d * ((low as u16 | high << 4) as f32 - 32.0), 0.0)
            }
        }
    }

    /// The numbers of the block.
    pub(crate) fn numbers(&self, format: &Format, to: &mut [f32]) {
        let share = format.scales.share(format.numbers);
        for (part, (to, codes)) in to.chunks_mut(share).zip(self.codes.chunks(share)).enumerate() {
            let (scale, minimum) = self.scale(format, part);
            for (y, code) in to.iter_mut().zip(codes) {
                *y = scale * format.step(*code) - minimum;
            }
        }
    }
}

impl Dtype {
    /// Numbers in a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Coded(code) => (code.format().numbers, code.format().bytes()),
        }
    }

    /// Bytes of `count` numbers, when they are whole blocks and the result fits.
    pub fn bytes(self, count: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        if count.is_multiple_of(numbers) { (count / numbers).checked_mul(bytes) } else { None }
    }

    /// All types.
    pub fn all() -> impl Iterator<Item = Dtype> {
        let coded = FORMATS.iter().map(|format| Dtype::Coded(format.code));
        [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0].into_iter().chain(coded)
    }

    /// ggml's number of the type.
    pub fn ggml(self) -> u32 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Q8_0 => 8,
            Dtype::Bf16 => 30,
            Dtype::Coded(code) => code.format().ggml,
        }
    }

    /// The type of a tensor by ggml's number, or the name of one that is not supported.
    pub(crate) fn from_ggml(number: u32) -> Result<Dtype, String> {
        let unknown = || ggml_name(number).map_or_else(|| format!("number {number}"), str::to_owned);
        Dtype::all().find(|dtype| dtype.ggml() == number).ok_or_else(unknown)
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
        let mut parts = Block::EMPTY;
        for (block, out) in from.chunks_exact(bytes).zip(to.chunks_exact_mut(numbers)) {
            match self {
                Dtype::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                Dtype::F16 => out[0] = half(block, 0).to_f32(),
                Dtype::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Dtype::Q8_0 => {
                    let d = half(block, 0).to_f32();
                    for (y, q) in out.iter_mut().zip(&block[2..]) {
                        *y = f32::from(*q as i8) * d;
                    }
                }
                Dtype::Coded(code) => {
                    parts.read(code.format(), block);
                    parts.numbers(code.format(), out);
                }
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
            Dtype::Coded(code) => code.format().name,
        })
    }
}

fn ggml_name(number: u32) -> Option<&'static str> {
    const NAMES: [(u32, &str); 18] = [
        (9, "q8_1"),
        (15, "q8_k"),
        (16, "iq2_xxs"),
        (17, "iq2_xs"),
        (18, "iq3_xxs"),
        (19, "iq1_s"),
        (21, "iq3_s"),
        (22, "iq2_s"),
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

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 codes of four bits, low halves first, each with a fifth bit.
fn small(nibbles: &[u8], fifths: u32, to: &mut [u8]) {
    for (i, byte) in nibbles.iter().take(16).enumerate() {
        to[i] = byte & 15 | ((fifths >> i & 1) << 4) as u8;
        to[i + 16] = byte >> 4 | ((fifths >> (i + 16) & 1) << 4) as u8;
    }
}

/// 256 codes of four bits, in eight parts of 32.
fn smalls(block: &[u8], to: &mut [u8]) {
    for (nibbles, to) in block[8..136].chunks_exact(16).zip(to.chunks_exact_mut(32)) {
        small(nibbles, 0, to);
    }
}

/// 256 codes of four bits, or of five with `high`.
fn wide(nibbles: &[u8], high: Option<&[u8]>, to: &mut [u8]) {
    for (i, y) in to.iter_mut().enumerate() {
        let (part, j) = (i / 32, i % 32);
        let low = nibbles[part / 2 * 32 + j] >> (4 * (part % 2)) & 15;
        *y = low | high.map_or(0, |h| h[j] >> part & 1) << 4;
    }
}

/// 256 codes of two bits.
fn quarters(pairs: &[u8], to: &mut [u8]) {
    for (i, y) in to.iter_mut().enumerate() {
        *y = pairs[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
    }
}

/// 256 codes of three bits: the third bits come first.
fn three(block: &[u8], to: &mut [u8]) {
    quarters(&block[32..96], to);
    for (i, y) in to.iter_mut().enumerate() {
        *y |= (block[i % 32] >> (i / 32) & 1) << 2;
    }
}

/// 256 codes of six bits.
fn six(block: &[u8], to: &mut [u8]) {
    let (low, high) = (&block[..128], &block[128..192]);
    for (i, y) in to.iter_mut().enumerate() {
        let (part, quarter, j) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[part * 64 + quarter % 2 * 32 + j] >> (4 * (quarter / 2)) & 15;
        *y = nibble | (high[part * 32 + j] >> (2 * quarter) & 3) << 4;
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
        let all = FORMATS.iter().map(|format| Dtype::Coded(format.code));
        assert_eq!(seen, [Dtype::Q8_0].into_iter().chain(all).collect::<Vec<_>>());
    }

    #[test]
    fn every_code_has_its_row() {
        for (i, format) in FORMATS.iter().enumerate() {
            assert_eq!((format.code as usize, Code::format(format.code).name), (i, format.name));
            assert_eq!(Dtype::from_ggml(format.ggml), Ok(Dtype::Coded(format.code)));
            assert_eq!(format.bytes() - format.head(), format.numbers / 8 * format.bits);
        }
    }
}
