//! The usage records of a running environment.

use anyhow::Context;
use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::monthly::MonthlyUsage;

use crate::keys::Admin;
use crate::{Exit, Failure};

/// The usage between two times, at most 31 days. Sites that replicate have the records of all sites.
pub(crate) async fn between(admin: &Admin<'_>, from: Timestamp, until: Timestamp) -> Result<MonthlyUsage, Failure> {
    let jobs = admin.site(admin.running.serving().await).await?;
    let request = json!({ "from": from.as_millisecond(), "until": until.as_millisecond() });
    let answer = jobs.run("usage", &request).await.map_err(|failure| {
        // The command line is right; the running server refuses it, or is of a release without this command.
        let exit = if failure.exit == Exit::Usage { Exit::Failed } else { failure.exit };
        Failure { exit, code: "usage_records", ..failure }
    })?;
    Ok(serde_json::from_value(answer).context("read the usage records")?)
}
