//! A month of a running environment: its cost, and its requests.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use textnlp_orchestrator::monthly::{Dimension, Month, MonthlyUsage};
use textnlp_orchestrator::report::billed::SiteBill;
use textnlp_orchestrator::report::monthly::{self, CostInputs};
use textnlp_orchestrator::report::table::TableReport;
use textnlp_orchestrator::run::RunSite;
use textnlp_provider::{Billed, BilledRequest, BillingExport, Error, ErrorKind, error_chain};

use crate::baseline::{self, Baseline};
use crate::keys::Admin;
use crate::{ChosenEnvironment, Deployment, Failure, Progress, RunningEnvironment, usage_records};

/// Timeout of all pages of one bill.
const BILL_TIMEOUT: Duration = Duration::from_secs(120);

/// The requests of a month, compared with those of another one.
pub async fn performance(
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    (month, other): (Month, Option<Month>),
    now: Timestamp,
    progress: &dyn Progress,
) -> Result<TableReport, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    running.has_api(scope, "usage records")?;
    progress.doing("reading the usage records");
    let admin = || Admin { platform: scope.platform, running, environment };
    let of_month = usage(admin(), month).await?;
    let of_other = match other {
        Some(other) => Some((other, usage(admin(), other).await?)),
        None => None,
    };
    let other = of_other.as_ref().map(|(other, usage)| (*other, usage));
    Ok(monthly::performance(scope.name.as_str(), (month, &of_month), other, now))
}

/// The cost of a month, by these dimensions; with the bills of its providers if they are asked for.
pub async fn cost(
    deployment: &Deployment,
    running: &RunningEnvironment,
    dimensions: &[Dimension],
    is_billed: bool,
    (month, now): (Month, Timestamp),
    progress: &dyn Progress,
) -> Result<TableReport, Failure> {
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let state = deployment.state().await?;
    if let Some(site) = baseline::left_out(deployment, &state)? {
        let error = anyhow::anyhow!("the cost of site {site} would not be included");
        let hint =
            "leave out --site, and use `--breakdown site`; remove the resources of sites that left the file with `up`";
        return Err(Failure::usage("site_left_out", error).hint(hint));
    }
    let cost = baseline::recorded_cost(deployment, &state)?;
    progress.doing("reading the usage records");
    let usage = if running.is_endpoint() {
        Err("an inference endpoint has no usage records".to_owned())
    } else {
        usage(Admin { platform: scope.platform, running, environment }, month)
            .await
            .map_err(|failure| format!("{:#}", failure.error))
    };
    let lineage = state.lineage();
    // The environment was checked when it was loaded.
    let export: Option<BillingExport> =
        environment.budget.billing_export.as_deref().and_then(|table| table.parse().ok());
    let request = BilledRequest { lineage, from: month.first_day(), until: month.next(), export, now };
    let bills = if is_billed { Some(bills(deployment, &request, progress).await) } else { None };
    let recorded = Baseline::read(&scope.folder).unwrap_or_else(|why| {
        progress.warn(&format!("{why}; it is not used"));
        Baseline::default()
    });
    let sites = environment.sites.iter();
    let regions: BTreeMap<String, String> = sites.map(|site| (site.name.to_string(), site.region.clone())).collect();
    let inputs = CostInputs {
        environment: scope.name.as_str(),
        month,
        cost: &cost,
        dimensions,
        regions: &regions,
        baseline: recorded.cost.as_ref().map(|cost| (cost.origin.at, cost.known_micros, cost.currency.as_str())),
        usage: usage.as_ref().map_err(Clone::clone),
        billed: bills.as_deref(),
        now,
    };
    Ok(monthly::cost(&inputs))
}

/// The bills of all sites. Sites in one account have one bill, which is asked for once: providers charge for it.
async fn bills(deployment: &Deployment, request: &BilledRequest, progress: &dyn Progress) -> Vec<SiteBill> {
    let mut accounts: BTreeMap<(&str, &str), (&RunSite, Vec<String>)> = BTreeMap::new();
    for (name, site) in &deployment.sites {
        let account = (site.place.provider.as_str(), site.place.account.as_str());
        accounts.entry(account).or_insert_with(|| (site, Vec::new())).1.push(name.to_string());
    }
    let mut bills = Vec::new();
    for (site, sites) in accounts.into_values() {
        progress.doing(&format!("reading the bill of site {}", sites.join(", ")));
        let bill = match tokio::time::timeout(BILL_TIMEOUT, site.provider.billed(request)).await {
            Ok(Ok(Billed::Bill(bill))) => Ok(bill),
            Ok(Ok(Billed::NotAvailable(why))) => Err(why),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err(format!("no answer within {} s", BILL_TIMEOUT.as_secs())),
        };
        bills.push(SiteBill { sites, bill });
    }
    bills
}

/// Why a bill cannot be read, and what to do about it.
fn reason(error: &Error) -> String {
    let mut text = error_chain(error);
    if let ErrorKind::Throttled { after: Some(after) } = error.kind {
        text.push_str(&format!("; try again in {} s", after.as_secs()));
    }
    if let Some(hint) = &error.hint {
        text.push_str(&format!("; {hint}"));
    }
    text
}

/// The usage of a month.
async fn usage(admin: Admin<'_>, month: Month) -> Result<MonthlyUsage, Failure> {
    usage_records::between(&admin, month.start(), month.end()).await
}
