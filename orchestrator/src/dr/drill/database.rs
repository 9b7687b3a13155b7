//! The database of whoever leads now: it takes changes, and is no copy that follows one which is lost.

use std::time::Duration;

use tokio::time::Instant;

use super::{DrillError, LOOK_EVERY, Running, pause};
use crate::dr::picture::Picture;
use crate::dr::talk::PRIMARY;

/// A server that has just been promoted says so within this.
const SAID_WITHIN: Duration = Duration::from_secs(5);

impl Running<'_> {
    /// Asks for the role of the database that the leading site works with. Where the lost site keeps its place, or no site speaks of a
    /// database, there is none to ask.
    pub(super) async fn look_at_database(&mut self) -> Result<(), DrillError> {
        let (from, began) = (self.ledger.now(), Instant::now());
        loop {
            let picture = Picture::take(self.stage.everybody).await;
            let primary = picture.primary().filter(|primary| *primary != self.fault.site);
            let role = primary.as_deref().and_then(|primary| picture.site(primary)?.database_role());
            let (Some(site), Some(role)) = (primary, role) else { return Ok(()) };
            if role == PRIMARY || began.elapsed() > SAID_WITHIN || self.is_over() {
                let says = format!("the database that {site} works with is {}", said(role));
                self.tell("database", &says);
                self.database = Some(role.to_owned());
                self.phase("database", from, None, says);
                return Ok(());
            }
            pause(self.stage, LOOK_EVERY).await?;
        }
    }
}

fn said(role: &str) -> String {
    match role {
        PRIMARY => "a primary: it takes changes".to_owned(),
        other => format!("{other}, and takes no changes"),
    }
}
