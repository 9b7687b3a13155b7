//! The driver over a cloud in memory: a kind whose objects have names, and one whose objects only their tags tell apart.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_cloud::tags::Tags;
use textnlp_cloud::{Cloud, Filter, Make, ObservedObject, Of, Resource, Row, State, Work, kind, preflight};
use textnlp_provider::conformance::{TestBed, well_formed};
use textnlp_provider::{
    CloudId, Component, DeleteBounds, Error, ErrorKind, FieldChange, Handle, Identity, Kind, KindName, Object,
    Observed, Operation, OperationId, Ownership, Permission, Problem, Problems, Progress, Provider, Recorded,
    ResourceId, Result, Scope, Site, Spec, Token, Verb, Wanted,
};

/// The client of an account, which has one region.
#[derive(Default)]
struct Memory(Mutex<Account>);

#[derive(Default)]
struct Account {
    created: u32,
    /// Whether each create is refused, because something has the name.
    is_taken: bool,
    /// Whether the reply of the next create is lost.
    loses_reply: bool,
    objects: BTreeMap<String, Stored>,
}

struct Stored {
    is_named: bool,
    attributes: Attributes,
    tags: Tags,
    /// How many reads show it as it was before the last create or delete.
    late: u32,
    is_deleting: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Attributes {
    name: String,
    size: u64,
    tags: Tags,
}

impl Memory {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap()
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Stored)) -> Result<()> {
        let mut account = self.account();
        let stored = account.objects.get_mut(id).ok_or_else(|| Error::new(ErrorKind::NotFound, "change", id))?;
        change(stored);
        Ok(())
    }
}

impl Cloud for Memory {
    type Shared = ();

    const NAME: &'static str = "Memory";
    const NAME_TAG: Option<&'static str> = Some("name");

    fn rows() -> &'static [&'static [Row<Self>]] {
        static ALL: &[&[Row<Memory>]] = &[ROWS];
        ALL
    }

    fn classify(_service: &str, _code: &str, _message: &str) -> (ErrorKind, Option<String>) {
        (ErrorKind::Unavailable, None)
    }

    fn is_reserved(key: &str) -> bool {
        key.starts_with("memory:")
    }

    fn signed_in(&self) -> &str {
        "ann"
    }

    fn region(&self) -> &str {
        "here"
    }

    fn is_elsewhere(&self) -> bool {
        false
    }

    fn in_region(self: &Arc<Self>, _region: &str) -> Arc<Self> {
        self.clone()
    }
}

static ROWS: &[Row<Memory>] = &[
    Row {
        kind: Kind {
            permissions: &[Permission::change("folders")],
            ..kind("memory.folder", "a folder", Identity::Named)
        },
        service: "folders",
        resource: &Of::<Folder>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind { permissions: &[Permission::change("disks")], ..kind("memory.disk", "a disk", Identity::Token) },
        service: "disks",
        resource: &Of::<Disk>::kind(),
        refused: &[("name", "a disk keeps its name")],
    },
];

type Folder = Stores<true>;
type Disk = Stores<false>;

struct Stores<const IS_NAMED: bool>;

#[async_trait]
impl<const IS_NAMED: bool> Resource<Memory> for Stores<IS_NAMED> {
    type Spec = Attributes;
    const IN_PLACE: &'static [&'static str] = &["size"];

    async fn read(api: &Memory, id: &str) -> Result<Option<ObservedObject<Attributes>>> {
        let mut account = api.account();
        let Some(stored) = account.objects.get_mut(id) else { return Ok(None) };
        let is_late = stored.late > 0;
        stored.late = stored.late.saturating_sub(1);
        if stored.is_deleting && !is_late {
            account.objects.remove(id);
        }
        Ok(account.objects.get(id).map(|stored| seen(id, stored)))
    }

    async fn list(api: &Memory, filter: &Filter<Memory>) -> Result<Vec<ObservedObject<Attributes>>> {
        let account = api.account();
        let all = account.objects.iter().filter(|(_, stored)| stored.is_named == IS_NAMED);
        Ok(all.filter(|(_, stored)| filter.matches(&stored.tags)).map(|(id, stored)| seen(id, stored)).collect())
    }

    fn id(spec: &Attributes) -> Option<String> {
        IS_NAMED.then(|| spec.name.clone())
    }

    async fn create(api: &Memory, make: &Make<'_>, spec: &Attributes) -> Result<String> {
        let mut account = api.account();
        account.created += 1;
        let id = if IS_NAMED { spec.name.clone() } else { format!("disk-{}", account.created) };
        if account.is_taken || account.objects.contains_key(&id) {
            return Err(Error::new(ErrorKind::Exists, "create", id));
        }
        let (attributes, tags) = (spec.clone(), make.tags.clone());
        let stored = Stored { is_named: IS_NAMED, attributes, tags, late: 2, is_deleting: false };
        account.objects.insert(id.clone(), stored);
        if std::mem::take(&mut account.loses_reply) {
            return Err(Error::new(ErrorKind::Unavailable, "create", id));
        }
        Ok(id)
    }

    async fn put(api: &Memory, seen: &ObservedObject<Attributes>, spec: &Attributes, _field: &str) -> Result<()> {
        api.change(&seen.id, |stored| stored.attributes.size = spec.size)
    }

    async fn tag(api: &Memory, seen: &ObservedObject<Attributes>, set: &Tags, remove: &[String]) -> Result<()> {
        api.change(&seen.id, |stored| {
            stored.tags.extend(set.clone());
            stored.tags.retain(|key, _| !remove.contains(key));
        })
    }

    async fn delete(api: &Memory, seen: &ObservedObject<Attributes>) -> Result<()> {
        api.change(&seen.id, |stored| (stored.is_deleting, stored.late) = (true, 2))
    }
}

fn seen(id: &str, stored: &Stored) -> ObservedObject<Attributes> {
    let state = match (stored.is_deleting, stored.late) {
        (true, _) => State::Deleting,
        (false, 0) => State::Ready,
        (false, _) => State::Pending("CREATING".to_owned()),
    };
    let attributes = Attributes { tags: Tags::new(), ..stored.attributes.clone() };
    ObservedObject::new(id, attributes, stored.tags.clone()).output("id", Some(id)).state(state)
}

/// A provider has its client, and nothing else of its own.
struct InMemory(Arc<Memory>);

#[async_trait]
impl Provider for InMemory {
    fn kinds(&self) -> &'static [Kind] {
        static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(textnlp_cloud::kinds::<Memory>);
        &KINDS
    }

    fn lower(&self, _component: &Component, _site: &Site) -> Result<Vec<Wanted>, Problems> {
        Ok(Vec::new())
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let row = textnlp_cloud::row::<Memory>(&wanted.kind);
        row.map(|row| textnlp_cloud::diff(row, wanted, recorded, seen)).unwrap_or_default()
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        Ok(preflight::names(&self.0, wanted).await)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        textnlp_cloud::observe(&self.0, scope, |_| true).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        textnlp_cloud::read::<Memory>(&self.0, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        Work::of(&self.0, op, Duration::ZERO)?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        Work::of(&self.0, op, Duration::ZERO)?.advance(handle).await
    }
}

fn spec(size: u64) -> Spec {
    Spec::of(&json!({ "name": "textnlp-one", "size": size, "tags": { "team": "nlp" } }))
}

fn wanted(id: &str, kind: &str) -> Wanted {
    Wanted {
        id: ResourceId::new(id).unwrap(),
        kind: KindName::new(kind).unwrap(),
        site: "here".parse().unwrap(),
        via: None,
        spec: spec(1),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        protected: false,
    }
}

#[test]
fn a_cloud_without_a_driver_of_its_own_passes() {
    let provider = InMemory(Arc::default());
    well_formed(&provider).unwrap();
    let lineage = "00000000-0000-4000-8000-000000007e57".parse().unwrap();
    let bed = TestBed::new(&provider, "staging".parse().unwrap(), "here".parse().unwrap(), lineage);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (id, kind) in [("here/models/folder", "memory.folder"), ("here/models/disk", "memory.disk")] {
        runtime.block_on(bed.whole_life(&wanted(id, kind), Some(&spec(2)))).unwrap();
    }
    assert!(provider.0.account().objects.is_empty());
}

#[test]
fn a_name_that_others_have_is_a_problem() {
    let provider = InMemory(Arc::default());
    let attributes = Attributes { name: "textnlp-one".to_owned(), size: 1, tags: Tags::new() };
    let others = Stored { is_named: true, attributes, tags: Tags::new(), late: 0, is_deleting: false };
    provider.0.account().objects.insert("textnlp-one".to_owned(), others);
    let wanted = [wanted("here/models/folder", "memory.folder"), wanted("here/models/disk", "memory.disk")];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let problems = runtime.block_on(provider.preflight(&wanted)).unwrap();
    let places: Vec<&str> = problems.iter().map(|problem| problem.place.as_str()).collect();
    assert_eq!(places, ["here/models/folder"]);
}

/// Creates a disk, whose objects only their tags tell apart.
async fn create_disk(provider: &InMemory) -> Result<Progress> {
    let wanted = wanted("here/models/disk", "memory.disk");
    let lineage = "00000000-0000-4000-8000-000000007e57".parse().unwrap();
    let op = Operation {
        id: OperationId(1),
        token: Token::derive(lineage, &wanted.site, OperationId(1)),
        verb: Verb::Create,
        resource: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        environment: "staging".parse().unwrap(),
        lineage,
        via: None,
        host: None,
        spec: wanted.spec.clone(),
        recorded: None,
        changes: Vec::new(),
        bounds: DeleteBounds::default(),
        lacking: Vec::new(),
        is_repeated: false,
    };
    let mut answer = provider.begin(&op).await?;
    for _ in 0..100 {
        let Progress::Pending { handle, .. } = &answer else { return Ok(answer) };
        answer = provider.advance(&op, handle).await?;
    }
    panic!("it does not end");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_name_that_stays_taken_ends_the_create() {
    let provider = InMemory(Arc::default());
    provider.0.account().is_taken = true;
    let error = block_on(create_disk(&provider)).unwrap_err();
    assert_eq!((error.kind, provider.0.account().created), (ErrorKind::Exists, 2), "asked again once");
}

#[test]
fn a_lost_reply_makes_no_second_object() {
    let provider = InMemory(Arc::default());
    provider.0.account().loses_reply = true;
    assert!(matches!(block_on(create_disk(&provider)), Ok(Progress::Done(_))));
    assert_eq!(provider.0.account().created, 1);
}
