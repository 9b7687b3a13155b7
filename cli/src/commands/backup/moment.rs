//! `restore --at`: which base, whether the log leads from there to the moment, and the database as it was then.
//!
//! The base is recovered beside, to the moment and no further; what comes out is dumped, and takes the place of the dump that came with the
//! backup. From there on it is a restore like any other: the database is made anew, and writes a log of its own.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{Base, Dump, Facts, Log, Manifest, Opener, Part, PartName, Reach, Shelf};
use textnlp_orchestrator::state::State;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::beside::{From, Postgres};
use super::gather::STATE;
use super::{failed, prove};
use crate::clouds;
use crate::report::{Exit, Failure};

/// Bytes of opened parts that are held for the server that reads them: those of some days of a quiet database.
const OPENED_MAX: usize = 256 << 20;
/// Damaged parts that are named one by one.
const NAMED_MAX: usize = 20;

/// A moment that was typed.
pub fn read(text: &str) -> Result<Timestamp, Failure> {
    text.trim().parse().map_err(|_| {
        let error = anyhow::anyhow!("`{text}` is no moment");
        Failure::usage("usage", error)
            .hint("write it with its zone: 2026-11-20T12:00:00Z, or 2026-11-20T13:00:00+01:00")
    })
}

/// A moment as it is shown.
pub fn shown(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The names of the parts of logs. A log of a month is a folder of many thousand files: each is listed once, for however many copies.
#[derive(Default)]
pub struct Parts(BTreeMap<Utf8PathBuf, BTreeSet<PartName>>);

impl Parts {
    /// The names of all parts of a log.
    pub fn of(&mut self, log: &Log) -> Result<&BTreeSet<PartName>, Failure> {
        Ok(match self.0.entry(log.folder().to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(log.names().map_err(failed)?),
        })
    }
}

/// What a base and its log can bring back.
pub struct Range {
    /// The copy with the base.
    pub file: Utf8PathBuf,
    /// The site.
    pub site: SiteName,
    /// The base.
    pub base: Base,
    /// Its log.
    pub log: Log,
    /// How far that leads.
    pub reach: Reach,
}

impl Range {
    /// What the log beside a copy leads to.
    pub fn of(file: &Utf8Path, site: &SiteName, base: &Base, parts: &mut Parts) -> Result<Self, Failure> {
        let shelf = file.parent().unwrap_or(Utf8Path::new("."));
        let system = base.system.parse().context("read the number of the log")?;
        let log = Log::of(shelf, system);
        let reach = Reach::of(base, &log, parts.of(&log)?);
        Ok(Self { file: file.to_owned(), site: site.clone(), base: base.clone(), log, reach })
    }

    /// Every range of a shelf's copies, the newest base first.
    pub fn all<'a>(dumps: impl IntoIterator<Item = &'a Dump>, parts: &mut Parts) -> Result<Vec<Self>, Failure> {
        let mut ranges = Vec::new();
        for dump in dumps {
            for (site, base) in dump.facts.iter().flat_map(|facts| &facts.bases) {
                ranges.push(Self::of(&dump.file, site, base, parts)?);
            }
        }
        ranges.sort_by_key(|range| std::cmp::Reverse(range.base.from));
        Ok(ranges)
    }

    /// The range of the newest base; `None` where no copy has one.
    pub fn newest(dumps: &[&Dump], parts: &mut Parts) -> Result<Option<Self>, Failure> {
        let bases = dumps.iter().filter_map(|dump| Some((dump, dump.facts.as_ref()?)));
        let bases = bases.flat_map(|(dump, facts)| facts.bases.iter().map(move |(site, base)| (dump, site, base)));
        let newest = bases.max_by_key(|(_, _, base)| base.from);
        newest.map(|(dump, site, base)| Self::of(&dump.file, site, base, parts)).transpose()
    }

    fn holds(&self, at: Timestamp) -> bool {
        at >= self.base.from && self.reach.until.is_some_and(|until| at <= until)
    }

    /// In a sentence.
    pub fn says(&self) -> String {
        let name = self.file.file_name().unwrap_or_default();
        let from = shown_up(self.base.from);
        match (self.reach.until, &self.reach.missing) {
            (Some(until), None) => format!("{name}: every moment from {from} to {}", shown(until)),
            (Some(until), Some(missing)) => {
                format!(
                    "{name}: every moment from {from} to {}; there is a gap after it: {missing} is missing",
                    shown(until)
                )
            }
            (None, Some(missing)) => format!("{name}: no moment after {from}: {missing} is missing"),
            (None, None) => format!("{name}: no moment after {from} yet: nothing that was written since is archived"),
        }
    }

    /// For programs.
    pub fn document(&self) -> Value {
        json!({
            "file": self.file, "site": self.site, "log": self.log.folder(), "from": self.base.from,
            "until": self.reach.until, "missing": self.reach.missing, "parts": self.reach.parts.len(),
        })
    }
}

/// A beginning is shown so that what is typed from it is not before it.
fn shown_up(at: Timestamp) -> String {
    shown(if at.subsec_nanosecond() > 0 { at + jiff::SignedDuration::from_secs(1) } else { at })
}

/// The copy in a folder whose base leads to a moment by the shortest log.
///
/// A folder may hold copies of several deployments of one name. `there` says which deployment of an environment is in the place that would
/// be restored: the copies of any other one are no way back for it. Where none is there, a moment that several deployments lived through is
/// nobody's to guess.
pub fn choose(
    shelf: &Shelf,
    at: Timestamp,
    there: impl Fn(&EnvironmentName) -> Option<Lineage>,
) -> Result<Utf8PathBuf, Failure> {
    let dumps = shelf.list().map_err(failed)?;
    let fits = |facts: &Facts| there(&facts.environment).is_none_or(|lineage| lineage == facts.lineage);
    let (ours, others): (Vec<&Dump>, Vec<&Dump>) = dumps.iter().partition(|dump| dump.facts.as_ref().is_none_or(fits));
    let ranges = Range::all(ours.iter().copied(), &mut Parts::default())?;
    let leading: Vec<&Range> = ranges.iter().filter(|range| range.holds(at)).collect();
    let whose = |range: &&Range| ours.iter().find(|dump| dump.file == range.file)?.facts.as_ref().map(|f| f.lineage);
    let mut problems = Vec::new();
    match leading.first() {
        Some(newest) if leading.iter().all(|range| whose(range) == whose(newest)) => return Ok(newest.file.clone()),
        Some(_) => {
            let named: BTreeMap<String, &Utf8Path> = leading
                .iter()
                .rev()
                .filter_map(|range| Some((whose(range)?.to_string(), range.file.as_path())))
                .collect();
            let named: Vec<String> = named.iter().map(|(lineage, file)| format!("{lineage} by {file}")).collect();
            let error = anyhow::anyhow!("copies of several deployments lead to {at}: {}", named.join(", "));
            return Err(Failure::usage("several_deployments", error)
                .hint(format!("say which by its file: textnlp-deploy restore FILE --at {at}")));
        }
        None if Range::all(others, &mut Parts::default())?.iter().any(|range| range.holds(at)) => problems
            .push(format!("what leads to it in {} is of another deployment than the one that is here", shelf.folder())),
        None => {}
    }
    Err(no_such_moment(at, problems, &ranges, shelf.folder()))
}

fn no_such_moment(at: Timestamp, mut problems: Vec<String>, ranges: &[Range], folder: &Utf8Path) -> Failure {
    if problems.is_empty() {
        problems.push(format!("no backup in {folder} and its log lead to it"));
    }
    let there: Vec<String> = ranges.iter().map(Range::says).collect();
    let hint = match there.is_empty() {
        true => "`backup: { point_in_time: 1m }` archives the log of a PostgreSQL of our own, from the next backup on"
            .to_owned(),
        false => format!("what can be restored: {}", there.join("; ")),
    };
    let error = anyhow::anyhow!("{}", problems.join("; ")).context(format!("{at} cannot be restored"));
    let ranges: Vec<Value> = ranges.iter().map(Range::document).collect();
    Failure::new(Exit::Usage, "no_such_moment", error)
        .hint(hint)
        .document(json!({ "at": at, "problems": problems, "ranges": ranges }))
}

/// Looks before anything is opened whether a copy and its log lead to a moment; says everything that stands in the way at once.
///
/// `listed` is what the copy says of itself, or why it cannot be opened; then what is known of it beside it says the rest.
pub fn preflight(file: &Utf8Path, at: Timestamp, listed: Result<&Manifest, String>) -> Result<(), Failure> {
    let (ranges, problems) = match listed {
        Ok(manifest) => ranges(file, at, manifest)?,
        Err(why) => {
            let bytes = std::fs::metadata(file).map_or(0, |found| found.len());
            let known = Shelf::known(file, bytes).facts.map(|facts| facts.bases).unwrap_or_default();
            let (mut ranges, mut problems) = (Vec::new(), vec![why]);
            for (site, base) in &known {
                let range = Range::of(file, site, base, &mut Parts::default())?;
                problems.extend(obstacles(&range, at));
                ranges.push(range);
            }
            (ranges, problems)
        }
    };
    match problems.is_empty() {
        true => Ok(()),
        false => Err(no_such_moment(at, problems, &ranges, file)),
    }
}

/// What the log leads to from each base of a copy, and what stands in the way of a moment.
fn ranges(file: &Utf8Path, at: Timestamp, manifest: &Manifest) -> Result<(Vec<Range>, Vec<String>), Failure> {
    let (mut ranges, mut problems) = (Vec::new(), Vec::new());
    for (site, database) in &manifest.databases {
        let Some(base) = &database.base else {
            problems.push(format!(
                "the copy has no base for a log of site `{site}`: only PostgreSQL of our own has one, with `backup.point_in_time`"
            ));
            continue;
        };
        let range = Range::of(file, site, base, &mut Parts::default())?;
        problems.extend(obstacles(&range, at));
        ranges.push(range);
    }
    if manifest.databases.is_empty() {
        problems.push(format!("{file} holds no database"));
    }
    Ok((ranges, problems))
}

/// What stands in the way of a moment, as far as that is seen without a key.
fn obstacles(range: &Range, at: Timestamp) -> Vec<String> {
    let mut problems = Vec::new();
    if at < range.base.from {
        problems.push(format!("it is before the base, which begins at {}", shown_up(range.base.from)));
    } else if !range.holds(at) {
        let until = range.reach.until.map_or("the base".to_owned(), shown);
        problems.push(match &range.reach.missing {
            Some(missing) => format!("the log is whole up to {until}: {missing} is missing in {}", range.log.folder()),
            None => format!("the log in {} ends at {until}", range.log.folder()),
        });
    }
    problems.extend(clouds::postgres_lacks(range.base.version));
    problems
}

/// Parts that were opened to be looked at, for whoever reads them next.
pub type Opened = BTreeMap<PartName, Part>;

/// Opens every part that leads to a moment, and says which are not what was archived. Those that are come along, as many as fit.
pub fn open(range: &Range, to: Option<Timestamp>, opener: &Opener) -> (Opened, Vec<String>) {
    let parts = match to {
        Some(at) => range.reach.up_to(&range.log, at),
        None => &[],
    };
    let (mut opened, mut held, mut damaged) = (Opened::new(), 0, Vec::new());
    for name in parts {
        match range.log.get(name, opener) {
            Ok(Some(part)) if held + part.held() <= OPENED_MAX => {
                held += part.held();
                opened.insert(name.clone(), part);
            }
            Ok(Some(_)) => {}
            Ok(None) => damaged.push(format!("{name} is gone")),
            Err(error) => damaged.push(format!("{:#}", anyhow::Error::new(error))),
        }
        if damaged.len() == NAMED_MAX {
            break;
        }
    }
    (opened, damaged)
}

/// Brings the databases of an opened copy to a moment: what was dumped with it is replaced by what was true then.
pub async fn recover(
    file: &Utf8Path,
    place: &Utf8Path,
    manifest: &mut Manifest,
    state: &State,
    opener: &Arc<Opener>,
    at: Timestamp,
) -> Result<(), Failure> {
    let (ranges, mut problems) = ranges(file, at, manifest)?;
    let mut opened = Vec::new();
    if problems.is_empty() {
        for range in &ranges {
            let (parts, damaged) = tokio::task::block_in_place(|| open(range, Some(at), opener));
            opened.push(parts);
            problems.extend(damaged);
        }
    }
    if !problems.is_empty() {
        return Err(no_such_moment(at, problems, &ranges, file));
    }
    for (range, opened) in ranges.into_iter().zip(opened) {
        let site = &range.site;
        let tar = place.join(&range.base.member);
        let (log, opener, to) = (range.log, opener.clone(), Some(at));
        let from = From::Base { tar: &tar, base: &range.base, log, opener, opened, to };
        let beside = Postgres::start(site, from, place).await;
        let beside = beside.with_context(|| format!("recover the database of site {site} to {at}"))?;
        let dumped = dump(site, &beside, place, manifest, state).await;
        beside.stop().await;
        dumped.with_context(|| format!("take the recovered database of site {site}"))?;
        // It holds every key's digest, and nobody needs it any more.
        std::fs::remove_file(&tar).with_context(|| format!("remove {tar}"))?;
    }
    Ok(())
}

/// Checks a recovered database and puts its dump where the one of the copy is.
async fn dump(
    site: &SiteName,
    beside: &Postgres,
    place: &Utf8Path,
    manifest: &mut Manifest,
    state: &State,
) -> anyhow::Result<()> {
    let folder = place.join(STATE);
    let database = manifest.databases.get_mut(site).context("a recovered database is one of the copy")?;
    let file = place.join(format!("{site}-recovered.dump"));
    let at = prove::Restored { site, folder: &folder, settings: beside.settings.clone(), place };
    let said = at.dump(&file).await?;
    let number = |field: &str| said[field].as_u64().unwrap_or_default();
    ensure!(number("schema") >= database.schema, "its schema is older than that of its base");
    // The first key is the one of the restored secrets; whether it was revoked then is not touched.
    at.keys(state).await?;
    (database.schema, database.keys, database.usage) = (number("schema"), number("keys"), number("usage"));
    let to = folder.join(&database.path);
    std::fs::rename(&file, &to).with_context(|| format!("put {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_orchestrator::backup::PartFacts;
    use uuid::Uuid;

    fn lineage(number: u128) -> Lineage {
        Lineage(Uuid::from_u128(number))
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    /// A copy with a base of `system`, made at `from`, and the one part of its log that leads on to 12:00:00.
    fn copy(shelf: &Utf8Path, file: &str, system: u64, of: Lineage, from: &str) {
        let name = |number: u32| format!("0000000100000000{number:08X}").parse().unwrap();
        let site = SiteName::new("here").unwrap();
        let base = Base {
            member: "databases/here.base.tar".into(),
            system: system.to_string(),
            version: 15,
            first: name(1),
            last: name(1),
            part_bytes: 16 << 20,
            from: at(from),
        };
        let facts = Facts {
            format: 1,
            environment: EnvironmentName::new("staging").unwrap(),
            lineage: of,
            at: at(from),
            bytes: 4,
            sha256: "x".into(),
            sealed: "keys".into(),
            recipients: Vec::new(),
            models: false,
            scheduled: true,
            tool: "t".into(),
            bases: BTreeMap::from([(site, base)]),
        };
        let log = shelf.join(format!("log/{system}"));
        std::fs::create_dir_all(&log).unwrap();
        std::fs::write(shelf.join(file), "copy").unwrap();
        std::fs::write(shelf.join(format!("{file}.json")), json!(facts).to_string()).unwrap();
        let until = Some(at("12:00:00"));
        let known = PartFacts { format: 1, bytes: 1, sha256: "x".into(), at: at("12:00:01"), until };
        let part = name(2);
        std::fs::write(log.join(format!("{part}.age")), "part").unwrap();
        std::fs::write(log.join(format!("{part}.json")), json!(known).to_string()).unwrap();
    }

    #[test]
    fn a_copy_of_another_deployment_is_no_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        copy(folder, "backup_20261120.dump", 7, lineage(1), "10:00:00");
        // The deployment of before was made anew under the same name, and archives beside.
        copy(folder, "backup_20261120-2.dump", 8, lineage(2), "11:00:00");
        let choose = |moment: &str, there: Option<Lineage>| {
            let chosen = choose(&Shelf::at(folder), at(moment), |_: &EnvironmentName| there);
            chosen.map(|file| file.file_name().unwrap().to_owned()).map_err(|failure| (failure.code, failure.error))
        };
        assert_eq!(choose("11:30:00", Some(lineage(1))).unwrap(), "backup_20261120.dump", "not the newest of all");
        assert_eq!(choose("11:30:00", Some(lineage(2))).unwrap(), "backup_20261120-2.dump");
        let (code, error) = choose("10:30:00", Some(lineage(2))).unwrap_err();
        assert!(code == "no_such_moment" && format!("{error:#}").contains("another deployment"), "{error:#}");
        // On a bare machine nobody says which is meant.
        assert_eq!(choose("10:30:00", None).unwrap(), "backup_20261120.dump");
        let (code, error) = choose("11:30:00", None).unwrap_err();
        assert_eq!(code, "several_deployments");
        let said = error.to_string();
        assert!(said.contains("backup_20261120.dump") && said.contains("backup_20261120-2.dump"), "{said}");
    }
}
