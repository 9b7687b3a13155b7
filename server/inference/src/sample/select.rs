//! The likeliest of many without sorting them all.
//!
//! A row of logits is cut into blocks of 64 and each block's maximum kept. The k-th largest maximum is a lower bound for
//! the k-th largest value, so only blocks that reach it are looked at again, and only what survives is sorted.

use std::cmp::Ordering;

const BLOCK: usize = 64;

/// A row of finite values with the maxima of its blocks.
pub(crate) struct Row<'a> {
    values: &'a [f32],
    maxima: Vec<f32>,
    /// The largest value.
    pub(crate) max: f32,
}

impl<'a> Row<'a> {
    /// Looks at every value once; `None` when one is not finite or there are none.
    pub(crate) fn new(values: &'a [f32]) -> Option<Row<'a>> {
        let mut maxima = Vec::with_capacity(values.len().div_ceil(BLOCK));
        let mut max = f32::NEG_INFINITY;
        let mut finite = true;
        for block in values.chunks(BLOCK) {
            let mut high = f32::NEG_INFINITY;
            for &value in block {
                finite &= value.is_finite();
                high = if value > high { value } else { high };
            }
            maxima.push(high);
            max = if high > max { high } else { max };
        }
        (finite && !values.is_empty()).then_some(Row { values, maxima, max })
    }

    /// The lowest id among the largest values.
    pub(crate) fn best(&self) -> u32 {
        let block = self.maxima.iter().position(|&high| high == self.max).unwrap_or(0) * BLOCK;
        let within = self.values[block..].iter().position(|&value| value == self.max).unwrap_or(0);
        (block + within) as u32
    }

    /// The `k` largest with their ids, largest first, equal ones by id.
    pub(crate) fn top(&self, k: usize) -> Vec<(u32, f32)> {
        let k = k.min(self.values.len());
        if k == 0 {
            return Vec::new();
        }
        let bound = if k <= self.maxima.len() {
            let mut maxima = self.maxima.clone();
            *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let mut found = self.at_least(bound);
        if k < found.len() {
            found.select_nth_unstable_by(k - 1, order);
            found.truncate(k);
        }
        found.sort_unstable_by(order);
        found
    }

    /// All that are at least `bound`, by id.
    pub(crate) fn at_least(&self, bound: f32) -> Vec<(u32, f32)> {
        let mut found = Vec::new();
        for (index, _) in self.maxima.iter().enumerate().filter(|&(_, &high)| high >= bound) {
            let start = index * BLOCK;
            let block = &self.values[start..self.values.len().min(start + BLOCK)];
            for (offset, &value) in block.iter().enumerate() {
                if value >= bound {
                    found.push(((start + offset) as u32, value));
                }
            }
        }
        found
    }
}

/// Larger values first, then lower ids: a total order of finite values, so that selection has one answer.
pub(crate) fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    // `+ 0.0` makes the two zeros equal, as `==` has them.
    (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn top_k_selection_equals_a_full_sort(
            values in prop::collection::vec(prop_oneof![-3i8..3, any::<i8>()], 1..700),
            k in 0usize..720,
        ) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let mut sorted: Vec<(u32, f32)> = values.iter().enumerate().map(|(id, &v)| (id as u32, v)).collect();
            sorted.sort_by(order);
            let row = Row::new(&values).unwrap();
            prop_assert_eq!(row.best(), sorted[0].0);
            sorted.truncate(k);
            prop_assert_eq!(row.top(k), sorted);
        }
    }

    #[test]
    fn positive_and_negative_zero_are_equal() {
        assert_eq!(Row::new(&[-0.0, 0.0, -0.0]).unwrap().top(2).iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn row_with_non_finite_values_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.0; 200];
            values[130] = bad;
            assert!(Row::new(&values).is_none());
        }
        assert!(Row::new(&[]).is_none());
    }
}
