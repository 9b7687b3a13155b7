//! `audit`: the audit log of a running environment. The server program reads it beside the database, one page at a
//! time.

use textnlp_service::keys::Admin;

use super::prelude::*;
use crate::args::Audit;

/// Rows of one page: a cluster returns at most 4 MiB of a job's output.
const PAGE: u64 = 2000;

/// `audit …`.
pub async fn audit(session: &Session, command: &Audit, console: Console) -> Result<Success, Failure> {
    let Audit::Export { since } = command;
    let (chosen, running) = session.load_running("audit log", session.quiet()).await?;
    let admin = Admin::of(&chosen, &running);
    let (mut count, mut events) = (0u64, Vec::new());
    for place in admin.places() {
        let site = admin.site(place).await?;
        let mut after = 0;
        loop {
            let request = json!({
                "after": after, "since": since.map_or(0, |since| since.as_millisecond()), "limit": PAGE,
                "operator": admin.operator(),
            });
            let page = site.run("audit", &request).await?;
            for event in page["events"].as_array().into_iter().flatten() {
                let mut event = event.clone();
                event["site"] = page["site"].clone();
                count += 1;
                console.stream(&format!("{event}\n"));
                console.event(&event);
                if !console.is_text() && !console.is_jsonl() {
                    events.push(event);
                }
            }
            match page["next"].as_i64() {
                Some(next) if next > after => after = next,
                _ => break,
            }
        }
    }
    let mut document = json!({ "count": count });
    if !console.is_jsonl() {
        document["events"] = json!(events);
    }
    Ok(Success::new("", document))
}
