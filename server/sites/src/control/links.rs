//! Messages to the other sites: a bounded queue and a task for each. Messages that do not fit, or get no answer, are
//! lost; the protocol resends.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use textnlp_control::{Message, Peer, Site};
use textnlp_process::Address;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::client;
use super::config::AgentConfig;

/// The body of `POST /v1/messages` and its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) from: Peer,
    pub(super) messages: Vec<Message>,
}

/// More than the heartbeats of a grace.
const WAITING: usize = 64;
/// Maximum messages per request.
const TOGETHER: usize = 16;

#[derive(Debug)]
pub(super) struct Links {
    queues: BTreeMap<Peer, mpsc::Sender<Message>>,
}

/// The receiving ends, until the tasks run.
pub(super) type Ends = Vec<(Peer, Address, mpsc::Receiver<Message>)>;

impl Links {
    pub(super) fn new(config: &AgentConfig) -> (Self, Ends) {
        let sites = config.peers.iter().map(|(site, address)| (Peer::Site(site.clone()), address.clone()));
        let (mut queues, mut ends) = (BTreeMap::new(), Vec::new());
        for (peer, address) in sites.chain([(Peer::Witness, config.witness.clone())]) {
            let (queue, end) = mpsc::channel(WAITING);
            queues.insert(peer.clone(), queue);
            ends.push((peer, address, end));
        }
        (Self { queues }, ends)
    }

    pub(super) fn send(&self, to: &Peer, message: Message) {
        if let Some(queue) = self.queues.get(to) {
            // A full queue means that the peer does not answer; the protocol resends.
            let _ = queue.try_send(message);
        }
    }
}

/// Sends messages until the site agent stops. An answer is delivered to the actor like any message.
pub(super) async fn carry(ends: Ends, own: Site, within: Duration, actor: Actor, stop: CancellationToken) {
    let mut tasks = tokio::task::JoinSet::new();
    for (peer, address, mut queue) in ends {
        let (own, actor) = (own.clone(), actor.clone());
        tasks.spawn(async move {
            let mut messages = Vec::new();
            while queue.recv_many(&mut messages, TOGETHER).await > 0 {
                let envelope = Envelope { from: Peer::Site(own.clone()), messages: std::mem::take(&mut messages) };
                let Ok(body) = serde_json::to_value(&envelope) else { continue };
                match client::post(&address, "/v1/messages", &body, within).await {
                    Ok((status, answer)) if status.is_success() => {
                        if let Ok(answer) = serde_json::from_value::<Envelope>(answer) {
                            actor.deliver(peer.clone(), answer.messages);
                        }
                    }
                    Ok((status, _)) => tracing::debug!(?peer, %status, "a message was refused"),
                    Err(why) => tracing::debug!(?peer, %why, "a message did not arrive"),
                }
            }
        });
    }
    stop.cancelled().await;
    tasks.shutdown().await;
}
