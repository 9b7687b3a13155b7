//! Months, what the records of the service cover, and what its tokens cost.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::environment::model::{Budget, MachineCost};
use textnlp_orchestrator::monthly::{DayRecord, Dimension, Month, MonthlyUsage, TokenCost, breakdown, sum_text};
use textnlp_orchestrator::plan::Cost;
use textnlp_orchestrator::report::billed::SiteBill;
use textnlp_orchestrator::report::monthly::{CostInputs, cost as cost_report, performance};
use textnlp_provider::{Bill, BillLine, BilledAmount};

use crate::world::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn november() -> Month {
    "2026-11".parse().unwrap()
}

/// Requests on the 10th and the 12th of November, with records since the 9th.
fn usage() -> MonthlyUsage {
    let day = |day: &str| time(&format!("2026-11-{day}T00:00:00Z")).as_second() / 86_400;
    let sum = |requests: u64, errors: u64| {
        json!({ "requests": requests, "refused": 1, "errors": errors, "prompt_tokens": 600 * requests,
            "generated_tokens": 400 * requests, "p50_ms": 40, "p95_ms": 90, "p99_ms": 120 })
    };
    let of_day = |text: &str, requests, errors| {
        let mut document = sum(requests, errors);
        document["day"] = json!(day(text));
        document
    };
    serde_json::from_value(json!({
        "since_ms": time("2026-11-09T12:00:00Z").as_millisecond(),
        "total": sum(400, 2), "days": [of_day("10", 300, 2), of_day("12", 100, 0)],
        "groups": [
            { "tenant": "acme", "model": "m", "requests": 300, "tokens": 300_000 },
            { "tenant": "<b>globex</b>", "model": null, "requests": 100, "tokens": 100_000 },
        ],
        "has_more_groups": false, "site": "here",
    }))
    .unwrap()
}

#[test]
fn months_are_exact_and_nonsense_is_refused() {
    let month = november();
    assert_eq!((month.start(), month.end()), (time("2026-11-01T00:00:00Z"), time("2026-12-01T00:00:00Z")));
    assert_eq!("2026-12".parse::<Month>().unwrap().end(), time("2027-01-01T00:00:00Z"));
    assert_eq!(Month::of(time("2028-02-29T23:59:59Z")).to_string(), "2028-02");
    for text in ["", "2026", "2026-13", "2026-1", "2026-11-24", "1969-12", "-001-01", "٢٠٢٦-١١", "2026-11\n"] {
        assert!(text.parse::<Month>().is_err(), "{text}");
    }
}

#[test]
fn days_without_records_are_not_taken_for_days_without_requests() {
    let days = usage().by_day(november(), time("2026-11-13T08:00:00Z"));
    assert_eq!(days.len(), 13, "the rest of the month has not begun");
    assert_eq!(days[0], (1, DayRecord::NotRecorded));
    assert_eq!(days[8], (9, DayRecord::NotRecorded), "records begin within it");
    assert_eq!((days[10], days[12]), ((11, DayRecord::Idle), (13, DayRecord::Idle)));
    let tenth = days[9].1.sum().unwrap();
    assert_eq!((tenth.requests, tenth.availability()), (300, Some(1.0 - 2.0 / 300.0)));
    let none = MonthlyUsage::default().by_day(november(), time("2027-01-01T00:00:00Z"));
    assert!(none.len() == 30 && none.iter().all(|(_, day)| *day == DayRecord::NotRecorded));
}

#[test]
fn tokens_cost_what_the_recorded_hours_cost() {
    let world = World::new();
    let machine =
        |price| MachineCost { count: 1, watts: 0.0, price_per_kwh: 0.0, purchase_price: price, depreciation_months: 1 };
    let cost = |wanted: &[_], price: f64| {
        let (planned, facts) = world.plan(UP, wanted).unwrap();
        let budget = Budget { machines: [("here".to_owned(), machine(price))].into(), ..Budget::default() };
        Cost::after(planned.plan(), &facts, &budget)
    };
    let free = [want("vault", "vault", json!({}))];
    // One unit an hour.
    let hourly = cost(&free, 730.0);
    let now = time("2026-11-13T12:00:00Z");
    let tokens = TokenCost::of(&hourly, &usage(), november(), now).unwrap();
    assert_eq!((tokens.from, tokens.until), (time("2026-11-09T12:00:00Z"), now), "four days are recorded");
    assert_eq!((tokens.cost, tokens.tokens, tokens.per_1k_tokens), (96.0, 400_000, Some(0.24)));
    assert_eq!(tokens.groups.iter().map(|group| group.cost).collect::<Vec<_>>(), [72.0, 24.0]);
    assert!(!tokens.is_partial);
    let partial = cost(&[want("images", "registry", json!({}))], 730.0);
    assert!(TokenCost::of(&partial, &usage(), november(), now).unwrap().is_partial);
    // Nothing is made up: without a price, without records, and in a month before them.
    assert_eq!(TokenCost::of(&cost(&free, 0.0), &usage(), november(), now), None);
    assert_eq!(TokenCost::of(&hourly, &MonthlyUsage::default(), november(), now), None);
    assert_eq!(TokenCost::of(&hourly, &usage(), "2026-10".parse().unwrap(), now), None);
    let idle = MonthlyUsage { since_ms: usage().since_ms, ..MonthlyUsage::default() };
    let idle = TokenCost::of(&hourly, &idle, november(), now).unwrap();
    assert_eq!((idle.cost, idle.per_1k_tokens, idle.groups.len()), (96.0, None, 0));
}

#[test]
fn charges_are_compared_with_the_cost_only_in_its_currency() {
    let world = World::new();
    let (planned, facts) = world.plan(UP, &[want("vault", "vault", json!({}))]).unwrap();
    let cost = |price: f64| {
        let machine =
            MachineCost { count: 1, watts: 0.0, price_per_kwh: 0.0, purchase_price: price, depreciation_months: 1 };
        let machines = [("here".to_owned(), machine)].into();
        let budget = Budget { currency: "EUR".to_owned(), machines, ..Budget::default() };
        Cost::after(planned.plan(), &facts, &budget)
    };
    // 96 for the four days of the records, or nothing that has a price.
    let (hourly, unpriced) = (cost(730.0), cost(0.0));
    let report = |cost: &Cost, usage: &MonthlyUsage| {
        cost_report(&CostInputs {
            environment: "staging",
            month: november(),
            cost,
            dimensions: &[Dimension::Service],
            regions: &BTreeMap::new(),
            baseline: None,
            usage: Ok(usage),
            billed: None,
            now: time("2026-11-13T12:00:00Z"),
        })
    };
    let none = report(&hourly, &usage());
    assert_eq!((&none.document["charged"], &none.document["margin"]), (&json!(null), &json!(null)));
    assert_eq!(none.tables[1].columns, ["tenant", "model", "tokens", "EUR"]);

    let mut priced = usage();
    priced.charged = [("EUR".to_owned(), 100.25)].into();
    priced.groups[0].charged = priced.charged.clone();
    let shown = report(&hourly, &priced);
    assert_eq!(shown.document["charged"], json!({ "EUR": 100.25 }));
    let margin = json!({ "amount": 4.25, "currency": "EUR", "is_upper_bound": false });
    assert_eq!(shown.document["margin"], margin);
    assert_eq!(shown.tables[1].columns, ["tenant", "model", "tokens", "EUR", "charged"]);
    assert_eq!(shown.tables[1].rows[0], ["acme", "m", "300000", "72.0000", "100.2500 EUR"]);
    assert_eq!(shown.tables[1].rows[1][4], "none");
    assert!(shown.tiles.contains(&("margin".to_owned(), "4.2500 EUR".to_owned())), "{:?}", shown.tiles);
    let page = shown.to_html();
    assert!(page.contains("100.2500 EUR") && page.contains("Known cost a month") && page.contains("<svg"), "{page}");
    assert!(report(&unpriced, &priced).charts.is_empty());

    // Charges are shown also where nothing of the deployment has a price.
    let alone = report(&unpriced, &priced);
    assert_eq!((&alone.document["margin"], &alone.tables[1].rows[0][3]), (&json!(null), &"unknown".to_owned()));

    priced.charged.insert("USD".to_owned(), 0.5);
    let mixed = report(&hourly, &priced);
    assert_eq!(mixed.document["margin"], json!(null));
    assert!(mixed.notes.iter().any(|note| note.contains("not in EUR alone")), "{:?}", mixed.notes);
    assert!(mixed.tiles.contains(&("charged".to_owned(), "100.2500 EUR, 0.5000 USD".to_owned())), "{:?}", mixed.tiles);
}

#[test]
fn breakdown_sums_by_the_chosen_dimensions() {
    let world = World::new();
    let mut wanted = service();
    wanted.push(want("images", "registry", json!({})));
    let (planned, facts) = world.plan(UP, &wanted).unwrap();
    let cost = Cost::after(planned.plan(), &facts, &Budget::default());
    let regions = [("here".to_owned(), "local".to_owned())].into();
    let rows = |dimensions: &[Dimension]| {
        let rows = breakdown(&cost, dimensions, &regions).into_iter();
        rows.map(|(values, sum)| format!("{} {}", values.join("/"), sum_text(sum.known_micros, sum.is_partial)))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rows(&[Dimension::Service, Dimension::Region]),
        ["Clusters/local 73.00", "Databases/local 50.00", "Registries/local unknown", "Servers/local 41.00"]
    );
    assert_eq!(rows(&[Dimension::Site]), ["here ≥ 164.00"]);
}

#[test]
fn performance_page_has_every_day_and_escapes_names() {
    let report = performance("staging", (november(), &usage()), None, time("2026-11-13T08:00:00Z"));
    let page = report.to_html();
    for text in ["not recorded", "no requests", "99.333 %", "<svg", "&lt;b&gt;globex&lt;"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    for foreign in ["<script", "http://", "https://", "<b>globex"] {
        assert!(!page.contains(foreign), "{foreign}: {page}");
    }
    let empty = performance("staging", (november(), &MonthlyUsage::default()), None, time("2026-11-13T08:00:00Z"));
    assert!(empty.to_html().contains("not recorded"));
}

#[test]
fn months_are_compared_by_the_hours_with_records() {
    let (october, now) = ("2026-10".parse::<Month>().unwrap(), time("2026-11-13T12:00:00Z"));
    let since = time("2026-10-30T00:00:00Z").as_millisecond();
    let before: MonthlyUsage = serde_json::from_value(json!({
        "since_ms": since, "days": [], "groups": [], "has_more_groups": false, "site": "here",
        "total": { "requests": 96, "refused": 0, "errors": 48, "prompt_tokens": 0, "generated_tokens": 0, "p50_ms": 50,
            "p95_ms": null, "p99_ms": null },
    }))
    .unwrap();
    // 400 requests in 96 hours of November, 96 requests in 48 hours of October.
    let report = performance("staging", (november(), &usage()), Some((october, &before)), now);
    let compared = &report.document["compared"];
    assert_eq!(compared["month"], "2026-10");
    assert_eq!(compared["requests_an_hour"], json!({ "before": 2.0, "after": 400.0 / 96.0, "change_percent": 108.3 }));
    assert_eq!(compared["error_percent"], json!({ "before": 50.0, "after": 0.5, "change_percent": -99.0 }));
    assert_eq!(compared["p50_ms"], json!({ "before": 50.0, "after": 40.0, "change_percent": -20.0 }));
    assert_eq!(compared["p95_ms"], json!({ "before": null, "after": 90.0, "change_percent": null }));
    assert_eq!(compared["tokens_an_hour"]["change_percent"], json!(null), "from none");
    let table = &report.tables[0];
    assert_eq!(table.columns, ["number", "2026-10", "2026-11", "change"]);
    assert_eq!(table.rows[0], ["requests an hour", "2.000", "4.167", "+108.3 %"]);
    assert!(
        report.notes.iter().any(|note| note == "records of 2026-10 begin at 2026-10-30 00:00 UTC"),
        "{:?}",
        report.notes
    );
    let nothing = performance("staging", (november(), &MonthlyUsage::default()), Some((october, &before)), now);
    assert_eq!(nothing.document["compared"]["requests_an_hour"]["after"], json!(null));
}

#[test]
fn bills_are_compared_with_list_prices_only_where_both_are_complete() {
    let world = World::new();
    let (planned, facts) = world.plan(UP, &[want("vault", "vault", json!({}))]).unwrap();
    let machine =
        MachineCost { count: 1, watts: 0.0, price_per_kwh: 0.0, purchase_price: 200.0, depreciation_months: 1 };
    let budget = Budget { machines: [("here".to_owned(), machine)].into(), ..Budget::default() };
    let cost = Cost::after(planned.plan(), &facts, &budget);
    let bill = |currency: &str, is_estimated: bool| {
        let line = |service: &str, amount: &str| BillLine {
            service: service.to_owned(),
            currency: currency.to_owned(),
            amount: BilledAmount::parse(amount).unwrap(),
        };
        let lines = [line("Compute", "219.995"), line("Storage", "-9.995")];
        let bill = Ok(Bill::new("AWS account 1".to_owned(), lines, is_estimated));
        SiteBill { sites: vec!["a".to_owned(), "b".to_owned()], bill }
    };
    let none = SiteBill { sites: vec!["c".to_owned()], bill: Err("its provider has no bill".to_owned()) };
    let report = |bills: Option<&[SiteBill]>| {
        cost_report(&CostInputs {
            environment: "staging",
            month: november(),
            cost: &cost,
            dimensions: &[Dimension::Service],
            regions: &BTreeMap::new(),
            baseline: None,
            usage: Err("not asked".to_owned()),
            billed: bills,
            now: time("2026-12-13T12:00:00Z"),
        })
    };
    assert_eq!(report(None).document["billed"], json!(null));

    let whole = report(Some(&[bill("USD", false)]));
    assert_eq!(whole.document["billed"]["difference_percent"], 5.0);
    assert_eq!(whole.document["billed"]["total"], json!({ "USD": 210.0 }));
    let table = whole.tables.last().unwrap();
    assert_eq!(
        (table.title, table.columns.as_slice()),
        ("Billed", ["service", "sites", "billed"].map(str::to_owned).as_slice())
    );
    assert_eq!(table.rows, [["Compute", "a, b", "220.00 USD"], ["Storage", "a, b", "-10.00 USD"]]);
    assert!(whole.tiles.contains(&("USD billed".to_owned(), "210.00".to_owned())), "{:?}", whole.tiles);
    assert!(whole.to_html().contains("220.00 USD"));

    for (bills, why) in [
        (vec![bill("USD", true)], "it is not final"),
        (vec![bill("EUR", false)], "it is not in `budget.currency` alone"),
        (vec![bill("USD", false), none.clone()], "a site has no bill"),
    ] {
        let shown = report(Some(&bills));
        assert_eq!(shown.document["billed"]["difference_percent"], json!(null), "{why}");
        let note = format!("the bill is not compared with the list prices: {why}");
        assert!(shown.notes.contains(&note), "{why}: {:?}", shown.notes);
    }
    let nothing = report(Some(&[none]));
    assert!(nothing.tables.last().unwrap().rows.is_empty());
    let note = "site c: the bill is not available: its provider has no bill".to_owned();
    assert!(nothing.notes.contains(&note), "{:?}", nothing.notes);
}
