//! The monthly cost of a plan's resources, as far as prices are known. Pure.

use std::fmt;

use serde::Serialize;
use textnlp_provider::{KindName, Ownership, Problem, Provider, ResourceId};

use super::{Facts, Plan, Purpose};
use crate::environment::model::Budget;
use crate::run::RunSite;

/// The monthly cost after a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The sum of the known prices, in hundredths.
    pub known_cents: u64,
    /// The currency of the sum.
    pub currency: String,
    /// The resources without a known price, in order.
    pub unknown: Vec<ResourceId>,
}

impl Cost {
    /// The cost of resources, each with the provider that knows its price. A kind without a price key is free if the
    /// provider has a price table; without a table, no price is known.
    pub fn of<'a>(
        resources: impl IntoIterator<Item = (&'a dyn Provider, &'a KindName, &'a ResourceId)>,
        currency: &str,
    ) -> Self {
        let mut cost = Self { known_cents: 0, currency: currency.to_owned(), unknown: Vec::new() };
        for (provider, kind, id) in resources {
            match price(provider, kind, currency) {
                Some(cents) => cost.known_cents = cost.known_cents.saturating_add(cents),
                None => cost.unknown.push(id.clone()),
            }
        }
        cost.unknown.sort();
        cost
    }

    /// The cost after a plan: of everything that is wanted, or of what a removal retains.
    pub fn after(plan: &Plan, facts: &Facts, currency: &str) -> Self {
        let mut resources: Vec<(&dyn Provider, &KindName, &ResourceId)> = Vec::new();
        for site in facts.sites.values() {
            let provider = site.provider.as_ref();
            if plan.purpose == Purpose::Up {
                let ours = site.wanted.iter().filter(|wanted| wanted.ownership == Ownership::Ours);
                resources.extend(ours.map(|wanted| (provider, &wanted.kind, &wanted.id)));
            }
            for kept in &plan.retained {
                let recorded = site.holdings.get(&kept.resource).and_then(|holding| holding.current.as_ref());
                resources.extend(recorded.map(|recorded| (provider, &recorded.kind, &kept.resource)));
            }
        }
        Self::of(resources, currency)
    }

    /// The cost of what is wanted at these sites.
    pub fn wanted<'a>(sites: impl IntoIterator<Item = &'a RunSite>, currency: &str) -> Self {
        let ours = |site: &'a RunSite| {
            let wanted = site.wanted.iter().filter(|wanted| wanted.ownership == Ownership::Ours);
            wanted.map(|wanted| (site.provider.as_ref(), &wanted.kind, &wanted.id))
        };
        Self::of(sites.into_iter().flat_map(ours), currency)
    }

    /// The sum if every price is known.
    pub fn monthly(&self) -> Option<f64> {
        self.unknown.is_empty().then(|| money(self.known_cents))
    }

    /// Compares with a budget: nothing, a warning or a refusal. A partially known cost is refused if the known part
    /// exceeds the budget.
    pub fn against(&self, budget: &Budget) -> Option<Problem> {
        let limit = budget.monthly?;
        let (known, currency) = (money(self.known_cents), &self.currency);
        let at_least = if self.unknown.is_empty() { "" } else { "at least " };
        if known > limit {
            let cause = format!(
                "the plan costs {at_least}{known:.2} {currency} a month, and the budget is {limit:.2} {currency}"
            );
            let fix = format!("plan fewer resources, or raise the budget: `--set budget.monthly={}`", known.ceil());
            return Some(Problem::new("budget.monthly", cause, fix));
        }
        if !self.unknown.is_empty() {
            let cause = format!(
                "the budget of {limit:.2} {currency} is not checked: the cost of {} resources is unknown",
                self.unknown.len()
            );
            return Some(Problem::warning("budget.monthly", cause, "check the provider's bill, or remove `budget`"));
        }
        (known > limit * budget.warn_at).then(|| {
            let share = known / limit * 100.0;
            let cause = format!(
                "the plan costs {known:.2} {currency} a month, {share:.0} % of the budget of {limit:.2} {currency}"
            );
            Problem::warning("budget.warn_at", cause, "plan fewer resources, or raise `budget.monthly`")
        })
    }
}

/// `120.00 USD a month`, or what is unknown.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (known, currency) = (money(self.known_cents), &self.currency);
        match (self.unknown.len(), self.known_cents) {
            (0, _) => write!(f, "{known:.2} {currency} a month"),
            (count, 0) => write!(f, "unknown: there are no prices for {count} resources"),
            (count, _) => {
                write!(f, "at least {known:.2} {currency} a month; there are no prices for {count} resources")
            }
        }
    }
}

/// As in JSON documents: `monthly` is null unless every price is known.
impl Serialize for Cost {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "monthly": self.monthly(),
            "known": money(self.known_cents),
            "currency": self.currency,
            "unknown": self.unknown,
            "note": (!self.unknown.is_empty()).then(|| self.to_string()),
        })
        .serialize(serializer)
    }
}

/// Cents as a float are exact far beyond any bill.
#[allow(clippy::cast_precision_loss)]
fn money(cents: u64) -> f64 {
    cents as f64 / 100.0
}

fn price(provider: &dyn Provider, kind: &KindName, currency: &str) -> Option<u64> {
    let prices = provider.prices();
    if prices.is_empty() {
        return None;
    }
    let Some(key) = provider.kinds().iter().find(|known| known.name == kind.as_str())?.price_key else {
        return Some(0);
    };
    let row = prices.iter().find(|price| price.key == key && price.currency == currency);
    row.map(|price| price.monthly_cents)
}
