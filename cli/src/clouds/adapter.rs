//! The metrics adapter's pod: reads the pods of the servers and answers the API server.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use textnlp_kubernetes::{Access, Adapter, Kubernetes};
use textnlp_server::fronted::{Answering, Front, Fronted, Question};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::queries::Figures;
use crate::args;

/// Poll interval of the API server's client CA, which is renewed about once a year.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Poll interval until the client CA is known.
const FIRST_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Runs the metrics adapter until a signal ends it. It serves request metrics to autoscalers.
pub async fn run(args: &args::Adapter, report: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    // Installed before the first socket, so that a signal during the start also ends the adapter cleanly.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let access = Access::Account(args.account.clone().into());
    let kubernetes = Kubernetes::new(access, super::secrets(&args.account));
    let adapter = Arc::new(Adapter::new(kubernetes, args.namespace.clone(), args.pods.clone()));
    let (known, front) = watch::channel(None);
    let shared = adapter.clone();
    let answering: Answering = Arc::new(move |question: Question| {
        let adapter = shared.clone();
        async move {
            let answer = adapter.answer(&question.target, question.is_front).await;
            (answer.status, answer.body.to_string().into_bytes())
        }
        .boxed()
    });
    let files = ["tls.crt", "tls.key"].map(|name| args.tls.join(name));
    let [certificate, key] = files;
    let served = Fronted::start((args.address, args.port).into(), certificate, key, front, answering).await?;
    report(&format!("answers at {}", served.address()));
    let figures = Figures::new()?;
    tokio::select! {
        () = adapter.keep(&figures, report) => {}
        () = poll_client_ca(&adapter, &known, report) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    served.leave().await;
    Ok(())
}

/// Polls the client CA of the API server forever. A failed poll keeps the last known one.
async fn poll_client_ca(adapter: &Adapter, known: &watch::Sender<Option<Front>>, report: &(dyn Fn(&str) + Sync)) {
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
            Err(error) => report(&textnlp_provider::error_chain(&error)),
        }
        tokio::time::sleep(if known.borrow().is_some() { POLL_INTERVAL } else { FIRST_POLL_INTERVAL }).await;
    }
}
