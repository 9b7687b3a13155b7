//! `prices`: what the operator charges for tokens.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::Model;
use super::document::{Section, nearest};

/// What the operator charges for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    /// The currency: three capital letters.
    pub currency: String,
    /// The prices of models without their own.
    pub usual: TokenPrices,
    /// By model.
    pub models: BTreeMap<String, TokenPrices>,
}

/// The prices of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenPrices {
    /// Of the tokens of prompts and of embedded texts.
    pub prompt: Price,
    /// Of generated tokens.
    pub answer: Price,
}

/// The price of 1,000,000 tokens in billionths of the currency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price(pub u64);

/// What a request costs, in billionths of the currency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestCost {
    pub(crate) prompt: u64,
    pub(crate) answer: u64,
}

/// The highest price of 1,000,000 tokens, in units of the currency.
const MAX_PRICE: f64 = 1e6;

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let price = text.parse::<f64>().ok().filter(|price| (0.0..=MAX_PRICE).contains(price));
        // Whole numbers up to 1e15 are exact.
        price.map(|price| Self((price * 1e9).round() as u64)).ok_or_else(|| {
            format!("is not a price: `{text}`; write a number from 0 to {MAX_PRICE} for 1,000,000 tokens, like `0.5`")
        })
    }
}

impl Price {
    /// What this many tokens cost, in billionths of the currency, rounded to the nearest.
    fn of(self, tokens: u64) -> u64 {
        let millionths = u128::from(self.0) * u128::from(tokens);
        u64::try_from((millionths + 500_000) / 1_000_000).unwrap_or(u64::MAX)
    }
}

impl Prices {
    /// What a request to a model costs.
    pub(crate) fn cost(&self, model: Option<&str>, prompt_tokens: u64, generated_tokens: u64) -> RequestCost {
        let prices = model.and_then(|model| self.models.get(model)).unwrap_or(&self.usual);
        RequestCost { prompt: prices.prompt.of(prompt_tokens), answer: prices.answer.of(generated_tokens) }
    }
}

impl RequestCost {
    /// Both parts, as the database holds them.
    pub(crate) fn nanos(self) -> i64 {
        i64::try_from(self.prompt.saturating_add(self.answer)).unwrap_or(i64::MAX)
    }
}

pub(super) fn prices(parent: &Section<'_>, served: &[Model]) -> Option<Prices> {
    if !parent.has("prices") {
        return None;
    }
    let section = parent.section("prices");
    let currency = section.needed_text("currency");
    let is_currency = |text: &&str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if let Some(other) = currency.as_deref().filter(|text| !is_currency(text)) {
        let hint = "write its three capital letters, like `EUR`".to_owned();
        section.wrong("currency", format!("cannot be `{other}`"), hint);
    }
    let usual = of_tokens(&section, TokenPrices::default());
    let names: Vec<&str> = served.iter().map(|model| model.name.as_str()).collect();
    let mut models = BTreeMap::new();
    for item in section.sections("models") {
        let prices = of_tokens(&item, usual);
        if let Some(name) = item.needed_text("name") {
            if !names.contains(&name.as_str()) {
                let hint = match nearest(&name, &names) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => format!("`serve` lists: {}", names.join(", ")),
                };
                item.wrong("name", format!("names `{name}`, which is not in `serve`"), hint);
            } else if models.insert(name.clone(), prices).is_some() {
                item.wrong("name", format!("`{name}` is duplicated"), None);
            }
        }
        item.finish();
    }
    section.finish();
    Some(Prices { currency: currency.unwrap_or_default(), usual, models })
}

/// The prices of a section; others for those that it omits.
fn of_tokens(section: &Section<'_>, others: TokenPrices) -> TokenPrices {
    TokenPrices {
        prompt: section.parsed("prompt").unwrap_or(others.prompt),
        answer: section.parsed("answer").unwrap_or(others.answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(text: &str) -> Price {
        text.parse().unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn prices_are_exact_billionths_and_nonsense_is_refused() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("0.5", 500_000_000),
            ("0.0375", 37_500_000),
            ("1e-9", 1),
            ("0.0000000004", 0),
            ("1000000", 1_000_000_000_000_000),
            ("123456.789012345", 123_456_789_012_345),
        ] {
            assert_eq!(price(text), Price(nanos), "{text}");
        }
        for text in ["", "free", "-0.01", "1000000.1", "inf", "nan", ".inf", "0,5", "1 EUR", "1e400"] {
            assert!(text.parse::<Price>().is_err(), "{text}");
        }
    }

    #[test]
    fn requests_cost_their_tokens_by_the_price_of_their_model() {
        let of = |prompt: &str, answer: &str| TokenPrices { prompt: price(prompt), answer: price(answer) };
        let models = BTreeMap::from([("small".to_owned(), of("0.0375", "0"))]);
        let prices = Prices { currency: "EUR".to_owned(), usual: of("0.5", "1.5"), models };
        let cost = |model, prompt, answer| {
            let cost = prices.cost(model, prompt, answer);
            (cost.prompt, cost.answer, cost.nanos())
        };
        assert_eq!(cost(Some("other"), 20, 100), (10_000, 150_000, 160_000));
        assert_eq!(cost(None, 0, 1), (0, 1500, 1500));
        // Half a billionth is rounded up.
        assert_eq!(cost(Some("small"), 1, 7), (38, 0, 38));
        assert_eq!(cost(Some("small"), 2, 7), (75, 0, 75));
        assert_eq!(cost(None, u64::MAX, u64::MAX).2, i64::MAX);
        let dearest =
            Prices { usual: TokenPrices { prompt: Price(u64::MAX), answer: Price(u64::MAX) }, ..prices.clone() };
        assert_eq!(dearest.cost(None, u64::MAX, 1).nanos(), i64::MAX);
    }
}
