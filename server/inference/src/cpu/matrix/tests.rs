use super::*;
use crate::format::{FORMATS, Layout};
use crate::kernels::linear::{Linear, Then};
use crate::kernels::{Isa, Kernels};
use proptest::prelude::*;
use std::path::Path;

/// Rounding of f32, relative to the result.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Numbers that differ for each seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// Random blocks whose f16 fields are of both signs and at most 0.1.
fn blocks(code: Code, count: usize, random: &mut Random) -> Vec<u8> {
    let format = code.format();
    let mut bytes: Vec<u8> = (0..count * format.bytes()).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(format.bytes()) {
        for at in format.half_places() {
            block[at..at + 2].copy_from_slice(&f16::from_f32(0.1 * random.number()).to_le_bytes());
        }
    }
    bytes
}

fn weight(code: Code, rows: usize, bytes: &[u8]) -> Weight<'_> {
    let columns = bytes.len() / rows / code.format().bytes() * code.format().numbers;
    let (dtype, layout) = (Dtype::Coded(code), Layout::Plain);
    Weight { file: Path::new("random.gguf"), name: format!("{dtype}.weight"), dtype, rows, columns, bytes, layout }
}

fn plan(parts: Vec<Weight<'_>>, paired: bool) -> Plan<'_> {
    let biases = parts.iter().map(|_| None).collect();
    Plan::new(parts, biases, paired, None)
}

fn pack(plan: &Plan<'_>) -> Matrix {
    let mut arena = Arena::new(plan.bytes().unwrap()).unwrap();
    let matrix = plan.pack(&mut arena, &mut Pool::new(2)).unwrap();
    assert_eq!(matrix.bytes(), plan.held().unwrap());
    matrix
}

/// Rows as the kernels quantize them.
struct Quantized {
    bytes: Vec<i8>,
    scales: Vec<f32>,
    totals: Vec<i32>,
}

fn quantize(kernels: &Kernels, x: &[f32]) -> Quantized {
    let groups = x.len() / GROUP;
    let mut to = Quantized { bytes: vec![0; x.len()], scales: vec![0.0; groups], totals: vec![0; 2 * groups] };
    // SAFETY: the kernels are of this CPU, and the buffers have these sizes.
    unsafe {
        let (bytes, scales, totals) = (to.bytes.as_mut_ptr(), to.scales.as_mut_ptr(), to.totals.as_mut_ptr());
        (kernels.quantize)(x.as_ptr(), groups, bytes, scales, totals);
    }
    to
}

/// `x` times the matrix, row by row.
fn product(kernels: &Kernels, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / matrix.inputs;
    let from = quantize(kernels, x);
    let mut out = vec![f32::NAN; rows * matrix.outputs];
    for segment in &matrix.segments {
        let job = Linear {
            storage: segment.storage,
            weights: matrix.weights(segment),
            tile_bytes: segment.tile_bytes,
            first_tile: segment.tiles.start,
            inputs: matrix.inputs,
            outputs: matrix.outputs,
            bias: std::ptr::null(),
            rows,
            numbers: x.as_ptr(),
            numbers_stride: matrix.inputs,
            bytes: from.bytes.as_ptr(),
            scales: from.scales.as_ptr(),
            totals: from.totals.as_ptr(),
            out: out.as_mut_ptr(),
            out_stride: matrix.outputs,
            then: Then::Store,
        };
        // SAFETY: the kernels are of this CPU, and the buffers hold all rows.
        unsafe { (kernels.linear)(&job, segment.tiles.clone()) };
    }
    out
}

fn codes() -> impl Strategy<Value = Code> {
    (0..FORMATS.len()).prop_map(|i| FORMATS[i].code())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn products_of_codes_are_those_of_the_decoded_numbers(
        code in codes(),
        outputs in 1usize..70,
        per_row in 1usize..4,
        rows in 1usize..8,
        seed: u64,
    ) {
        let (format, random) = (code.format(), &mut Random(seed));
        let bytes = blocks(code, outputs * per_row, random);
        let matrix = pack(&plan(vec![weight(code, outputs, &bytes)], false));
        let inputs = matrix.inputs;

        // Memory: the blocks of the file, each tile rounded up to a cache line.
        let tile = (LANES * per_row * format.bytes()).next_multiple_of(64);
        prop_assert_eq!(matrix.bytes(), (outputs.div_ceil(LANES) * tile) as u64);

        let x: Vec<f32> = (0..rows * inputs).map(|_| 4.0 * random.number()).collect();
        let all: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_here()).collect();
        let results = all.iter().map(|isa| product(&Kernels::of(*isa), &matrix, &x)).collect::<Vec<_>>();
        for other in &results[1..] {
            prop_assert!(results[0].iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits()), "{:?} differ", all);
        }

        let from = quantize(&Kernels::of(Isa::Plain), &x);
        let share = format.scales.share(format.numbers);
        for (output, bytes) in bytes.chunks_exact(per_row * format.bytes()).enumerate() {
            let mut decoded = vec![0.0; inputs];
            matrix.row(output, &mut decoded);
            let mut stored = vec![0.0; inputs];
            Dtype::Coded(code).decode(bytes, &mut stored);
            prop_assert_eq!(&decoded, &stored);
            for row in 0..rows {
                // Sums in f64: of the products with quantized and with given inputs, of magnitudes, of what
                // quantization of inputs may change.
                let (mut sum, mut given, mut magnitudes, mut step) = (0f64, 0f64, 0f64, 0f64);
                let mut block = Block::EMPTY;
                for i in 0..inputs {
                    if i % format.numbers == 0 {
                        block.read(format, &bytes[i / format.numbers * format.bytes()..][..format.bytes()]);
                    }
                    let within = i % format.numbers;
                    let (scale, minimum) = block.scale(format, within / share);
                    let coded = f64::from(scale) * f64::from(format.step(block.codes[within]));
                    let at = row * inputs + i;
                    let unit = f64::from(from.scales[at / GROUP]);
                    let input = unit * f64::from(from.bytes[at]);
                    let number = coded - f64::from(minimum);
                    sum += number * input;
                    given += number * f64::from(x[at]);
                    magnitudes += (coded.abs() + f64::from(minimum).abs()) * input.abs();
                    step += number.abs() * unit;
                }
                let got = f64::from(results[0][row * outputs + output]);
                // Integer sums and scales of codes are exact. A part of a group (16 or 32 inputs) rounds twice for
                // its codes and twice for its minimum: the factor, and the addition to the sum so far.
                let additions = 2 * inputs / share.min(GROUP);
                let bound = (additions + 2) as f64 * UNIT * magnitudes;
                prop_assert!((got - sum).abs() <= bound, "{}: {got} for {sum}, bound {bound:e}", Dtype::Coded(code));
                // An input is rounded to the nearest of its group's steps: half a step, and the rounding of the
                // step and of its inverse, on up to 127 steps.
                let bound = bound + (0.5 + 127.0 * 4.0 * UNIT) * step;
                prop_assert!((got - given).abs() <= bound, "{}: {got} for {given}", Dtype::Coded(code));
            }
        }
    }

    #[test]
    fn scales_that_are_not_finite_are_refused(code in codes(), seed: u64) {
        let random = &mut Random(seed);
        let mut bytes = blocks(code, 20, random);
        let places: Vec<usize> = code.format().half_places().collect();
        let at = random.next() as usize % 20 * code.format().bytes() + places[random.next() as usize % places.len()];
        bytes[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let plan = plan(vec![weight(code, 20, &bytes)], false);
        let problem = plan.check(&mut Pool::new(1)).unwrap_err().to_string();
        prop_assert!(problem.contains("scales that are not finite"), "{}", problem);
        let mut arena = Arena::new(plan.bytes().unwrap()).unwrap();
        prop_assert!(plan.pack(&mut arena, &mut Pool::new(1)).is_err());
    }
}

#[test]
fn parts_of_different_types_keep_their_types() {
    let random = &mut Random(5);
    let parts = [(Code::Q4K, 48), (Code::Q6K, 16), (Code::Q5K, 20)];
    let bytes = parts.map(|(code, rows)| blocks(code, 2 * rows, random));
    let weights = || parts.iter().zip(&bytes).map(|((code, rows), bytes)| weight(*code, *rows, bytes));
    let whole = plan(weights().collect(), false);
    let matrix = pack(&whole);
    assert_eq!(matrix.segments.len(), 3);
    let lanes_of_last = 12 * 2 * Code::Q5K.format().bytes();
    assert_eq!(matrix.bytes() as usize, bytes.iter().map(Vec::len).sum::<usize>() + lanes_of_last);
    let x: Vec<f32> = (0..3 * matrix.inputs).map(|_| random.number()).collect();
    let kernels = Kernels::of(Isa::best());
    let together = product(&kernels, &matrix, &x);
    let mut first = 0;
    for (part, (_, rows)) in weights().zip(parts) {
        let alone = product(&kernels, &pack(&plan(vec![part], false)), &x);
        for (together, alone) in together.chunks(matrix.outputs).zip(alone.chunks(rows)) {
            assert_eq!(&together[first..first + rows], alone);
        }
        first += rows;
    }
}

#[test]
fn types_that_would_meet_in_a_tile_are_requantized() {
    let random = &mut Random(6);
    let bytes = [Code::Q4K, Code::Q6K].map(|code| blocks(code, 32, random));
    let parts = |rows| [Code::Q4K, Code::Q6K].iter().zip(&bytes).map(move |(code, bytes)| weight(*code, rows, bytes));
    for (rows, paired, wanted) in [
        (32, false, [Storage::Coded(Code::Q4K), Storage::Coded(Code::Q6K)]),
        // The tiles of a pair alternate.
        (32, true, [Storage::Q8; 2]),
        // The first part ends within a tile.
        (8, false, [Storage::Q8; 2]),
    ] {
        let plan = plan(parts(rows).collect(), paired);
        assert_eq!(plan.stored().map(|(_, storage)| storage).collect::<Vec<_>>(), wanted, "{rows} {paired}");
        assert_eq!(pack(&plan).outputs, 2 * rows);
    }
}
