//! When the budget of an environment warns. Pure.

use textnlp_provider::component::Budget;

/// A warning of a budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warning {
    /// Whether it is about what the whole month will cost, and not about what was spent.
    pub is_forecast: bool,
    /// The percentage of the amount beyond which it is sent.
    pub percent: f64,
}

/// The warnings of a budget: at `warn_at`, at the amount, and at a forecast of it.
pub fn warnings(budget: &Budget) -> Vec<Warning> {
    let first = (budget.warn_at * 100.0).round();
    let first = (first > 0.0 && first < 100.0).then_some(Warning { is_forecast: false, percent: first });
    let full = [false, true].map(|is_forecast| Warning { is_forecast, percent: 100.0 });
    first.into_iter().chain(full).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_warning_is_below_the_amount() {
        let of = |warn_at: f64| {
            let all = warnings(&Budget { monthly: 900.0, currency: "USD".to_owned(), warn_at });
            all.iter().map(|one| (one.is_forecast, one.percent)).collect::<Vec<_>>()
        };
        let full = [(false, 100.0), (true, 100.0)];
        assert_eq!(of(0.8), [[(false, 80.0)].as_slice(), &full].concat());
        assert_eq!([of(0.0), of(1.0)], [full.to_vec(), full.to_vec()]);
    }
}
