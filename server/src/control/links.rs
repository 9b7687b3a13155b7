//! Messages to the others: a bounded queue and a task for each. What finds no room, or no answer, is lost; the protocol sends it again.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use textnlp_control::{Message, Peer, Site};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::client;
use super::config::WatchConfig;
use crate::config::Address;

/// What `POST /v1/messages` takes and gives.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) from: Peer,
    pub(super) messages: Vec<Message>,
}

/// More than the heartbeats of a grace.
const WAITING: usize = 64;
/// What one request carries at most.
const TOGETHER: usize = 16;

#[derive(Debug)]
pub(super) struct Links {
    queues: BTreeMap<Peer, mpsc::Sender<Message>>,
}

/// The receiving ends, until the tasks run.
pub(super) type Ends = Vec<(Peer, Address, mpsc::Receiver<Message>)>;

impl Links {
    pub(super) fn new(config: &WatchConfig) -> (Self, Ends) {
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
            // A full queue means that nobody answers: what is lost is sent again.
            let _ = queue.try_send(message);
        }
    }
}

/// Carries messages until the watch stops. An answer is given to the actor as if it had been sent.
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
