//! Creates of pools whose zones and markets lack capacity.

use std::time::Duration;

use textnlp_provider::{ErrorKind, Handle, Lacking, Object, Operation, Progress, Provider, error_chain};

/// Far more steps than such a create takes.
const STEPS: usize = 4_000;

/// Runs a create to its end: what was found to lack capacity on the way, in this order, and the object, if there is one then.
pub(crate) async fn bought(provider: &dyn Provider, op: &Operation) -> (Vec<String>, Option<Object>) {
    bought_over(provider, op, |handle| handle).await
}

/// The same with a journal that changes the handles.
pub(crate) async fn bought_over(
    provider: &dyn Provider,
    op: &Operation,
    journal: impl Fn(Handle) -> Handle,
) -> (Vec<String>, Option<Object>) {
    let (mut lacked, mut handle) = (Vec::new(), None);
    for _ in 0..STEPS {
        let answer = match &handle {
            None => provider.begin(op).await,
            Some(handle) => provider.advance(op, handle).await,
        };
        match answer {
            Ok(Progress::Done(object)) => return (lacked, Some(object)),
            Ok(Progress::Failed { error, .. }) => {
                assert_eq!(error.kind, ErrorKind::Capacity, "{}", error_chain(&error));
                return (lacked, None);
            }
            Ok(Progress::Pending { handle: next, .. }) => {
                lacked.extend(next.lacked().map(str::to_owned));
                handle = Some(journal(next));
            }
            Err(error) if error.kind.may_pass() => {}
            Err(error) => panic!("{}", error_chain(&error)),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it does not end");
}

/// What an earlier run found, oldest first.
pub(crate) fn lacking(names: &[&str], is_recent: bool) -> Vec<Lacking> {
    names.iter().map(|name| Lacking { name: (*name).to_owned(), is_recent }).collect()
}
