//! Load balancing: smooth weighted round robin among healthy backends.

use std::sync::{Arc, Mutex, PoisonError};

use super::backend::{Backend, State};
use super::config::WantedBackend;

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
        [State::Healthy, State::Unknown, State::Draining].into_iter().find_map(|state| self.pick_among(state, tried))
    }

    /// Every backend's credit grows by its weight; the highest is chosen and reduced by the total. So the weights 3 and
    /// 1 give a a b a and never a a a b.
    fn pick_among(&self, state: State, tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handed_out = 0;
        let mut richest: Option<usize> = None;
        for (at, backend) in self.all.iter().enumerate() {
            let weight = i64::from(backend.weight());
            if weight == 0 || backend.state() != state || tried.iter().any(|other| Arc::ptr_eq(other, backend)) {
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
        Some(self.all[chosen].clone())
    }
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
}
