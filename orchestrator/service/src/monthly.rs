//! A month of a running environment: its cost, and its requests.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::monthly::{Dimension, Month, MonthlyUsage};
use textnlp_orchestrator::report::monthly::{self, CostInputs};
use textnlp_orchestrator::report::table::TableReport;

use crate::baseline::{self, Baseline};
use crate::keys::Admin;
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Progress, RunningEnvironment};

/// The requests of a month.
pub async fn performance(
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    (month, now): (Month, Timestamp),
    progress: &dyn Progress,
) -> Result<TableReport, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    running.has_api(scope, "usage records")?;
    progress.doing("reading the usage records");
    let usage = usage(Admin { platform: scope.platform, running, environment }, month).await?;
    Ok(monthly::performance(scope.name.as_str(), month, &usage, now))
}

/// The cost of a month, by these dimensions.
pub async fn cost(
    deployment: &Deployment,
    running: &RunningEnvironment,
    dimensions: &[Dimension],
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
    let usage = if running.is_invoked {
        Err("an inference endpoint has no usage records".to_owned())
    } else {
        usage(Admin { platform: scope.platform, running, environment }, month)
            .await
            .map_err(|failure| format!("{:#}", failure.error))
    };
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
        now,
    };
    Ok(monthly::cost(&inputs))
}

/// The usage of a month. Sites that replicate have the records of all sites.
async fn usage(admin: Admin<'_>, month: Month) -> Result<MonthlyUsage, Failure> {
    let jobs = admin.site(admin.running.serving().await).await?;
    let request = json!({ "from": month.start().as_millisecond(), "until": month.end().as_millisecond() });
    let answer = jobs.run("usage", &request).await.map_err(|failure| {
        // The command line is right; the running server refuses it, or is of a release without this command.
        let exit = if failure.exit == Exit::Usage { Exit::Failed } else { failure.exit };
        Failure { exit, code: "usage_records", ..failure }
    })?;
    Ok(serde_json::from_value(answer).context("read the usage records")?)
}
