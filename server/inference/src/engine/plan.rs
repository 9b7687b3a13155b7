//! Chooses the rows of the next step of a model. Pure: the same input gives the same plan.
//!
//! Decoding sequences come first, one row each, because their clients are reading. Then prompts, a chunk at a time, to
//! the least served tenant and its oldest request, until the predicted time reaches the target. A prompt always gets
//! one chunk, so it progresses however slow the model is. Answers whose masks take long wait for each other.

use super::pace::{Pace, Size};

/// Rows per chunk of a prompt.
pub(super) const CHUNK: usize = 16;

/// The most rows of a step.
const MOST_ROWS: usize = 1024;

/// Maximum rows of a step with logits for every row: they take `vocab` floats each.
const MOST_SCORED_ROWS: usize = 64;

/// A request that has rows to compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Whose: an index into the counters.
    pub(super) tenant: usize,
    /// Lower is older.
    pub(super) age: u64,
    /// Rows that are computed.
    pub(super) computed: usize,
    /// Rows that can be computed.
    pub(super) known: usize,
    /// Logits of every row are wanted.
    pub(super) scores: bool,
    /// Seconds that its guide took for the last mask; 0 without one.
    pub(super) mask: f64,
    /// The step of that mask.
    pub(super) masked: u64,
}

/// The rows of one candidate in the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Which candidate.
    pub(super) candidate: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
}

/// The cost of a prompt row and of a decoded row in a tenant's counter.
pub(super) const PROMPT_WEIGHT: f64 = 1.0;
pub(super) const DECODE_WEIGHT: f64 = 2.0;

/// The part of the target that masks of guided answers may take in addition to a step.
const MASK_PART: f64 = 0.5;

/// `served` are the tenants' counters; the parts come in the order of the candidates. `target` is in seconds.
pub(super) fn plan(candidates: &[Candidate], mut served: Vec<f64>, pace: &Pace, target: f64) -> (Vec<Part>, Size) {
    let mut rows = vec![0usize; candidates.len()];
    let mut size = Size::default();
    let deferred = deferred(candidates, target * MASK_PART);
    let mut masks = 0.0;
    for (index, (taken, candidate)) in rows.iter_mut().zip(candidates).enumerate() {
        if decodes(candidate) && !deferred.contains(&index) {
            *taken = 1;
            masks += candidate.mask;
            size = size + Size::of(candidate.computed, 1);
            served[candidate.tenant] += DECODE_WEIGHT;
        }
    }
    let most_rows = MOST_ROWS.min(pace.most_rows().max(size.rows + CHUNK));
    let mut scored = 0;
    let mut dealt = false;
    loop {
        let left = |index: usize| {
            let candidate = &candidates[index];
            let scores_left = if candidate.scores { MOST_SCORED_ROWS - scored } else { usize::MAX };
            if decodes(candidate) { 0 } else { (candidate.known - candidate.computed - rows[index]).min(scores_left) }
        };
        let next = (0..candidates.len()).filter(|&index| left(index) > 0).min_by(|&a, &b| {
            let (one, other) = (&candidates[a], &candidates[b]);
            served[one.tenant].total_cmp(&served[other.tenant]).then(one.age.cmp(&other.age))
        });
        let Some(next) = next else { break };
        let candidate = &candidates[next];
        let chunk = left(next).min(CHUNK);
        let grown = size + Size::of(candidate.computed + rows[next], chunk);
        if dealt && (grown.rows > most_rows || pace.predict(grown) + masks > target) {
            break;
        }
        rows[next] += chunk;
        size = grown;
        dealt = true;
        served[candidate.tenant] += PROMPT_WEIGHT * chunk as f64;
        scored += if candidate.scores { chunk } else { 0 };
    }
    let parts = rows.iter().enumerate().filter(|&(_, &rows)| rows > 0);
    let parts = parts.map(|(candidate, &rows)| Part { candidate, start: candidates[candidate].computed, rows });
    (parts.collect(), size)
}

/// The guided answers that are left out of this step: of `seconds` for masks each tenant has the same part, and at least
/// one mask. The answer whose last mask is the oldest comes first.
fn deferred(candidates: &[Candidate], seconds: f64) -> Vec<usize> {
    let is_guided = |candidate: &Candidate| candidate.mask > 0.0 && decodes(candidate);
    let mut guided: Vec<usize> = (0..candidates.len()).filter(|&index| is_guided(&candidates[index])).collect();
    guided.sort_by_key(|&index| (candidates[index].tenant, candidates[index].masked, candidates[index].age));
    let of_tenants = || guided.chunk_by(|&a, &b| candidates[a].tenant == candidates[b].tenant);
    let part = seconds / of_tenants().count().max(1) as f64;
    let mut deferred = Vec::new();
    for own in of_tenants() {
        let mut used = 0.0;
        for &index in own {
            let mask = candidates[index].mask;
            if used == 0.0 || used + mask <= part {
                used += mask;
            } else {
                deferred.push(index);
            }
        }
    }
    deferred
}

/// A running answer has one row left; so has a prompt of one token.
fn decodes(candidate: &Candidate) -> bool {
    !candidate.scores && candidate.known - candidate.computed == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(tenant: usize, age: u64, computed: usize, known: usize) -> Candidate {
        Candidate { tenant, age, computed, known, scores: false, mask: 0.0, masked: 0 }
    }

    /// A model whose rows take a millisecond each, measured up to many rows.
    fn millisecond_rows() -> Pace {
        let mut pace = Pace::default();
        for step in 0..300usize {
            let rows = 1 + step % 100;
            pace.learn(Size { rows, context: rows * 10 }, 1e-3 * rows as f64);
        }
        pace
    }

    fn rows_of(candidates: &[Candidate], served: Vec<f64>, target: f64) -> Vec<(usize, usize)> {
        plan(candidates, served, &millisecond_rows(), target).0.iter().map(|p| (p.candidate, p.rows)).collect()
    }

    #[test]
    fn decoding_is_scheduled_first_and_a_prompt_always_gets_a_chunk() {
        let mut candidates = vec![prompt(0, 0, 0, 500)];
        candidates.extend((1..=30).map(|age| prompt(0, age, 40, 41)));
        let rows = rows_of(&candidates, vec![0.0], 0.01);
        assert_eq!(rows.len(), 31, "all that decode and the prompt");
        assert_eq!(rows[0], (0, CHUNK));
    }

    #[test]
    fn prompts_fill_the_step_up_to_its_target_duration() {
        let (parts, size) = plan(&[prompt(0, 0, 0, 5000)], vec![0.0], &millisecond_rows(), 0.1);
        assert_eq!(parts.len(), 1);
        assert!((80..=112).contains(&size.rows), "{size:?}");
    }

    #[test]
    fn least_served_tenant_goes_first_and_then_tenants_alternate() {
        let candidates = [prompt(0, 0, 0, 5000), prompt(1, 9, 0, 5000)];
        assert_eq!(rows_of(&candidates, vec![1000.0, 0.0], 0.05), [(1, 48)]);
        let even = rows_of(&candidates, vec![0.0, 0.0], 0.07);
        assert_eq!(even, [(0, 32), (1, 32)]);
    }

    #[test]
    fn costly_masks_take_turns_and_delay_no_other_tenant() {
        let mut candidates: Vec<_> = (0..4).map(|age| Candidate { mask: 8e-3, ..prompt(0, age, 40, 41) }).collect();
        candidates.push(Candidate { mask: 3e-5, masked: 7, ..prompt(1, 8, 40, 41) });
        candidates.push(prompt(2, 9, 40, 41));
        let rows = |candidates: &[Candidate]| rows_of(candidates, vec![0.0; 3], 0.02);
        assert_eq!(rows(&candidates), [(0, 1), (4, 1), (5, 1)], "5 ms for each of two tenants");
        candidates[0].masked = 8;
        assert_eq!(rows(&candidates), [(1, 1), (4, 1), (5, 1)]);
        candidates.iter_mut().for_each(|candidate| candidate.mask = candidate.mask.min(1e-3));
        assert_eq!(rows(&candidates).len(), 6);
        let waiting = [candidates[0], Candidate { mask: 0.05, ..candidates[1] }, prompt(2, 9, 0, 500)];
        let prompts = |waiting: &[Candidate]| rows_of(waiting, vec![0.0; 3], 0.05).last().copied();
        assert!(prompts(&waiting) < prompts(&[candidates[0], candidates[1], waiting[2]]), "masks are part of the time");
    }

    #[test]
    fn oldest_request_of_a_tenant_goes_first() {
        assert_eq!(rows_of(&[prompt(0, 7, 0, 5000), prompt(0, 3, 0, 5000)], vec![0.0], 0.05), [(1, 48)]);
    }

    #[test]
    fn scoring_rows_are_limited_by_the_logits_buffer() {
        let candidates = [Candidate { scores: true, ..prompt(0, 0, 0, 1000) }];
        assert_eq!(rows_of(&candidates, vec![0.0], 10.0), [(0, MOST_SCORED_ROWS)]);
        let last = [Candidate { scores: true, ..prompt(0, 0, 9, 10) }];
        assert_eq!(rows_of(&last, vec![0.0], 10.0), [(0, 1)]);
    }

    proptest! {
        #[test]
        fn step_plan_stays_within_its_candidates_and_budget(
            work in prop::collection::vec((0usize..3, 0usize..200, 1usize..300, any::<bool>()), 0..20),
            target in 1e-3f64..0.2,
        ) {
            let candidates: Vec<Candidate> = work.iter().enumerate().map(|(age, &(tenant, computed, left, scores))| {
                Candidate { scores, ..prompt(tenant, age as u64, computed, computed + left) }
            }).collect();
            let pace = millisecond_rows();
            let (parts, size) = plan(&candidates, vec![0.0; 3], &pace, target);
            prop_assert_eq!(parts.is_empty(), candidates.is_empty());
            let mut sum = Size::default();
            for part in &parts {
                let candidate = &candidates[part.candidate];
                prop_assert_eq!(part.start, candidate.computed);
                prop_assert!(part.rows >= 1 && part.start + part.rows <= candidate.known);
                sum = sum + Size::of(part.start, part.rows);
            }
            prop_assert_eq!(sum, size);
            let decoding = candidates.iter().filter(|c| decodes(c)).count();
            prop_assert_eq!(parts.iter().filter(|p| decodes(&candidates[p.candidate])).count(), decoding);
            prop_assert!(pace.predict(size) <= target || size.rows <= decoding + CHUNK);
        }
    }
}
