//! The conformance tests of every provider: the rules that the engine relies on, tested on real objects of each kind.
//!
//! A provider's tests create a [`TestBed`] and call [`TestBed::whole_life`] for a wanted resource of each of its kinds. The
//! dependencies must exist; the test leaves nothing behind. [`well_formed`] and [`lowers_purely`] check the
//! declarations. Each function returns the violated rule in a sentence, or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::component::{Component, Site};
use crate::cost::{Charge, CostLine, Pricing};
use crate::error::{Error, ErrorKind, error_chain as chain};
use crate::kind::{Identity, NOT_PRICED};
use crate::name::{EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::operation::{Handle, Operation, OperationId, Progress, Token, Verb};
use crate::provider::{Provider, Scope};
use crate::resource::{Health, Object, Observed, Outputs, Recorded, Wanted};
use crate::spec::Spec;

/// A rule that a provider violates.
#[derive(Debug)]
pub struct Violation {
    /// The kind.
    pub kind: String,
    /// The rule, and what was observed instead.
    pub law: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.law)
    }
}

impl std::error::Error for Violation {}

/// The environment of a conformance test.
pub struct TestBed<'a> {
    /// The provider under test.
    pub provider: &'a dyn Provider,
    /// The environment.
    pub environment: EnvironmentName,
    /// The site.
    pub site: SiteName,
    /// The lineage; no other test uses it at the same time.
    pub lineage: Lineage,
    /// Timeout of one operation.
    pub patience: Duration,
    operations: AtomicU64,
}

/// The most attempts of a call with transient errors.
const ATTEMPTS: u32 = 20;

impl<'a> TestBed<'a> {
    /// A bench whose operations are numbered from 1.
    pub fn new(provider: &'a dyn Provider, environment: EnvironmentName, site: SiteName, lineage: Lineage) -> Self {
        Self { provider, environment, site, lineage, patience: Duration::from_secs(60), operations: AtomicU64::new(1) }
    }

    /// Creates, repeats, observes, changes and deletes an object, and checks every rule.
    ///
    /// `wanted` has no references left. `changed`, if the kind has anything to change, differs from it in place. The
    /// dependencies of the object must exist, and are kept.
    pub async fn whole_life(&self, wanted: &Wanted, changed: Option<&Spec>) -> Result<(), Violation> {
        priced(self.provider, wanted.kind.as_str(), &wanted.spec)?;
        self.is_absent(wanted, None).await?;
        let recorded = self.is_made_once(wanted).await?;
        self.is_seen_as_made(wanted, &recorded).await?;
        self.is_ours_alone(wanted, &recorded).await?;
        let recorded = match changed {
            Some(spec) => self.is_changed_in_place(&Wanted { spec: spec.clone(), ..wanted.clone() }, &recorded).await?,
            None => recorded,
        };
        self.is_deleted_for_good(wanted, &recorded).await
    }

    /// Tests one resource of each kind of a site by [`whole_life`](Self::whole_life), beside the resources that it needs, which
    /// come before it. `outputs` are those of resources of other providers. Objects of the kinds in `kept` stay when they are
    /// deleted, and are tested until then. `changed` gives what differs in place, if the kind has anything to change.
    pub async fn site(
        &self,
        ordered: &[Wanted],
        mut outputs: BTreeMap<ResourceId, Outputs>,
        kept: &[&str],
        changed: impl Fn(&Wanted) -> Option<Spec>,
    ) -> Result<(), Violation> {
        let (mut tested, mut made) = (BTreeSet::new(), Vec::new());
        for one in ordered {
            let spec = one.spec.resolve(|id| outputs.get(id)).map_err(|error| breach(one, error.to_string()))?;
            let resolved = Wanted { spec, ..one.clone() };
            let recorded = match (tested.insert(one.kind.clone()), kept.contains(&one.kind.as_str())) {
                (true, true) => {
                    let recorded = self.is_made_once(&resolved).await?;
                    self.is_seen_as_made(&resolved, &recorded).await?;
                    recorded
                }
                (true, false) => {
                    self.whole_life(&resolved, changed(&resolved).as_ref()).await?;
                    self.make(&resolved).await?
                }
                (false, _) => self.make(&resolved).await?,
            };
            outputs.insert(one.id.clone(), recorded.outputs.clone());
            made.push((resolved, recorded));
        }
        for (one, recorded) in made.iter().rev() {
            self.unmake(one, recorded).await?;
        }
        Ok(())
    }

    /// Creates an object and returns its record, as the engine would: for the dependencies of the tested object.
    pub async fn make(&self, wanted: &Wanted) -> Result<Recorded, Violation> {
        let op = self.operation(Verb::Create, wanted, None);
        let object = self.finish(&op).await?;
        Ok(record(&op, wanted, &object))
    }

    /// Removes an object created by [`make`](Self::make).
    pub async fn unmake(&self, wanted: &Wanted, recorded: &Recorded) -> Result<(), Violation> {
        let mut op = self.operation(Verb::Delete, wanted, Some(recorded));
        if let Ok(Observed::Present(object)) = self.provider.read(&wanted.kind, &recorded.cloud_id).await {
            // As a plan names them.
            let swept = object.foreign.into_iter().filter(|foreign| foreign.swept);
            op.bounds.sweeps = swept.map(|foreign| foreign.cloud_id).collect();
        }
        self.finish(&op).await.map(drop)
    }

    /// A create that is repeated with the same token, after a lost answer or by another process, creates one object.
    async fn is_made_once(&self, wanted: &Wanted) -> Result<Recorded, Violation> {
        let op = self.operation(Verb::Create, wanted, None);
        // The answer to the first call is dropped.
        match self.provider.begin(&op).await {
            Ok(Progress::Failed { error, .. }) => {
                return Err(breach(wanted, format!("create fails: {}", chain(&error))));
            }
            Err(error) if !error.kind.may_pass() => {
                return Err(breach(wanted, format!("create fails: {}", chain(&error))));
            }
            Ok(_) | Err(_) => {}
        }
        let object = self.finish(&op).await?;
        let again = self.finish(&op).await?;
        law(wanted, again.cloud_id == object.cloud_id, || {
            format!("a repeated create returns the same object: `{}` became `{}`", object.cloud_id, again.cloud_id)
        })?;
        law(wanted, object.kind == wanted.kind, || format!("an object has its kind: `{}`", object.kind))?;
        law(wanted, object.health == Health::Ready, || format!("a finished object is ready: {:?}", object.health))?;
        let made = record(&op, wanted, &object);
        // A part without marks is known by its record only.
        let known = (self.identity(&wanted.kind) == Some(Identity::Part)).then_some(&made);
        let there = self.objects(wanted, known).await?;
        law(wanted, there.len() == 1, || format!("a repeated create leaves one object: {} are there", there.len()))?;
        Ok(made)
    }

    /// A created object is found, carries the lineage, needs no change, and has the outputs that its creation returned.
    async fn is_seen_as_made(&self, wanted: &Wanted, recorded: &Recorded) -> Result<(), Violation> {
        for with_record in [true, false] {
            let part = self.identity(&wanted.kind) == Some(Identity::Part);
            let there = self.objects(wanted, with_record.then_some(recorded)).await?;
            if part && !with_record && there.is_empty() {
                continue;
            }
            let Some(object) = there.iter().find(|object| object.cloud_id == recorded.cloud_id) else {
                return Err(breach(wanted, "a created object is observed"));
            };
            law(wanted, object.lineage == Some(self.lineage) || (part && object.lineage.is_none()), || {
                format!("an object carries its lineage: {:?}", object.lineage)
            })?;
            let changes = self.provider.diff(wanted, recorded, object);
            law(wanted, changes.is_empty(), || format!("a created object needs no change: {changes:?}"))?;
            law(wanted, object.outputs == recorded.outputs, || {
                format!("outputs of create and read are equal: {:?} and {:?}", recorded.outputs, object.outputs)
            })?;
        }
        match self.provider.read(&wanted.kind, &recorded.cloud_id).await {
            Ok(Observed::Present(object)) => law(wanted, object.cloud_id == recorded.cloud_id, || {
                format!("a read finds what was asked for: `{}`", object.cloud_id)
            }),
            other => Err(breach(wanted, format!("an object is read by its cloud id: {other:?}"))),
        }
    }

    /// Objects of a deployment are found without being listed, and no other deployment claims them.
    async fn is_ours_alone(&self, wanted: &Wanted, recorded: &Recorded) -> Result<(), Violation> {
        let identity = self.identity(&wanted.kind);
        if identity != Some(Identity::Part) {
            let scope = self.scope(self.lineage, &[], &[]);
            let seen = self.provider.observe(&scope).await.map_err(|error| breach(wanted, chain(&error)))?;
            let found = seen.iter().any(|(id, seen)| {
                *id == wanted.id && matches!(seen, Observed::Present(object) if object.cloud_id == recorded.cloud_id)
            });
            law(wanted, found, || "an object of this lineage is observed without a record".to_owned())?;
        }
        let other_lineage = Lineage(uuid::Uuid::from_u128(self.lineage.0.as_u128() ^ 1));
        let wanted_list = std::slice::from_ref(wanted);
        let scope = self.scope(other_lineage, wanted_list, &[]);
        let seen = self.provider.observe(&scope).await.map_err(|error| breach(wanted, chain(&error)))?;
        let taken = seen.iter().any(|(_, seen)| {
            matches!(seen, Observed::Present(object) if object.cloud_id == recorded.cloud_id && object.lineage != Some(self.lineage))
        });
        law(wanted, !taken, || "another deployment does not see the object as its own".to_owned())?;
        if identity == Some(Identity::Named) {
            let mut op = self.operation(Verb::Create, wanted, None);
            op.lineage = other_lineage;
            let refused = matches!(self.provider.begin(&op).await, Err(error) if !error.kind.may_pass());
            law(wanted, refused, || "a name that another deployment has is refused".to_owned())?;
            let there = self.objects(wanted, Some(recorded)).await?;
            law(wanted, there.iter().any(|object| object.lineage == Some(self.lineage)), || {
                "a refused create leaves the object of that name as it was".to_owned()
            })?;
        }
        Ok(())
    }

    /// A change in place keeps the object; repeated, it changes nothing more.
    async fn is_changed_in_place(&self, wanted: &Wanted, recorded: &Recorded) -> Result<Recorded, Violation> {
        let there = self.objects(wanted, Some(recorded)).await?;
        let Some(seen) = there.first() else { return Err(breach(wanted, "an object stays until it is removed")) };
        let changes = self.provider.diff(wanted, recorded, seen);
        law(wanted, !changes.is_empty(), || "a difference is seen".to_owned())?;
        let mut op = self.operation(Verb::Update, wanted, Some(recorded));
        op.changes = changes;
        let object = self.finish(&op).await?;
        law(wanted, object.cloud_id == recorded.cloud_id, || "a change in place keeps the object".to_owned())?;
        self.finish(&op).await?;
        let fresh = record(&op, wanted, &object);
        self.is_seen_as_made(wanted, &fresh).await?;
        Ok(fresh)
    }

    /// Deleting succeeds, also for a deleted object, with the same operation and with another one.
    async fn is_deleted_for_good(&self, wanted: &Wanted, recorded: &Recorded) -> Result<(), Violation> {
        let op = self.operation(Verb::Delete, wanted, Some(recorded));
        self.finish(&op).await?;
        self.finish(&op).await?;
        self.finish(&self.operation(Verb::Delete, wanted, Some(recorded))).await?;
        self.is_absent(wanted, Some(recorded)).await?;
        match self.provider.read(&wanted.kind, &recorded.cloud_id).await {
            Ok(Observed::Absent) | Err(Error { kind: ErrorKind::NotFound, .. }) => Ok(()),
            other => Err(breach(wanted, format!("what was removed is not read: {other:?}"))),
        }
    }

    async fn is_absent(&self, wanted: &Wanted, recorded: Option<&Recorded>) -> Result<(), Violation> {
        let there = self.objects(wanted, recorded).await?;
        law(wanted, there.is_empty(), || format!("what does not exist is observed as absent: {there:?}"))
    }

    async fn objects(&self, wanted: &Wanted, recorded: Option<&Recorded>) -> Result<Vec<Object>, Violation> {
        let recorded: Vec<Recorded> = recorded.cloned().into_iter().collect();
        let scope = self.scope(self.lineage, std::slice::from_ref(wanted), &recorded);
        let seen = self
            .provider
            .observe(&scope)
            .await
            .map_err(|error| breach(wanted, format!("observe fails: {}", chain(&error))))?;
        let mut mentioned = false;
        let mut objects = Vec::new();
        for (_, seen) in seen.into_iter().filter(|(id, _)| *id == wanted.id) {
            mentioned = true;
            match seen {
                Observed::Present(object) => objects.push(object),
                Observed::Absent => {}
                Observed::Unknown(why) => {
                    return Err(breach(wanted, format!("it is seen while nothing is wrong: {}", why.0)));
                }
            }
        }
        law(wanted, mentioned, || "an observation answers for every id it was asked for".to_owned())?;
        Ok(objects)
    }

    fn scope<'s>(&'s self, lineage: Lineage, wanted: &'s [Wanted], recorded: &'s [Recorded]) -> Scope<'s> {
        Scope { lineage, environment: &self.environment, site: &self.site, wanted, recorded }
    }

    fn identity(&self, name: &KindName) -> Option<Identity> {
        self.provider.kinds().iter().find(|kind| kind.name == name.as_str()).map(|kind| kind.identity)
    }

    fn operation(&self, verb: Verb, wanted: &Wanted, recorded: Option<&Recorded>) -> Operation {
        let id = OperationId(self.operations.fetch_add(1, Ordering::SeqCst));
        Operation {
            id,
            token: Token::derive(self.lineage, &self.site, id),
            verb,
            resource: wanted.id.clone(),
            kind: wanted.kind.clone(),
            site: self.site.clone(),
            environment: self.environment.clone(),
            lineage: self.lineage,
            via: wanted.via.clone(),
            host: None,
            spec: if verb == Verb::Delete { Spec::of(&json!({})) } else { wanted.spec.clone() },
            recorded: recorded.cloned(),
            changes: Vec::new(),
            bounds: crate::DeleteBounds::default(),
            lacking: Vec::new(),
            is_repeated: false,
        }
    }

    /// Advances an operation until it is done. Every handle is serialised and parsed in between, as a journal does.
    async fn finish(&self, op: &Operation) -> Result<Object, Violation> {
        let failed = |law: String| Violation { kind: op.kind.to_string(), law };
        let began = Instant::now();
        let (mut handle, mut failures): (Option<Handle>, u32) = (None, 0);
        loop {
            let answer = match &handle {
                Some(handle) => self.provider.advance(op, handle).await,
                None => self.provider.begin(op).await,
            };
            match answer {
                Ok(Progress::Done(object)) => return Ok(object),
                Ok(Progress::Failed { error, .. }) => {
                    return Err(failed(format!("{} fails: {}", op.verb, chain(&error))));
                }
                Ok(Progress::Pending { handle: next, says, again_in }) => {
                    let text =
                        serde_json::to_string(&next).map_err(|error| failed(format!("a handle is JSON: {error}")))?;
                    handle = serde_json::from_str(&text).ok();
                    if says.is_empty() {
                        return Err(failed("a pending operation says what it waits for".to_owned()));
                    }
                    tokio::time::sleep(again_in.min(Duration::from_secs(1))).await;
                }
                Err(error) if error.kind.may_pass() && failures < ATTEMPTS => {
                    failures += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(failed(format!("{} fails: {}", op.verb, chain(&error)))),
            }
            if began.elapsed() > self.patience {
                return Err(failed(format!("{} ends within {:?}", op.verb, self.patience)));
            }
        }
    }
}

/// Checks the consistency of the declared kinds.
pub fn well_formed(provider: &dyn Provider) -> Result<(), Violation> {
    let mut names = BTreeSet::new();
    let mut owners = BTreeSet::new();
    for kind in provider.kinds() {
        let broken = |law: String| Err(Violation { kind: kind.name.to_owned(), law });
        match KindName::new(kind.name) {
            Ok(name) => owners.insert(name.as_str().split('.').next().unwrap_or_default().to_owned()),
            Err(error) => return broken(error.to_string()),
        };
        if !names.insert(kind.name) {
            return broken("a kind is declared once".to_owned());
        }
        if kind.says.is_empty() || kind.deadline.is_zero() || kind.schema == 0 {
            return broken("a kind has words, a deadline and a version".to_owned());
        }
        if kind.permissions.is_empty() {
            return broken("a kind states its permissions".to_owned());
        }
        if kind.permissions.iter().any(|row| row.action.is_empty() || row.resource.is_empty()) {
            return broken("a permission names an action and its resources".to_owned());
        }
        if kind.typical.is_some_and(|typical| typical.is_zero() || typical > kind.deadline) {
            return broken("the typical duration is within the deadline".to_owned());
        }
        // A spec may lack anything: references are unknown in a plan.
        priced(provider, kind.name, &Spec::of(&json!({})))?;
    }
    if owners.len() != 1 {
        return Err(Violation {
            kind: format!("{owners:?}"),
            law: "all kinds of a provider begin with its name".to_owned(),
        });
    }
    Ok(())
}

/// Checks the price decision of a kind: cost lines with source and date, or a reason, or free.
fn priced(provider: &dyn Provider, name: &str, spec: &Spec) -> Result<(), Violation> {
    let broken = |law: &str| Err(Violation { kind: name.to_owned(), law: law.to_owned() });
    let kind = provider.kinds().iter().find(|kind| kind.name == name);
    let (Some(kind), Ok(kind_name)) = (kind, KindName::new(name)) else { return broken("a priced kind is declared") };
    let lines = provider.costs(&kind_name, spec);
    if lines != provider.costs(&kind_name, spec) {
        return broken("costs are pure");
    }
    match kind.pricing {
        Pricing::Free if !lines.is_empty() => return broken("a free object has no cost line"),
        Pricing::Free => {}
        _ if lines.is_empty() => return broken("an object has a cost line, unless its kind is free"),
        Pricing::Included | Pricing::Unknown(_)
            if lines.iter().any(|line| matches!(line.charge, Charge::Priced { .. })) =>
        {
            return broken("an object has a price only if its kind is priced by its spec");
        }
        _ => {}
    }
    for CostLine { service, what, charge } in &lines {
        if service.is_empty() || what.is_empty() {
            return broken("a cost line names the service and what it charges");
        }
        match charge {
            Charge::Included => {}
            Charge::Unknown(why) | Charge::Unpriced(why) if why.is_empty() => {
                return broken("an unknown cost has a reason");
            }
            Charge::Unknown(why) if why == NOT_PRICED => {
                return broken("a kind that is priced by its spec has a cost function");
            }
            Charge::Unknown(_) | Charge::Unpriced(_) => {}
            Charge::Priced { price, .. } => {
                if price.source.is_empty() || price.currency.len() != 3 {
                    return broken("a price has a source, a date and a currency");
                }
            }
        }
    }
    Ok(())
}

/// Checks that `lower` is pure and its result consistent.
pub fn lowers_purely(provider: &dyn Provider, component: &Component, site: &Site) -> Result<Vec<Wanted>, Violation> {
    let broken = |law: String| Violation { kind: component.name.to_string(), law };
    let first = provider.lower(component, site).map_err(|problems| broken(format!("it lowers: {problems}")))?;
    let second = provider.lower(component, site).map_err(|problems| broken(format!("it lowers: {problems}")))?;
    if first != second {
        return Err(broken("lowering twice gives the same".to_owned()));
    }
    let mut ids = BTreeSet::new();
    for wanted in &first {
        if wanted.site != site.name
            || wanted.id.site() != site.name.as_str()
            || wanted.id.component() != component.name.as_str()
        {
            return Err(broken(format!("`{}` belongs to its site and component", wanted.id)));
        }
        if !ids.insert(&wanted.id) {
            return Err(broken(format!("`{}` is wanted once", wanted.id)));
        }
        if !provider.kinds().iter().any(|kind| kind.name == wanted.kind.as_str()) {
            return Err(broken(format!("`{}` is a declared kind", wanted.kind)));
        }
        priced(provider, wanted.kind.as_str(), &wanted.spec)?;
    }
    Ok(first)
}

fn record(op: &Operation, wanted: &Wanted, object: &Object) -> Recorded {
    Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: wanted.via.clone(),
        spec: op.spec.clone(),
        needs: wanted.needs.clone(),
        ownership: wanted.ownership.clone(),
        schema: 1,
        cloud_id: object.cloud_id.clone(),
        outputs: object.outputs.clone(),
        protected: wanted.protected,
        tainted: false,
        created: object.created,
    }
}

fn law(wanted: &Wanted, holds: bool, says: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(breach(wanted, says())) }
}

fn breach(wanted: &Wanted, law: impl Into<String>) -> Violation {
    Violation { kind: wanted.kind.to_string(), law: law.into() }
}
