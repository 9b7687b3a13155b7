//! The memory bandwidth of the machine: the upper limit of all results.

use std::time::Instant;

/// What a round reads at least: less takes too little time to be measured.
const LEAST_BYTES: u64 = 512 << 20;
const ROUNDS: usize = 5;

/// How many times a round reads this many bytes.
fn passes(bytes: u64) -> u64 {
    (LEAST_BYTES / bytes.max(1)).max(1)
}

/// Gigabytes per second that `threads` threads read together of this many bytes, which a cache may hold, 512 MiB at most; the best of
/// several rounds.
pub(crate) fn read_gb_per_second(threads: usize, bytes: u64) -> f64 {
    let bytes = bytes.min(LEAST_BYTES);
    let memory: Vec<u64> = (0..(bytes / 8).max(1)).collect();
    let part = memory.len().div_ceil(threads.max(1));
    let passes = passes(bytes);
    let read =
        move |mine: &[u64]| (0..passes).fold(0u64, |total, _| total.wrapping_add(sum(std::hint::black_box(mine))));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let total = std::thread::scope(|scope| {
            let readers: Vec<_> = memory.chunks(part).map(|mine| scope.spawn(move || read(mine))).collect();
            readers.into_iter().fold(0u64, |sum, r| sum.wrapping_add(r.join().unwrap_or(0)))
        });
        best = best.min(started.elapsed().as_secs_f64());
        std::hint::black_box(total);
    }
    (passes * memory.len() as u64 * 8) as f64 / 1e9 / best
}

fn sum(numbers: &[u64]) -> u64 {
    // Eight sums at once keep enough loads in flight.
    let mut sums = [0u64; 8];
    for eight in numbers.chunks_exact(8) {
        for (sum, n) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*n);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Gigabytes per second that a GPU copies of this many bytes, those that are read and written counted; the best of several rounds.
#[cfg(feature = "cuda")]
pub(crate) fn copy_gb_per_second(number: usize, bytes: u64) -> candle_core::Result<f64> {
    let (device, bytes) = (candle_core::Device::new_cuda(number)?, bytes.min(LEAST_BYTES));
    let (numbers, passes) = ((bytes as usize / size_of::<f32>()).max(1), passes(bytes));
    let memory = candle_core::Tensor::zeros(numbers, candle_core::DType::F32, &device)?;
    let mut best = f64::INFINITY;
    for _ in 0..=ROUNDS {
        device.synchronize()?;
        let started = Instant::now();
        for _ in 0..passes {
            drop(memory.copy()?);
        }
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (passes as usize * numbers * size_of::<f32>()) as f64 / 1e9 / best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_read_several_times_in_a_round() {
        assert_eq!((passes(0), passes(3 << 20), passes(1 << 40)), (512 << 20, 170, 1));
    }
}
