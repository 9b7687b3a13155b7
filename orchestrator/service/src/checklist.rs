//! The checklist of a release: its steps in order, and what a service needs to be ready for operation.
//!
//! What files and records show is done. The rest is open, or a person's. What a person has done is a record of one release,
//! signed with the environment's report key.

use std::os::unix::fs::DirBuilderExt as _;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::gate::phases::{AVAILABILITY, PhaseDefinition};
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::release::{Entry, Lock, Recorded, covers, pushes_image, short};
use textnlp_orchestrator::state::{Entry as StateEntry, Operator, State};
use textnlp_provider::units::counted;

use crate::baseline::Baseline;
use crate::checks::{CheckLine, Checks};
use crate::configuration::{git, plain};
use crate::gate::order::digest_of;
use crate::gate::{self, read_signed, sha256, write_signed};
use crate::{ChosenEnvironment, Failure, Progress, release, running, updates};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long the metrics of a new release are watched.
const WATCH: Duration = Duration::from_secs(86_400);
/// Records that are kept.
const MAX_RECORDS: usize = 200;

/// The steps in their order: name and title.
const STEPS: [(&str, &str); 11] = [
    ("version", "the version is raised"),
    ("tests", "all tests pass"),
    ("changelog", "the changelog has the version"),
    ("image", "server program or image is built"),
    ("tag", "the commit has the Git tag of the version"),
    ("push", "images are in their registries"),
    ("lock", "the release lock has the release"),
    ("staging", "the release runs in staging"),
    ("smoke", "the gate of staging is open for it"),
    ("production", "the release runs in production"),
    ("watch", "its metrics were watched for 24 hours"),
];

/// The steps and the parts of readiness that a person may record as done.
const MARKABLE: [&str; 9] =
    ["version", "tests", "changelog", "tag", "watch", "docs", "api-parity", "runbooks", "dashboards"];

/// Whether a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// The evidence shows it.
    Done,
    /// A command does it.
    Open,
    /// A person does it.
    Yours,
}

/// A command of this program that does a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepCommand {
    /// Writes the local release into the lock.
    SetRelease,
    /// Applies the release where it is tested.
    UpStaging,
    /// Measures the gate there again.
    MeasureStaging,
    /// Writes the release into the lock of production.
    Promote,
    /// Applies it there.
    UpProduction,
}

/// A step of the checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name, for `--done`.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Whether it is done.
    pub state: StepState,
    /// What shows that it is done, or why it is not.
    pub evidence: String,
    /// What to do.
    pub next: Option<String>,
    /// The command that `next` is, if it is one that needs no person.
    #[serde(skip)]
    pub command: Option<StepCommand>,
}

/// What was found of a step.
#[derive(Debug, Clone, PartialEq)]
enum Finding {
    Done(String),
    /// Why it is open, and the command.
    Open(String, String),
    /// The same, where `release checklist --run` can run the command.
    Runs(String, String, StepCommand),
    /// Why it is not shown, and what a person does.
    Yours(String, String),
}

impl Finding {
    fn open(why: impl Into<String>, next: impl Into<String>) -> Self {
        Finding::Open(why.into(), next.into())
    }
}

/// A step that a person recorded as done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    step: String,
    /// The digest of what the release runs.
    release: String,
    at: Timestamp,
    by: String,
    reason: String,
    tool: String,
}

impl Mark {
    fn text(&self) -> String {
        let Self { at, by, reason, .. } = self;
        format!("{by}, {}: {reason}", at.strftime("%Y-%m-%d %H:%M"))
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Marks {
    marks: Vec<Mark>,
}

/// What a checklist is about.
pub struct ReleaseFacts<'a> {
    /// The environment where the release is tested.
    pub staging: &'a ChosenEnvironment,
    /// The environment that it is promoted to.
    pub production: Option<&'a ChosenEnvironment>,
    /// The release that `release set` would lock.
    pub here: &'a Lock,
    /// The working directory: changelog, runbooks and Git repository are searched here.
    pub folder: &'a Utf8Path,
}

impl ReleaseFacts<'_> {
    /// The environment whose readiness counts.
    fn operated(&self) -> &ChosenEnvironment {
        self.production.unwrap_or(self.staging)
    }
}

/// A checklist.
pub struct Checklist {
    /// The digest of what the release runs, if one is locked.
    pub release: Option<String>,
    /// The steps.
    pub steps: Vec<Step>,
    /// What the service needs to be ready.
    pub readiness: Vec<CheckLine>,
    /// Why records of persons are not used, if so.
    pub unverified: Option<String>,
}

impl Checklist {
    /// The first step that is not done.
    pub fn first_open(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.state != StepState::Done)
    }

    /// The step that a command does next. The release is locked first, because persons record what they did for a locked one.
    /// Every other step waits for those before it.
    pub fn next_command(&self) -> Option<(&Step, StepCommand)> {
        let locks = self.steps.iter().find(|step| step.command == Some(StepCommand::SetRelease));
        let step = locks.or_else(|| self.first_open())?;
        Some((step, step.command?))
    }
}

/// Makes the checklist of the locked release.
pub async fn checklist(facts: &ReleaseFacts<'_>, progress: &dyn Progress) -> Result<Checklist, Failure> {
    let ReleaseFacts { staging, production, here, folder } = facts;
    let lock = staging.lock()?;
    let release = lock.as_ref().map(digest_of);
    let (all, unverified) = match marks(&staging.scope.folder) {
        Ok(marks) => (marks, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    // The newest record of a step counts.
    let mark = |step: &str| all.iter().rev().find(|mark| mark.step == step && Some(&mark.release) == release.as_ref());
    let marked = |step: &str| mark(step).map(Mark::text);
    let found = found(staging, *production, (lock.as_ref(), *here), folder, mark("watch"), progress).await?;
    // `watched` reads its record: it depends on when production got the release.
    let of = |name: &str| marked(name).filter(|_| name != "watch");
    let steps = STEPS.into_iter().zip(found).map(|((name, title), found)| step((name, title), found, of(name)));
    let steps: Vec<Step> = steps.collect();
    let readiness = readiness(facts, &marked).await?;
    Ok(Checklist { release, steps, readiness, unverified })
}

fn step((name, title): (&'static str, &'static str), found: Finding, marked: Option<String>) -> Step {
    let (state, evidence, next, command) = match (found, marked) {
        // A record is for what evidence does not show, and not against it.
        (Finding::Open(why, next), _) => (StepState::Open, why, Some(next), None),
        (Finding::Runs(why, next, command), _) => (StepState::Open, why, Some(next), Some(command)),
        (Finding::Done(evidence), _) | (_, Some(evidence)) => (StepState::Done, evidence, None, None),
        (Finding::Yours(why, next), None) => (StepState::Yours, why, Some(next), None),
    };
    Step { name, title, state, evidence, next, command }
}

/// What was found of each step, in their order.
async fn found(
    staging: &ChosenEnvironment,
    production: Option<&ChosenEnvironment>,
    (lock, here): (Option<&Lock>, &Lock),
    folder: &Utf8Path,
    watch: Option<&Mark>,
    progress: &dyn Progress,
) -> Result<[Finding; 11], Failure> {
    let (scope, environment) = (&staging.scope, &staging.loaded.environment);
    let done = |step: &str| scope.command(&format!("release checklist --done {step} --reason TEXT"));
    let history = release::recorded(scope)?;
    let yours = |why: String, what: &str, step| Finding::Yours(why, format!("{what}, then: {}", done(step)));
    let tests = yours("not recorded".to_owned(), "run all tests of the release", "tests");
    let previous = lock.map_or_else(|| history.entries.last(), |lock| history.before(lock));
    let version = version(previous)
        .map_or_else(|why| yours(why, "raise the version and build the program", "version"), Finding::Done);
    let changelog = changelog(folder).map_or_else(
        |why| yours(why, &format!("write a section `## [{VERSION}]` into CHANGELOG.md"), "changelog"),
        Finding::Done,
    );
    let tag =
        tag(folder).await.map_or_else(|why| yours(why, &format!("run `git tag v{VERSION}`"), "tag"), Finding::Done);
    let Some(lock) = lock else {
        let (why, set) = ("no release is locked", scope.command("release set"));
        let open = || Finding::open(why, set.clone());
        let locked = Finding::Runs(why.to_owned(), set.clone(), StepCommand::SetRelease);
        let (image, push, runs, smoke) = (open(), open(), open(), open());
        return Ok([version, tests, changelog, image, tag, push, locked, runs, smoke, open(), open()]);
    };
    let removed = removed_at(environment, &running::state(scope).await?).await?;
    let up = (scope.up_of_lock(), StepCommand::UpStaging);
    let runs = runs(&history, |entry| entry.applied.lock.runs_the_same(lock), removed, up);
    let (deployed, watch) = match production {
        None => {
            let again = "release checklist --production ENV";
            let open = || Finding::open("no production environment is named", scope.command(again));
            (open(), open())
        }
        Some(production) => in_production(staging, production, lock, watch).await?,
    };
    Ok([
        version,
        tests,
        changelog,
        image(lock, environment, &scope.command("release set")),
        tag,
        pushed(staging, lock, progress).await,
        locked(staging, lock, here),
        runs,
        smoke(staging, &history, lock).await?,
        deployed,
        watch,
    ])
}

/// The release before had another version of this program.
fn version(previous: Option<&Entry>) -> Result<String, String> {
    let tool = concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION"));
    match previous {
        None => Ok(format!("{tool}; no other release was applied before")),
        Some(Entry { number, applied }) if applied.tool != tool => {
            Ok(format!("{tool}; release {number} was applied by {}", applied.tool))
        }
        Some(Entry { number, .. }) => Err(format!("release {number} was applied by {tool} too")),
    }
}

/// A heading of the changelog has the version.
fn changelog(folder: &Utf8Path) -> Result<String, String> {
    let file = folder.join("CHANGELOG.md");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    let has_version =
        |line: &str| line.split(|c: char| !is_part(c)).any(|word| word.strip_prefix('v').unwrap_or(word) == VERSION);
    let found = (1..).zip(text.lines()).find(|(_, line)| line.starts_with('#') && has_version(line));
    match found {
        Some((number, line)) => Ok(format!("{file}:{number}: {line}")),
        None => Err(format!("{file} has no heading with {VERSION}")),
    }
}

/// The commit of the working directory has the tag of the version.
async fn tag(folder: &Utf8Path) -> Result<String, String> {
    let asked = git(folder, &["tag", "--points-at", "HEAD"]).await;
    let (status, printed, errors) = asked.map_err(|failure| format!("{:#}", failure.error))?;
    if !status.success() {
        let why = plain(String::from_utf8_lossy(&errors).lines().next().unwrap_or("no error output"));
        return Err(format!("the tags of the commit in {folder} cannot be read: {why}"));
    }
    let printed = String::from_utf8_lossy(&printed).into_owned();
    let found = printed.lines().find(|tag| tag.strip_prefix('v').unwrap_or(tag) == VERSION);
    found
        .map(|tag| format!("tag {tag} of the present commit"))
        .ok_or_else(|| format!("no tag v{VERSION} at the commit"))
}

/// The lock has what each site runs.
fn image(lock: &Lock, environment: &Environment, set: &str) -> Finding {
    let mut built = Vec::new();
    if environment.runs_here() {
        built.push(format!("server {}", short(&lock.server)));
    }
    for site in environment.sites.iter().filter(|site| site.runs_image()) {
        match lock.images.get(site.name.as_str()) {
            None => return Finding::open(format!("no image of site {} is locked", site.name), set),
            Some(image) if !image.contains("@sha256:") => {
                return Finding::open(
                    format!("the image {image} has no digest"),
                    format!("write its digest, then: {set}"),
                );
            }
            Some(image) => built.push(format!("image {image}")),
        }
    }
    Finding::Done(built.join(", "))
}

/// The registries have the locked images.
async fn pushed(chosen: &ChosenEnvironment, lock: &Lock, progress: &dyn Progress) -> Finding {
    let environment = &chosen.loaded.environment;
    let sites: Vec<&SiteSettings> = environment.sites.iter().filter(|site| site.runs_image()).collect();
    for site in &sites {
        let Some(image) = lock.images.get(site.name.as_str()) else {
            return Finding::open(
                format!("no image of site {} is locked", site.name),
                chosen.scope.command("release set"),
            );
        };
        let pushes = pushes_image(environment, site);
        let next = match pushes {
            true => chosen.scope.last_up(),
            false => format!("push {image} to its registry"),
        };
        match updates::has_image(chosen, image, progress).await {
            Ok(true) => {}
            Ok(false) if pushes => {
                return Finding::Runs(format!("the registry does not have {image}"), next, StepCommand::UpStaging);
            }
            Ok(false) => return Finding::open(format!("the registry does not have {image}"), next),
            Err(why) => return Finding::open(format!("whether {image} is there is unknown: {why}"), next),
        }
    }
    Finding::Done(match sites.len() {
        0 => "no site runs an image".to_owned(),
        count => format!("the registries have the images of {}", counted(count, "site")),
    })
}

/// The lock has the programs, models and images that are here.
fn locked(chosen: &ChosenEnvironment, lock: &Lock, here: &Lock) -> Finding {
    let is_needed = |what: &str| match what.split_once('.') {
        Some(("models" | "images", _)) => true,
        _ => what == "server" && chosen.loaded.environment.runs_here(),
    };
    let differences = lock.differences(here).into_iter().filter(|difference| is_needed(&difference.what));
    let differing: Vec<String> = differences.map(|difference| difference.to_string()).collect();
    match differing.is_empty() {
        true => Finding::Done(chosen.lock_path.to_string()),
        false => Finding::Runs(differing.join("; "), chosen.scope.command("release set"), StepCommand::SetRelease),
    }
}

/// When `down` was approved for a site of the environment, if no `up` was completed there after it.
async fn removed_at(environment: &Environment, state: &State) -> Result<Option<Timestamp>, Failure> {
    let mut removed = None;
    for site in state.sites().filter(|site| environment.sites.iter().any(|own| own.name == **site)) {
        let records = state.history(site).await?;
        let last = records.iter().rev().find_map(|record| match record.entry {
            StateEntry::Approved { purpose: Purpose::Down, .. } => Some(Some(record.at)),
            // Earlier versions did not record the end of a run.
            StateEntry::Completed { purpose: Purpose::Up }
            | StateEntry::Approved { purpose: Purpose::Up, tracked: false, .. } => Some(None),
            _ => None,
        });
        removed = removed.max(last.flatten());
    }
    Ok(removed)
}

/// Whether the newest applied release is this one, and was not removed.
fn runs(
    history: &Recorded,
    is_this: impl Fn(&Entry) -> bool,
    removed: Option<Timestamp>,
    (next, command): (String, StepCommand),
) -> Finding {
    let why = match (history.newest(), removed) {
        (Err(why), _) => why,
        (Ok(Some(entry)), None) if is_this(entry) => return Finding::Done(applied(entry)),
        (Ok(Some(entry)), Some(at)) if is_this(entry) => format!("{}; removed at {at:.0}", applied(entry)),
        (Ok(Some(entry)), _) => format!("another one was applied: {}", applied(entry)),
        (Ok(None), _) => "no release was applied".to_owned(),
    };
    Finding::Runs(why, next, command)
}

fn applied(Entry { number, applied }: &Entry) -> String {
    format!("release {number}, {} by {}", applied.at.strftime("%Y-%m-%d %H:%M"), applied.by)
}

/// The evidence of the gate is of this release, and open.
async fn smoke(chosen: &ChosenEnvironment, history: &Recorded, lock: &Lock) -> Result<Finding, Failure> {
    Ok(match release::verified(chosen, history, Some(lock)).await? {
        Ok(kept) => Finding::Done(format!("open, measured {}: {}", kept.at.strftime("%Y-%m-%d %H:%M"), kept.report)),
        Err((blockers, next)) => {
            let (why, next) = (blockers.join("; "), next.unwrap_or_else(|| chosen.scope.last("gate --again")));
            // With other settings than those that run, the gate is not measured.
            let is_up = next == chosen.scope.last_up();
            let command = if is_up { StepCommand::UpStaging } else { StepCommand::MeasureStaging };
            match gate::unmeasured(&chosen.loaded.environment) {
                None => Finding::Runs(why, next, command),
                Some(_) => Finding::Open(why, next),
            }
        }
    })
}

/// Whether production runs the release, and whether it was watched since.
async fn in_production(
    staging: &ChosenEnvironment,
    production: &ChosenEnvironment,
    lock: &Lock,
    watch: Option<&Mark>,
) -> Result<(Finding, Finding), Failure> {
    let (scope, environment) = (&production.scope, &production.loaded.environment);
    let history = release::recorded(scope)?;
    let is_this = |ran: &Lock| covers(lock, ran, environment).is_ok();
    let (next, command) = match production.lock()? {
        Some(promoted) if is_this(&promoted) => (scope.up_of_lock(), StepCommand::UpProduction),
        _ => {
            let words = format!("promote --from {} --to {}", staging.scope.name, scope.name);
            (scope.again.bare(&words), StepCommand::Promote)
        }
    };
    let state = running::state(scope).await?;
    let removed = removed_at(environment, &state).await?;
    let deployed = runs(&history, |entry| is_this(&entry.applied.lock), removed, (next.clone(), command));
    if !matches!(deployed, Finding::Done(_)) {
        return Ok((deployed, Finding::open("the release does not run in production yet", next)));
    }
    let since = history.newest().ok().flatten().map(|entry| entry.applied.at).unwrap_or(Timestamp::MAX);
    Ok((deployed, watched(production, &state, since, watch)))
}

/// Whether this is 24 hours after a release was applied.
fn is_day_after(now: Timestamp, applied: Timestamp) -> bool {
    now.duration_since(applied) >= SignedDuration::from_hours(24)
}

/// The gate of production measured its availability for 24 hours after this time. Where it does not, a person did.
fn watched(production: &ChosenEnvironment, state: &State, since: Timestamp, mark: Option<&Mark>) -> Finding {
    let (scope, environment) = (&production.scope, &production.loaded.environment);
    if PhaseDefinition::of(environment.phase).check(AVAILABILITY).is_none() {
        if let Some(mark) = mark.filter(|mark| is_day_after(mark.at, since)) {
            return Finding::Done(mark.text());
        }
        let why = format!("the gate of phase {} does not measure availability", environment.phase);
        let metrics = scope.command("metrics summary --period 24h");
        return Finding::Yours(
            why,
            format!("look at {metrics} 24 hours after {since:.0}, then record `watch` with --done"),
        );
    }
    let kept = match gate::stored(production, state) {
        Ok(kept) => kept.filter(|kept| kept.at > since && kept.outdated().is_none()),
        Err(why) => return Finding::Open(why, scope.last("gate --again")),
    };
    let check = kept.and_then(|kept| kept.checks.into_iter().find(|check| check.name == AVAILABILITY));
    let window = environment.gates.availability_window;
    match check {
        Some(check) if check.ok && window.0 >= WATCH => Finding::Done(check.to_string()),
        Some(check) if check.ok => {
            Finding::open(format!("`gates.availability_window` is {window}: {check}"), "set it to 24h at least")
        }
        check => {
            let why = check.map_or_else(|| format!("not measured since {since:.0}"), |check| check.to_string());
            Finding::Open(why, format!("{}, then: {}", scope.command("probe --for 24h"), scope.last("gate --again")))
        }
    }
}

/// What the service needs to be ready.
async fn readiness(
    facts: &ReleaseFacts<'_>,
    marked: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<CheckLine>, Failure> {
    let chosen = facts.operated();
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let done = |step: &str| facts.staging.scope.command(&format!("release checklist --done {step} --reason TEXT"));
    let mut checks = Checks::default();
    let state = running::state(scope).await?;
    let (mut resources, mut has_dashboard) = (0, false);
    for site in state.sites() {
        for resource in state.holdings(site)?.into_keys() {
            resources += 1;
            has_dashboard |= resource.to_string().ends_with("/dashboard");
        }
    }
    match running::unfinished(scope, &state).await? {
        Some(failure) => checks.failed("infrastructure", failure),
        None if resources == 0 => checks.problem("infrastructure", "nothing is deployed", scope.last_up()),
        None => checks.well("infrastructure", format!("{resources} resources, and the last run is complete")),
    }
    for (step, name, why) in [
        ("docs", "documents", "whether they are complete is not measured"),
        ("api-parity", "API parity", "the API of the tabular service is not known here"),
    ] {
        match marked(step) {
            Some(mark) => checks.well(name, mark),
            None => checks.unknown(name, why, done(step)),
        }
    }
    let runbooks = pages(&facts.folder.join("docs/runbooks"));
    match (runbooks.is_empty(), marked("runbooks")) {
        (false, _) => checks.well("runbooks", runbooks.join(", ")),
        (true, Some(mark)) => checks.well("runbooks", mark),
        (true, None) => {
            let fix = format!("run it in the folder of the repository; if they are elsewhere: {}", done("runbooks"));
            checks.problem("runbooks", format!("{} has no folder docs/runbooks with pages", facts.folder), fix);
        }
    }
    match (has_dashboard, marked("dashboards")) {
        (true, _) => checks.well("dashboards", "the dashboard is a resource of the environment"),
        (false, Some(mark)) => checks.well("dashboards", mark),
        (false, None) => {
            let deploy = if environment.monitoring.stack {
                "run `up`".to_owned()
            } else if environment.sites.iter().all(SiteSettings::is_on_machine) {
                format!("import in Grafana what this command prints: {}", scope.command("metrics dashboard"))
            } else {
                "set `monitoring.stack: true` and run `up`".to_owned()
            };
            let fix = format!("{deploy}; if Grafana has one: {}", done("dashboards"));
            checks.problem("dashboards", "no dashboard is deployed", fix);
        }
    }
    let receivers: Vec<&str> = environment.monitoring.receivers.keys().map(String::as_str).collect();
    match receivers.is_empty() {
        false => checks.well("alert receivers", receivers.join(", ")),
        true => checks.problem("alert receivers", "none is set", "set `monitoring.receivers`, then run `up`"),
    }
    let record = scope.last("baseline record");
    match Baseline::read(&scope.folder) {
        Ok(Baseline { cost: Some(cost), speed: Some(speed), .. }) => {
            let at = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
            checks.well("baseline", format!("cost of {}, speed of {}", at(cost.origin.at), at(speed.origin.at)));
        }
        Ok(Baseline { cost, speed, .. }) => {
            let missing: Vec<&str> = [("cost", cost.is_none()), ("speed", speed.is_none())]
                .into_iter()
                .filter_map(|(name, is_missing)| is_missing.then_some(name))
                .collect();
            checks.problem("baseline", format!("not recorded: {}", missing.join(", ")), record);
        }
        Err(why) => checks.problem("baseline", why, format!("{record} --replace")),
    }
    Ok(checks.lines)
}

/// The names of the Markdown files in a folder.
fn pages(folder: &Utf8Path) -> Vec<String> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_owned()).filter(|name| name.ends_with(".md"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Records that a person has done these steps for the locked release.
pub fn mark(facts: &ReleaseFacts<'_>, steps: &[String], operator: &Operator) -> Result<(), Failure> {
    let scope = &facts.staging.scope;
    let Some(reason) = operator.reason.as_deref().filter(|reason| !reason.trim().is_empty()) else {
        return Err(Failure::usage("no_reason", anyhow::anyhow!("--done needs a reason")).hint("add --reason TEXT"));
    };
    if let Some(step) = steps.iter().find(|step| !MARKABLE.contains(&step.as_str())) {
        let why = match STEPS.iter().any(|(name, _)| name == step) {
            true => format!("`{step}` is shown by files and records, and not recorded by hand"),
            false => format!("the checklist has no step `{step}`"),
        };
        let hint = format!("these can be recorded: `{}`", MARKABLE.join("`, `"));
        return Err(Failure::usage("unknown_step", anyhow::anyhow!(why)).hint(hint));
    }
    let Some(lock) = facts.staging.lock()? else {
        let error = anyhow::anyhow!("environment {} has no release lock, so there is no release to check", scope.name);
        return Err(Failure::usage("no_lock", error).hint(scope.command("release set")));
    };
    let now = Timestamp::now();
    if steps.iter().any(|step| step == "watch") {
        may_be_watched(facts, &lock, now)?;
    }
    let folder = &scope.folder;
    let file = file(folder);
    let evidence = file.parent().unwrap_or(folder);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(evidence);
    made.with_context(|| format!("make {evidence}"))?;
    let _held = textnlp_files::Lock::exclusive(evidence.join("checklist.lock"), 0o600)?;
    let mut kept = marks(folder).map_err(|why| {
        let error = anyhow::anyhow!(why).context("nothing was recorded");
        Failure::refused("not_verified", error).hint(format!("move {file} away, then record the steps again"))
    })?;
    kept.extend(steps.iter().map(|step| Mark {
        step: step.clone(),
        release: digest_of(&lock),
        at: now,
        by: operator.by.clone(),
        reason: reason.to_owned(),
        tool: operator.tool.clone(),
    }));
    let old = kept.len().saturating_sub(MAX_RECORDS);
    let bytes = serde_json::to_vec_pretty(&Marks { marks: kept.split_off(old) })?;
    Ok(write_signed(folder, &file, &bytes, &what(&bytes))?)
}

/// Refuses the record of a watch that is not over.
fn may_be_watched(facts: &ReleaseFacts<'_>, lock: &Lock, now: Timestamp) -> Result<(), Failure> {
    let early = |why: String| {
        Failure::refused("too_early", anyhow::anyhow!(why).context("`watch` was not recorded"))
            .hint("record it 24 hours after the release was applied in production")
    };
    let Some(production) = facts.production else {
        return Err(Failure::usage("no_production", anyhow::anyhow!("`watch` is of a production environment"))
            .hint("name it: --production ENV"));
    };
    let phase = production.loaded.environment.phase;
    if PhaseDefinition::of(phase).check(AVAILABILITY).is_some() {
        let error = anyhow::anyhow!("`watch` is measured by the gate of phase {phase}, and not recorded by hand");
        return Err(Failure::usage("unknown_step", error).hint(production.scope.last("gate --again")));
    }
    let history = release::recorded(&production.scope)?;
    let newest = history.newest().map_err(early)?;
    let is_this = |entry: &&Entry| covers(lock, &entry.applied.lock, &production.loaded.environment).is_ok();
    let Some(entry) = newest.filter(is_this) else {
        return Err(early(format!("{} does not run this release", production.scope.name)));
    };
    match is_day_after(now, entry.applied.at) {
        true => Ok(()),
        false => Err(early(format!("it was applied at {:.0}", entry.applied.at))),
    }
}

/// The records of a state folder, if this environment signed them. Else why they are not used.
fn marks(folder: &Utf8Path) -> Result<Vec<Mark>, String> {
    let kept: Option<Marks> = read_signed(folder, &file(folder), what)?;
    Ok(kept.unwrap_or_default().marks)
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("checklist.json")
}

/// What the signature of these bytes says.
fn what(bytes: &[u8]) -> String {
    format!("textnlp release checklist, sha256 {}", sha256(bytes))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::release::Applied;

    use super::*;

    fn entry(tool: &str) -> Entry {
        let lock = Lock {
            environment: textnlp_provider::EnvironmentName::new("staging").unwrap(),
            server: "sha256:1".to_owned(),
            models: Default::default(),
            sources: Default::default(),
            tenants: Default::default(),
            images: Default::default(),
            image_sources: Default::default(),
            templates: None,
            configuration: String::new(),
            schema: None,
        };
        let (at, by, tool) = (Timestamp::UNIX_EPOCH, "ada".to_owned(), tool.to_owned());
        Entry {
            number: 3,
            applied: Applied { at, by, reason: None, tool, schema: None, phase: None, settings: None, lock },
        }
    }

    #[test]
    fn version_counts_when_the_release_before_had_another_one() {
        let tool = concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION"));
        assert!(version(None).is_ok() && version(Some(&entry("textnlp-deploy 0.0.1"))).is_ok());
        assert!(version(Some(&entry(tool))).unwrap_err().contains("release 3"));
    }

    #[test]
    fn changelog_needs_a_heading_with_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        assert!(changelog(folder).unwrap_err().contains("CHANGELOG.md"));
        let write = |text: String| std::fs::write(folder.join("CHANGELOG.md"), text).unwrap();
        write(format!("# Changelog\n\n## [Unreleased]\n\n{VERSION} is next\n\n## [{VERSION}9]\n"));
        assert!(changelog(folder).unwrap_err().contains("no heading"));
        write(format!("# Changelog\n\n## [{VERSION}] - 2026-11-26\n"));
        assert!(changelog(folder).unwrap().contains("CHANGELOG.md:3"));
    }

    #[test]
    fn record_of_a_person_takes_the_place_of_missing_evidence() {
        let of = |found: Finding, mark: Option<&str>| step(("tests", "all tests pass"), found, mark.map(str::to_owned));
        let yours = || Finding::Yours("not recorded".to_owned(), "run them".to_owned());
        assert_eq!(of(yours(), None).state, StepState::Yours);
        let marked = of(yours(), Some("ada: CI run 7"));
        assert_eq!((marked.state, marked.evidence.as_str(), marked.next), (StepState::Done, "ada: CI run 7", None));
        assert_eq!(of(Finding::open("why", "up"), None).next.as_deref(), Some("up"));
        assert_eq!(of(Finding::open("why", "up"), Some("ada: fine")).state, StepState::Open, "evidence is against it");
    }

    #[test]
    fn release_is_locked_first_and_other_steps_wait_for_those_before_them() {
        let of = |found: Vec<Finding>| {
            let steps = STEPS.into_iter().zip(found).map(|(of, found)| step(of, found, None)).collect();
            let list = Checklist { release: None, steps, readiness: Vec::new(), unverified: None };
            list.next_command().map(|(step, command)| (step.name, command))
        };
        let (yours, done) =
            (|| Finding::Yours("why".to_owned(), "run them".to_owned()), || Finding::Done("it is".to_owned()));
        let runs = |command| Finding::Runs("why".to_owned(), "next".to_owned(), command);
        use StepCommand::{SetRelease, UpStaging};
        assert_eq!(of(vec![yours(), runs(UpStaging), runs(SetRelease)]), Some((STEPS[2].0, SetRelease)));
        assert_eq!(of(vec![yours(), runs(UpStaging)]), None);
        assert_eq!(of(vec![done(), runs(UpStaging), yours()]), Some((STEPS[1].0, UpStaging)));
        assert_eq!(of(vec![done(), Finding::open("why", "push it"), runs(UpStaging)]), None);
        assert_eq!(of(vec![done()]), None);
    }

    #[test]
    fn removed_release_does_not_run() {
        let mut history = Recorded::default();
        history.entries.push(entry("textnlp-deploy 0.0.1"));
        let of = |removed| runs(&history, |_| true, removed, ("up".to_owned(), StepCommand::UpStaging));
        assert!(matches!(of(None), Finding::Done(_)));
        assert!(matches!(of(Some(Timestamp::UNIX_EPOCH)), Finding::Runs(why, ..) if why.contains("removed at")));
    }

    #[test]
    fn record_of_a_watch_counts_a_day_after_the_release() {
        let applied = Timestamp::UNIX_EPOCH;
        let after = |hours| is_day_after(applied + SignedDuration::from_hours(hours), applied);
        assert_eq!((after(23), after(24)), (false, true));
        assert!(!is_day_after(applied, Timestamp::MAX));
    }

    #[test]
    fn every_markable_step_is_one_of_the_list_or_of_readiness() {
        let readiness = ["docs", "api-parity", "runbooks", "dashboards"];
        for name in MARKABLE {
            assert!(STEPS.iter().any(|(step, _)| *step == name) || readiness.contains(&name), "{name}");
        }
    }

    #[test]
    fn records_count_only_as_signed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        assert_eq!(marks(folder), Ok(Vec::new()));
        let mark = Mark {
            step: "tests".to_owned(),
            release: "sha256:1".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            by: "ada".to_owned(),
            reason: "CI run 7".to_owned(),
            tool: "textnlp-deploy".to_owned(),
        };
        let bytes = serde_json::to_vec(&Marks { marks: vec![mark.clone()] }).unwrap();
        write_signed(folder, &file(folder), &bytes, &what(&bytes)).unwrap();
        assert_eq!(marks(folder), Ok(vec![mark]));
        let changed = String::from_utf8(bytes).unwrap().replace("CI run 7", "CI run 8");
        std::fs::write(file(folder), changed).unwrap();
        assert!(marks(folder).unwrap_err().contains("checklist.json is not verified"));
    }
}
