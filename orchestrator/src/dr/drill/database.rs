//! The database at the leading site: it must accept writes and must not be a replica of the lost one.

use std::time::Duration;

use tokio::time::Instant;

use super::{DrillError, POLL_INTERVAL, RunningDrill, pause};
use crate::dr::control_client::DatabaseRole;
use crate::dr::control_status::ControlStatus;

/// A server that was just promoted reports its role within this time.
const ROLE_REPORT_TIMEOUT: Duration = Duration::from_secs(5);

impl RunningDrill<'_> {
    /// Asks for the database role at the leading site. There is nothing to ask if the lost site stays primary or no
    /// site reports a database.
    pub(super) async fn look_at_database(&mut self) -> Result<(), DrillError> {
        let (from, began) = (self.ledger.now(), Instant::now());
        loop {
            let control_status = ControlStatus::take(self.stage.control_clients).await;
            let primary = control_status.primary().filter(|primary| *primary != self.fault.site);
            let role = primary.as_deref().and_then(|primary| control_status.site(primary)?.database_role());
            let (Some(site), Some(role)) = (primary, role) else { return Ok(()) };
            if role == DatabaseRole::Primary || began.elapsed() > ROLE_REPORT_TIMEOUT || self.is_over() {
                let says = format!("the database that {site} uses is {}", describe(role));
                self.tell("database", &says);
                self.database = Some(role);
                self.phase("database", from, None, says);
                return Ok(());
            }
            pause(self.stage, POLL_INTERVAL).await?;
        }
    }
}

fn describe(role: DatabaseRole) -> String {
    match role {
        DatabaseRole::Primary => "a primary, which accepts writes".to_owned(),
        other => format!("{other}, and accepts no writes"),
    }
}
