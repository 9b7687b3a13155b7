//! The order of phases: a release enters a phase with the evidence that it passed the gate of the phase before.
//!
//! `promote` writes that evidence beside the state of the target, signed with the report key of the target. A release that has
//! already run in the phase, such as after a repair or a rollback, does not need it again.

use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::phases::{MAX_EVIDENCE_DAYS, PhaseDefinition};
use textnlp_orchestrator::gate::{ChangedLimit, EntryBasis, Exemption, RecordedExemption};
use textnlp_orchestrator::release::{History, Lock, covers, digest};
use textnlp_orchestrator::state::{Entry, State};
use textnlp_provider::{EnvironmentName, Lineage};

use super::{StoredEvidence, read_signed, sha256, write_signed};
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Scope, running};

/// The evidence that a release passed an earlier phase.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Promotion {
    /// The version of this file format.
    format: u32,
    /// The environment that it ran in.
    from: EnvironmentName,
    /// The deployment that it ran in. Earlier versions did not record it.
    #[serde(default)]
    lineage: Option<Lineage>,
    /// The phase of that environment.
    phase: Phase,
    /// When its gate was measured.
    at: Timestamp,
    /// The exemptions of that environment at that time.
    exemptions: Vec<RecordedExemption>,
    /// The settings of its gate that were not those of the shipped environment. Earlier versions recorded none.
    #[serde(default)]
    changed_limits: Vec<ChangedLimit>,
    /// The release.
    lock: Lock,
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("promotion.json")
}

/// What the signature of these bytes says.
fn what(bytes: &[u8]) -> String {
    format!("textnlp promotion, sha256 {}", sha256(bytes))
}

/// Refuses a promotion that skips a phase.
pub fn follows(source: &ChosenEnvironment, target: &ChosenEnvironment) -> Result<(), Failure> {
    let (from, to) = (source.loaded.environment.phase, target.loaded.environment.phase);
    match skipped(from, to) {
        Some(before) => {
            let (source, target) = (&source.scope, &target.scope.name);
            let error = anyhow::anyhow!(
                "{} is in phase {from} and {target} in phase {to}, which starts after phase {before}",
                source.name
            );
            let hint = source.again.bare(&format!("promote --from ENV --to {target}"));
            let hint = format!("promote to each phase in order, then from an environment of phase {before}: {hint}");
            Err(Failure::refused("phase_skipped", error).hint(hint))
        }
        None => Ok(()),
    }
}

/// The phase that a promotion would skip, if so.
fn skipped(from: Phase, to: Phase) -> Option<Phase> {
    PhaseDefinition::of(to).after().filter(|after| !PhaseDefinition::of(from).includes(*after))
}

/// Stores the evidence of a promoted release for the target's `up`, if its phase needs it.
pub(crate) fn keep(
    source: &ChosenEnvironment,
    evidence: &StoredEvidence,
    target: &ChosenEnvironment,
    lock: &Lock,
) -> anyhow::Result<()> {
    if PhaseDefinition::of(target.loaded.environment.phase).after().is_none() {
        return Ok(());
    }
    let folder = &target.scope.folder;
    let promotion = Promotion {
        format: 1,
        from: source.scope.name.clone(),
        lineage: evidence.lineage,
        phase: evidence.phase,
        at: evidence.at,
        exemptions: evidence.exemptions.clone(),
        changed_limits: evidence.changed_limits.clone(),
        lock: lock.clone(),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    write(folder, &promotion)
}

fn write(folder: &Utf8Path, promotion: &Promotion) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec_pretty(promotion)?;
    write_signed(folder, &file(folder), &bytes, &what(&bytes))
}

/// The stored evidence, if this environment signed it. Else why it is not used.
fn stored(folder: &Utf8Path) -> Result<Option<Promotion>, String> {
    read_signed(folder, &file(folder), what)
}

/// Whether the release of an `up` may enter the phase of its environment.
enum Admission {
    /// It needs nothing, or the journal has its entry.
    Open,
    /// It may, which the journal records.
    By(EntryBasis),
    /// It may not, with the reason.
    Refused(String),
}

/// Why the release of an `up` may not enter the phase of its environment, if so. `bundle`: the signed bundle that it is
/// installed from.
pub async fn missing(deployment: &Deployment, bundle: Option<EntryBasis>) -> Result<Option<String>, Failure> {
    Ok(match admission(deployment, bundle).await? {
        Admission::Refused(why) => Some(why),
        Admission::Open | Admission::By(_) => None,
    })
}

async fn admission(deployment: &Deployment, bundle: Option<EntryBasis>) -> Result<Admission, Failure> {
    let environment = &deployment.chosen.loaded.environment;
    let after = PhaseDefinition::of(environment.phase).after();
    let (Some(release), Some(before)) = (&deployment.release, after) else { return Ok(Admission::Open) };
    let (folder, lock) = (&deployment.chosen.scope.folder, &release.lock);
    let state = deployment.state().await?;
    if is_recorded(&state, lock, environment.phase) {
        return Ok(Admission::Open);
    }
    let history = History::at(folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    let applied: Vec<_> = history.entries.iter().map(|entry| (entry.applied.phase, &entry.applied.lock)).collect();
    if has_run(&applied, &JournalFacts::of(&state, environment.phase), lock, environment) {
        return Ok(Admission::By(EntryBasis::Earlier));
    }
    if let Some(bundle) = bundle {
        return Ok(Admission::By(bundle));
    }
    let refused = match stored(folder) {
        Ok(Some(promotion)) => {
            let source = deployment_of(&deployment.chosen.scope, &promotion.from).await;
            match refusal(&promotion, source, before, lock, environment, Timestamp::now()) {
                None => {
                    let Promotion { from, at: measured, .. } = promotion;
                    return Ok(Admission::By(EntryBasis::Promoted { from, measured }));
                }
                Some(why) => why,
            }
        }
        Ok(None) => format!("no release of phase {before} was promoted to it"),
        Err(why) => why,
    };
    Ok(Admission::Refused(refused))
}

/// The deployment that an environment with its state beside this one has now. A state that is not here, or is not readable
/// from here, says nothing: the evidence is signed.
async fn deployment_of(scope: &Scope, name: &EnvironmentName) -> Option<Lineage> {
    let folder = scope.states().join(name.as_str());
    if !folder.is_dir() {
        return None;
    }
    let state = running::state(&Scope { name: name.clone(), folder, ..scope.clone() }).await.ok()?;
    state.has_records().then(|| state.lineage())
}

/// Whether the journal has the entry of this release into the phase, or its exemption.
fn is_recorded(state: &State, lock: &Lock, phase: Phase) -> bool {
    let (release, exemption) = (digest_of(lock), from_scratch(lock));
    state.entered().any(|entered| entered.phase == phase && entered.release == release)
        || state.exemptions().iter().any(|recorded| recorded.phase == phase && recorded.exemption == exemption)
}

/// What the journal says about earlier runs.
#[derive(Debug, Clone, Copy)]
struct JournalFacts {
    /// It has records.
    has_records: bool,
    /// It has entries into phases: an `up` of this version ran.
    has_entries: bool,
    /// An approved run did not do everything, or the deployment was removed.
    is_incomplete: bool,
}

impl JournalFacts {
    fn of(state: &State, phase: Phase) -> Self {
        let is_entry = |recorded: &RecordedExemption| {
            recorded.phase == phase && matches!(recorded.exemption, Exemption::FromScratch { .. })
        };
        Self {
            has_records: state.has_records(),
            has_entries: state.entered().next().is_some() || state.exemptions().iter().any(is_entry),
            is_incomplete: state.unfinished().next().is_some() || state.removal().is_some(),
        }
    }
}

/// Whether the release ran in this phase before entries were recorded.
fn has_run(applied: &[(Option<Phase>, &Lock)], journal: &JournalFacts, lock: &Lock, environment: &Environment) -> bool {
    // Earlier versions recorded no phase.
    let ran = |(in_phase, ran): &(Option<Phase>, &Lock)| {
        in_phase.is_none_or(|in_phase| in_phase == environment.phase) && covers(ran, lock, environment).is_ok()
    };
    // Provisioned before releases had a history.
    let is_older = applied.is_empty() && journal.has_records && !journal.has_entries && !journal.is_incomplete;
    is_older || applied.iter().any(ran)
}

/// Why the gate of an environment, measured at this time, no longer counts for the next phase, if so.
pub(crate) fn too_old(from: &EnvironmentName, at: Timestamp, now: Timestamp) -> Option<String> {
    let is_old = now.duration_since(at) > SignedDuration::from_hours(24 * MAX_EVIDENCE_DAYS);
    let at = at.strftime("%Y-%m-%d");
    is_old.then(|| format!("the gate of {from} was measured on {at}, more than {MAX_EVIDENCE_DAYS} days ago"))
}

/// Why a promotion does not let this release enter, if so. `source`: the deployment that its environment has now, if known.
fn refusal(
    promotion: &Promotion,
    source: Option<Lineage>,
    before: Phase,
    lock: &Lock,
    environment: &Environment,
    now: Timestamp,
) -> Option<String> {
    let Promotion { from, phase, at, .. } = promotion;
    if let (Some(passed), Some(now)) = (promotion.lineage, source)
        && passed != now
    {
        return Some(format!(
            "the release passed its gate in deployment {passed} of {from}, which is deployment {now} now"
        ));
    }
    if !PhaseDefinition::of(*phase).includes(before) {
        return Some(format!("the promoted release passed phase {phase} in {from}, and not phase {before}"));
    }
    if let Some(why) = too_old(from, *at, now) {
        return Some(why);
    }
    let differs = covers(&promotion.lock, lock, environment).err()?;
    Some(format!("it is another release than the one that passed phase {phase} in {from}: {differs}"))
}

/// Refuses an `up` that would enter a phase without the evidence of the phase before. `from_scratch` permits it, with a
/// reason. Returns what the journal records.
pub async fn enter(
    deployment: &Deployment,
    from_scratch: bool,
    bundle: Option<EntryBasis>,
) -> Result<Option<Entry>, Failure> {
    let ChosenEnvironment { scope, loaded, .. } = &deployment.chosen;
    let phase = loaded.environment.phase;
    let reason = deployment.operator.reason.as_deref();
    if from_scratch && reason.is_none_or(|reason| reason.trim().is_empty()) {
        let error = anyhow::anyhow!("--from-scratch needs a reason");
        return Err(Failure::usage("no_reason", error).hint("add --reason TEXT"));
    }
    let Some(release) = &deployment.release else { return Ok(None) };
    let why = match admission(deployment, bundle).await? {
        Admission::Open => return Ok(None),
        Admission::By(basis) => {
            return Ok(Some(Entry::Entered { phase, release: digest_of(&release.lock), basis }));
        }
        Admission::Refused(_) if from_scratch => {
            return Ok(Some(Entry::Exempted { phase, exemption: self::from_scratch(&release.lock) }));
        }
        Admission::Refused(why) => why,
    };
    let before = PhaseDefinition::of(phase).after().unwrap_or(phase);
    let error = anyhow::anyhow!("{why}").context(format!(
        "phase {phase} starts after a release passed the gate of phase {before}; nothing was changed"
    ));
    let promote = scope.again.bare(&format!("promote --from ENV --to {}", scope.name));
    let hint = format!(
        "promote a release of an environment of phase {before}: {promote}\nin an emergency: {} --reason TEXT",
        scope.last("up --from-scratch")
    );
    Err(Failure::new(Exit::GateShut, "phase_not_entered", error).hint(hint))
}

/// The exemption of a release.
fn from_scratch(lock: &Lock) -> Exemption {
    Exemption::FromScratch { release: digest_of(lock) }
}

/// The digest of what a release runs. Sources and the schema are recorded in a lock only later.
pub(crate) fn digest_of(lock: &Lock) -> String {
    let (sources, image_sources) = Default::default();
    digest(&Lock { configuration: String::new(), schema: None, sources, image_sources, ..lock.clone() }.to_bytes())
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::release::configuration_digest;

    use super::*;

    fn environment() -> Environment {
        Library::built_in().load("pilot", &Overrides::default(), &Catalogue::default()).unwrap().environment
    }

    fn promotion(environment: &Environment, phase: Phase, server: &str) -> Promotion {
        let models = environment.models.iter();
        let lock = Lock {
            environment: environment.environment.clone(),
            server: digest(server.as_bytes()),
            models: models.clone().map(|model| (model.name.clone(), digest(b"model"))).collect(),
            sources: models.map(|model| (model.name.clone(), model.source().to_owned())).collect(),
            tenants: Default::default(),
            images: Default::default(),
            image_sources: Default::default(),
            templates: None,
            configuration: configuration_digest(environment),
            schema: None,
        };
        let from = "staging".parse().unwrap();
        let lineage = Some(Lineage(uuid::Uuid::from_u128(1)));
        Promotion {
            format: 1,
            from,
            lineage,
            phase,
            at: Timestamp::UNIX_EPOCH,
            exemptions: Vec::new(),
            changed_limits: Vec::new(),
            lock,
        }
    }

    #[test]
    fn promotion_counts_for_its_release_after_the_phase_before_and_for_a_time() {
        let environment = environment();
        let good = promotion(&environment, Phase::Staging, "one");
        let at = |days: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days);
        let refused = |promotion: &Promotion, lock: &Lock, days: i64| {
            refusal(promotion, promotion.lineage, Phase::Staging, lock, &environment, at(days)).unwrap_or_default()
        };
        assert_eq!(refused(&good, &good.lock, 90), "");
        assert!(refused(&good, &good.lock, 91).contains("more than 90 days ago"));
        let early = promotion(&environment, Phase::Development, "one");
        assert!(refused(&early, &good.lock, 1).contains("passed phase development in staging, and not phase staging"));
        // Whoever may enter without evidence proves nothing about the phases before.
        let beside = promotion(&environment, Phase::MultiRegion, "one");
        assert!(refused(&beside, &good.lock, 1).contains("passed phase multi-region"));
        assert_eq!(refused(&promotion(&environment, Phase::Enterprise, "one"), &good.lock, 1), "");
        let other = promotion(&environment, Phase::Staging, "two");
        assert!(refused(&good, &other.lock, 1).contains("another release"));
        // The image is the target's own where the source ran on machines.
        let mut cluster = good.lock.clone();
        cluster.images.insert("main".to_owned(), "r.example/t@sha256:1".to_owned());
        assert_eq!(refused(&good, &cluster, 1), "");
        let seen = Promotion { lock: cluster.clone(), ..good };
        cluster.images.insert("main".to_owned(), "r.example/t@sha256:2".to_owned());
        assert!(refused(&seen, &cluster, 1).contains("images.main"));
    }

    #[test]
    fn promotion_does_not_count_for_another_deployment_of_the_same_name() {
        let environment = environment();
        let good = promotion(&environment, Phase::Staging, "one");
        let refused = |promotion: &Promotion, source| {
            refusal(promotion, source, Phase::Staging, &promotion.lock, &environment, promotion.at)
        };
        let other = Some(Lineage(uuid::Uuid::from_u128(2)));
        assert!(
            refused(&good, other).unwrap().contains("which is deployment 00000000-0000-0000-0000-000000000002 now")
        );
        assert_eq!((refused(&good, good.lineage), refused(&good, None)), (None, None));
        // Of an earlier version.
        let mut document = serde_json::to_value(&good).unwrap();
        document.as_object_mut().unwrap().remove("lineage").unwrap();
        assert_eq!(refused(&serde_json::from_value(document).unwrap(), other), None);
    }

    #[test]
    fn promotion_skips_a_phase_only_where_the_table_has_an_order() {
        assert_eq!(skipped(Phase::Enterprise, Phase::Optimized), None);
        assert_eq!(skipped(Phase::ScaleUp, Phase::Optimized), Some(Phase::Enterprise));
        assert_eq!(skipped(Phase::Staging, Phase::ScaleUp), Some(Phase::Pilot));
        for later in [Phase::ScaleUp, Phase::Enterprise, Phase::Optimized] {
            assert_eq!(skipped(later, Phase::Pilot), None, "{later}");
        }
        for (target, before) in [(Phase::Pilot, Phase::Staging), (Phase::Optimized, Phase::Enterprise)] {
            for free in [Phase::MultiRegion, Phase::AirGapped] {
                assert_eq!(skipped(free, target), Some(before), "{free}: its entry is free");
            }
        }
        for free in [Phase::Development, Phase::Staging, Phase::MultiRegion, Phase::AirGapped] {
            assert_eq!(skipped(Phase::Development, free), None, "{free}");
        }
    }

    #[test]
    fn exempted_release_is_known_by_what_it_runs() {
        let environment = environment();
        let [one, two] = ["one", "two"].map(|server| promotion(&environment, Phase::Staging, server).lock);
        let changed = Lock { configuration: digest(b"another"), ..one.clone() };
        assert_eq!(from_scratch(&one), from_scratch(&changed));
        assert_ne!(from_scratch(&one), from_scratch(&two));
    }

    #[test]
    fn release_without_a_recorded_entry_counts_only_where_it_ran() {
        let environment = environment();
        let [one, two] = ["one", "two"].map(|server| promotion(&environment, Phase::Staging, server).lock);
        let older = JournalFacts { has_records: true, has_entries: false, is_incomplete: false };
        assert!(has_run(&[], &older, &one, &environment), "it was deployed before releases had a history");
        for journal in [
            JournalFacts { has_records: false, ..older },
            JournalFacts { has_entries: true, ..older },
            // The first `up` was interrupted, or `down` removed what ran.
            JournalFacts { is_incomplete: true, ..older },
        ] {
            assert!(!has_run(&[], &journal, &one, &environment), "{journal:?}");
            assert!(has_run(&[(Some(Phase::Pilot), &one)], &journal, &one, &environment), "{journal:?}");
        }
        assert!(!has_run(&[(Some(Phase::Pilot), &one)], &older, &two, &environment));
        assert!(!has_run(&[(Some(Phase::Staging), &one)], &older, &one, &environment));
        assert!(has_run(&[(None, &one)], &older, &one, &environment));
    }

    #[test]
    fn stored_promotion_counts_only_as_it_was_signed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        assert!(stored(folder).unwrap().is_none());
        write(folder, &promotion(&environment(), Phase::Development, "one")).unwrap();
        assert_eq!(stored(folder).unwrap().unwrap().phase, Phase::Development);
        let text = std::fs::read_to_string(file(folder)).unwrap();
        std::fs::write(file(folder), text.replace("development", "pilot")).unwrap();
        assert!(stored(folder).unwrap_err().contains("promotion.json is not verified"));
        std::fs::write(file(folder), text).unwrap();
        std::fs::remove_file(format!("{}.minisig", file(folder))).unwrap();
        assert!(stored(folder).unwrap_err().contains("promotion.json.minisig"));
    }
}
