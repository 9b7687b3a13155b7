//! Checks of a plan that are the same for every cloud. They read only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use textnlp_provider::{CloudId, Error, ErrorKind, Ownership, Problem, ResourceId, Wanted, error_chain};

use crate::cloud::Cloud;
use crate::endpoint::inside;
use crate::inside::GPU_NODES;
use crate::resource::State;
use crate::table::{self, Row};
use crate::tags;

/// Names that are read at the same time.
const AT_ONCE: usize = 8;
/// What an operator does about a fact that is not known.
const IF_UP_FAILS: &str = "no action is needed if `up` succeeds";
/// How long the checks of a plan take at most.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What is checked, and the check.
pub type Check<'c> = (&'static str, BoxFuture<'c, Vec<Problem>>);

/// The problems that checks find, all of which run at the same time. What takes longer than `limit` is not known.
pub async fn run(checks: Vec<Check<'_>>, limit: Duration) -> Vec<Problem> {
    let limited = checks.into_iter().map(|(what, check)| async move {
        tokio::time::timeout(limit, check).await.unwrap_or_else(|_| vec![late(what, limit)])
    });
    join_all(limited).await.into_iter().flatten().collect()
}

fn late(what: &str, limit: Duration) -> Problem {
    Problem::note(what, format!("it could not be checked within {} s", limit.as_secs()), IF_UP_FAILS)
}

/// Names that others have, and existing objects that are missing.
pub async fn names<C: Cloud>(api: &Arc<C>, wanted: &[Wanted]) -> Vec<Problem> {
    let checks: Vec<_> = wanted.iter().map(|one| name(api, one)).collect();
    let found: Vec<_> = futures::stream::iter(checks).buffered(AT_ONCE).collect().await;
    found.into_iter().flatten().collect()
}

async fn name<C: Cloud>(api: &Arc<C>, one: &Wanted) -> Option<Problem> {
    let row = table::row::<C>(&one.kind)?;
    if let Ownership::External(id) = &one.ownership {
        return existing(api, row, one, id).await;
    }
    let name = row.resource.id(&one.spec).filter(|_| row.resource.carries_tags())?;
    match row.resource.read(&api.of_spec(&one.spec), &name).await {
        Ok(Some(seen)) if seen.tags.is_empty() && row.resource.is_made_by_cloud(&seen.id) => None,
        Ok(Some(seen)) if !matches!(seen.state, State::Gone) && tags::lineage(&seen.tags).is_none() => {
            let cause = format!("{} `{name}` exists, and no deployment of this program created it", row.kind.says);
            let fix = "`textnlp-deploy state import` adopts it; or remove it, or choose another name";
            Some(Problem::new(one.id.to_string(), cause, fix))
        }
        Ok(_) => None,
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause = format!("the name `{name}` is taken by another account, or it may not be read");
            Some(Problem::warning(one.id.to_string(), cause, "check it, or give the site another name"))
        }
        Err(error) => Some(unknown(one.id.as_str(), &error)),
    }
}

/// An existing object is read, and nothing else.
async fn existing<C: Cloud>(api: &Arc<C>, row: &Row<C>, one: &Wanted, id: &CloudId) -> Option<Problem> {
    let place = one.id.as_str();
    match row.resource.read(&api.of_spec(&one.spec), id.as_str()).await {
        Ok(Some(seen)) if !matches!(seen.state, State::Gone) => None,
        Ok(_) => {
            let cause = format!("`existing: {id}`: the object does not exist");
            Some(Problem::new(place, cause, "give the id of an existing object, or remove `existing`"))
        }
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause = format!("`existing: {id}` cannot be read: {}", error_chain(&error));
            Some(Problem::new(place, cause, "ask its owner for a role that reads it, or remove `existing`"))
        }
        Err(error) => Some(unknown(place, &error)),
    }
}

/// The DNS records of a kind, by the zones that they are in.
pub fn by_zone<'w>(wanted: &'w [Wanted], kind: &str) -> BTreeMap<&'w str, Vec<&'w Wanted>> {
    let mut zones: BTreeMap<&str, Vec<&Wanted>> = BTreeMap::new();
    for one in wanted.iter().filter(|one| one.kind.as_str() == kind) {
        zones.entry(text(one, "zone")).or_default().push(one);
    }
    zones
}

/// Records whose names are not in their zone. `domain` is as its provider writes it.
pub fn outside(records: &[&Wanted], domain: &str) -> Vec<Problem> {
    let domain = crate::endpoint::plain(domain);
    let is_outside = |one: &&&Wanted| inside(text(one, "name"), &domain).is_none();
    let problem = |one: &&Wanted| {
        let cause = format!("`{}` is not in the zone `{domain}`", text(one, "name"));
        Problem::new(one.id.to_string(), cause, "set the id of the zone that has the name")
    };
    records.iter().filter(is_outside).map(problem).collect()
}

fn text<'w>(one: &'w Wanted, field: &str) -> &'w str {
    one.spec.get(field).and_then(|value| value.as_str()).unwrap_or_default()
}

/// Which settings of an environment a pool of machines follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolSettings {
    /// None: every cluster has these machines.
    Fixed,
    /// `cluster.min_nodes` and `cluster.max_nodes`.
    Nodes,
    /// `gpu.count` and `gpu.max`.
    Gpus,
}

impl PoolSettings {
    /// Those of a pool by its id.
    pub fn of_part(id: &ResourceId) -> Self {
        let is_gpu = id.as_str().rsplit_once('/').is_some_and(|(_, part)| part == GPU_NODES);
        if is_gpu { Self::Gpus } else { Self::Nodes }
    }
}

/// Whether a plan creates its cluster, so that no machine of the environment is among those that count as used.
pub async fn is_new<C: Cloud>(api: &Arc<C>, wanted: &[Wanted], cluster: &str) -> bool {
    let is_it = |one: &&Wanted| one.kind.as_str() == cluster && one.ownership == Ownership::Ours;
    let Some(one) = wanted.iter().find(is_it) else { return false };
    let Some(row) = table::row::<C>(&one.kind) else { return false };
    // A typed spec cannot be read while outputs in it are not known. The id of such a cluster is its name.
    let id = row.resource.id(&one.spec).unwrap_or_else(|| text(one, "name").to_owned());
    matches!(row.resource.read(&api.of_spec(&one.spec), &id).await, Ok(None))
}

/// A pool of machines, as far as it counts against a quota.
#[derive(Debug, Clone, Copy)]
pub struct PoolNeed {
    /// What it follows.
    pub settings: PoolSettings,
    /// What one machine takes of the quota.
    pub each: u64,
    /// The machines at first.
    pub count: u64,
    /// How many machines an autoscaler may add.
    pub more: u64,
    /// The zones among which the machines are divided evenly: a count above them is a multiple of them.
    pub zones: u64,
}

impl PoolNeed {
    /// The fewest machines with which an environment has its pods: those with GPUs can be left out.
    fn least(&self) -> u64 {
        match self.settings {
            PoolSettings::Fixed => self.count,
            PoolSettings::Nodes => self.count.min(1),
            PoolSettings::Gpus => 0,
        }
    }

    fn takes(&self, machines: u64) -> u64 {
        self.each.saturating_mul(machines)
    }

    /// The most machines up to `limit` for which `free` is enough.
    fn most(&self, free: u64, limit: u64) -> u64 {
        let machines = free.checked_div(self.each).unwrap_or(limit).min(limit);
        if machines > self.zones { machines - machines % self.zones.max(1) } else { machines }
    }

    /// The settings that give it this number of machines, where that is not what it has.
    fn changed(&self, count: u64, more: u64) -> Vec<String> {
        let (least, most) = match self.settings {
            PoolSettings::Fixed => return Vec::new(),
            PoolSettings::Gpus if count == 0 => return vec!["`gpu.size: none`".to_owned()],
            PoolSettings::Nodes => ("cluster.min_nodes", "cluster.max_nodes"),
            PoolSettings::Gpus => ("gpu.count", "gpu.max"),
        };
        let mut changed = Vec::new();
        if count != self.count {
            changed.push(format!("`{least}: {count}`"));
        }
        if self.more > 0 && (count, more) != (self.count, self.more) {
            changed.push(format!("`{most}: {}`", count.saturating_add(more)));
        }
        changed
    }
}

/// The settings of the largest pools for which `free` of a quota is enough: nodes first, then GPUs, then what autoscalers add. Without
/// any, what the smallest pools take.
fn fitting(pools: &[PoolNeed], free: u64) -> Result<Vec<String>, u64> {
    let mut pools = pools.to_vec();
    pools.sort_by_key(|pool| pool.settings);
    let smallest = pools.iter().fold(0, |sum: u64, pool| sum.saturating_add(pool.takes(pool.least())));
    let Some(mut left) = free.checked_sub(smallest) else { return Err(smallest) };
    let mut sizes = Vec::new();
    for pool in &pools {
        let own = left.saturating_add(pool.takes(pool.least()));
        let count = pool.most(own, pool.count);
        left = own.saturating_sub(pool.takes(count));
        sizes.push((count, 0));
    }
    for (pool, (count, more)) in pools.iter().zip(&mut sizes) {
        if *count == pool.count {
            *more = left.checked_div(pool.each).unwrap_or(pool.more).min(pool.more);
            left = left.saturating_sub(pool.takes(*more));
        }
    }
    Ok(pools.iter().zip(sizes).flat_map(|(pool, (count, more))| pool.changed(count, more)).collect())
}

/// What a plan needs of one quota.
#[derive(Debug, Default)]
pub struct Need {
    amount: u64,
    /// What autoscalers may add.
    growth: u64,
    /// What an upgrade of machines takes for a while.
    spare: u64,
    pools: Vec<PoolNeed>,
    places: BTreeSet<String>,
    /// Whether a place has no other machines, which count against another quota.
    is_the_only_way: bool,
}

impl Need {
    /// Adds what one place needs.
    pub fn add(&mut self, amount: u64, place: String, is_the_only_way: bool) {
        self.amount = self.amount.saturating_add(amount);
        self.places.insert(place);
        self.is_the_only_way |= is_the_only_way;
    }

    /// Adds what the machines of a pool need, and what its autoscaler may start besides.
    pub fn add_pool(&mut self, pool: PoolNeed, place: String, is_the_only_way: bool) {
        self.add(pool.takes(pool.count), place, is_the_only_way);
        self.growth = self.growth.saturating_add(pool.takes(pool.more));
        self.pools.push(pool);
    }

    /// Adds what an upgrade of the machines of a pool takes for a while.
    pub fn add_spare(&mut self, amount: u64) {
        self.spare = self.spare.saturating_add(amount);
    }

    /// How to get along with a quota: what raises it, and for a new environment what it has room for today.
    fn fix(&self, raise: &str, unit: &str, free: u64, is_new: bool) -> String {
        if !is_new || self.pools.iter().all(|pool| pool.settings == PoolSettings::Fixed) {
            return raise.to_owned();
        }
        match fitting(&self.pools, free) {
            // What does not fit is no pool.
            Ok(settings) if settings.is_empty() => raise.to_owned(),
            Ok(settings) => format!("{raise}; today it has room for {}", settings.join(" and ")),
            Err(smallest) => format!("{raise}; the smallest environment needs {smallest}{unit}"),
        }
    }

    /// The problem, if the quota does not allow it beside what is used; a warning, if it allows less than what autoscalers and upgrades
    /// may add. `unit` follows numbers: ` vCPUs`; `raise` says how the quota is raised; `is_new` as [`is_new`] says.
    pub fn check(self, quota: &str, unit: &str, limit: u64, used: u64, raise: &str, is_new: bool) -> Option<Problem> {
        let needed = used.saturating_add(self.amount);
        let most = needed.saturating_add(self.growth);
        if most.saturating_add(self.spare) <= limit {
            return None;
        }
        let fix = self.fix(raise, unit, limit.saturating_sub(used), is_new);
        let cause = format!("{quota} allows {limit}{unit}; {used} are used, and this plan needs {} more", self.amount);
        let place = self.places.into_iter().collect::<Vec<_>>().join(", ");
        if needed <= limit {
            let cause = match most <= limit {
                true => format!("{cause}, and {} for an upgrade of machines", self.spare),
                false => format!("{cause}, up to {} with its autoscaler", self.amount.saturating_add(self.growth)),
            };
            return Some(Problem::warning(place, cause, fix));
        }
        Some(match self.is_the_only_way {
            true => Problem::new(place, cause, fix),
            false => Problem::warning(place, format!("{cause}; other machines of the list are tried"), fix),
        })
    }
}

/// The machines of a place that the region does not offer, if there are any.
pub fn missing<C: Cloud>(api: &C, place: String, machines: &[&str], offered: &BTreeSet<String>) -> Option<Problem> {
    let (has, lacks): (Vec<&str>, Vec<&str>) = machines.iter().partition(|name| offered.contains(**name));
    if lacks.is_empty() {
        return None;
    }
    let cause = format!("{} has no {} in {}", C::NAME, lacks.join(", "), api.region());
    Some(match has.is_empty() {
        true => Problem::new(place, cause, "choose another `gpu.size`, or another region"),
        false => Problem::note(place, cause, format!("{} is used instead", has.join(", "))),
    })
}

/// A fact that could not be read.
pub fn unknown(what: &str, error: &Error) -> Problem {
    Problem::note(what, format!("it could not be checked: {}", error_chain(error)), IF_UP_FAILS)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use textnlp_provider::Problem;

    use super::{Check, Need, PoolNeed, PoolSettings, fitting, run};

    #[test]
    fn a_check_without_an_answer_is_not_known() {
        let refused = || Problem::new("project a", "there is no such project", "name another one");
        let checks: Vec<Check<'_>> = vec![
            ("the quotas", futures::future::pending::<Vec<Problem>>().boxed()),
            ("the project", futures::future::ready(vec![refused()]).boxed()),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let problems = runtime.block_on(run(checks, Duration::ZERO));
        let [quotas, project] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(quotas.note && quotas.place == "the quotas" && quotas.cause.contains("could not be checked"));
        assert_eq!(project.to_string(), refused().to_string());
    }

    #[test]
    fn a_need_is_added_up_and_compared_with_what_is_left() {
        let need = || {
            let mut need = Need::default();
            need.add(2, "here/nodes".to_owned(), false);
            need.add(1, "here/database".to_owned(), false);
            need
        };
        assert!(need().check("`machines`", "", 5, 2, "", true).is_none());
        let mut only = need();
        only.add(0, "here/database".to_owned(), true);
        for (need, blocks) in [(need(), false), (only, true)] {
            let problem = need.check("`machines`", " vCPUs", 5, 3, "raise it", true).unwrap();
            assert_eq!(problem.fix, "raise it", "no setting changes it");
            assert_eq!(problem.place, "here/database, here/nodes");
            assert!(problem.cause.starts_with("`machines` allows 5 vCPUs; 3 are used, and this plan needs 3 more"));
            assert_eq!(problem.cause.ends_with("other machines of the list are tried"), !blocks);
        }
    }

    #[test]
    fn growth_beyond_a_quota_is_a_warning() {
        let need = || {
            let mut need = Need::default();
            need.add_pool(PoolNeed { each: 1, count: 2, more: 3, ..GPUS }, "here/gpu-nodes".to_owned(), true);
            need
        };
        let check = |limit: u64| need().check("`GPUS`", "", limit, 1, "raise it", true);
        assert!(check(6).is_none());
        let less = check(5).unwrap();
        assert!(less.warning && less.cause.ends_with("needs 2 more, up to 5 with its autoscaler"), "{less:?}");
        assert_eq!(less.fix, "raise it; today it has room for `gpu.max: 4`");
        let refused = check(2).unwrap();
        assert!(!refused.warning && refused.cause.ends_with("needs 2 more"), "{refused:?}");
        assert_eq!(refused.fix, "raise it; today it has room for `gpu.count: 1` and `gpu.max: 1`");
        let exists = need().check("`GPUS`", "", 2, 1, "raise it", false).unwrap();
        assert_eq!(exists.fix, "raise it", "machines of the environment may be among those that are used");
        let mut beside = need();
        beside.add(4, "here/database".to_owned(), true);
        assert_eq!(beside.check("`GPUS`", "", 6, 1, "raise it", true).unwrap().fix, "raise it", "the pool fits");
    }

    const GPUS: PoolNeed = PoolNeed { settings: PoolSettings::Gpus, each: 4, count: 2, more: 0, zones: 1 };
    const NODES: PoolNeed = PoolNeed { settings: PoolSettings::Nodes, each: 4, count: 3, more: 3, zones: 1 };

    #[test]
    fn the_largest_pools_that_fit_are_named() {
        let of_cluster = PoolNeed { settings: PoolSettings::Fixed, each: 2, count: 1, more: 0, zones: 1 };
        let zonal = PoolNeed { count: 6, more: 0, zones: 3, ..NODES };
        for (pools, free, expected) in [
            // Nodes come first, and what autoscalers add last.
            (vec![GPUS, NODES], 31, "`cluster.max_nodes: 5`"),
            (vec![GPUS, NODES], 19, "`cluster.max_nodes: 3` `gpu.count: 1`"),
            (vec![GPUS, NODES], 12, "`cluster.max_nodes: 3` `gpu.size: none`"),
            (vec![NODES], 11, "`cluster.min_nodes: 2` `cluster.max_nodes: 2`"),
            (vec![of_cluster, NODES], 6, "`cluster.min_nodes: 1` `cluster.max_nodes: 1`"),
            (vec![GPUS], 0, "`gpu.size: none`"),
            // Five nodes in three zones would be six.
            (vec![zonal], 20, "`cluster.min_nodes: 3`"),
            (vec![zonal], 8, "`cluster.min_nodes: 2`"),
        ] {
            assert_eq!(fitting(&pools, free).unwrap().join(" "), expected, "{free}");
        }
        assert_eq!(fitting(&[of_cluster, NODES, GPUS], 5), Err(6));
    }
}
