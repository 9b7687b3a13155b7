//! The memory bandwidth of the machine: the upper limit of all results.

use std::time::Instant;

/// Larger than the caches.
const BYTES: usize = 512 << 20;
const ROUNDS: usize = 5;

/// Gigabytes per second that `threads` threads read together; the best of several rounds.
pub(crate) fn read_gb_per_second(threads: usize) -> f64 {
    let memory: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let part = memory.len().div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let total = std::thread::scope(|scope| {
            let readers: Vec<_> = memory.chunks(part).map(|mine| scope.spawn(move || sum(mine))).collect();
            readers.into_iter().fold(0u64, |sum, r| sum.wrapping_add(r.join().unwrap_or(0)))
        });
        best = best.min(started.elapsed().as_secs_f64());
        std::hint::black_box(total);
    }
    BYTES as f64 / 1e9 / best
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

/// Gigabytes per second that a GPU copies, bytes that are read and written counted; the best of several rounds.
#[cfg(feature = "cuda")]
pub(crate) fn copy_gb_per_second(number: usize) -> candle_core::Result<f64> {
    let device = candle_core::Device::new_cuda(number)?;
    let memory = candle_core::Tensor::zeros(BYTES / size_of::<f32>(), candle_core::DType::F32, &device)?;
    let mut best = f64::INFINITY;
    for _ in 0..=ROUNDS {
        device.synchronize()?;
        let started = Instant::now();
        let copy = memory.copy()?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
        drop(copy);
    }
    Ok(2.0 * BYTES as f64 / 1e9 / best)
}
