//! A row's result is the same bits whatever else is in the batch, however its prompt was cut, on any number of threads.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use support::*;
use textnlp_inference::cpu::{Cpu, LoadOptions, Quant};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId, StepError};

fn quants() -> impl Strategy<Value = Option<Quant>> {
    prop::sample::select([None].into_iter().chain(Quant::ALL.map(Some)).collect::<Vec<_>>())
}

/// Models whose context is long enough, also in blocks of four and five bits.
fn models() -> impl Strategy<Value = &'static str> {
    let blocks = ["gpt2-q4_0.gguf", "llama-q5_0.gguf"];
    let long = |model: &&str| load(&golden(model), &options(None)).shape().context >= 80;
    prop::sample::select(MODELS.iter().copied().chain(blocks).filter(long).collect::<Vec<_>>())
}

fn span(seq: SeqId, start: usize, tokens: &[u32]) -> RowSpan<'_> {
    RowSpan { seq, start, tokens, logits: LogitRows::All }
}

/// No `main.rs` lies above this file, so that seeds of failures are kept beside it.
fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { cases: 48, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn results_do_not_depend_on_batching_chunking_or_threads(
        model in models(),
        quant in quants(),
        threads in 1usize..5,
        prompts in prop::collection::vec(prop::collection::vec(0u32..61, 1..80), 1..6),
        cuts in prop::collection::vec(1usize..40, 1..12),
    ) {
        let mut alone = load(&golden(model), &LoadOptions { threads: 1, ..options(quant) });
        let wanted: Vec<_> = prompts.iter().map(|p| all_logits(&mut alone, p)).collect();

        let mut cpu = load(&golden(model), &LoadOptions { threads, ..options(quant) });
        let seqs: Vec<SeqId> = prompts.iter().map(|p| cpu.open(p.len()).unwrap()).collect();
        let mut got: Vec<Vec<Vec<f32>>> = vec![Vec::new(); prompts.len()];
        let mut cut = cuts.iter().cycle();
        // Each step takes some of what is left of each sequence; some are left out now and then.
        while got.iter().zip(&prompts).any(|(g, p)| g.len() < p.len()) {
            let mut parts = Vec::new();
            for (i, prompt) in prompts.iter().enumerate() {
                let take = *cut.next().unwrap();
                let start = got[i].len();
                let end = (start + take).min(prompt.len());
                if start < end && (take % 5 != 0 || parts.is_empty()) {
                    parts.push((i, start, end));
                }
            }
            let spans: Vec<_> = parts.iter().map(|(i, s, e)| span(seqs[*i], *s, &prompts[*i][*s..*e])).collect();
            cpu.step(&spans).unwrap();
            let vocab = cpu.shape().vocab;
            let mut rows = cpu.logits().chunks(vocab);
            for (i, start, end) in parts {
                got[i].extend((start..end).map(|_| rows.next().unwrap().to_vec()));
            }
            prop_assert!(rows.next().is_none());
        }
        prop_assert!(got == wanted);
    }
}

#[test]
fn long_steps_are_split_without_changing_results() {
    // More rows than go through the layers together.
    let tokens = expected("gpt2").tokens;
    let mut cpu = load(&golden("gpt2"), &options(Quant::Q8_0));
    let wanted = all_logits(&mut cpu, &tokens);
    let seqs: Vec<_> = (0..5).map(|_| cpu.open(tokens.len()).unwrap()).collect();
    let spans: Vec<_> = seqs.iter().map(|seq| span(*seq, 0, &tokens)).collect();
    cpu.step(&spans).unwrap();
    let vocab = cpu.shape().vocab;
    for rows in cpu.logits().chunks(vocab * tokens.len()) {
        assert!(rows.chunks(vocab).zip(&wanted).all(|(a, b)| a == &b[..]));
    }
    // Asking for the last row only gives that row.
    let last: Vec<_> = seqs.iter().map(|seq| RowSpan { logits: LogitRows::Last, ..span(*seq, 0, &tokens) }).collect();
    cpu.step(&last).unwrap();
    assert_eq!(cpu.logits().len(), 5 * vocab);
    assert!(cpu.logits().chunks(vocab).all(|row| row == &wanted[tokens.len() - 1][..]));
    let none: Vec<_> = seqs.iter().map(|seq| RowSpan { logits: LogitRows::None, ..span(*seq, 0, &tokens) }).collect();
    cpu.step(&none).unwrap();
    assert_eq!(cpu.logits().len(), 0);
}

#[test]
fn sequence_can_be_rewound() {
    let tokens = expected("llama").tokens;
    let mut cpu = load(&golden("llama"), &options(None));
    let wanted = all_logits(&mut cpu, &tokens);
    let seq = cpu.open(70).unwrap();
    cpu.step(&[span(seq, 0, &tokens[..50])]).unwrap();
    // Other tokens from 20 on, then the right ones again.
    cpu.step(&[span(seq, 20, &[1, 2, 3])]).unwrap();
    assert!(matches!(cpu.step(&[span(seq, 24, &tokens[24..30])]), Err(StepError::NotThere(s, 24)) if s == seq));
    cpu.step(&[span(seq, 20, &tokens[20..])]).unwrap();
    let vocab = cpu.shape().vocab;
    assert!(cpu.logits().chunks(vocab).zip(&wanted[20..]).all(|(a, b)| a == &b[..]));
    // Two spans of one sequence in a step, one behind the other.
    cpu.step(&[span(seq, 0, &tokens[..33]), span(seq, 33, &tokens[33..])]).unwrap();
    assert!(cpu.logits().chunks(vocab).zip(&wanted).all(|(a, b)| a == &b[..]));
}

#[test]
fn sequences_that_share_rows_have_the_same_bits_and_cannot_change_them() {
    for model in ["llama", "qwen3-window", "gpt2"] {
        let tokens = expected(model).tokens;
        let mut cpu = load(&golden(model), &LoadOptions { kv_positions: Some(160), ..options(None) });
        let (wanted, vocab, memory) = (all_logits(&mut cpu, &tokens), cpu.shape().vocab, cpu.memory().kv);
        let unit = cpu.share_unit().unwrap();
        let goes_on = |cpu: &mut Cpu, seq: SeqId| {
            cpu.step(&[span(seq, unit, &tokens[unit..])]).unwrap();
            assert!(cpu.logits().chunks(vocab).zip(&wanted[unit..]).all(|(a, b)| a == &b[..]), "{model}");
        };
        let first = cpu.open(tokens.len()).unwrap();
        cpu.step(&[span(first, 0, &tokens[..unit + 2])]).unwrap();
        // From one that is open, and goes on with other tokens than the fork.
        let fork = cpu.fork(first, unit, tokens.len()).unwrap();
        cpu.step(&[span(first, unit + 2, &[1])]).unwrap();
        goes_on(&mut cpu, fork);
        for seq in [first, fork] {
            let rewound = cpu.step(&[span(seq, unit - 1, &[2])]);
            assert!(matches!(rewound, Err(StepError::NotThere(..))), "{model}: others have these rows");
        }
        goes_on(&mut cpu, fork);
        // From one that is closed but retained.
        assert_eq!(cpu.retain(first, unit + 2), unit);
        cpu.close(fork);
        assert!(cpu.is_retained(first) && cpu.step(&[span(first, unit, &[1])]).is_err());
        let fork = cpu.fork(first, unit, tokens.len()).unwrap();
        goes_on(&mut cpu, fork);
        // What is retained gives way; what an open sequence has of it does not.
        let rest = cpu.free_positions();
        let others: Vec<SeqId> = (0..rest / 32).map(|_| cpu.open(32).unwrap()).collect();
        for &other in &others {
            cpu.step(&[span(other, 0, &tokens[..32])]).unwrap();
        }
        assert_eq!((cpu.open(1), cpu.fork(fork, unit, tokens.len())), (None, None), "{model}");
        goes_on(&mut cpu, fork);
        assert_eq!(cpu.memory().kv, memory);
    }
}

#[test]
fn invalid_steps_are_refused_without_side_effects() {
    let tokens = expected("gpt2").tokens;
    let mut cpu = load(&golden("gpt2"), &LoadOptions { kv_positions: Some(96), ..options(None) });
    let wanted = all_logits(&mut cpu, &tokens);
    assert_eq!(cpu.open(81), None, "longer than the context");
    let seq = cpu.open(40).unwrap();
    let other = cpu.open(32).unwrap();
    assert_eq!(cpu.open(1), None, "three blocks of 32 are taken");
    assert!(matches!(cpu.step(&[span(seq, 1, &tokens[..3])]), Err(StepError::NotThere(_, 1))));
    assert!(matches!(cpu.step(&[span(seq, 0, &[])]), Err(StepError::NotThere(_, 0))));
    assert!(matches!(cpu.step(&[span(seq, 0, &tokens[..41])]), Err(StepError::NoRoom)));
    assert!(matches!(cpu.step(&[span(seq, 0, &[3, 97])]), Err(StepError::UnknownToken(_, 97))));
    cpu.step(&[span(seq, 0, &tokens[..40])]).unwrap();
    assert!(matches!(
        cpu.step(&[span(seq, 39, &tokens[39..40]), span(other, 5, &[1])]),
        Err(StepError::NotThere(_, 5))
    ));
    assert_eq!(cpu.logits().len(), 0, "a failed step has no logits");
    cpu.step(&[span(seq, 39, &tokens[39..40])]).unwrap();
    assert!(cpu.logits() == &wanted[39][..]);
    cpu.close(other);
    assert!(matches!(cpu.step(&[span(other, 0, &[1])]), Err(StepError::NotThere(_, 0))));
    cpu.close(other);
    let again = cpu.open(32).unwrap();
    assert_ne!(again, other, "an id is not used again at once");
    assert_eq!(cpu.open(1), None, "closing twice gives nothing twice");
}

#[test]
fn repeated_open_and_close_leaks_no_cache_block() {
    let mut cpu = load(&golden("llama-tied"), &LoadOptions { kv_positions: Some(320), ..options(None) });
    let all = cpu.free_positions();
    let mut open: Vec<SeqId> = Vec::new();
    let mut random = 12345u64;
    for _ in 0..2000 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let draw = (random >> 33) as usize;
        if draw.is_multiple_of(2) {
            open.extend(cpu.open(1 + draw % 32));
        } else if !open.is_empty() {
            cpu.close(open.swap_remove(draw % open.len()));
        }
        assert_eq!(cpu.free_positions() + 32 * open.len(), all);
    }
    let _: &Cpu = &cpu;
}
