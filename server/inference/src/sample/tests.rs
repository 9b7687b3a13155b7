use super::*;

fn plain(temperature: f32) -> Sampling {
    Sampling {
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: 42,
    }
}

fn choose(sampling: Sampling, logits: &[f32], position: u64) -> u32 {
    Sampler::new(sampling, &[]).choose(logits, position, None, None, &mut Scratch::default()).unwrap().token
}

fn logits(vocab: usize, spread: f32) -> Vec<f32> {
    (0..vocab).map(|id| (philox::uniform(99, id as u64) as f32 - 0.5) * spread).collect()
}

/// The distribution by the book: sort everything, double precision.
fn by_the_book(sampling: &Sampling, logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let mut tokens: Vec<(usize, f64)> =
        logits.iter().map(|&l| (f64::from(l - max) / f64::from(sampling.temperature)).exp()).enumerate().collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        tokens.truncate(sampling.top_k);
    }
    let whole: f64 = tokens.iter().map(|t| t.1).sum();
    let mut sum = 0.0;
    let mut kept = 0;
    while kept < tokens.len() && (kept == 0 || sum < f64::from(sampling.top_p) * whole) {
        sum += tokens[kept].1;
        kept += 1;
    }
    tokens.truncate(kept);
    tokens.retain(|t| t.1 >= f64::from(sampling.min_p));
    let whole: f64 = tokens.iter().map(|t| t.1).sum();
    let mut exact = vec![0.0; logits.len()];
    for (id, weight) in tokens {
        exact[id] = weight / whole;
    }
    exact
}

/// Draws against the exact distribution; the bound is passed by chance once in about 10⁴ runs, and the seed is fixed.
fn chi_square(sampling: Sampling, logits: &[f32], draws: u64) {
    let exact = by_the_book(&sampling, logits);
    let sampler = Sampler::new(sampling, &[]);
    let mut scratch = Scratch::default();
    let mut counts = vec![0u64; logits.len()];
    for position in 0..draws {
        counts[sampler.choose(logits, position, None, None, &mut scratch).unwrap().token as usize] += 1;
    }
    let (mut chi, mut cells) = (0.0, 0);
    let (mut rare, mut rare_count) = (0.0, 0.0);
    for (&share, &count) in exact.iter().zip(&counts) {
        let expected = share * draws as f64;
        if share == 0.0 {
            assert_eq!(count, 0, "drew a token that the filters removed");
        } else if expected < 10.0 {
            rare += expected;
            rare_count += count as f64;
        } else {
            chi += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rare > 0.0 {
        chi += (rare_count - rare).powi(2) / rare.max(1.0);
        cells += 1;
    }
    let freedom = f64::from(cells - 1).max(1.0);
    // Wilson and Hilferty: the cube root of a chi-square variable is nearly normal.
    let normal = ((chi / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom))) / (2.0 / (9.0 * freedom)).sqrt();
    assert!(normal < 3.8, "chi-square {chi} with {freedom} degrees of freedom");
}

#[test]
fn samples_follow_the_exact_distribution() {
    chi_square(plain(1.0), &logits(50, 6.0), 1_000_000);
    chi_square(plain(0.7), &logits(700, 8.0), 200_000);
    chi_square(Sampling { top_k: 10, ..plain(1.3) }, &logits(300, 6.0), 200_000);
    chi_square(Sampling { top_p: 0.9, ..plain(1.0) }, &logits(300, 9.0), 200_000);
    chi_square(Sampling { top_p: 0.95, ..plain(1.0) }, &logits(2_000, 1.0), 50_000);
    chi_square(Sampling { min_p: 0.1, ..plain(1.0) }, &logits(300, 9.0), 200_000);
    chi_square(Sampling { top_k: 40, top_p: 0.8, min_p: 0.05, ..plain(0.9) }, &logits(300, 9.0), 200_000);
}

#[test]
fn greedy_sampling_picks_the_lowest_id_of_equal_logits() {
    let mut row = vec![0.0; 300];
    row[70] = 3.0;
    row[200] = 3.0;
    for temperature in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
        assert_eq!(choose(plain(temperature), &row, 0), 70);
    }
    assert_eq!(choose(Sampling { top_k: 1, ..plain(2.0) }, &row, 0), 70);
    assert_eq!(choose(Sampling { top_p: 0.0, ..plain(2.0) }, &row, 0), 70);
}

#[test]
fn sampled_token_depends_only_on_seed_and_position() {
    let row = logits(1_000, 4.0);
    let series = |seed| -> Vec<u32> { (0..64).map(|p| choose(Sampling { seed, ..plain(1.0) }, &row, p)).collect() };
    assert_eq!(series(5), series(5));
    assert_ne!(series(5), series(6));
}

#[test]
fn repetition_penalty_applies_to_prompt_and_output() {
    let row = [2.0, 1.9, -1.0, -1.1];
    let sampling = Sampling { repetition_penalty: 2.0, ..plain(0.0) };
    let mut sampler = Sampler::new(sampling, &[0]);
    let mut scratch = Scratch::default();
    assert_eq!(sampler.choose(&row, 0, None, None, &mut scratch).unwrap().token, 1);
    sampler.accept(1);
    // 2.0 / 2 = 1.0 beats 1.9 / 2 = 0.95.
    assert_eq!(sampler.choose(&row, 1, None, None, &mut scratch).unwrap().token, 0);
    // Negative logits are multiplied, so they sink too.
    let negative = [-1.0, -1.5];
    assert_eq!(sampler.choose(&negative, 0, None, None, &mut scratch).unwrap().token, 0);
    let sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..plain(0.0) }, &[0]);
    assert_eq!(sampler.choose(&negative, 0, None, None, &mut scratch).unwrap().token, 1);
}

#[test]
fn presence_and_frequency_penalties_apply_to_the_output_only() {
    let row = [2.0, 1.2];
    let mut scratch = Scratch::default();
    let mut presence = Sampler::new(Sampling { presence_penalty: 0.5, ..plain(0.0) }, &[0]);
    let mut frequency = Sampler::new(Sampling { frequency_penalty: 0.5, ..plain(0.0) }, &[0]);
    for sampler in [&mut presence, &mut frequency] {
        assert_eq!(sampler.choose(&row, 0, None, None, &mut scratch).unwrap().token, 0);
        sampler.accept(0);
        assert_eq!(sampler.choose(&row, 1, None, None, &mut scratch).unwrap().token, 0);
        sampler.accept(0);
    }
    assert_eq!(presence.choose(&row, 2, None, None, &mut scratch).unwrap().token, 0);
    assert_eq!(frequency.choose(&row, 2, None, None, &mut scratch).unwrap().token, 1);
}

#[test]
fn log_probabilities_ignore_penalties_and_temperature() {
    let row = logits(900, 12.0);
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|&l| f64::from(l - max).exp()).sum();
    let exact = |id: u32| f64::from(row[id as usize] - max) - sum.ln();
    let sampling = Sampling { repetition_penalty: 1.3, top_k: 5, ..plain(0.5) };
    let choice = Sampler::new(sampling, &[1, 2, 3]).choose(&row, 7, Some(20), None, &mut Scratch::default()).unwrap();
    assert_eq!(choice.top.len(), 20);
    assert!(choice.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    for (id, value) in choice.top.iter().copied().chain([(choice.token, choice.logprob.unwrap())]) {
        assert!((f64::from(value) - exact(id)).abs() < 1e-5);
    }
    assert!((f64::from(logprob(&row, 17).unwrap()) - exact(17)).abs() < 1e-5);
}

#[test]
fn non_finite_logits_are_an_error_and_extreme_settings_are_harmless() {
    let mut row = logits(100, 4.0);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        row[31] = bad;
        let choice = Sampler::new(plain(1.0), &[]).choose(&row, 0, Some(1), None, &mut Scratch::default());
        assert_eq!(choice, Err(NotFinite));
        assert_eq!(logprob(&row, 0), Err(NotFinite));
    }
    let row = logits(100, 4.0);
    assert_eq!(logprob(&row, 100), Err(NotFinite));
    let odd = Sampling {
        repetition_penalty: f32::NAN,
        presence_penalty: f32::INFINITY,
        frequency_penalty: f32::NAN,
        top_p: f32::NAN,
        min_p: f32::NAN,
        ..plain(1.0)
    };
    for position in 0..100 {
        assert_eq!(choose(odd.clone(), &row, position), choose(plain(1.0), &row, position));
    }
    // Extremes of both sides stay in the vocabulary.
    for temperature in [f32::MIN_POSITIVE, f32::MAX, f32::INFINITY] {
        assert!(choose(plain(temperature), &[f32::MAX, f32::MIN, 0.0], 3) < 3);
    }
    let harsh = Sampling { repetition_penalty: f32::MAX, presence_penalty: f32::MAX, ..plain(1.0) };
    let mut sampler = Sampler::new(harsh, &[0, 1, 2]);
    sampler.accept(0);
    assert!(sampler.choose(&[-5.0, 1.0, -7.0], 0, None, None, &mut Scratch::default()).is_ok());
}

#[test]
fn infinite_temperature_samples_uniformly() {
    let mut counts = [0; 4];
    for position in 0..4_000 {
        counts[choose(plain(f32::INFINITY), &[9.0, 0.0, -9.0, f32::MIN], position) as usize] += 1;
    }
    assert!(counts.iter().all(|&n| (850..1_150).contains(&n)), "{counts:?}");
}

#[test]
fn top_k_beyond_the_vocabulary_keeps_all_tokens() {
    let row = logits(100, 4.0);
    for position in 0..50 {
        let all = choose(plain(1.0), &row, position);
        assert_eq!(choose(Sampling { top_k: 100, ..plain(1.0) }, &row, position), all);
        assert_eq!(choose(Sampling { top_k: usize::MAX, ..plain(1.0) }, &row, position), all);
    }
}

#[test]
fn biases_exclude_tokens_and_choose_among_others() {
    let row = [3.0, 2.0, 1.0, 0.0];
    let with = |bias: &[(u32, f32)], temperature| {
        choose(Sampling { logit_bias: bias.to_vec(), ..plain(temperature) }, &row, 0)
    };
    assert_eq!(with(&[(0, -100.0)], 0.0), 1);
    assert_eq!(with(&[(3, 100.0)], 1.0), 3);
    assert_eq!(with(&[(0, -100.0), (1, -100.0), (2, f32::NAN), (99, 100.0)], 0.0), 2);
    // Only two tokens are left, and both are drawn.
    let drawn: std::collections::BTreeSet<u32> = (0..64)
        .map(|position| choose(Sampling { logit_bias: vec![(0, -100.0), (1, -100.0)], ..plain(1.0) }, &row, position))
        .collect();
    assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [2, 3]);
}
