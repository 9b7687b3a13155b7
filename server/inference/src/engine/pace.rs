//! Predicts the duration of a step: `a + b·rows + c·context`, fitted to past steps.

/// The size of a step, as far as its duration depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Size {
    /// Rows that pass through the layers.
    pub(super) rows: usize,
    /// Positions that the rows' attention reads, all rows together.
    pub(super) context: usize,
}

impl Size {
    /// A run of `rows` that starts at position `start`.
    pub(super) fn of(start: usize, rows: usize) -> Size {
        Size { rows, context: rows * start + rows * (rows + 1) / 2 }
    }
}

impl std::ops::Add for Size {
    type Output = Size;

    fn add(self, other: Size) -> Size {
        Size { rows: self.rows + other.rows, context: self.context + other.context }
    }
}

/// Maximum rows of a step before larger ones were measured; each step may double it.
const FIRST_ROWS: usize = 32;

/// How much the past counts after each step: half of it is forgotten in about 35 steps.
const KEEP: f64 = 0.98;

/// The cost model of one loaded model: least squares with forgetting, coefficients never negative.
#[derive(Debug)]
pub(super) struct Pace {
    products: [[f64; 3]; 3],
    targets: [f64; 3],
    /// Seconds: for a step, for a row, for a thousand positions of context.
    coefficients: [f64; 3],
    most_rows: usize,
}

impl Default for Pace {
    fn default() -> Self {
        // Typical for a small model; weighs as much as one measured step.
        let guess = [5e-4, 2e-4, 2e-5];
        let mut products = [[0.0; 3]; 3];
        let mut targets = [0.0; 3];
        for i in 0..3 {
            products[i][i] = 1.0;
            targets[i] = guess[i];
        }
        Pace { products, targets, coefficients: guess, most_rows: FIRST_ROWS / 2 }
    }
}

impl Pace {
    /// Seconds.
    pub(super) fn predict(&self, size: Size) -> f64 {
        features(size).iter().zip(&self.coefficients).map(|(x, c)| x * c).sum()
    }

    /// The most rows a step may have now: a first long step is approached, not jumped at.
    pub(super) fn most_rows(&self) -> usize {
        self.most_rows.saturating_mul(2)
    }

    pub(super) fn learn(&mut self, size: Size, seconds: f64) {
        let x = features(size);
        // Long steps must not drown short ones, nor short ones keep a new pace from being learned.
        let weight = 1e-2 / seconds.max(1e-4);
        for i in 0..3 {
            for j in 0..3 {
                self.products[i][j] = self.products[i][j] * KEEP + weight * x[i] * x[j];
            }
            self.targets[i] = self.targets[i] * KEEP + weight * x[i] * seconds;
        }
        for i in 0..3 {
            // With identical steps the system is singular; this keeps a coefficient at its value.
            self.products[i][i] += 1e-4;
            self.targets[i] += 1e-4 * self.coefficients[i];
        }
        // Gauss and Seidel with the bound at 0 converge for a positive definite matrix.
        for _ in 0..40 {
            for i in 0..3 {
                let others: f64 = (0..3).filter(|&j| j != i).map(|j| self.products[i][j] * self.coefficients[j]).sum();
                self.coefficients[i] = ((self.targets[i] - others) / self.products[i][i]).max(0.0);
            }
        }
        self.most_rows = self.most_rows.max(size.rows);
    }
}

fn features(size: Size) -> [f64; 3] {
    [1.0, size.rows as f64, size.context as f64 / 1e3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_learns_the_linear_cost_of_steps() {
        let mut pace = Pace::default();
        let truth = |size: Size| 2e-3 + 3e-4 * size.rows as f64 + 5e-7 * size.context as f64;
        for step in 0..400usize {
            let size = Size::of((step * 37) % 900, [1, 3, 8, 40, 64][step % 5]);
            pace.learn(size, truth(size));
        }
        for size in [Size::of(10, 1), Size::of(500, 30), Size::of(900, 60)] {
            let error = (pace.predict(size) - truth(size)).abs() / truth(size);
            assert!(error < 0.1, "{size:?}: {} against {}", pace.predict(size), truth(size));
        }
    }

    #[test]
    fn pace_adapts_when_the_machine_slows_down() {
        let mut pace = Pace::default();
        for seconds in [1e-3, 4e-3] {
            for _ in 0..400 {
                pace.learn(Size::of(100, 8), seconds);
            }
            let predicted = pace.predict(Size::of(100, 8));
            assert!((predicted - seconds).abs() < 0.1 * seconds, "{predicted} against {seconds}");
        }
    }

    #[test]
    fn pace_never_predicts_less_time_for_more_work() {
        let mut pace = Pace::default();
        // Noise that a plain fit would answer with negative slopes.
        for step in 0..200usize {
            pace.learn(Size::of(step, 1 + step % 50), 1e-3 * (50 - step % 50) as f64);
        }
        assert!(pace.predict(Size::of(0, 1)) <= pace.predict(Size::of(0, 2)));
        assert!(pace.predict(Size::of(0, 2)) <= pace.predict(Size::of(100, 2)));
    }

    #[test]
    fn step_size_limit_grows_by_doubling() {
        let mut pace = Pace::default();
        assert_eq!(pace.most_rows(), 32);
        pace.learn(Size::of(0, 32), 1e-3);
        assert_eq!(pace.most_rows(), 64);
        pace.learn(Size::of(0, 1), 1e-3);
        assert_eq!(pace.most_rows(), 64);
    }
}
