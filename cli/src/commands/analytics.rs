//! `analytics`: insights into the usage of each hour. The server program reads and makes them beside the database, as a
//! one-off job.

use jiff::Timestamp;
use textnlp_orchestrator::report::table::Table;
use textnlp_service::keys::Admin;

use super::feature::places;
use super::prelude::*;
use crate::operations_args::{Analytics, AnalyticsList};
use crate::report::in_line;
use crate::table_view;

/// `analytics …`.
pub async fn analytics(session: &Session, command: &Analytics) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("usage analytics", session.quiet()).await?;
    let failed = |failure: Failure| Failure { code: "analytics", ..failure.or_hint(chosen.scope.command("status")) };
    let admin = Admin::of(&chosen, &running);
    let request = request(command);
    let mut answers = Vec::new();
    for place in places(&admin).await {
        let site = admin.site(place).await.map_err(failed)?;
        answers.push(site.run("analytics", &request).await.map_err(failed)?);
    }
    match command {
        Analytics::List(_) => Ok(listed(&answers)),
        Analytics::Run => {
            let lines = answers.iter().map(|answer| {
                let (site, run) = (answer["site"].as_str().unwrap_or_default(), &answer["run"]);
                format!("{site}: {} insights, {} complete hours", run["insights"], run["hours"])
            });
            let text = lines.collect::<Vec<_>>().join("\n");
            Ok(Success::new(text, json!({ "sites": answers })))
        }
    }
}

/// The JSON command of the server program.
fn request(command: &Analytics) -> Value {
    match command {
        Analytics::Run => json!({ "do": "run" }),
        Analytics::List(AnalyticsList { since, kind, limit }) => {
            json!({ "do": "list", "since": since.as_millisecond().max(0), "kind": kind, "limit": limit })
        }
    }
}

fn listed(answers: &[Value]) -> Success {
    let mut insights = Vec::new();
    for answer in answers {
        for insight in answer["insights"].as_array().into_iter().flatten() {
            let mut insight = insight.clone();
            insight["site"] = answer["site"].clone();
            insights.push(insight);
        }
    }
    let (is_on, has_more) = (any(answers, "enabled"), any(answers, "has_more"));
    let mut text = match (insights.is_empty(), is_on) {
        (false, _) => table_view::lines(&table(&insights)).trim_start_matches('\n').to_owned(),
        (true, true) => "no insights in this time".to_owned(),
        (true, false) => "usage analytics is off: set `server.analytics.enabled: true`, then `up`".to_owned(),
    };
    if has_more {
        text.push_str("\n  there are more: --limit, --since and --kind select others");
    }
    Success::new(text, json!({ "enabled": is_on, "insights": insights, "has_more": has_more }))
}

fn any(answers: &[Value], field: &str) -> bool {
    answers.iter().any(|answer| answer[field] == true)
}

fn table(insights: &[Value]) -> Table {
    let columns = ["HOUR (UTC)", "SITE", "KIND", "SEVERITY", "INSIGHT"].map(str::to_owned).to_vec();
    Table { title: "", columns, rows: insights.iter().map(row).collect() }
}

fn row(insight: &Value) -> Vec<String> {
    let word = |field: &str| in_line(insight[field].as_str().unwrap_or("-")).into_owned();
    let hour = insight["start"].as_i64().and_then(|at| Timestamp::from_second(at).ok());
    let hour = hour.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string());
    let so_far = if insight["partial"] == true { " so far" } else { "" };
    vec![format!("{hour}{so_far}"), word("site"), word("kind"), word("severity"), word("message")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insights_of_all_sites_are_listed_with_their_hour() {
        let insight = |start: i64, partial: bool| {
            json!({
                "start": start, "partial": partial, "kind": "summary", "severity": "info",
                "message": "There were no requests of the service.",
            })
        };
        let answers = [
            json!({ "site": "here", "enabled": true, "has_more": false, "insights": [insight(1_800_000_000, true)] }),
            json!({ "site": "there", "enabled": true, "has_more": true, "insights": [insight(1_799_996_400, false)] }),
        ];
        let Success { text, document, .. } = listed(&answers);
        assert!(text.contains("2027-01-15 08:00 so far  here   summary  info      There were no requests"), "{text}");
        assert!(text.contains("2027-01-15 07:00         there") && text.contains("there are more"), "{text}");
        assert_eq!(document["insights"][1]["site"], "there");
        let off = listed(&[json!({ "site": "here", "enabled": false, "has_more": false, "insights": [] })]);
        assert!(off.text.starts_with("usage analytics is off"), "{}", off.text);
        let idle = listed(&[json!({ "site": "here", "enabled": true, "has_more": false, "insights": [] })]);
        assert_eq!(idle.text, "no insights in this time");
    }
}
