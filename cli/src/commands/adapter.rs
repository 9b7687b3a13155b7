//! `adapter`: what the autoscaler of a cluster is told, by a pod of our own.

use serde_json::json;

use crate::args::Adapter;
use crate::clouds;
use crate::report::{Console, Failure, Success};

/// `adapter …`, until it is told to end.
pub async fn adapter(args: &Adapter, console: Console) -> Result<Success, Failure> {
    clouds::adapter(args, &|says| console.say(says)).await?;
    Ok(Success::new("it was told to end".to_owned(), json!({})))
}
