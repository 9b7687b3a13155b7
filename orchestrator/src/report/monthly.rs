//! The reports of a month: what the service did, and what it costs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_bundle::report::{Amount, Chart, Line, LineColour, Plot};

use super::billed::{Billed, SiteBill};
use super::percent;
use super::table::{Table, TableReport, names};
use crate::monthly::{
    DayRecord, Dimension, Month, MonthlyUsage, RequestSum, TokenCost, breakdown, breakdown_document, charges_text,
    hours, sum_text, time_text,
};
use crate::plan::{Cost, amount};

fn ms(value: Option<u64>) -> String {
    value.map_or("none".to_owned(), |ms| format!("{ms} ms"))
}

/// Three decimals, as targets have them.
fn share(value: Option<f64>) -> String {
    value.map_or("none".to_owned(), |share| format!("{:.3} %", share * 100.0))
}

/// What a service did in a month, by its own records, and the change since another month.
pub fn performance(
    environment: &str,
    (month, usage): (Month, &MonthlyUsage),
    other: Option<(Month, &MonthlyUsage)>,
    now: Timestamp,
) -> TableReport {
    let days = usage.by_day(month, now);
    let total = &usage.total;
    let tiles = [
        ("requests", total.requests.to_string()),
        ("errors", format!("{} ({})", total.errors, percent(error_rate(total)))),
        ("refused", total.refused.to_string()),
        ("availability", share(total.availability())),
        ("p50", ms(total.p50_ms)),
        ("p95", ms(total.p95_ms)),
        ("p99", ms(total.p99_ms)),
        ("tokens generated", total.generated_tokens.to_string()),
        ("tokens of prompts", total.prompt_tokens.to_string()),
    ];
    let rows = days.iter().map(|(day, record)| {
        let mut row = vec![format!("{month}-{day:02}")];
        row.extend(match record {
            DayRecord::Measured(sum) => day_row(sum),
            DayRecord::Idle => gap("no requests"),
            DayRecord::NotRecorded => gap("not recorded"),
        });
        row
    });
    let mut notes = vec![
        "requests of /v1/ with a valid key, by the service's own records; latency is that of successful requests, to \
         the last byte"
            .to_owned(),
        "availability is the share of these requests without a status of 500 and above; requests that reached no \
         server are not recorded"
            .to_owned(),
    ];
    notes.extend(covered_note(month, usage, now));
    let comparison = other.map(|(of, other)| {
        notes.extend(covered_note(of, other, now));
        comparison((of, other), (month, usage), now)
    });
    let groups = usage.groups.iter().map(|group| {
        vec![group.tenant.clone(), model(group.model.as_deref()), group.requests.to_string(), group.tokens.to_string()]
    });
    if usage.has_more_groups {
        notes.push(format!("the {} pairs of tenant and model with the most tokens are listed", usage.groups.len()));
    }
    let named = |(day, record): &(i8, DayRecord)| {
        let mut document = json!(record);
        document["date"] = json!(format!("{month}-{day:02}"));
        if let Some(sum) = record.sum() {
            document["availability"] = json!(sum.availability());
        }
        document
    };
    let mut totals = json!(total);
    totals["availability"] = json!(total.availability());
    let mut facts = vec![("environment".into(), environment.to_owned()), ("month".into(), format!("{month}, UTC"))];
    facts.extend(other.map(|(of, _)| ("compared with".into(), format!("{of}, UTC"))));
    let (compared, mut tables) = match comparison {
        Some((document, table)) => (document, vec![table]),
        None => (Value::Null, Vec::new()),
    };
    tables.extend([
        Table {
            title: "Days",
            columns: names(&["day", "requests", "errors", "availability", "p50", "p95", "p99", "tokens"]),
            rows: rows.collect(),
        },
        Table {
            title: "Tenants and models",
            columns: names(&["tenant", "model", "requests", "tokens"]),
            rows: groups.collect(),
        },
    ]);
    TableReport {
        title: format!("Performance of {environment} in {month}"),
        at: now,
        facts,
        tiles: tiles.map(|(name, value)| (name.to_owned(), value)).into(),
        document: json!({
            "environment": environment, "month": month.to_string(), "total": totals, "compared": compared,
            "days": days.iter().map(named).collect::<Vec<_>>(), "groups": usage.groups,
            "has_more_groups": usage.has_more_groups, "notes": notes,
        }),
        tables,
        charts: charts(&days),
        notes,
    }
}

fn error_rate(sum: &RequestSum) -> f64 {
    if sum.requests == 0 { 0.0 } else { sum.errors as f64 / sum.requests as f64 }
}

/// What is missing of the records of a month.
fn covered_note(month: Month, usage: &MonthlyUsage, now: Timestamp) -> Option<String> {
    match usage.covered(month, now) {
        None => Some(format!("{month} is not recorded: there are no records of it, or they are deleted")),
        Some((from, _)) if from > month.start() => Some(format!("records of {month} begin at {}", time_text(from))),
        Some(_) => None,
    }
}

/// The numbers of two months beside each other, the earlier argument first. Sums are for an hour with records, because a month is longer than
/// another, or not over.
fn comparison(
    (before, of_before): (Month, &MonthlyUsage),
    (after, of_after): (Month, &MonthlyUsage),
    now: Timestamp,
) -> (Value, Table) {
    let hourly = |month: Month, usage: &MonthlyUsage, sum: u64| {
        let (from, until) = usage.covered(month, now)?;
        Some(sum as f64 / hours(from, until)).filter(|rate| rate.is_finite())
    };
    let rate = |of: fn(&RequestSum) -> u64| {
        [hourly(before, of_before, of(&of_before.total)), hourly(after, of_after, of(&of_after.total))]
    };
    let each = |of: fn(&RequestSum) -> Option<f64>| [of(&of_before.total), of(&of_after.total)];
    let milliseconds = |of: fn(&RequestSum) -> Option<u64>| {
        [of(&of_before.total), of(&of_after.total)].map(|ms| ms.map(|ms| ms as f64))
    };
    let known_errors = |sum: &RequestSum| (sum.requests > 0).then(|| error_rate(sum) * 100.0);
    let rows: [(&str, &str, [Option<f64>; 2]); 6] = [
        ("requests_an_hour", "requests an hour", rate(|sum| sum.requests)),
        ("tokens_an_hour", "tokens an hour", rate(RequestSum::tokens)),
        ("error_percent", "errors, %", each(known_errors)),
        ("p50_ms", "p50, ms", milliseconds(|sum| sum.p50_ms)),
        ("p95_ms", "p95, ms", milliseconds(|sum| sum.p95_ms)),
        ("p99_ms", "p99, ms", milliseconds(|sum| sum.p99_ms)),
    ];
    let shown = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.3}"));
    let changed = |[before, after]: [Option<f64>; 2]| {
        let (before, after) = (before?, after?);
        (before > 0.0).then(|| ((after - before) / before * 1000.0).round() / 10.0)
    };
    let mut document = json!({ "month": before.to_string() });
    let mut table = Vec::new();
    for (name, title, values) in rows {
        let change = changed(values);
        document[name] = json!({ "before": values[0], "after": values[1], "change_percent": change });
        let percent = change.map_or("none".to_owned(), |percent| format!("{percent:+.1} %"));
        table.push(vec![title.to_owned(), shown(values[0]), shown(values[1]), percent]);
    }
    let mut columns = names(&["number"]);
    columns.extend([before.to_string(), after.to_string(), "change".to_owned()]);
    (document, Table { title: "Comparison", columns, rows: table })
}

fn day_row(sum: &RequestSum) -> Vec<String> {
    vec![
        sum.requests.to_string(),
        sum.errors.to_string(),
        share(sum.availability()),
        ms(sum.p50_ms),
        ms(sum.p95_ms),
        ms(sum.p99_ms),
        sum.tokens().to_string(),
    ]
}

/// The columns of a day without numbers.
fn gap(why: &str) -> Vec<String> {
    let mut row = vec![String::new(); 7];
    row[0] = why.to_owned();
    row
}

fn model(name: Option<&str>) -> String {
    name.unwrap_or("none").to_owned()
}

fn charts(days: &[(i8, DayRecord)]) -> Vec<Chart> {
    let over = |value: &dyn Fn(&RequestSum) -> Option<f64>| -> Vec<(f64, f64)> {
        let known = days.iter().filter_map(|(day, record)| Some((f64::from(*day), value(record.sum()?)?)));
        known.collect()
    };
    if days.iter().all(|(_, record)| record.sum().is_none()) {
        return Vec::new();
    }
    let line = |name, colour, points| Line { name, colour, points };
    let latency = |of: fn(&RequestSum) -> Option<u64>| over(&move |sum| of(sum).map(|ms| ms as f64));
    let plots = [
        (
            "Latency, ms",
            vec![
                line("p95", LineColour::Blue, latency(|sum| sum.p95_ms)),
                line("p50", LineColour::Brown, latency(|sum| sum.p50_ms)),
                line("p99", LineColour::Red, latency(|sum| sum.p99_ms)),
            ],
        ),
        (
            "Requests",
            vec![
                line("requests", LineColour::Blue, over(&|sum| Some(sum.requests as f64))),
                line("errors", LineColour::Red, over(&|sum| Some(sum.errors as f64))),
            ],
        ),
        ("Tokens", vec![line("tokens", LineColour::Blue, over(&|sum| Some(sum.tokens() as f64)))]),
        (
            "Availability, %",
            vec![line("availability", LineColour::Blue, over(&|sum| Some(sum.availability()? * 100.0)))],
        ),
    ];
    let chart = |(title, lines)| Chart { title, plot: Plot::Lines { x_unit: "", lines, limit: None } };
    plots.into_iter().map(chart).collect()
}

/// The inputs of a cost report.
pub struct CostInputs<'a> {
    /// The name of the environment.
    pub environment: &'a str,
    /// The month of the usage.
    pub month: Month,
    /// The monthly cost of what is deployed.
    pub cost: &'a Cost,
    /// The dimensions of the breakdown.
    pub dimensions: &'a [Dimension],
    /// The region of each site.
    pub regions: &'a BTreeMap<String, String>,
    /// The recorded baseline: when, its sum in millionths, and its currency.
    pub baseline: Option<(Timestamp, u64, &'a str)>,
    /// The usage, or why it is not known.
    pub usage: Result<&'a MonthlyUsage, String>,
    /// The bills of the month, if they were asked for.
    pub billed: Option<&'a [SiteBill]>,
    /// The time.
    pub now: Timestamp,
}

/// What a service costs, and its tokens.
pub fn cost(inputs: &CostInputs<'_>) -> TableReport {
    let CostInputs { environment, month, cost, dimensions, regions, baseline, usage, billed, now } = inputs;
    let (month, currency) = (*month, &cost.currency);
    let rows = breakdown(cost, dimensions, regions);
    let is_partial = !cost.unknown.is_empty();
    let monthly = sum_text(cost.known_micros, is_partial);
    let mut tiles = vec![(format!("{currency} a month"), monthly)];
    let mut notes = vec![
        "the cost of what is deployed now, by list prices, without taxes and discounts; a month has 730 hours"
            .to_owned(),
    ];
    notes.extend(cost.unpriced_hosts().into_iter().map(|site| {
        format!("site {site}: its machines, or the nodes of its cluster, are not priced: set `budget.machines.{site}`")
    }));
    let change = baseline.filter(|(_, _, of)| of == currency).map(|(_, before, _)| change(cost.known_micros, before));
    if let Some((at, before, of)) = baseline {
        let shown = change.flatten().map_or("not comparable".to_owned(), |percent| format!("{percent:+.1} %"));
        tiles.push(("known amounts since the baseline".to_owned(), shown));
        notes.push(format!("baseline of {}: {:.2} {of} a month", time_text(*at), amount(*before)));
    } else {
        notes.push("no baseline is recorded: `baseline record`".to_owned());
    }
    let (mut tokens, mut charged) = (None, None);
    match usage {
        Err(why) => notes.push(format!("the cost of tokens is unknown: {why}")),
        Ok(usage) => {
            tokens = TokenCost::of(cost, usage, month, *now);
            charged = Some(&usage.charged).filter(|charged| !charged.is_empty());
            if usage.covered(month, *now).is_none() {
                notes.push(format!("the cost of tokens is unknown: the service has no records of {month}"));
            } else if tokens.is_none() {
                notes.push("the cost of tokens is unknown: nothing has a price".to_owned());
            }
            if usage.has_more_groups {
                let count = usage.groups.len();
                notes.push(format!("the {count} pairs of tenant and model with the most tokens are listed"));
            }
        }
    }
    if let Some(tokens) = &tokens {
        let sign = if tokens.is_partial { "≥ " } else { "" };
        let per_1k = tokens.per_1k_tokens.map_or("no tokens".to_owned(), |cost| format!("{sign}{cost:.6}"));
        tiles.push((format!("{currency} for 1,000 tokens"), per_1k));
        tiles.push(("tokens".to_owned(), tokens.tokens.to_string()));
        notes.push(format!(
            "1,000 tokens: {sign}{:.2} {currency} for {:.1} hours from {} to {}, divided by the tokens of that time",
            tokens.cost,
            hours(tokens.from, tokens.until),
            time_text(tokens.from),
            time_text(tokens.until)
        ));
    }
    let known = usage.as_ref().ok();
    let margin = known.and_then(|usage| usage.margin(tokens.as_ref()?));
    if let Some(charged) = charged {
        tiles.push(("charged".to_owned(), charges_text(charged)));
        notes.push(
            "charged: tokens by the price at the time of each request; requests before a price was set are not charged"
                .to_owned(),
        );
        match margin {
            Some(margin) => {
                // The cost is at least what is known of it.
                let sign = if is_partial { "≤ " } else { "" };
                tiles.push(("margin".to_owned(), format!("{sign}{margin:.4} {currency}")));
                notes.push("margin: the charged amount, less the cost of the recorded hours".to_owned());
            }
            None if tokens.is_some() => {
                notes
                    .push(format!("the margin is unknown: charges are not in {currency} alone, and are not converted"));
            }
            None => {}
        }
    }
    let billed = billed.map(|bills| Billed::of(bills, cost));
    if let Some(billed) = &billed {
        tiles.extend(billed.tiles.iter().cloned());
        notes.extend(billed.notes.iter().cloned());
    }
    let mut columns: Vec<String> = dimensions.iter().map(ToString::to_string).collect();
    columns.push(format!("{currency} a month"));
    let sums = rows.iter().map(|(values, sum)| {
        let mut row = values.clone();
        row.push(sum_text(sum.known_micros, sum.is_partial));
        row
    });
    let amounts = rows.iter().filter(|(_, sum)| sum.known_micros > 0).map(|(values, sum)| Amount {
        name: values.join(", "),
        value: sum.known(),
        text: format!("{} {currency}", sum_text(sum.known_micros, sum.is_partial)),
    });
    let amounts: Vec<Amount> = amounts.collect();
    let charts = match amounts.is_empty() {
        true => Vec::new(),
        false => vec![Chart { title: "Known cost a month", plot: Plot::Amounts(amounts) }],
    };
    // Each of them has a cost, or none has.
    let costs = tokens.as_ref().map(|tokens| tokens.groups.as_slice()).unwrap_or_default();
    let listed = known.map(|usage| usage.groups.as_slice()).unwrap_or_default();
    let listed = listed.iter().enumerate().filter(|_| charged.is_some() || !costs.is_empty());
    let groups = listed.map(|(number, group)| {
        let sign = if is_partial { "≥ " } else { "" };
        let cost = costs.get(number).map_or("unknown".to_owned(), |of| format!("{sign}{:.4}", of.cost));
        let mut row = vec![group.tenant.clone(), model(group.model.as_deref()), group.tokens.to_string(), cost];
        row.extend(charged.map(|_| charges_text(&group.charged)));
        row
    });
    let (sums, groups) = (sums.collect(), groups.collect());
    let mut group_columns = names(&["tenant", "model", "tokens", currency]);
    group_columns.extend(charged.map(|_| "charged".to_owned()));
    let document = json!({
        "environment": environment, "month": month.to_string(), "cost": cost,
        "breakdown": breakdown_document(&rows, dimensions),
        "baseline": baseline.map(|(at, before, of)| json!({ "at": at, "known": amount(before), "currency": of,
            "change_percent": change.flatten() })),
        "tokens": tokens, "charged": charged, "margin": margin.map(|amount| json!({ "amount": amount,
            "currency": currency, "is_upper_bound": is_partial })),
        "billed": billed.as_ref().map(|billed| &billed.document), "not_priced": cost.unpriced_hosts(), "notes": notes,
    });
    let unknown = Table {
        title: "Unknown amounts",
        columns: names(&["service and reason", "amounts"]),
        rows: cost.unknown_reasons().into_iter().map(|(why, count)| vec![why, count.to_string()]).collect(),
    };
    let mut tables = vec![
        Table { title: "Cost", columns, rows: sums },
        Table { title: "Tenants and models", columns: group_columns, rows: groups },
        unknown,
    ];
    tables.extend(billed.map(|billed| billed.table));
    TableReport {
        title: format!("Cost of {environment} in {month}"),
        at: *now,
        facts: vec![("environment".into(), (*environment).to_owned()), ("month".into(), format!("{month}, UTC"))],
        tiles,
        tables,
        charts,
        document,
        notes,
    }
}

/// The change in percent to a baseline; `None` if that is zero.
fn change(now: u64, before: u64) -> Option<f64> {
    let percent = (now as f64 - before as f64) / before as f64 * 100.0;
    (before > 0).then(|| (percent * 10.0).round() / 10.0)
}
