//! `export`: writes the recorded or the wanted resources as files for other tools.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use camino::{Utf8Component, Utf8Path};
use serde_json::json;
use textnlp_provider::SiteName;
use textnlp_provider::operations::{Export as Exported, ExportFormat, NeededSecret};
use textnlp_service::backup::{key, put_file};

use super::state;
use crate::clouds;
use crate::deployment;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::state_args::Export;

/// The list file in an export folder: the tool, then one exported file per line. The next export there deletes the
/// files that it does not write again.
const LIST: &str = ".textnlp-export";

/// `export TOOL`.
pub async fn export(session: &Session, command: &Export, console: Console) -> Result<Success, Failure> {
    let (tool, folder) = match command {
        Export::Terraform { out } => return state::terraform(session, out.as_deref(), console).await,
        Export::Yaml { out } => {
            let (exported, about) = exported(session, ExportFormat::Yaml, console).await?;
            return stream(session, exported, about, out.as_deref());
        }
        Export::Kustomize(args) => (ExportFormat::Kustomize, &args.out),
        Export::Helm(args) => (ExportFormat::Helm, &args.out),
    };
    let folder = session.here.join(folder);
    let before = earlier(&folder, tool)?;
    let (exported, about) = exported(session, tool, console).await?;
    let paths: BTreeSet<&str> = exported.files.iter().map(|file| file.path.as_str()).collect();
    let list = |paths: &BTreeSet<&str>| paths.iter().fold(format!("{tool}\n"), |all, path| all + path + "\n");
    // Written before the files. The next export thus recognises the files of an interrupted one as its own.
    let both = paths.iter().copied().chain(before.iter().map(String::as_str)).collect();
    write(&folder.join(LIST), &list(&both))?;
    for file in &exported.files {
        write(&folder.join(&file.path), &file.text)?;
    }
    let mut removed: Vec<&str> = Vec::new();
    for path in before.iter().map(String::as_str).filter(|path| !paths.contains(path)) {
        match std::fs::remove_file(folder.join(path)) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(anyhow!(error).context(format!("remove {}", folder.join(path))).into()),
        }
    }
    write(&folder.join(LIST), &list(&paths))?;
    let mut text = format!("wrote {} files into {folder}", paths.len());
    if !removed.is_empty() {
        text += &format!("\nremoved outdated files: {}", removed.join(", "));
    }
    text += &lacking(&exported);
    text += &format!("\nsee {} for required secrets and how to apply", folder.join("README.md"));
    let mut document = about.document(&exported);
    document["folder"] = json!(folder);
    document["removed"] = json!(removed);
    Ok(Success::new(text, document))
}

/// Writes one file, or to standard output.
fn stream(
    session: &Session,
    exported: Exported,
    about: ExportScope,
    out: Option<&Utf8Path>,
) -> Result<Success, Failure> {
    let mut document = about.document(&exported);
    let secrets = lacking(&exported);
    let text = exported.files.into_iter().map(|file| file.text).collect::<String>();
    let Some(out) = out else {
        document["text"] = json!(text);
        return Ok(Success::new(text.trim_end(), document));
    };
    let path = session.here.join(out);
    write(&path, &text)?;
    document["file"] = json!(path);
    Ok(Success::new(format!("wrote {path}{secrets}\nits first lines explain how to create them"), document))
}

/// The environment and the site of an export.
struct ExportScope {
    environment: String,
    site: SiteName,
}

impl ExportScope {
    fn document(&self, exported: &Exported) -> serde_json::Value {
        let paths: Vec<&String> = exported.files.iter().map(|file| &file.path).collect();
        let secrets: Vec<_> = exported
            .secrets
            .iter()
            .map(|secret| json!({ "name": secret.name, "type": secret.kind, "keys": secret.keys }))
            .collect();
        json!({ "environment": self.environment, "site": self.site, "files": paths, "secrets": secrets })
    }
}

async fn exported(session: &Session, tool: ExportFormat, console: Console) -> Result<(Exported, ExportScope), Failure> {
    let chosen = session.load_to_run(console)?;
    let mut deployment = deployment::described(session, chosen, console).await?;
    if key::prepare(&deployment.chosen).await? {
        deployment = deployment::described(session, deployment.chosen, console).await?;
    }
    let environment = &deployment.chosen.loaded.environment;
    let mut found = Vec::new();
    for (name, site) in &deployment.sites {
        let Some(operations) =
            clouds::operations_of(&deployment.chosen.scope.folder, environment, name.as_str(), None)?
        else {
            continue;
        };
        let exported = operations.export(&site.wanted, environment.environment.as_str(), tool);
        let exported = exported.map_err(|e| Failure::usage("not_available", e))?;
        found.extend(exported.map(|exported| (exported, name)));
    }
    match (found.pop(), found.is_empty()) {
        (Some((exported, site)), true) => {
            Ok((exported, ExportScope { environment: deployment.chosen.scope.name.to_string(), site: site.clone() }))
        }
        _ => {
            let error = anyhow!("environment {} must have exactly one site in a cluster", deployment.chosen.scope.name);
            Err(Failure::usage("no_such_site", error)
                .hint("set `runtime: kubernetes` for a site, or choose one of several with --site"))
        }
    }
}

/// The files of the previous export. Refuses a folder with foreign files.
fn earlier(folder: &Utf8Path, tool: ExportFormat) -> Result<Vec<String>, Failure> {
    let refused = |why: String| {
        Failure::new(Exit::Refused, "folder_in_use", anyhow!(why)).hint("choose another folder for --out")
    };
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused(format!("{folder} cannot be used: {error}"))),
    };
    match std::fs::read_to_string(folder.join(LIST)) {
        Ok(list) => {
            // The folder may hold your own files for the other tool, such as secrets that only its `.gitignore` keeps
            // out of a repository.
            if list.lines().next() != Some(&tool.to_string()) {
                return Err(refused(format!("{folder} holds an export for another tool, and nothing was changed")));
            }
            // A path outside of the folder is not from an export.
            let below =
                |path: &&str| Utf8Path::new(path).components().all(|part| matches!(part, Utf8Component::Normal(_)));
            Ok(list.lines().skip(1).filter(below).map(str::to_owned).collect())
        }
        Err(_) if entries == 0 => Ok(Vec::new()),
        Err(_) => Err(refused(format!("{folder} holds files that no export wrote, and nothing was changed"))),
    }
}

fn write(path: &Utf8Path, text: &str) -> Result<(), Failure> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {parent}"))?;
    }
    Ok(put_file(path, text.as_bytes()).with_context(|| format!("write {path}"))?)
}

/// The Secrets that are not included, as text.
fn lacking(exported: &Exported) -> String {
    if exported.secrets.is_empty() {
        return String::new();
    }
    let line = |secret: &NeededSecret| match secret.keys.is_empty() {
        true => format!("\n  {}, which is created externally", secret.name),
        false => format!("\n  {}: {}", secret.name, secret.keys.iter().cloned().collect::<Vec<_>>().join(", ")),
    };
    format!(
        "\nit contains no secrets; these must exist in the cluster:{}",
        exported.secrets.iter().map(line).collect::<String>()
    )
}
