//! Shows the recorded state, current or past. Takes no lock. Only exports in the terms of a cloud call providers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use textnlp_files::Replace;
use textnlp_orchestrator::export;
use textnlp_orchestrator::state::{Changed, PointInTime, RecordedObjects, State, differences};
use textnlp_orchestrator::status::{self, Line};
use textnlp_provider::{Declare, EnvironmentName, Recorded, ResourceId, SiteName, Tool};
use textnlp_service::{export as folders, output};

use super::{no_such, resource_id};
use crate::args::time_or_day;
use crate::commands::prelude::*;
use crate::deployment::{self, Deployment};
use crate::state_args::History;

/// The format version of `state export`.
const EXPORT: u32 = 1;

struct LoadedState {
    deployment: Deployment,
    /// The only site that is shown. `None`: all.
    only: Option<String>,
    state: State,
}

impl LoadedState {
    fn sites(&self) -> impl Iterator<Item = &SiteName> {
        // `--site` filters. A site that exists only in the journal is shown too.
        let only = self.only.as_deref();
        self.state.sites().filter(move |site| only.is_none_or(|only| only == site.as_str()))
    }

    async fn at(&self, moment: PointInTime) -> Result<BTreeMap<ResourceId, RecordedObjects>, Failure> {
        self.is_recorded(moment)?;
        let mut all = BTreeMap::new();
        for site in self.sites() {
            all.extend(self.state.holdings_at(site, moment).await.map_err(|error| self.deployment.failed(error))?);
        }
        Ok(all)
    }

    /// Rejects a record number that no site has: the first is 1.
    fn is_recorded(&self, moment: PointInTime) -> Result<(), Failure> {
        let PointInTime::Record(n) = moment else { return Ok(()) };
        let heads = self.state.heads();
        let last = self.sites().filter_map(|site| heads.get(site)).map(|head| head.n).max().unwrap_or_default();
        if (1..=last).contains(&n) {
            return Ok(());
        }
        let name = &self.deployment.chosen.scope.name;
        let error = anyhow::anyhow!("there is no record {n}: {name} has records 1 to {last}");
        Err(Failure::usage("no_such_record", error).hint(self.deployment.chosen.scope.command("state history")))
    }

    /// Whether a provider declares any of the objects for a tool.
    fn is_declarable(&self, tool: Tool, holdings: &BTreeMap<ResourceId, RecordedObjects>) -> bool {
        let (environment, lineage) = (&self.deployment.chosen.scope.name, self.state.lineage());
        let all: Vec<Recorded> = holdings.values().filter_map(|holding| holding.current.clone()).collect();
        all.iter().any(|object| {
            let request = Declare { tool, environment, lineage, object, beside: &all, is_planned: false };
            self.deployment.sites.get(&object.site).is_some_and(|site| site.provider.declare(&request).is_some())
        })
    }

    async fn lines(&self) -> Result<Vec<Line>, Failure> {
        let mut lines = Vec::new();
        for site in self.sites() {
            lines.extend(status::history(&self.state, site).await.map_err(|error| self.deployment.failed(error))?);
        }
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }
}

async fn load(session: &Session, console: Console) -> Result<LoadedState, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let state = deployment.state().await?;
    if state.is_new() {
        let name = &deployment.chosen.scope.name;
        let error = anyhow::anyhow!("environment {name} has no state in {}", state.place());
        return Err(Failure::usage("not_up", error).hint(deployment.chosen.scope.last_up()));
    }
    Ok(LoadedState { deployment, only: session.global.site.clone(), state })
}

/// `state list`.
pub async fn list(session: &Session, console: Console) -> Result<Success, Failure> {
    let looked = load(session, console).await?;
    let holdings = looked.at(PointInTime::Now).await?;
    let (mut text, mut rows, mut open) = (String::new(), Vec::new(), Vec::new());
    for (id, holding) in &holdings {
        let Some(recorded) = &holding.current else { continue };
        let mut marks = Vec::new();
        marks.extend(recorded.protected.then_some("protected"));
        marks.extend(recorded.tainted.then_some("half-made"));
        marks.extend((!holding.old.is_empty()).then_some("the old object still exists"));
        let _ = writeln!(
            text,
            "{:<36} {:<24} {}  {}",
            id.as_str(),
            recorded.kind.as_str(),
            holding.since.strftime("%Y-%m-%d %H:%M:%S"),
            marks.join(", ")
        );
        rows.push(json!({
            "resource": id, "kind": recorded.kind, "site": recorded.site, "cloud_id": recorded.cloud_id,
            "since": holding.since, "operation": holding.by, "protected": recorded.protected, "tainted": recorded.tainted,
            "old": holding.old.len(),
        }));
    }
    for site in looked.sites() {
        for (operation, one) in looked.state.open(site).map_err(|error| looked.deployment.failed(error))? {
            let op = &one.intent.operation;
            let says = one.says.as_deref().unwrap_or("started");
            let _ = writeln!(text, "{:<36} {} is open since {:.0}: {says}", op.resource.as_str(), op.verb, one.begun);
            open.push(json!({
                "operation": operation, "resource": op.resource, "verb": op.verb, "begun": one.begun, "says": one.says,
            }));
        }
    }
    let held = looked.state.held().await.map_err(|error| looked.deployment.failed(error))?;
    if let Some(hold) = &held {
        let _ = writeln!(text, "frozen by {} since {:.0}: {}", hold.by, hold.since, hold.why);
    }
    let _ = write!(
        text,
        "{} in {} (lineage {})",
        counted(rows.len(), "resource"),
        looked.state.place(),
        looked.state.lineage()
    );
    let document = json!({
        "environment": looked.deployment.chosen.scope.name, "lineage": looked.state.lineage(), "store": looked.state.place(),
        "places": looked.state.places(), "resources": rows, "open": open, "hold": held,
    });
    Ok(Success::new(text, document))
}

/// `state show RESOURCE`.
pub async fn show(session: &Session, resource: &str, console: Console) -> Result<Success, Failure> {
    let resource = resource_id(session, resource)?;
    let looked = load(session, console).await?;
    let name = looked.deployment.chosen.scope.name.clone();
    let holding = looked.at(PointInTime::Now).await?.remove(&resource);
    let holding = holding.ok_or_else(|| no_such(session, &name, &resource))?;
    let text = serde_json::to_string_pretty(&holding).context("write the record")?;
    Ok(Success::new(text, json!({ "environment": name, "resource": resource, "holding": holding })))
}

/// `state history [RESOURCE]`.
pub async fn history(session: &Session, args: &History, console: Console) -> Result<Success, Failure> {
    let resource = args.resource.as_deref().map(|text| resource_id(session, text)).transpose()?;
    let looked = load(session, console).await?;
    let name = looked.deployment.chosen.scope.name.clone();
    let mut lines = looked.lines().await?;
    if let Some(resource) = &resource {
        lines.retain(|line| line.resource.as_ref() == Some(resource));
        if lines.is_empty() {
            return Err(no_such(session, &name, resource));
        }
    }
    let from = lines.len().saturating_sub(args.last.unwrap_or(usize::MAX));
    let several = looked.sites().count() > 1;
    let mut text = String::new();
    for line in &lines[from..] {
        let site = if several { format!("{:<12} ", line.site.as_str()) } else { String::new() };
        let reason = line.reason.as_ref().map_or(String::new(), |reason| format!("  ({reason})"));
        let at = line.at.strftime("%Y-%m-%d %H:%M:%S");
        let _ = writeln!(text, "{:>6}  {at}  {site}{:<10} {}{reason}", line.n, line.by, line.text);
    }
    Ok(Success::new(text, json!({ "environment": name, "lines": &lines[from..] })))
}

/// `state at MOMENT [RESOURCE]`.
pub async fn at(session: &Session, moment: &str, resource: Option<&str>, console: Console) -> Result<Success, Failure> {
    let moment = moment_of(moment)?;
    let resource = resource.map(|text| resource_id(session, text)).transpose()?;
    let looked = load(session, console).await?;
    let name = looked.deployment.chosen.scope.name.clone();
    let holdings = looked.at(moment).await?;
    if let Some(resource) = resource {
        let holding = holdings.get(&resource).ok_or_else(|| no_such(session, &name, &resource))?;
        let text = serde_json::to_string_pretty(holding).context("write the record")?;
        return Ok(Success::new(text, json!({ "environment": name, "resource": resource, "holding": holding })));
    }
    let mut text = String::new();
    let mut rows = Vec::new();
    for (id, holding) in &holdings {
        let Some(recorded) = &holding.current else { continue };
        let since = holding.since.strftime("%Y-%m-%d %H:%M:%S");
        let _ = writeln!(text, "{:<36} {:<24} {since}", id.as_str(), recorded.kind.as_str());
        rows.push(json!({
            "resource": id, "kind": recorded.kind, "site": recorded.site, "cloud_id": recorded.cloud_id, "since": holding.since,
        }));
    }
    let _ = write!(text, "{}", counted(rows.len(), "resource"));
    Ok(Success::new(text, json!({ "environment": name, "resources": rows })))
}

/// `state diff FROM [TO]`.
pub async fn diff(session: &Session, from: &str, to: Option<&str>, console: Console) -> Result<Success, Failure> {
    let (from, to) = (moment_of(from)?, to.map_or(Ok(PointInTime::Now), moment_of)?);
    let looked = load(session, console).await?;
    let changed = differences(&looked.at(from).await?, &looked.at(to).await?);
    let mut text = String::new();
    for Changed { resource, what, fields } in &changed {
        let sign = match *what {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        let _ = writeln!(text, "{sign} {resource}");
        for field in fields {
            let shown = |value: &Option<Value>| value.as_ref().map_or("(nothing)".to_owned(), ToString::to_string);
            let _ = writeln!(text, "    {}: {} → {}", field.field, shown(&field.before), shown(&field.after));
        }
    }
    let _ = match changed.len() {
        0 => write!(text, "no differences"),
        1 => write!(text, "1 resource differs"),
        n => write!(text, "{n} resources differ"),
    };
    Ok(Success::new(text, json!({ "environment": looked.deployment.chosen.scope.name, "changed": changed })))
}

/// `state export [--out FILE]`.
pub async fn export(session: &Session, out: Option<&Utf8Path>, console: Console) -> Result<Success, Failure> {
    let looked = load(session, console).await?;
    let name = looked.deployment.chosen.scope.name.clone();
    let mut open = Vec::new();
    for site in looked.sites() {
        open.extend(looked.state.open(site).map_err(|error| looked.deployment.failed(error))?.into_iter().map(
            |(op, one)| {
                // The handle is left out, because it may permit its holder to continue the operation.
                json!({ "operation": op, "begun": one.begun, "says": one.says, "intent": one.intent })
            },
        ));
    }
    let document = json!({
        "export": EXPORT,
        "environment": name,
        "lineage": looked.state.lineage(),
        "store": looked.state.place(),
        "places": looked.state.places(),
        "heads": looked.state.heads(),
        "resources": looked.at(PointInTime::Now).await?,
        "open": open,
        "hold": looked.state.held().await.map_err(|error| looked.deployment.failed(error))?,
        "history": looked.lines().await?,
    });
    print_or_write(session, &looked, document, out)
}

/// `export terraform`, `cloudformation` and `bicep`.
pub async fn declared(
    session: &Session,
    tool: Tool,
    out: Option<&Utf8Path>,
    console: Console,
) -> Result<Success, Failure> {
    let looked = load(session, console).await.map_err(|failure| match (failure.code, failure.hint.clone()) {
        ("not_up", Some(up)) => failure.hint(format!("{up}; or export what the environment wants: add --planned")),
        _ => failure,
    })?;
    let name = &looked.deployment.chosen.scope.name;
    let holdings = looked.at(PointInTime::Now).await?;
    if !looked.is_declarable(tool, &holdings) {
        if tool == Tool::Terraform {
            return print_or_write(session, &looked, export::terraform(name, looked.state.lineage(), &holdings), out);
        }
        return Err(nothing(name, tool, &[]));
    }
    let (folder, before) = folder_of(session, name, tool, out)?;
    let facts = looked.deployment.facts(&looked.state).await?;
    let flags = session.again().flags(name);
    let exported = export::declared(&facts, &flags, tool).map_err(invalid_file)?;
    write_declared(name, tool, exported, (&folder, &before))
}

/// The same with --planned: also what the environment wants and has no record of.
pub async fn planned(
    session: &Session,
    tool: Tool,
    out: Option<&Utf8Path>,
    console: Console,
) -> Result<Success, Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = deployment::wanted(session, chosen, console).await.map_err(needs_accounts)?;
    let name = &deployment.chosen.scope.name;
    let (folder, before) = folder_of(session, name, tool, out)?;
    let state = deployment.state().await?;
    let state = match state.is_new() {
        true => state.with_lineage(export::proposed_lineage(name, &deployment.places())),
        false => state,
    };
    let facts = deployment.facts(&state).await?;
    for site in deployment.sites.values() {
        site.provider.prepare_declarations(&site.wanted).await.map_err(|error| {
            let hint = error.hint.clone();
            Failure::from(error).hinted(hint)
        })?;
    }
    let flags = session.again().flags(name);
    let exported = export::planned(&facts, &flags, tool).map_err(invalid_file)?;
    if exported.declared.is_empty() {
        return Err(nothing(name, tool, &exported.left));
    }
    write_declared(name, tool, exported, (&folder, &before))
}

/// The reason why an export of what does not exist yet signs in all the same.
fn needs_accounts(failure: Failure) -> Failure {
    if failure.code != "no_way_in" {
        return failure;
    }
    let sign_in = failure.hint.as_ref().map_or(String::new(), |hint| format!("{hint}\n"));
    let hint = format!("{sign_in}permissions to read are sufficient");
    let why = "the export must read the account of each site: its names and tags depend on the account, and it imports what exists there";
    Failure { error: failure.error.context(why), ..failure }.hint(hint)
}

fn invalid_file(error: export::InvalidFile) -> Failure {
    let (code, hint) = match error {
        export::InvalidFile::PrivateCharacters(_) => {
            ("invalid_characters", "remove them from the environment, such as from tags and names")
        }
        export::InvalidFile::TooLarge(..) => (
            "template_too_large",
            "use `export terraform`, or divide the environment: a template has the objects of one site",
        ),
    };
    Failure::usage(code, error).hint(hint)
}

fn nothing(name: &EnvironmentName, tool: Tool, left: &[export::LeftOut]) -> Failure {
    let reasons =
        reasons(left).into_iter().map(|(because, count)| format!("; {}: {because}", counted(count, "resource")));
    let error = anyhow::anyhow!("{name} has no objects that {tool} can declare{}", reasons.collect::<String>());
    Failure::usage("not_available", error)
        .hint("cloudformation is for sites on AWS, bicep for sites on Azure; `export terraform` is for each cloud")
}

/// How many resources are left out for each reason.
fn reasons(left: &[export::LeftOut]) -> BTreeMap<&str, usize> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for one in left {
        *reasons.entry(one.because.as_str()).or_default() += 1;
    }
    reasons
}

/// The folder of an export with several files, and the files of the export before it.
fn folder_of(
    session: &Session,
    name: &EnvironmentName,
    tool: Tool,
    out: Option<&Utf8Path>,
) -> Result<(Utf8PathBuf, Vec<String>), Failure> {
    let Some(out) = out else {
        let error = anyhow::anyhow!("the export of {name} has several files");
        return Err(
            Failure::usage("no_folder", error).hint(format!("add --out FOLDER, such as --out infrastructure/{name}"))
        );
    };
    let folder = session.here.join(out);
    let before = folders::earlier(&folder, tool)?;
    Ok((folder, before))
}

fn write_declared(
    name: &EnvironmentName,
    tool: Tool,
    exported: export::Exported,
    (folder, before): (&Utf8Path, &[String]),
) -> Result<Success, Failure> {
    let removed = folders::write_folder(folder, tool, before, &exported.files)?;
    let mut text = format!(
        "wrote {} into {} in {folder}",
        counted(exported.declared.len(), "resource"),
        counted(exported.files.len(), "file")
    );
    if !removed.is_empty() {
        let _ = write!(text, "\nremoved outdated files: {}", removed.join(", "));
    }
    for (because, count) in reasons(&exported.left) {
        let _ = write!(text, "\nnot declared: {}: {because}", counted(count, "resource"));
    }
    if !exported.variables.is_empty() {
        let all: Vec<&str> = exported.variables.iter().map(String::as_str).collect();
        let _ = write!(text, "\nit contains no secrets; these variables have no default: {}", all.join(", "));
    }
    let _ = write!(text, "\nsee {} for how the tool takes over", folder.join("README.md"));
    let paths: Vec<&String> = exported.files.iter().map(|file| &file.path).collect();
    let document = json!({
        "environment": name, "tool": tool.to_string(), "folder": folder, "files": paths, "removed": removed,
        "declared": exported.declared, "left": exported.left, "variables": exported.variables,
    });
    Ok(Success::new(text, document))
}

/// Prints a document, or writes it to a file.
fn print_or_write(
    session: &Session,
    looked: &LoadedState,
    document: Value,
    out: Option<&Utf8Path>,
) -> Result<Success, Failure> {
    let text = serde_json::to_string_pretty(&document).context("write the document")?;
    let Some(out) = out else { return Ok(Success::new(text, document)) };
    let path = session.here.join(out);
    output::write(&path, Replace::private(), (text + "\n").as_bytes())?;
    let document = json!({ "environment": looked.deployment.chosen.scope.name, "file": path });
    Ok(Success::new(format!("wrote {path}"), document))
}

/// Parses `17`, `2026-05-01T08:00:00Z`, `2026-05-01` or `2h`.
fn moment_of(text: &str) -> Result<PointInTime, Failure> {
    if let Ok(n) = text.parse::<u64>() {
        return Ok(PointInTime::Record(n));
    }
    if let Ok(at) = time_or_day(text) {
        return Ok(PointInTime::Time(at));
    }
    let ago = text.parse::<SignedDuration>().ok().or_else(|| {
        // A day is always 24 hours here.
        let days: i64 = text.strip_suffix('d')?.parse().ok()?;
        SignedDuration::try_from_hours(days.checked_mul(24)?)
    });
    let at = ago.filter(|ago| !ago.is_negative()).and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    at.map(PointInTime::Time).ok_or_else(|| {
        Failure::usage("invalid_moment", anyhow::anyhow!("`{text}` is not a point in time"))
            .hint("write a record number as in `state history`, a date such as 2026-05-01 (UTC), a time such as 2026-05-01T08:00:00Z, or how long ago: 90m, 2h, 3d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_in_time_is_a_record_number_a_timestamp_or_an_age() {
        assert_eq!(moment_of("17").ok(), Some(PointInTime::Record(17)));
        let day = "2026-05-01T00:00:00Z".parse().unwrap();
        assert_eq!(moment_of("2026-05-01").ok(), Some(PointInTime::Time(day)));
        let at = "2026-05-01T08:00:00Z";
        assert_eq!(moment_of(at).ok(), Some(PointInTime::Time(at.parse().unwrap())));
        for ago in ["90m", "2h", "3d", "1h 30m"] {
            assert!(matches!(moment_of(ago), Ok(PointInTime::Time(at)) if at < Timestamp::now()), "{ago}");
        }
        for wrong in ["", "-2h", "yesterday", "99999999999999999999d", "-1", "2026-05-01T08:00", "2026-05-01 08:00:00"]
        {
            assert!(moment_of(wrong).is_err(), "{wrong}");
        }
    }
}
