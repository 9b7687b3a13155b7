//! The monthly cost of a plan's resources, as far as prices are known. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_provider::units::counted;
use textnlp_provider::{Charge, CostLine, KindName, Ownership, Problem, Provider, ResourceId, SiteName, Spec};

use super::{Facts, Plan, Purpose};
use crate::environment::model::Budget;
use crate::run::RunSite;
use crate::state::{RecordedObjects, State, StateError};

/// The age from which a price is reported as outdated.
const OUTDATED_DAYS: i64 = 180;

/// The service of own machines, beside those on bills.
const MACHINES: &str = "Machines";

/// The monthly cost after a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The lines of every resource, in the order of their ids. A charge in another currency is unknown.
    pub lines: Vec<(ResourceId, CostLine)>,
    /// The currency of the sums.
    pub currency: String,
    /// The sum of the known amounts, in millionths.
    pub known_micros: u64,
    /// The own machines of sites by [`Budget::machines`], in millionths. The sum includes them.
    pub machines: BTreeMap<String, u64>,
    /// The resources with an amount that is not known, in order.
    pub unknown: BTreeSet<ResourceId>,
    /// The sum of the known amounts of the objects that are recorded now, in millionths; `None` for [`Cost::wanted`].
    pub recorded_micros: Option<u64>,
}

/// The cost of one service on the provider's bill, or of one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServiceCost {
    /// The sum of the known amounts, in millionths.
    pub known_micros: u64,
    /// Whether an amount is not known.
    pub is_partial: bool,
}

impl ServiceCost {
    /// The known amount for a month.
    pub fn known(&self) -> f64 {
        amount(self.known_micros)
    }
}

/// An object with the provider that knows its cost.
type PricedObject<'a> = (&'a dyn Provider, &'a KindName, &'a ResourceId, &'a Spec);

impl Cost {
    fn of<'a>(objects: impl IntoIterator<Item = PricedObject<'a>>, budget: &Budget) -> Self {
        let (mut lines, mut unknown, mut known_micros) = (Vec::new(), BTreeSet::new(), 0_u64);
        let mut machines = BTreeMap::new();
        let objects: Vec<PricedObject<'_>> = objects.into_iter().collect();
        let mut by_site: BTreeMap<&str, Vec<(&KindName, &Spec)>> = BTreeMap::new();
        for (_, kind, id, spec) in &objects {
            by_site.entry(id.site()).or_default().push((*kind, *spec));
        }
        for (provider, kind, id, spec) in objects {
            let priced = budget.machines.get(id.site());
            if let Some(machine) = priced {
                machines.insert(id.site().to_owned(), machine.monthly_micros());
            }
            let among = provider.costs_among(kind, spec, &by_site[id.site()]);
            for line in among.unwrap_or_else(|| provider.costs(kind, spec)) {
                // What uses a machine with a price costs nothing extra.
                if priced.is_some() && line.charge == Charge::Included {
                    continue;
                }
                let line = in_currency(line, &budget.currency);
                match monthly_micros(&line) {
                    Some(micros) => known_micros = known_micros.saturating_add(micros),
                    None => {
                        unknown.insert(id.clone());
                    }
                }
                lines.push((id.clone(), line));
            }
        }
        lines.sort_by(|(one, _), (other, _)| one.cmp(other));
        known_micros = machines.values().fold(known_micros, |sum, micros| sum.saturating_add(*micros));
        let currency = budget.currency.clone();
        Self { lines, currency, known_micros, machines, unknown, recorded_micros: None }
    }

    /// The cost after a plan: of everything that is wanted, or of what a removal retains; and of what is recorded now.
    pub fn after(plan: &Plan, facts: &Facts, budget: &Budget) -> Self {
        let (mut objects, mut recorded): (Vec<PricedObject<'_>>, Vec<PricedObject<'_>>) = (Vec::new(), Vec::new());
        for site in facts.sites.values() {
            let provider = site.provider.as_ref();
            if plan.purpose == Purpose::Up {
                let ours = site.wanted.iter().filter(|wanted| wanted.ownership == Ownership::Ours);
                objects.extend(ours.map(|wanted| (provider, &wanted.kind, &wanted.id, &wanted.spec)));
            }
            for kept in &plan.retained {
                let current = site.holdings.get(&kept.resource).and_then(|holding| holding.current.as_ref());
                let ours = current.filter(|one| one.ownership == Ownership::Ours);
                objects.extend(ours.map(|one| (provider, &one.kind, &kept.resource, &one.spec)));
            }
            let held = site.holdings.values().flat_map(|holding| holding.objects());
            let ours = held.filter(|one| one.ownership == Ownership::Ours);
            recorded.extend(ours.map(|one| (provider, &one.kind, &one.id, &one.spec)));
        }
        let recorded_micros = Some(Self::of(recorded, budget).known_micros);
        Self { recorded_micros, ..Self::of(objects, budget) }
    }

    /// The cost of what is wanted at these sites.
    pub fn wanted<'a>(sites: impl IntoIterator<Item = &'a RunSite>, budget: &Budget) -> Self {
        let ours = |site: &'a RunSite| {
            let wanted = site.wanted.iter().filter(|wanted| wanted.ownership == Ownership::Ours);
            wanted.map(|wanted| (site.provider.as_ref(), &wanted.kind, &wanted.id, &wanted.spec))
        };
        Self::of(sites.into_iter().flat_map(ours), budget)
    }

    /// The cost of what the state records at these sites.
    pub fn recorded(sites: &BTreeMap<SiteName, RunSite>, state: &State, budget: &Budget) -> Result<Self, StateError> {
        let mut held = Vec::new();
        for (name, site) in sites {
            let objects = state.holdings(name)?;
            let recorded = objects.values().flat_map(RecordedObjects::objects);
            let ours = recorded.filter(|one| one.ownership == Ownership::Ours).cloned();
            held.extend(ours.map(|one| (site.provider.clone(), one)));
        }
        Ok(Self::of(held.iter().map(|(provider, one)| (&**provider, &one.kind, &one.id, &one.spec)), budget))
    }

    /// The sum if every price is known.
    pub fn monthly(&self) -> Option<f64> {
        self.unknown.is_empty().then(|| amount(self.known_micros))
    }

    /// The difference of the known amounts to what is recorded now.
    pub fn change(&self) -> Option<f64> {
        let before = self.recorded_micros?;
        let rise = amount(self.known_micros.abs_diff(before));
        Some(if self.known_micros < before { -rise } else { rise })
    }

    /// The cost by service. What only uses its host is no service.
    pub fn services(&self) -> BTreeMap<&str, ServiceCost> {
        self.by(|_, service| service)
    }

    /// The cost by site. What only uses its host is in none.
    pub fn sites(&self) -> BTreeMap<&str, ServiceCost> {
        self.by(|site, _| site)
    }

    /// The cost by a key of site and service. What only uses its host is in none.
    pub fn by<'c, K: Ord>(&'c self, key: impl Fn(&'c str, &'c str) -> K) -> BTreeMap<K, ServiceCost> {
        let lines = self.lines.iter().filter(|(_, line)| line.charge != Charge::Included);
        let lines = lines.map(|(id, line)| (id.site(), line.service.as_str(), monthly_micros(line)));
        let machines = self.machines.iter().map(|(site, micros)| (site.as_str(), MACHINES, Some(*micros)));
        let mut sums: BTreeMap<K, ServiceCost> = BTreeMap::new();
        for (site, service, micros) in lines.chain(machines) {
            let sum = sums.entry(key(site, service)).or_default();
            match micros {
                Some(micros) => sum.known_micros = sum.known_micros.saturating_add(micros),
                None => sum.is_partial = true,
            }
        }
        sums
    }

    /// The amounts that are not known, each service with the reason, and their count. What uses a machine is not among
    /// them.
    pub fn unknown_reasons(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for (_, line) in &self.lines {
            if let Charge::Unknown(why) | Charge::Unpriced(why) = &line.charge {
                *reasons.entry(format!("{}: {why}", line.service)).or_default() += 1;
            }
        }
        reasons
    }

    /// What the plan has in a known quantity, without a price in the currency of the sums: each with its service.
    pub fn unpriced(&self) -> BTreeSet<String> {
        let lines = self.lines.iter().filter(|(_, line)| matches!(line.charge, Charge::Unpriced(_)));
        lines.map(|(_, line)| format!("{} ({})", line.what, line.service)).collect()
    }

    /// Whether this cost can be ranked beside others: only what is charged by use is not known.
    pub fn is_comparable(&self) -> bool {
        let is_of_nothing = self.known_micros == 0 && !self.unknown.is_empty();
        !is_of_nothing && self.unpriced().is_empty() && self.unpriced_hosts().is_empty()
    }

    /// The sites with resources that use a machine, or the nodes of a cluster, without a price.
    pub fn unpriced_hosts(&self) -> BTreeSet<&str> {
        let included = self.lines.iter().filter(|(_, line)| line.charge == Charge::Included);
        included.map(|(id, _)| id.site()).collect()
    }

    /// A warning if a price was read long ago.
    pub fn outdated(&self, now: Timestamp) -> Option<Problem> {
        let today = now.to_zoned(TimeZone::UTC).date();
        let oldest = self.lines.iter().filter_map(|(_, line)| match &line.charge {
            Charge::Priced { price, .. } => Some((price.date, price.source)),
            Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => None,
        });
        let (date, source) = oldest.min()?;
        let is_outdated = date.saturating_add(Span::new().days(OUTDATED_DAYS)) < today;
        is_outdated.then(|| {
            let cause = format!("the oldest price is of {date}, from {source}");
            Problem::warning("cost", cause, "compare with the provider's current prices, or use a newer version")
        })
    }

    /// Compares with a budget: nothing, a warning or a refusal. A partially known cost is refused if the known part
    /// exceeds the budget.
    pub fn against(&self, budget: &Budget) -> Option<Problem> {
        let limit = budget.monthly?;
        let (known, currency) = (amount(self.known_micros), &self.currency);
        let at_least = if self.unknown.is_empty() { "" } else { "at least " };
        if known > limit {
            let cause = format!(
                "the plan costs {at_least}{known:.2} {currency} a month, and the budget is {limit:.2} {currency}"
            );
            let fix = format!("plan fewer resources, or raise the budget: `--set budget.monthly={}`", known.ceil());
            return Some(Problem::new("budget.monthly", cause, fix));
        }
        if known > limit * budget.warn_at {
            let share = known / limit * 100.0;
            let cause = format!(
                "the plan costs {at_least}{known:.2} {currency} a month, {share:.0} % of the budget of {limit:.2} {currency}"
            );
            return Some(Problem::warning("budget.warn_at", cause, "plan fewer resources, or raise `budget.monthly`"));
        }
        (!self.unknown.is_empty()).then(|| {
            let unknown = match self.unknown.len() {
                1 => "the amount of 1 resource is unknown".to_owned(),
                count => format!("the amounts of {count} resources are unknown"),
            };
            let cause = match self.known_micros {
                0 => format!("the budget of {limit:.2} {currency} is not checked: {unknown}"),
                _ => format!("the plan costs at least {known:.2} of {limit:.2} {currency} a month; {unknown}"),
            };
            Problem::warning("budget.monthly", cause, "check the provider's bill, or remove `budget`")
        })
    }
}

impl Cost {
    fn in_words(&self, at_least: &str, change: &str) -> String {
        let (known, currency) = (amount(self.known_micros), &self.currency);
        match (self.unknown.len(), self.known_micros) {
            (0, _) => format!("{known:.2} {currency} a month{change}"),
            (count, 0) => format!("unknown: there are no prices for {}", counted(count, "resource")),
            (count, _) => {
                let resources = counted(count, "resource");
                format!("{at_least} {known:.2} {currency} a month{change}; there are no prices for {resources}")
            }
        }
    }
}

/// `120.00 USD a month (+12.00)`, or what is unknown.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = self.change().filter(|_| self.recorded_micros != Some(self.known_micros));
        let change = change.map(|change| format!(" ({change:+.2})")).unwrap_or_default();
        f.write_str(&self.in_words("≥", &change))
    }
}

/// As in JSON documents: `monthly` is null unless every price is known.
impl Serialize for Cost {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let part = |by: &str, name: &str, cost: ServiceCost| json!({ by: name, "monthly": (!cost.is_partial).then_some(cost.known()), "known": cost.known() });
        let services = self.services().into_iter().map(|(name, cost)| part("service", name, cost));
        let sites = self.sites().into_iter().map(|(name, cost)| part("site", name, cost));
        let mut document = json!({
            "monthly": self.monthly(),
            "known": amount(self.known_micros),
            "change": self.change(),
            "currency": self.currency,
            "unknown": self.unknown,
            "note": (!self.unknown.is_empty()).then(|| self.in_words("at least", "")),
            "services": services.collect::<Vec<_>>(),
            "sites": sites.collect::<Vec<_>>(),
            "lines": self.lines.iter().map(|(id, line)| line_document(id, line)).collect::<Vec<_>>(),
        });
        if !self.machines.is_empty() {
            let machines =
                self.machines.iter().map(|(site, micros)| json!({ "site": site, "monthly": amount(*micros) }));
            document["machines"] = machines.collect();
        }
        document.serialize(serializer)
    }
}

fn line_document(id: &ResourceId, line: &CostLine) -> Value {
    let mut document = json!({ "resource": id, "service": line.service, "what": line.what });
    match &line.charge {
        Charge::Priced { quantity, price } => {
            document["quantity"] = json!(quantity);
            document["price"] = json!(exact(price.micros));
            document["unit"] = json!(price.unit.to_string());
            document["currency"] = json!(price.currency);
            document["monthly"] = json!(amount(price.monthly_micros(*quantity)));
            document["source"] = json!(price.source);
            document["date"] = json!(price.date);
        }
        Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => {
            document["monthly"] = Value::Null;
            document["why"] = json!(unknown_reason(&line.charge));
        }
    }
    document
}

/// Why a charge has no amount.
pub fn unknown_reason(charge: &Charge) -> Option<&str> {
    match charge {
        Charge::Priced { .. } => None,
        Charge::Included => Some("the price of the machine or cluster that it uses is not known"),
        Charge::Unpriced(why) | Charge::Unknown(why) => Some(why),
    }
}

/// The amount of a line for a month, in millionths.
fn monthly_micros(line: &CostLine) -> Option<u64> {
    match &line.charge {
        Charge::Priced { quantity, price } => Some(price.monthly_micros(*quantity)),
        Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => None,
    }
}

/// A line whose price is in this currency, or unknown: currencies are not converted.
fn in_currency(line: CostLine, currency: &str) -> CostLine {
    match line.charge {
        Charge::Priced { price, .. } if price.currency != currency => {
            let why = format!("its price is in {}, and `budget.currency` is {currency}", price.currency);
            CostLine { charge: Charge::Unpriced(why), ..line }
        }
        _ => line,
    }
}

/// Millionths as an amount with two decimals; exact far beyond any bill.
#[allow(clippy::cast_precision_loss)]
pub fn amount(micros: u64) -> f64 {
    (micros.saturating_add(5_000) / 10_000) as f64 / 100.0
}

/// Millionths as an amount with all of its decimals.
#[allow(clippy::cast_precision_loss)]
fn exact(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}
