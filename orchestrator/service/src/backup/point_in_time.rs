//! `restore --at`: point-in-time recovery (PITR). Selects the base backup and checks that its log covers the point in
//! time.
//!
//! A temporary PostgreSQL recovers the base backup up to the point in time. A dump of it replaces the dump in the
//! backup. The rest is an ordinary restore: the database is recreated and has a new log.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{
    BackupDirectory, BackupFacts, Base, Decryptor, Log, LogReach, Manifest, Segment, SegmentName, StoredBackup,
};
use textnlp_orchestrator::state::State;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::gather::{Counts, STATE, answered};
use super::scratch_postgres::{DatabaseSource, Postgres};
use super::{failed, verify_backup};
use crate::{Exit, Failure, Platform};

/// Limit of decrypted log files in memory, in bytes: several days of a quiet database.
const OPENED_MAX: usize = 256 << 20;
/// Limit of damaged log files named in an error.
const NAMED_MAX: usize = 20;

/// Parses a point in time from the command line.
pub fn read(text: &str) -> Result<Timestamp, Failure> {
    text.trim().parse().map_err(|_| {
        let error = anyhow::anyhow!("`{text}` is not a point in time");
        Failure::usage("usage", error)
            .hint("write it with a time zone: 2026-11-20T12:00:00Z, or 2026-11-20T13:00:00+01:00")
    })
}

/// Formats a point in time.
pub fn format_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The file names of logs. A log of a month has many thousand files, so each folder is listed once for all backups.
#[derive(Default)]
pub struct SegmentNames(BTreeMap<Utf8PathBuf, BTreeSet<SegmentName>>);

impl SegmentNames {
    /// The file names of a log.
    pub fn of(&mut self, log: &Log) -> Result<&BTreeSet<SegmentName>, Failure> {
        Ok(match self.0.entry(log.folder().to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(log.names().map_err(failed)?),
        })
    }
}

/// The range of points in time that a base backup and its log can restore.
pub struct Range {
    /// The backup with the base backup.
    pub file: Utf8PathBuf,
    /// The site of the database.
    pub site: SiteName,
    /// The base backup.
    pub base: Base,
    /// Its log.
    pub log: Log,
    /// How far the log continues without a gap.
    pub reach: LogReach,
}

impl Range {
    /// The range of one base backup in a backup file.
    pub fn of(file: &Utf8Path, site: &SiteName, base: &Base, parts: &mut SegmentNames) -> Result<Self, Failure> {
        let shelf = file.parent().unwrap_or(Utf8Path::new("."));
        let system = base.system.parse().context("read the identifier of the log")?;
        let log = Log::of(shelf, system);
        let reach = LogReach::of(base, &log, parts.of(&log)?);
        Ok(Self { file: file.to_owned(), site: site.clone(), base: base.clone(), log, reach })
    }

    /// The same for a backup whose manifest was verified: the log has to be signed by the same key.
    pub fn in_backup(
        file: &Utf8Path,
        site: &SiteName,
        base: &Base,
        manifest: &Manifest,
        parts: &mut SegmentNames,
    ) -> Result<Self, Failure> {
        let mut range = Self::of(file, site, base, parts)?;
        if let Some(signer) = manifest.signer.clone().filter(|_| base.log_signed) {
            range.log = range.log.signed_by(signer);
        }
        Ok(range)
    }

    /// The ranges of all backups in a directory, the newest base backup first.
    pub fn all<'a>(
        dumps: impl IntoIterator<Item = &'a StoredBackup>,
        parts: &mut SegmentNames,
    ) -> Result<Vec<Self>, Failure> {
        let mut ranges = Vec::new();
        for dump in dumps {
            for (site, base) in dump.facts.iter().flat_map(|facts| &facts.bases) {
                ranges.push(Self::of(&dump.file, site, base, parts)?);
            }
        }
        ranges.sort_by_key(|range| std::cmp::Reverse(range.base.from));
        Ok(ranges)
    }

    /// The range of the newest base backup, or `None` if no backup has one.
    pub fn newest(dumps: &[&StoredBackup], parts: &mut SegmentNames) -> Result<Option<Self>, Failure> {
        let bases = dumps.iter().filter_map(|dump| Some((dump, dump.facts.as_ref()?)));
        let bases = bases.flat_map(|(dump, facts)| facts.bases.iter().map(move |(site, base)| (dump, site, base)));
        let newest = bases.max_by_key(|(_, _, base)| base.from);
        newest.map(|(dump, site, base)| Self::of(&dump.file, site, base, parts)).transpose()
    }

    fn holds(&self, at: Timestamp) -> bool {
        at >= self.base.from && self.reach.until.is_some_and(|until| at <= until)
    }

    /// The range as a sentence.
    pub fn says(&self) -> String {
        let name = self.file.file_name().unwrap_or_default();
        let from = shown_up(self.base.from);
        match (self.reach.until, &self.reach.missing) {
            (Some(until), None) => format!("{name}: any time from {from} to {}", format_time(until)),
            (Some(until), Some(missing)) => {
                format!(
                    "{name}: any time from {from} to {}; the log has a gap after that: {missing} is missing",
                    format_time(until)
                )
            }
            (None, Some(missing)) => format!("{name}: no time after {from}: {missing} is missing"),
            (None, None) => format!("{name}: no time after {from} yet: the log since then is not archived"),
        }
    }

    /// The range as JSON.
    pub fn document(&self) -> Value {
        json!({
            "file": self.file, "site": self.site, "log": self.log.folder(), "from": self.base.from,
            "until": self.reach.until, "missing": self.reach.missing, "parts": self.reach.parts.len(),
        })
    }
}

/// Rounds the start of a range up, so that the printed value is within the range.
fn shown_up(at: Timestamp) -> String {
    format_time(if at.subsec_nanosecond() > 0 { at + jiff::SignedDuration::from_secs(1) } else { at })
}

/// Selects the backup in a folder whose base backup needs the shortest log to reach a point in time.
///
/// A folder may hold backups of several deployments with one name. `there` returns the deployment that the restore
/// would replace, and only its backups qualify. If it returns none and several deployments cover the point in time, the
/// choice is ambiguous and an error.
pub fn choose(
    shelf: &BackupDirectory,
    at: Timestamp,
    there: impl Fn(&EnvironmentName) -> Option<Lineage>,
) -> Result<Utf8PathBuf, Failure> {
    let dumps = shelf.list().map_err(failed)?;
    let fits = |facts: &BackupFacts| there(&facts.environment).is_none_or(|lineage| lineage == facts.lineage);
    let (ours, others): (Vec<&StoredBackup>, Vec<&StoredBackup>) =
        dumps.iter().partition(|dump| dump.facts.as_ref().is_none_or(fits));
    let ranges = Range::all(ours.iter().copied(), &mut SegmentNames::default())?;
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
            let error = anyhow::anyhow!("backups of several deployments cover {at}: {}", named.join(", "));
            return Err(Failure::usage("several_deployments", error)
                .hint(format!("name the backup to restore: textnlp-deploy restore FILE --at {at}")));
        }
        None if Range::all(others, &mut SegmentNames::default())?.iter().any(|range| range.holds(at)) => {
            problems.push(format!(
                "the backups in {} that cover it are of another deployment than the one in this state folder",
                shelf.folder()
            ))
        }
        None => {}
    }
    Err(no_such_moment(at, problems, &ranges, shelf.folder()))
}

fn no_such_moment(at: Timestamp, mut problems: Vec<String>, ranges: &[Range], folder: &Utf8Path) -> Failure {
    if problems.is_empty() {
        problems.push(format!("no backup in {folder} and its log cover it"));
    }
    let there: Vec<String> = ranges.iter().map(Range::says).collect();
    let hint = match there.is_empty() {
        true => "`backup: { point_in_time: 1m }` archives the log of the built-in PostgreSQL, from the next backup on"
            .to_owned(),
        false => format!("what can be restored: {}", there.join("; ")),
    };
    let error = anyhow::anyhow!("{}", problems.join("; ")).context(format!("{at} cannot be restored"));
    let ranges: Vec<Value> = ranges.iter().map(Range::document).collect();
    Failure::new(Exit::Usage, "no_such_moment", error)
        .hint(hint)
        .document(json!({ "at": at, "problems": problems, "ranges": ranges }))
}

/// Checks, before anything is decrypted, that a backup and its log cover a point in time. Reports all problems at once.
///
/// `listed` is the backup's manifest, or why it cannot be read. Without a manifest, the facts beside the backup are
/// used.
pub fn preflight(
    platform: &dyn Platform,
    file: &Utf8Path,
    at: Timestamp,
    listed: Result<&Manifest, String>,
) -> Result<(), Failure> {
    let (ranges, problems) = match listed {
        Ok(manifest) => ranges(platform, file, at, manifest)?,
        Err(why) => {
            let bytes = std::fs::metadata(file).map_or(0, |found| found.len());
            let known = BackupDirectory::known(file, bytes).facts.map(|facts| facts.bases).unwrap_or_default();
            let (mut ranges, mut problems) = (Vec::new(), vec![why]);
            for (site, base) in &known {
                let range = Range::of(file, site, base, &mut SegmentNames::default())?;
                problems.extend(obstacles(platform, &range, at));
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

/// The range of each base backup in a backup, and the problems for a point in time.
fn ranges(
    platform: &dyn Platform,
    file: &Utf8Path,
    at: Timestamp,
    manifest: &Manifest,
) -> Result<(Vec<Range>, Vec<String>), Failure> {
    let (mut ranges, mut problems) = (Vec::new(), Vec::new());
    for (site, database) in &manifest.databases {
        let Some(base) = &database.base else {
            problems.push(format!(
                "the backup has no base backup of site `{site}`: only the built-in PostgreSQL has one, with `backup.point_in_time`"
            ));
            continue;
        };
        let range = Range::in_backup(file, site, base, manifest, &mut SegmentNames::default())?;
        problems.extend(obstacles(platform, &range, at));
        ranges.push(range);
    }
    if manifest.databases.is_empty() {
        problems.push(format!("{file} contains no database"));
    }
    Ok((ranges, problems))
}

/// The problems of a range for a point in time, as far as they are visible without a key.
fn obstacles(platform: &dyn Platform, range: &Range, at: Timestamp) -> Vec<String> {
    let mut problems = Vec::new();
    if at < range.base.from {
        problems.push(format!("it is before the base backup, which begins at {}", shown_up(range.base.from)));
    } else if !range.holds(at) {
        let until = range.reach.until.map_or("the base backup".to_owned(), format_time);
        problems.push(match &range.reach.missing {
            Some(missing) => {
                format!("the log is complete up to {until}: {missing} is missing in {}", range.log.folder())
            }
            None => format!("the log in {} ends at {until}", range.log.folder()),
        });
    }
    problems.extend(platform.postgres_lacks(range.base.version));
    problems
}

/// Decrypted log files, kept for the server that reads them next.
pub type DecryptedSegments = BTreeMap<SegmentName, Segment>;

/// Decrypts every log file up to a point in time, and reports the damaged ones. Returns as many of the others as fit in
/// memory.
pub fn open(range: &Range, to: Option<Timestamp>, opener: &Decryptor) -> (DecryptedSegments, Vec<String>) {
    let parts = match to {
        Some(at) => range.reach.up_to(&range.log, at),
        None => &[],
    };
    let (mut opened, mut held, mut damaged) = (DecryptedSegments::new(), 0, Vec::new());
    for name in parts {
        match range.log.get(name, opener) {
            Ok(Some(part)) if held + part.held() <= OPENED_MAX => {
                held += part.held();
                opened.insert(name.clone(), part);
            }
            Ok(Some(_)) => {}
            Ok(None) => damaged.push(format!("{name} is missing")),
            Err(error) => damaged.push(format!("{:#}", anyhow::Error::new(error))),
        }
        if damaged.len() == NAMED_MAX {
            break;
        }
    }
    (opened, damaged)
}

/// Recovers the databases of an unpacked backup to a point in time. Each result replaces the dump in the backup.
pub async fn recover(
    platform: &'static dyn Platform,
    file: &Utf8Path,
    place: &Utf8Path,
    manifest: &mut Manifest,
    state: &State,
    opener: &Arc<Decryptor>,
    at: Timestamp,
) -> Result<(), Failure> {
    let (ranges, mut problems) = ranges(platform, file, at, manifest)?;
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
        let from = DatabaseSource::Base { tar: &tar, base: &range.base, log, opener, opened, to };
        let beside = Postgres::start(platform, site, from, place).await;
        let beside = beside.with_context(|| format!("recover the database of site {site} to {at}"))?;
        let dumped = dump(platform, site, &beside, place, manifest, state).await;
        beside.stop().await;
        dumped.with_context(|| format!("take the recovered database of site {site}"))?;
        // It contains the digest of every key and is not needed any more.
        std::fs::remove_file(&tar).with_context(|| format!("remove {tar}"))?;
    }
    Ok(())
}

/// Checks a recovered database, and replaces the backup's dump by a dump of it.
async fn dump(
    platform: &'static dyn Platform,
    site: &SiteName,
    beside: &Postgres,
    place: &Utf8Path,
    manifest: &mut Manifest,
    state: &State,
) -> anyhow::Result<()> {
    let folder = place.join(STATE);
    let database = manifest.databases.get_mut(site).context("a recovered database is one of the backup")?;
    let file = place.join(format!("{site}-recovered.dump"));
    let at =
        verify_backup::RestoredDatabase { platform, site, folder: &folder, settings: beside.settings.clone(), place };
    let said = at.dump(&file).await?;
    let Counts { schema, keys, usage } = answered(said)?;
    ensure!(schema >= database.schema, "its schema is older than that of its base backup");
    // Checks that the restored secrets match. A revoked first key stays revoked.
    at.keys(state).await?;
    (database.schema, database.keys, database.usage) = (schema, keys, usage);
    let to = folder.join(&database.path);
    std::fs::rename(&file, &to).with_context(|| format!("put {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_orchestrator::backup::{EncryptionKind, SegmentFacts};
    use uuid::Uuid;

    fn lineage(number: u128) -> Lineage {
        Lineage(Uuid::from_u128(number))
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    /// A backup with a base backup of `system` from `from`, and one log file that continues to 12:00:00.
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
            log_signed: true,
        };
        let facts = BackupFacts {
            format: 1,
            environment: EnvironmentName::new("staging").unwrap(),
            lineage: of,
            at: at(from),
            bytes: 4,
            sha256: "x".into(),
            sealed: EncryptionKind::Keys,
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
        let known = SegmentFacts { format: 1, bytes: 1, sha256: "x".into(), at: at("12:00:01"), until };
        let part = name(2);
        std::fs::write(log.join(format!("{part}.age")), "part").unwrap();
        std::fs::write(log.join(format!("{part}.json")), json!(known).to_string()).unwrap();
    }

    #[test]
    fn point_in_time_restore_refuses_backups_of_another_deployment() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        copy(folder, "backup_20261120.dump", 7, lineage(1), "10:00:00");
        // The earlier deployment was recreated under the same name and archives into the same directory.
        copy(folder, "backup_20261120-2.dump", 8, lineage(2), "11:00:00");
        let choose = |moment: &str, there: Option<Lineage>| {
            let chosen = choose(&BackupDirectory::at(folder), at(moment), |_: &EnvironmentName| there);
            chosen.map(|file| file.file_name().unwrap().to_owned()).map_err(|failure| (failure.code, failure.error))
        };
        assert_eq!(choose("11:30:00", Some(lineage(1))).unwrap(), "backup_20261120.dump", "not the newest of all");
        assert_eq!(choose("11:30:00", Some(lineage(2))).unwrap(), "backup_20261120-2.dump");
        let (code, error) = choose("10:30:00", Some(lineage(2))).unwrap_err();
        assert!(code == "no_such_moment" && format!("{error:#}").contains("another deployment"), "{error:#}");
        // On a new machine the deployment is ambiguous.
        assert_eq!(choose("10:30:00", None).unwrap(), "backup_20261120.dump");
        let (code, error) = choose("11:30:00", None).unwrap_err();
        assert_eq!(code, "several_deployments");
        let said = error.to_string();
        assert!(said.contains("backup_20261120.dump") && said.contains("backup_20261120-2.dump"), "{said}");
    }
}
