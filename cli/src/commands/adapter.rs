//! `adapter`: the metrics adapter for autoscalers, in its own pod.

use super::prelude::*;
use crate::args::Adapter;
use crate::clouds;

/// `adapter …`, until a signal ends it.
pub async fn adapter(args: &Adapter, console: Console) -> Result<Success, Failure> {
    clouds::adapter(args, &|says| console.say(says)).await?;
    Ok(Success::new("it was asked to stop".to_owned(), json!({})))
}
