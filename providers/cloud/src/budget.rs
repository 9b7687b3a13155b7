//! When the budget of an environment warns, and the mailboxes of receivers. Pure.

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

/// The recipients in the address of a receiver: `smtps://HOST?to=A,B`; `None` if it is no such address.
pub fn mailboxes(address: &str) -> Option<Vec<String>> {
    let rest = ["smtps://", "smtp://"].iter().find_map(|scheme| address.strip_prefix(scheme))?;
    let (_, query) = rest.split_once('?')?;
    let decoded = |text: &str| text.replace("%40", "@").replace("%2C", ",");
    let split = |to: &str| decoded(to).split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>();
    let all: Vec<String> = query.split('&').filter_map(|pair| pair.strip_prefix("to=")).flat_map(split).collect();
    let is_wrong = |one: &String| !one.contains('@') || one.contains('%');
    (!all.is_empty() && !all.iter().any(is_wrong)).then_some(all)
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

    #[test]
    fn recipients_are_those_of_mail_addresses() {
        let of = |address: &str| mailboxes(address).unwrap_or_default().join(" ");
        let address = "smtps://mail.example.com?from=alerts@example.com&to=a@example.com%2Cb%40example.com";
        assert_eq!(of(address), "a@example.com b@example.com");
        for other in ["https://example.com/hook?to=a@example.com", "smtp://mail.example.com", "smtp://h?to=a%20b@c"] {
            assert_eq!(mailboxes(other), None, "{other}");
        }
    }
}
