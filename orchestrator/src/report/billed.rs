//! What providers billed, beside the list prices. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::{Bill, BilledAmount};

use super::table::{Table, names};
use crate::plan::Cost;

/// Billionths in a millionth.
const NANOS: i128 = 1_000;

/// The bill of the account that some sites are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteBill {
    /// The sites.
    pub sites: Vec<String>,
    /// The bill, or why there is none.
    pub bill: Result<Bill, String>,
}

/// The parts of a cost report that are about bills.
pub(super) struct Billed {
    pub(super) tiles: Vec<(String, String)>,
    pub(super) table: Table,
    pub(super) notes: Vec<String>,
    pub(super) document: Value,
}

impl Billed {
    pub(super) fn of(bills: &[SiteBill], cost: &Cost) -> Self {
        let known = || bills.iter().filter_map(|one| Some((one, one.bill.as_ref().ok()?)));
        let mut totals: BTreeMap<&str, BilledAmount> = BTreeMap::new();
        let mut rows = Vec::new();
        for (one, bill) in known() {
            for line in &bill.lines {
                let total = totals.entry(&line.currency).or_default();
                *total = total.plus(line.amount);
                rows.push(vec![
                    line.service.clone(),
                    one.sites.join(", "),
                    format!("{} {}", line.amount, line.currency),
                ]);
            }
        }
        let difference = difference(bills, &totals, cost);
        let mut tiles: Vec<_> =
            totals.iter().map(|(currency, total)| (format!("{currency} billed"), total.to_string())).collect();
        let mut notes = Vec::new();
        if !totals.is_empty() {
            notes.push(
                "billed: what the provider charged in the month for objects with the tag of this deployment; costs without \
                 tags, such as taxes, support, some transferred data, and the fees of reservations and savings plans, are \
                 not included"
                    .to_owned(),
            );
            let shown = difference.as_ref().map_or("not comparable".to_owned(), |percent| format!("{percent:+.1} %"));
            tiles.push(("billed, compared with list prices".to_owned(), shown));
        }
        for (_, bill) in known().filter(|(_, bill)| bill.is_estimated) {
            notes.push(format!("{}: the amounts are of the month so far, or may still change", bill.account));
        }
        for one in bills {
            if let Err(why) = &one.bill {
                let (noun, sites) = (if one.sites.len() == 1 { "site" } else { "sites" }, one.sites.join(", "));
                notes.push(format!("{noun} {sites}: the bill is not available: {why}"));
            }
        }
        match &difference {
            Ok(_) => notes.push("the list prices are those of a whole month of what is deployed now".to_owned()),
            Err(why) if !totals.is_empty() => {
                notes.push(format!("the bill is not compared with the list prices: {why}"));
            }
            Err(_) => {}
        }
        let accounts: Vec<Value> = bills.iter().map(document).collect();
        let totals: BTreeMap<&str, f64> = totals.iter().map(|(currency, total)| (*currency, total.rounded())).collect();
        Self {
            tiles,
            table: Table { title: "Billed", columns: names(&["service", "sites", "billed"]), rows },
            notes,
            document: json!({ "accounts": accounts, "total": totals, "difference_percent": difference.ok() }),
        }
    }
}

fn document(one: &SiteBill) -> Value {
    match &one.bill {
        Ok(bill) => {
            let line = |line: &textnlp_provider::BillLine| json!({ "service": line.service, "currency": line.currency, "amount": line.amount.rounded() });
            json!({
                "sites": one.sites, "account": bill.account, "is_estimated": bill.is_estimated,
                "services": bill.lines.iter().map(line).collect::<Vec<_>>(),
            })
        }
        Err(why) => json!({ "sites": one.sites, "not_available": why }),
    }
}

/// The difference of the bill to the list prices in percent, or why they cannot be compared.
fn difference(bills: &[SiteBill], totals: &BTreeMap<&str, BilledAmount>, cost: &Cost) -> Result<f64, &'static str> {
    let mut complete = bills.iter().map(|one| one.bill.as_ref().is_ok_and(|bill| !bill.is_estimated));
    let currency = cost.currency.as_str();
    if bills.iter().any(|one| one.bill.is_err()) {
        return Err("a site has no bill");
    }
    if !complete.all(|is_complete| is_complete) {
        return Err("it is not final");
    }
    let billed = totals.get(currency).filter(|_| totals.len() == 1).ok_or("it is not in `budget.currency` alone")?;
    if !cost.unknown.is_empty() || !cost.unpriced_hosts().is_empty() {
        return Err("an amount has no list price");
    }
    let listed = i128::from(cost.known_micros) * NANOS;
    if listed == 0 {
        return Err("nothing has a list price");
    }
    let percent = (billed.0 - listed) as f64 / listed as f64 * 100.0;
    Ok((percent * 10.0).round() / 10.0)
}
