//! Events of the engine on their way to the tasks of their requests.
//!
//! The engine's thread wakes one task for all events of a step. Waking one for each event takes it longer than a GPU
//! takes for a step of many sequences.

use std::mem::take;
use std::sync::{Arc, Mutex, PoisonError};

use textnlp_inference::engine::{Event, Push, Sink};
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{OwnedPermit, Sender};

/// Events that wait for the end of a step, each with its place in the channel of its request.
#[derive(Default)]
pub(crate) struct Delivery {
    waiting: Mutex<Vec<(OwnedPermit<Event>, Event)>>,
    ended: Notify,
}

impl Delivery {
    /// A sink of the engine for the channel of a request.
    pub(crate) fn outlet(self: &Arc<Self>, to: Sender<Event>) -> Box<dyn Sink> {
        Box::new(Outlet { delivery: self.clone(), to })
    }

    /// Called when a step has ended.
    pub(crate) fn end(&self) {
        if !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.ended.notify_one();
        }
    }

    /// Delivers the events of each step, for ever.
    pub(crate) async fn run(&self) {
        loop {
            self.ended.notified().await;
            let events = take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            for (place, event) in events {
                place.send(event);
            }
        }
    }
}

struct Outlet {
    delivery: Arc<Delivery>,
    to: Sender<Event>,
}

impl Sink for Outlet {
    fn push(&mut self, event: Event) -> Push {
        match self.to.clone().try_reserve_owned() {
            Ok(place) => {
                self.delivery.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((place, event));
                Push::Ok
            }
            Err(TrySendError::Full(_)) => Push::Full(event),
            Err(TrySendError::Closed(_)) => Push::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_inference::engine::{Failure, Token};
    use tokio::sync::mpsc::channel;

    fn token(id: u32) -> Event {
        Event::Token(Token { id, text: String::new(), logprob: None, top: Vec::new() })
    }

    #[tokio::test]
    async fn events_arrive_in_order_when_a_step_has_ended() {
        let delivery = Arc::new(Delivery::default());
        let (to, mut inbox) = channel(2);
        let mut outlet = delivery.outlet(to);
        assert!(matches!(outlet.push(token(1)), Push::Ok));
        assert!(matches!(outlet.push(Event::Failed(Failure::Draining)), Push::Ok));
        assert!(matches!(outlet.push(token(3)), Push::Full(Event::Token(Token { id: 3, .. }))), "a place is taken");
        drop(outlet);
        assert!(inbox.try_recv().is_err(), "the step has not ended");
        delivery.end();
        let running = tokio::spawn({
            let delivery = delivery.clone();
            async move { delivery.run().await }
        });
        assert!(matches!(inbox.recv().await, Some(Event::Token(Token { id: 1, .. }))));
        assert!(matches!(inbox.recv().await, Some(Event::Failed(Failure::Draining))));
        assert!(inbox.recv().await.is_none());
        running.abort();
        let (to, inbox) = channel(1);
        let mut outlet = delivery.outlet(to);
        drop(inbox);
        assert!(matches!(outlet.push(token(4)), Push::Gone));
    }
}
