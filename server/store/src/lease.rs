//! Leases: units that a replica takes from the counters in advance, where these are at another site.
//!
//! The counters of several sites with a database each are at the primary. A replica serves requests from its lease
//! and renews it before it ends; unused units go back. While the primary cannot be reached, each site grants leases
//! from its own share of what remained.
//!
//! Pure: the clock and the answers are arguments.
//!
//! A rate is not exceeded: what is leased does not become free with time, only by a settlement ([`Granted`]). What was
//! used counts from its settlement on, so a unit is free again up to a lease later than with one counter. The bounds
//! for failures are in `docs/guide/api.md`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::audit::is_plain;
use crate::budget::{BudgetRefusal, Grant, Reservation, Unit};
use crate::rate::{Left, Taken};

/// The longest lease.
const LONGEST_MS: i64 = 10_000;

/// How long a refusal of the primary is repeated without asking again: units may come back before.
const REFUSAL_MS: i64 = 1000;

/// The end of a lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Units that were granted.
    pub granted: u64,
    /// Those that were used; negative when units of an earlier lease, which counted as used, were not.
    pub used: i64,
}

impl Settlement {
    fn plus(self, other: Self) -> Self {
        Self { granted: self.granted + other.granted, used: self.used + other.used }
    }

    fn minus(self, other: Self) -> Self {
        Self { granted: self.granted.saturating_sub(other.granted), used: self.used - other.used }
    }

    /// What must be sent again where it is unknown whether it was received: nothing that could be given back twice.
    /// What was granted stays reserved if it was not received.
    pub fn safe_to_repeat(self) -> Self {
        Self { granted: 0, used: self.used.saturating_sub_unsigned(self.granted).max(0) }
    }
}

/// Ends a lease and asks for the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Who holds the lease: the same name for all leases that follow one another.
    pub holder: String,
    /// What is needed at least; no units where a lease only ends.
    pub reservation: Reservation,
    /// For the primary.
    pub settled: Settlement,
    /// For this site's own share.
    pub settled_apart: Settlement,
    /// Used beyond what was granted, by requests during a renewal: charged to the rate. Charged twice where an answer is
    /// lost.
    #[serde(default)]
    pub overdrawn: u64,
}

/// The most units of a settlement or a lease; the largest rate has fewer.
const MAX_UNITS: u64 = 1 << 50;

impl LeaseRequest {
    /// Whether its names and amounts are ones that a counter can have. It comes from another process.
    pub fn is_valid(&self) -> bool {
        let Reservation { subject, key_limit, token, units, .. } = &self.reservation;
        let names = [Some(&self.holder), Some(subject), token.as_ref().map(|token| &token.jti)];
        let limits = [*key_limit, token.as_ref().map(|token| token.limit)];
        let settled = [self.settled, self.settled_apart].map(|ended| ended.granted.max(ended.used.unsigned_abs()));
        names.into_iter().flatten().all(|name| is_plain(name))
            && limits.into_iter().flatten().all(|limit| i64::try_from(limit).is_ok())
            && [*units, self.overdrawn].into_iter().chain(settled).all(|amount| amount <= MAX_UNITS)
    }
}

/// The next lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// `None` where no units were asked for.
    pub granted: Option<Result<Grant, BudgetRefusal>>,
    /// Whether it is from this site's own share.
    pub apart: bool,
    /// What the primary has not received.
    pub unsettled: Settlement,
}

/// What a request gets: the remaining units of the rate, if there is one.
pub type Outcome = Result<Option<Left>, BudgetRefusal>;

/// The units of one counter that a replica holds.
#[derive(Debug)]
pub struct Lease {
    holder: String,
    granted: u64,
    used: i64,
    apart: bool,
    unsettled: Settlement,
    lasts_ms: i64,
    until_ms: i64,
    left: Option<(Left, i64)>,
    refused: Option<RefusedRequest>,
}

#[derive(Debug)]
struct RefusedRequest {
    units: u64,
    until_ms: i64,
    why: BudgetRefusal,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            holder: uuid::Uuid::now_v7().to_string(),
            granted: 0,
            used: 0,
            apart: false,
            unsettled: Settlement::default(),
            lasts_ms: 0,
            until_ms: 0,
            left: None,
            refused: None,
        }
    }
}

impl Lease {
    /// Takes units, or repeats a refusal. `None`: a lease has to be asked for.
    pub fn take(&mut self, units: u64, now_ms: i64) -> Option<Outcome> {
        if !self.is_over(now_ms)
            && let Some(left) = self.take_late(units, now_ms)
        {
            return Some(Ok(left));
        }
        let refused = self.refused.as_ref().filter(|refused| refused.units <= units)?;
        if !is_before(now_ms, refused.until_ms, REFUSAL_MS) {
            return None;
        }
        Some(Err(refused.why))
    }

    /// Takes units also after the end, where the next lease cannot be asked for.
    pub fn take_late(&mut self, units: u64, now_ms: i64) -> Option<Option<Left>> {
        if self.available() < units as i64 {
            return None;
        }
        self.used += units as i64;
        Some(self.left(now_ms))
    }

    /// Whether it is time to ask for the next one, so that no request has to wait for it.
    pub fn is_ending(&self, now_ms: i64) -> bool {
        self.available() > 0 && now_ms >= self.until_ms - self.lasts_ms / 2
    }

    /// Whether it is over.
    pub fn is_over(&self, now_ms: i64) -> bool {
        !is_before(now_ms, self.until_ms, self.lasts_ms)
    }

    /// Whether there is something to settle.
    pub fn is_open(&self) -> bool {
        (self.granted, self.used, self.unsettled) != (0, 0, Settlement::default())
    }

    /// What asks for the next lease.
    pub fn request(&self, reservation: &Reservation) -> LeaseRequest {
        let ended = Settlement { granted: self.granted, used: self.used };
        // What was used apart is charged to the primary's budgets, too.
        let (ended, settled_apart) = match self.apart {
            true => (Settlement { granted: 0, used: self.used }, ended),
            false => (ended, Settlement::default()),
        };
        let (holder, settled) = (self.holder.clone(), self.unsettled.plus(ended));
        let overdrawn = self.available().min(0).unsigned_abs();
        LeaseRequest { holder, reservation: reservation.clone(), settled, settled_apart, overdrawn }
    }

    /// Takes an answer in, and `units` of it. What was used since the request counts against the new lease.
    pub fn apply(&mut self, request: &LeaseRequest, answer: LeaseAnswer, units: u64, now_ms: i64) -> Option<Outcome> {
        let ended = match self.apart {
            true => request.settled_apart,
            false => request.settled.minus(self.unsettled),
        };
        self.granted = self.granted.saturating_sub(ended.granted);
        self.used -= ended.used;
        self.unsettled = answer.unsettled;
        self.apart = answer.apart;
        match answer.granted? {
            Ok(grant) => {
                self.granted += grant.units;
                self.used += units as i64;
                self.lasts_ms = lasts_ms(&request.reservation);
                self.until_ms = now_ms + self.lasts_ms;
                self.left = grant.left.map(|left| (left, now_ms));
                self.refused = None;
                Some(Ok(self.left(now_ms)))
            }
            Err(why) => {
                let wait = match why {
                    BudgetRefusal::Rate(Taken::NotYet { retry_ms, .. }) => {
                        (retry_ms.ceil() as i64).clamp(0, REFUSAL_MS)
                    }
                    _ => REFUSAL_MS,
                };
                self.refused = Some(RefusedRequest { units: request.reservation.units, until_ms: now_ms + wait, why });
                Some(Err(why))
            }
        }
    }

    /// Ends a request that took `units`.
    pub fn settle(&mut self, units: u64, used: u64) {
        self.used -= units as i64 - used as i64;
        self.refused = None;
    }

    fn available(&self) -> i64 {
        self.granted as i64 - self.used
    }

    fn left(&self, now_ms: i64) -> Option<Left> {
        let (left, at_ms) = self.left?;
        let remaining = left.remaining + self.available().max(0) as u64;
        Some(Left { remaining, reset_ms: (left.reset_ms - (now_ms - at_ms) as f64).max(0.0), ..left })
    }
}

/// Leases of rates that the primary granted and that did not end.
#[derive(Debug, Default)]
pub struct Granted(HashMap<(String, Unit), HashMap<String, OutstandingGrant>>);

#[derive(Debug)]
struct OutstandingGrant {
    units: u64,
    until_ms: i64,
}

impl OutstandingGrant {
    fn is_open(&self, now_ms: i64) -> bool {
        is_before(now_ms, self.until_ms, LONGEST_MS + LATE_MS)
    }
}

/// How long a lease counts as granted after its end: its holder may still use it while it renews it.
const LATE_MS: i64 = 5000;

/// Rates with leases, and holders of one rate. No further leases are granted until some of them are over.
const MAX_RATES: usize = 10_000;
const MAX_HOLDERS: usize = 1000;

impl Granted {
    /// Whether a lease of the request can be remembered.
    pub fn has_room(&mut self, request: &LeaseRequest, now_ms: i64) -> bool {
        let name = name(request);
        if let Some(holders) = self.0.get_mut(&name) {
            holders.retain(|_, lease| lease.is_open(now_ms));
            return holders.len() < MAX_HOLDERS || holders.contains_key(&request.holder);
        }
        if self.0.len() >= MAX_RATES {
            self.0.retain(|_, holders| {
                holders.retain(|_, lease| lease.is_open(now_ms));
                !holders.is_empty()
            });
        }
        request.reservation.rate.is_none() || self.0.len() < MAX_RATES
    }

    /// The leased units of the rate, with those that the request settles.
    pub fn leased(&mut self, request: &LeaseRequest, now_ms: i64) -> u64 {
        let own = request.settled.granted;
        let Some(holders) = self.0.get_mut(&name(request)) else { return own };
        holders.retain(|_, lease| lease.is_open(now_ms));
        let others = holders.iter().filter(|(holder, _)| **holder != request.holder);
        others.map(|(_, lease)| lease.units).fold(own, u64::saturating_add)
    }

    /// Remembers the lease of an answer in place of the holder's last one.
    pub fn note(&mut self, request: &LeaseRequest, answer: &LeaseAnswer, now_ms: i64) {
        if request.reservation.rate.is_none() {
            return;
        }
        let holders = self.0.entry(name(request)).or_default();
        holders.remove(&request.holder);
        if let Some(Ok(grant)) = answer.granted {
            let until_ms = now_ms + lasts_ms(&request.reservation) + LATE_MS;
            holders.insert(request.holder.clone(), OutstandingGrant { units: grant.units, until_ms });
        } else if holders.is_empty() {
            self.0.remove(&name(request));
        }
    }
}

fn name(request: &LeaseRequest) -> (String, Unit) {
    (request.reservation.subject.clone(), request.reservation.unit)
}

/// Whether an end is ahead, and no further than it can be: a clock that was set back must extend nothing.
fn is_before(now_ms: i64, until_ms: i64, longest_ms: i64) -> bool {
    (1..=longest_ms).contains(&until_ms.saturating_sub(now_ms))
}

/// How long a lease lasts.
fn lasts_ms(reservation: &Reservation) -> i64 {
    reservation.rate.map_or(LONGEST_MS, |rate| (rate.per.as_millis() as i64 / 10).min(LONGEST_MS))
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::tests::{Bench, on_both};
    use super::*;
    use crate::budget::{BudgetOwner, Unit};
    use crate::rate::{Rate, take};

    on_both!(
        small_limit_is_counted_once_over_all_sites,
        rate_over_three_sites_never_exceeds_the_limit,
        units_taken_during_a_refused_renewal_are_charged_to_the_rate,
        budget_over_three_sites_is_never_exceeded_and_can_be_spent_completely,
        unreachable_primary_leaves_each_site_its_part,
        next_primary_knows_what_was_counted,
    );

    #[test]
    fn requests_with_names_and_amounts_that_no_counter_has_are_invalid() {
        let valid = Lease::default().request(&of(Some("5/hour"), Some(9), Unit::Tokens, 1));
        assert!(valid.is_valid());
        let token = |jti: String, limit| Some(crate::Token { jti, limit, expires_at_ms: 0 });
        let change = |change: &dyn Fn(&mut LeaseRequest)| {
            let mut request = valid.clone();
            change(&mut request);
            request.is_valid()
        };
        assert!(change(&|request| request.reservation.token = token("a".repeat(36), 1 << 50)));
        for (number, is_valid) in [
            change(&|request| request.holder = "h".repeat(1000)),
            change(&|request| request.reservation.subject = "k\n".to_owned()),
            change(&|request| request.reservation.token = token("a".repeat(1000), 1)),
            change(&|request| request.reservation.token = token("a".to_owned(), u64::MAX)),
            change(&|request| request.reservation.key_limit = Some(u64::MAX)),
            change(&|request| request.reservation.units = u64::MAX),
            change(&|request| request.overdrawn = u64::MAX),
            change(&|request| request.settled.granted = u64::MAX),
            change(&|request| request.settled_apart.used = i64::MIN),
        ]
        .into_iter()
        .enumerate()
        {
            assert!(!is_valid, "{number}");
        }
    }

    #[test]
    fn number_of_rates_and_holders_with_leases_is_bounded() {
        let mut granted = Granted::default();
        let lease = |granted: &mut Granted, key: usize, holder: usize, now_ms| {
            let mut request = Lease::default().request(&of(Some("5/hour"), None, Unit::Requests, 1));
            (request.holder, request.reservation.subject) = (holder.to_string(), key.to_string());
            let has_room = granted.has_room(&request, now_ms);
            if has_room {
                let grant = Some(Ok(Grant { units: 1, left: None }));
                let answer = LeaseAnswer { granted: grant, apart: false, unsettled: Settlement::default() };
                granted.note(&request, &answer, now_ms);
            }
            has_room
        };
        let holders = (0..2 * MAX_HOLDERS).filter(|holder| lease(&mut granted, 0, *holder, START)).count();
        let keys = (1..2 * MAX_RATES).filter(|key| lease(&mut granted, *key, 0, START)).count();
        assert_eq!((holders, keys), (MAX_HOLDERS, MAX_RATES - 1));
        assert!(lease(&mut granted, 0, 7, START), "a holder renews its lease");
        assert!(
            lease(&mut granted, 0, 2 * MAX_HOLDERS, START + 60_000) && lease(&mut granted, 77_777, 0, START + 60_000)
        );
        assert!(granted.0.len() < 10, "what is over is forgotten");
    }

    const SITES: u64 = 3;
    const START: i64 = 1_800_000_000_000;

    fn of(rate: Option<&str>, key_limit: Option<u64>, unit: Unit, units: u64) -> Reservation {
        let rate = rate.map(|rate| rate.parse().unwrap());
        Reservation { unit, subject: "key".into(), key_limit, token: None, rate, units }
    }

    /// The site that counts.
    struct Primary {
        store: Store,
        granted: Granted,
    }

    /// A replica at a site with a store of its own.
    struct Site {
        lease: Lease,
        store: Store,
        _bench: Bench,
    }

    impl Site {
        async fn new(bench: &Bench) -> Self {
            let bench = bench.another();
            Self { lease: Lease::default(), store: bench.store().await, _bench: bench }
        }

        /// Asks for units; without the primary it is cut off.
        async fn ask(&mut self, primary: Option<&mut Primary>, of: &Reservation, now: i64) -> Option<Outcome> {
            let request = self.lease.request(of);
            self.store.settle_apart(&request, SITES).await.unwrap();
            let answer = match primary {
                Some(Primary { store, granted }) => {
                    let leased = granted.leased(&request, now);
                    let answer = store.lease(&request, SITES, leased, now).await.unwrap();
                    granted.note(&request, &answer, now);
                    answer
                }
                None => self.store.lease_apart(&request, SITES, now).await.unwrap(),
            };
            self.lease.apply(&request, answer, of.units, now)
        }

        async fn take(&mut self, primary: Option<&mut Primary>, of: &Reservation, now: i64) -> Outcome {
            match self.lease.take(of.units, now) {
                Some(taken) => taken,
                None => self.ask(primary, of, now).await.unwrap(),
            }
        }

        /// As the sweep of a replica does.
        async fn end(&mut self, primary: Option<&mut Primary>, of: &Reservation, now: i64) {
            if self.lease.is_over(now) && self.lease.is_open() {
                self.ask(primary, &Reservation { units: 0, ..of.clone() }, now).await;
            }
        }
    }

    async fn three(bench: &Bench) -> (Primary, Vec<Site>) {
        let primary = Primary { store: bench.store().await, granted: Granted::default() };
        let mut sites = Vec::new();
        for _ in 0..SITES {
            sites.push(Site::new(bench).await);
        }
        (primary, sites)
    }

    async fn small_limit_is_counted_once_over_all_sites(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let of = of(Some("5/hour"), None, Unit::Requests, 1);
        let mut given = Vec::new();
        for round in 0..4 {
            for site in &mut sites {
                given.extend(site.take(Some(&mut primary), &of, START + round).await.ok());
            }
        }
        let remaining: Vec<u64> = given.into_iter().map(|left| left.unwrap().remaining).collect();
        assert_eq!(remaining, [4, 3, 2, 1, 0]);
    }

    /// A number below a bound, from a generator that is the same in every run.
    fn random(state: &mut u64, below: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % below
    }

    async fn rate_over_three_sites_never_exceeds_the_limit(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let (rate, of): (Rate, _) = ("60/minute".parse().unwrap(), of(Some("60/minute"), None, Unit::Requests, 1));
        let (mut state, mut now, mut given, mut asked) = (7, START, Vec::new(), 0);
        // The same requests at one counter, to compare.
        let (mut exact, mut arrival) = (0, 0.0);
        while now < START + 300_000 {
            // Bursts, idle times, and sites that are busy in turns.
            let busy = (now - START) / 20_000 % 4 != 3;
            now += if busy { 50 + random(&mut state, 400) as i64 } else { 2000 };
            let at = if random(&mut state, 3) == 0 { random(&mut state, SITES) } else { (now / 30_000) as u64 % SITES };
            for site in &mut sites {
                site.end(Some(&mut primary), &of, now).await;
            }
            asked += 1;
            given.extend(sites[at as usize].take(Some(&mut primary), &of, now).await.ok().map(|_| now));
            if let Taken::Yes { arrival_ms, .. } = take(rate, arrival, 1, now as f64) {
                (arrival, exact) = (arrival_ms, exact + 1);
            }
        }
        let (count, period) = (60.0, 60_000.0);
        for (first, from) in given.iter().enumerate() {
            for (last, to) in given.iter().enumerate().skip(first) {
                let most = count * (1.0 + (to - from) as f64 / period) + 0.01;
                assert!((last - first + 1) as f64 <= most, "{} within {} ms", last - first + 1, to - from);
            }
        }
        assert!(exact < asked, "the limit must matter");
        assert!(given.len() as f64 >= 0.8 * f64::from(exact), "{} of {exact}", given.len());
    }

    async fn units_taken_during_a_refused_renewal_are_charged_to_the_rate(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let (of, site) = (|units| of(Some("1200/hour"), None, Unit::Tokens, units), &mut sites[0]);
        let mut given = 0;
        for now in START..START + 50 {
            given += u64::from(site.take(Some(&mut primary), &of(1), now).await.is_ok());
            // More than the rate ever allows: the unused units go back, and other requests take them meanwhile.
            let request = site.lease.request(&of(1201));
            while matches!(site.lease.take(1, now), Some(Ok(_))) {
                given += 1;
            }
            let leased = primary.granted.leased(&request, now);
            let answer = primary.store.lease(&request, SITES, leased, now).await.unwrap();
            primary.granted.note(&request, &answer, now);
            assert!(matches!(site.lease.apply(&request, answer, 1201, now), Some(Err(_))));
        }
        // At most one lease more, a twelfth.
        assert!((1000..=1300).contains(&given), "{given}");
    }

    async fn budget_over_three_sites_is_never_exceeded_and_can_be_spent_completely(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let of = |units| of(None, Some(10_000), Unit::Tokens, units);
        let (mut state, mut now, mut spent) = (3, START, 0);
        let mut open: Vec<(usize, u64)> = Vec::new();
        for _ in 0..400 {
            now += random(&mut state, 3000) as i64;
            let (at, units) = (random(&mut state, SITES) as usize, 1 + random(&mut state, 200));
            for site in &mut sites {
                site.end(Some(&mut primary), &of(0), now).await;
            }
            if sites[at].take(Some(&mut primary), &of(units), now).await.is_ok() {
                open.push((at, units));
            }
            // Some end at once, others when their lease is long over.
            if open.len() > random(&mut state, 6) as usize {
                let (at, units) = open.swap_remove(random(&mut state, open.len() as u64) as usize);
                let used = random(&mut state, units + 1);
                sites[at].lease.settle(units, used);
                spent += used;
            }
            let reserved: u64 = open.iter().map(|(_, units)| units).sum();
            assert!(spent + reserved <= 10_000, "{spent} spent, {reserved} reserved");
        }
        for (at, units) in open.drain(..) {
            sites[at].lease.settle(units, 0);
        }
        for site in &mut sites {
            site.end(Some(&mut primary), &of(0), now + 60_000).await;
        }
        // Nothing is lost: the rest is exactly what was not spent.
        let rest = 10_000 - spent;
        let refused = sites[0].take(Some(&mut primary), &of(rest + 1), now + 60_000).await;
        assert_eq!(refused, Err(BudgetRefusal::Spent { owner: BudgetOwner::Key, limit: 10_000, left: rest }));
        assert!(rest == 0 || sites[1].take(Some(&mut primary), &of(rest), now + 60_000).await.is_ok());
    }

    async fn unreachable_primary_leaves_each_site_its_part(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let requests = of(Some("9/hour"), None, Unit::Requests, 1);
        let mut given = 0;
        for (at, site) in sites.iter_mut().enumerate() {
            for n in 0..20 {
                let reached = (at == 0).then_some(&mut primary);
                given += u32::from(site.take(reached, &requests, START + n).await.is_ok());
            }
        }
        assert_eq!(given, 9 + 3 + 3, "the limit, and a third of it at each site that is cut off");

        let bench = bench.another();
        let (mut primary, mut sites) = three(&bench).await;
        let of = |units| of(None, Some(300), Unit::Tokens, units);
        assert!(sites[0].take(Some(&mut primary), &of(30), START).await.is_ok());
        sites[1].store.put_counters(&primary.store.counters(10, START).await.unwrap()).await.unwrap();
        let whole = sites[1].take(None, &of(301), START).await;
        assert_eq!(whole, Err(BudgetRefusal::Spent { owner: BudgetOwner::Key, limit: 300, left: 300 - 52 }));
        let mut apart = 0;
        while sites[1].take(None, &of(10), START).await.is_ok() {
            apart += 10;
        }
        // A lease for 30 of 300 has a twelfth of the rest besides.
        assert_eq!(apart, (300 - (30 + 270 / 12)) / 3 / 10 * 10);
        assert_eq!(sites[1].take(None, &of(10), START).await, Err(BudgetRefusal::Apart));
        // Reached again, it is charged to the budget.
        let later = START + LONGEST_MS;
        for site in &mut sites[..2] {
            site.end(Some(&mut primary), &of(0), later).await;
        }
        let left = sites[2].take(Some(&mut primary), &of(301), later).await;
        assert_eq!(left, Err(BudgetRefusal::Spent { owner: BudgetOwner::Key, limit: 300, left: 300 - 30 - apart }));
    }

    async fn next_primary_knows_what_was_counted(bench: Bench) {
        let (mut primary, mut sites) = three(&bench).await;
        let requests = of(Some("5/hour"), Some(100), Unit::Requests, 1);
        for _ in 0..4 {
            assert!(sites[0].take(Some(&mut primary), &requests, START).await.is_ok());
        }
        let mut named = Vec::new();
        for name in requests.counters() {
            named.extend(primary.store.counter(&name).await.unwrap());
        }
        let mut active = primary.store.counters(10, START).await.unwrap();
        active.reverse();
        assert_eq!((named.len(), &named), (2, &active));
        let first = sites.remove(0);
        let mut next = Primary { store: first.store.clone(), granted: Granted::default() };
        next.store.put_counters(&named).await.unwrap();
        assert!(sites[0].take(Some(&mut next), &requests, START).await.is_ok());
        assert!(sites[1].take(Some(&mut next), &requests, START).await.is_err());
    }

    #[test]
    fn clock_that_is_set_back_extends_no_lease_and_no_refusal() {
        let of = of(Some("1000/hour"), None, Unit::Requests, 1);
        let (mut lease, mut granted) = (Lease::default(), Granted::default());
        let answer = |granted| LeaseAnswer { granted: Some(granted), apart: false, unsettled: Settlement::default() };
        let (request, grant) = (lease.request(&of), answer(Ok(Grant { units: 5, left: None })));
        granted.note(&request, &grant, START);
        lease.apply(&request, grant, 1, START);
        let (later, before) = (START + 10, START - 60_000);
        let other = LeaseRequest { holder: "other".into(), ..request };
        assert!(!lease.is_over(later) && lease.is_over(before));
        assert!(lease.take(1, later).is_some() && lease.take(1, before).is_none());
        assert_eq!((granted.leased(&other, later), granted.leased(&other, before)), (5, 0));
        lease.apply(&lease.request(&of), answer(Err(BudgetRefusal::Apart)), 1, START);
        assert_eq!(lease.take(1, later), Some(Err(BudgetRefusal::Apart)));
        assert_eq!(lease.take(1, before), None);
    }

    #[test]
    fn lost_answer_gives_nothing_back_twice() {
        for (granted, used, repeated) in [(10, 4, 0), (0, 7, 7), (10, 14, 4), (0, -3, 0)] {
            let settlement = Settlement { granted, used };
            assert_eq!(settlement.safe_to_repeat(), Settlement { granted: 0, used: repeated });
        }
    }

    #[test]
    fn requests_during_a_renewal_count_against_the_next_lease() {
        let of = of(Some("1000/hour"), None, Unit::Requests, 1);
        let mut lease = Lease::default();
        let answer = |units| LeaseAnswer {
            granted: Some(Ok(Grant { units, left: None })),
            apart: false,
            unsettled: Settlement::default(),
        };
        lease.apply(&lease.request(&of), answer(5), 1, START);
        assert!(!lease.is_ending(START) && lease.is_ending(START + 5000));
        let request = lease.request(&of);
        assert_eq!(request.settled, Settlement { granted: 5, used: 1 });
        // Two requests, while all five units are on their way back.
        for _ in 0..2 {
            assert!(lease.take(1, START).is_some());
        }
        lease.apply(&request, answer(3), 0, START + 5000);
        assert!(lease.take(1, START + 5000).is_some());
        assert!(lease.take(1, START + 5000).is_none());
    }
}
