//! What the adapter's pod runs: the pods of the servers on one side, the API server on the other.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use textnlp_kubernetes::{Access, Adapter, Kubernetes};
use textnlp_server::fronted::{Answering, Front, Fronted, Question};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::cluster::Figures;
use crate::args;

/// How often it is looked by which certificate the API server is known: those are renewed once a year.
const LOOK: Duration = Duration::from_secs(60);
/// The same until it is known.
const SOON: Duration = Duration::from_secs(2);

/// What the adapter's pod runs until it is told to end: tells autoscalers how many requests there are.
pub async fn run(args: &args::Adapter, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    // Before the first socket: whoever ends it during the start ends it well.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let access = Access::Account(args.account.clone().into());
    let kubernetes = Kubernetes::new(access, super::secrets(&args.account));
    let adapter = Arc::new(Adapter::new(kubernetes, args.namespace.clone(), args.pods.clone()));
    let (known, front) = watch::channel(None);
    let asked = adapter.clone();
    let answering: Answering = Arc::new(move |question: Question| {
        let adapter = asked.clone();
        async move {
            let answer = adapter.answer(&question.target, question.is_front).await;
            (answer.status, answer.body.to_string().into_bytes())
        }
        .boxed()
    });
    let files = ["tls.crt", "tls.key"].map(|name| args.tls.join(name));
    let [certificate, key] = files;
    let served = Fronted::start((args.address, args.port).into(), certificate, key, front, answering).await?;
    tell(&format!("answers at {}", served.address()));
    let figures = Figures::new()?;
    tokio::select! {
        () = adapter.keep(&figures, tell) => {}
        () = look(&adapter, &known, tell) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    served.leave().await;
    Ok(())
}

/// Looks for ever by which certificate the API server is known. What was known stays known while nobody tells.
async fn look(adapter: &Adapter, known: &watch::Sender<Option<Front>>, tell: &(dyn Fn(&str) + Sync)) {
    loop {
        match adapter.front().await {
            Ok(front) => {
                let front = Some(Front { authorities: front.authorities, names: front.names });
                known.send_if_modified(|known| {
                    let is_new = *known != front;
                    *known = front;
                    is_new
                });
            }
            Err(error) => tell(&textnlp_provider::told(&error)),
        }
        tokio::time::sleep(if known.borrow().is_some() { LOOK } else { SOON }).await;
    }
}
