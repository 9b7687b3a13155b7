//! Random numbers without a state: a number is a function of seed and position.
//!
//! Philox4x32-10 (Salmon et al. 2011). Because it is stateless, a request draws the same numbers independently of other
//! requests, after a preemption, and in another process.

/// The four words of one block.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// A number in [0, 1), evenly spread in steps of 2⁻⁵³.
pub(crate) fn uniform(seed: u64, position: u64) -> f64 {
    let words = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_test_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_are_evenly_distributed_below_one() {
        let mut sums = [0usize; 16];
        for position in 0..160_000 {
            let u = uniform(7, position);
            assert!((0.0..1.0).contains(&u));
            sums[(u * 16.0) as usize] += 1;
        }
        let chi: f64 = sums.iter().map(|&n| (n as f64 - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi < 44.3, "chi-square {chi} with 15 degrees of freedom (p = 0.0001)");
    }

    #[test]
    fn upper_halves_of_seed_and_position_matter() {
        assert_ne!(uniform(1, 0), uniform(1 | 1 << 40, 0));
        assert_ne!(uniform(1, 5), uniform(1, 5 | 1 << 40));
    }
}
