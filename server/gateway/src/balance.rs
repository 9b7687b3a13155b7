//! Load balancing: smooth weighted round robin among healthy backends. A prompt goes to one that has its beginning, else to
//! the one with the fewest requests in flight, among those of the same weight: between different weights, shares stay exact.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use super::backend::{Backend, State};
use super::config::WantedBackend;
use super::prefix::Holders;

/// Requests in flight that never keep a prompt from a backend: they are computed together, and its prefix is worth more.
const FREE_REQUESTS: u64 = 4;

/// Why a backend was chosen for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has the beginning.
    Prefix,
    /// Those that have the beginning have too many requests.
    Load,
    /// No backend is known to have the beginning.
    New,
}

impl Reason {
    /// The label in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Reason::Prefix => "prefix",
            Reason::Load => "load",
            Reason::New => "new",
        }
    }
}

/// The backends of one configuration.
#[derive(Debug)]
pub(super) struct Backends {
    all: Vec<Arc<Backend>>,
    /// Credit of each, by position; only chosen under the lock.
    credit: Mutex<Vec<i64>>,
}

impl Backends {
    pub(super) fn new(all: Vec<Arc<Backend>>) -> Backends {
        let credit = Mutex::new(vec![0; all.len()]);
        Backends { all, credit }
    }

    pub(super) fn all(&self) -> &[Arc<Backend>] {
        &self.all
    }

    pub(super) fn find(&self, wanted: &WantedBackend) -> Option<Arc<Backend>> {
        self.all.iter().find(|backend| backend.is(wanted)).cloned()
    }

    /// The next backend that is not in `tried`. Without a healthy one, it uses backends that are not checked yet, which
    /// is better than a refusal just after startup, and then draining ones, which still serve.
    pub(super) fn pick(&self, tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
        self.turn(tried).map(|(_, turn)| self.all[turn].clone())
    }

    /// The backend for a prompt. `held`: which have its beginnings, the longest first. They may have 1.25 times the mean of
    /// requests in flight: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads" (2018).
    pub(super) fn pick_for(&self, tried: &[Arc<Backend>], held: &[Holders]) -> Option<(Arc<Backend>, Reason)> {
        let (state, turn) = self.turn(tried)?;
        // One whose answers are errors has few requests in flight. It has its turns only, until a prompt succeeds there.
        if self.all[turn].fails() {
            return Some((self.all[turn].clone(), Reason::New));
        }
        let weight = self.all[turn].weight();
        // From the turn on: of equal loads the first is chosen.
        let peers: Vec<(&Arc<Backend>, u64)> = self.all[turn..]
            .iter()
            .chain(&self.all[..turn])
            .filter(|peer| peer.weight() == weight && peer.state() == state && !peer.fails() && !is_in(tried, peer))
            .map(|peer| (peer, peer.in_flight.load(Relaxed)))
            .collect();
        let total: u64 = peers.iter().map(|(_, load)| load).sum();
        let most = (5 * (total + 1)).div_ceil(4 * peers.len().max(1) as u64).max(FREE_REQUESTS);
        let mut reason = Reason::New;
        for holders in held {
            let holding = peers.iter().filter(|(peer, _)| holders.contains(&peer.incarnation()));
            if let Some((peer, load)) = holding.min_by_key(|(_, load)| *load) {
                if *load < most {
                    return Some(((*peer).clone(), Reason::Prefix));
                }
                reason = Reason::Load;
            }
        }
        // It may have left in between.
        let least = peers.iter().min_by_key(|(_, load)| *load).map_or(&self.all[turn], |(peer, _)| *peer);
        Some((least.clone(), reason))
    }

    /// Whose turn it is, and its state.
    fn turn(&self, tried: &[Arc<Backend>]) -> Option<(State, usize)> {
        let states = [State::Healthy, State::Unknown, State::Draining];
        states.into_iter().find_map(|state| Some((state, self.turn_among(state, tried)?)))
    }

    /// Every backend's credit grows by its weight; the highest is chosen and reduced by the total. So the weights 3 and
    /// 1 give a a b a and never a a a b.
    fn turn_among(&self, state: State, tried: &[Arc<Backend>]) -> Option<usize> {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handed_out = 0;
        let mut richest: Option<usize> = None;
        for (at, backend) in self.all.iter().enumerate() {
            let weight = i64::from(backend.weight());
            if weight == 0 || backend.state() != state || is_in(tried, backend) {
                continue;
            }
            credit[at] += weight;
            handed_out += weight;
            if richest.is_none_or(|best| credit[at] > credit[best]) {
                richest = Some(at);
            }
        }
        let chosen = richest?;
        credit[chosen] -= handed_out;
        Some(chosen)
    }
}

fn is_in(tried: &[Arc<Backend>], backend: &Arc<Backend>) -> bool {
    tried.iter().any(|other| Arc::ptr_eq(other, backend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Health;

    fn backends(weights: &[u32]) -> Backends {
        let wanted = |(at, weight): (usize, &u32)| WantedBackend {
            name: ((b'a' + at as u8) as char).to_string(),
            listen: "127.0.0.1:1".parse().unwrap(),
            metrics_listen: None,
            ready_listen: None,
            tls: None,
            weight: *weight,
        };
        Backends::new(weights.iter().enumerate().map(wanted).map(|wanted| Arc::new(Backend::new(&wanted))).collect())
    }

    fn turns(backends: &Backends, many: usize) -> String {
        (0..many).map(|_| backends.pick(&[]).map_or_else(|| "-".to_owned(), |b| b.name.clone())).collect()
    }

    #[test]
    fn requests_are_balanced_by_weight_and_interleaved() {
        let all = backends(&[3, 1]);
        all.all().iter().for_each(|b| b.looked(Ok(()), &Health::default()));
        assert_eq!(turns(&all, 8), "aabaaaba");
        let all = backends(&[100, 100, 100]);
        all.all().iter().for_each(|b| b.looked(Ok(()), &Health::default()));
        assert_eq!(turns(&all, 6), "abcabc");
    }

    #[test]
    fn unhealthy_tried_and_weightless_backends_get_no_requests() {
        let all = backends(&[1, 1, 0]);
        let health = Health::default();
        assert_eq!(turns(&all, 2), "ab", "before the first look anybody may be asked");
        all.all()[0].looked(Ok(()), &health);
        assert_eq!(turns(&all, 2), "aa", "a healthy one is preferred to unknown ones");
        all.all()[1].looked(Err("no".to_owned()), &health);
        all.all()[2].looked(Ok(()), &health);
        assert_eq!(turns(&all, 2), "aa");
        assert!(all.pick(&[all.all()[0].clone()]).is_none());
        all.all()[0].looked(Err("no".to_owned()), &health);
        assert_eq!(turns(&all, 1), "a", "one failure is not enough");
        all.all()[0].looked(Err("no".to_owned()), &health);
        assert_eq!(turns(&all, 1), "-");
        all.all()[0].looked(Ok(()), &health);
        assert_eq!(turns(&all, 1), "a");
        all.all()[0].drains();
        assert_eq!(turns(&all, 1), "a", "it goes, and there is nobody else");
        all.all()[1].looked(Ok(()), &health);
        assert_eq!(turns(&all, 2), "bb");
        all.all()[1].takes_no_requests("connect".to_owned());
        all.all()[0].looked(Err("gone".to_owned()), &health);
        assert_eq!(turns(&all, 1), "-", "one that said so is gone after one failure");
    }

    fn healthy(weights: &[u32]) -> Backends {
        let all = backends(weights);
        all.all().iter().for_each(|b| b.looked(Ok(()), &Health::default()));
        all
    }

    fn pick_for(all: &Backends, holders: &[&str]) -> (String, Reason) {
        let held: Vec<Holders> = holders
            .iter()
            .map(|name| [all.all().iter().find(|b| b.name == *name).unwrap().incarnation(), 0, 0, 0])
            .collect();
        let (backend, reason) = all.pick_for(&[], &held).unwrap();
        (backend.name.clone(), reason)
    }

    fn chosen(name: &str, reason: Reason) -> (String, Reason) {
        (name.to_owned(), reason)
    }

    #[test]
    fn prompt_goes_to_the_holder_of_its_longest_beginning_while_the_load_allows() {
        let all = healthy(&[1, 1, 1]);
        for _ in 0..5 {
            assert_eq!(pick_for(&all, &["b", "c"]), chosen("b", Reason::Prefix));
        }
        let loads = |loads: [u64; 3]| {
            all.all().iter().zip(loads).for_each(|(b, load)| b.in_flight.store(load, Relaxed));
        };
        loads([0, 3, 0]);
        assert_eq!(pick_for(&all, &["b"]), chosen("b", Reason::Prefix), "few requests are computed together");
        loads([1, 4, 0]);
        assert_eq!(pick_for(&all, &["b"]), chosen("c", Reason::Load), "the least loaded");
        assert_eq!(pick_for(&all, &["b", "a"]), chosen("a", Reason::Prefix), "it has a shorter beginning");
        // A mean of 20 allows 26.
        loads([18, 25, 17]);
        assert_eq!(pick_for(&all, &["b"]), chosen("b", Reason::Prefix));
        loads([17, 26, 17]);
        assert_ne!(pick_for(&all, &["b"]).1, Reason::Prefix);
        loads([1, 1, 0]);
        assert_eq!(pick_for(&all, &[]), chosen("c", Reason::New));
    }

    #[test]
    fn of_several_holders_the_least_loaded_is_chosen_and_equal_ones_take_turns() {
        let all = healthy(&[1, 1, 1]);
        let incarnation = |at: usize| all.all()[at].incarnation();
        let held = [[incarnation(0), incarnation(2), 0, 0]];
        let turns: String = (0..6).map(|_| all.pick_for(&[], &held).unwrap().0.name.clone()).collect();
        assert!(turns.contains('a') && turns.contains('c') && !turns.contains('b'), "{turns}");
        all.all()[0].in_flight.store(1, Relaxed);
        assert_eq!(all.pick_for(&[], &held).unwrap().0.name, "c");
    }

    #[test]
    fn holder_that_restarted_or_was_tried_is_not_chosen_for_its_prefix() {
        let all = healthy(&[1, 1]);
        let before = [[all.all()[0].incarnation(), 0, 0, 0]];
        assert_eq!(all.pick_for(&[], &before).unwrap().1, Reason::Prefix);
        assert_eq!(all.pick_for(&[all.all()[0].clone()], &before).unwrap().0.name, "b");
        let health = Health::default();
        let leaves: [&dyn Fn(&Backend); 3] = [
            &|backend: &Backend| backend.takes_no_requests("connect".to_owned()),
            &|backend: &Backend| backend.drains(),
            &|backend: &Backend| (0..2).for_each(|_| backend.looked(Err("no".to_owned()), &health)),
        ];
        for leave in leaves {
            let before = [[all.all()[0].incarnation(), 0, 0, 0]];
            leave(&all.all()[0]);
            assert_eq!(all.pick_for(&[], &before).unwrap().0.name, "b");
            all.all()[0].looked(Ok(()), &health);
            assert_eq!(all.pick_for(&[], &before).unwrap().1, Reason::New);
        }
    }

    #[test]
    fn one_that_fails_has_only_its_turns_until_a_prompt_succeeds_there() {
        let all = healthy(&[1, 1]);
        let (a, b) = (&all.all()[0], &all.all()[1]);
        b.in_flight.store(5, Relaxed);
        let of_a = [[a.incarnation(), 0, 0, 0]];
        let picks = |held: &[Holders]| (0..8).filter(|_| all.pick_for(&[], held).unwrap().0.name == "a").count();
        a.answered_prompt(false);
        assert_eq!((picks(&[]), picks(&of_a)), (4, 4));
        a.answered_prompt(true);
        assert_eq!((picks(&[]), picks(&of_a)), (8, 8));
        a.failed_once("it closed the connection".to_owned());
        assert_eq!(picks(&of_a), 4);
    }

    #[test]
    fn weights_are_the_shares_of_prompts_too() {
        let all = healthy(&[3, 1]);
        let held = [[all.all()[1].incarnation(), 0, 0, 0]];
        let turns: String = (0..8).map(|_| all.pick_for(&[], &held).unwrap().0.name.clone()).collect();
        assert_eq!(turns, "aabaaaba");
        all.all()[0].in_flight.store(100, Relaxed);
        assert_eq!((0..8).filter(|_| all.pick_for(&[], &[]).unwrap().0.name == "a").count(), 6);
    }
}
