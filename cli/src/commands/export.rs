//! `export`: what is recorded or wanted, as files for other tools.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use camino::{Utf8Component, Utf8Path};
use serde_json::json;
use textnlp_provider::SiteName;

use super::backup::put_file;
use super::state;
use crate::clouds::{self, Exported, Tool};
use crate::deployment::Deployment;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::state_args::Export;

/// The runtime of sites whose objects are in a cluster.
const IN_CLUSTER: &str = "kubernetes";
/// In the folder of an export: for which tool it is, and the files that it wrote, one a line. The next one there removes those that it does
/// not write again.
const LIST: &str = ".textnlp-export";

/// `export TOOL`.
pub async fn export(session: &Session, command: &Export, console: Console) -> Result<Success, Failure> {
    let (tool, folder) = match command {
        Export::Terraform { out } => return state::terraform(session, out.as_deref(), console).await,
        Export::Yaml { out } => {
            let (exported, about) = exported(session, Tool::Kubectl, console).await?;
            return stream(session, exported, about, out.as_deref());
        }
        Export::Kustomize(args) => (Tool::Kustomize, &args.out),
        Export::Helm(args) => (Tool::Helm, &args.out),
    };
    let folder = session.here.join(folder);
    let before = earlier(&folder, tool)?;
    let (exported, about) = exported(session, tool, console).await?;
    let paths: BTreeSet<&str> = exported.files.iter().map(|(path, _)| path.as_str()).collect();
    let list = |paths: &BTreeSet<&str>| paths.iter().fold(format!("{tool}\n"), |all, path| all + path + "\n");
    // Before any of them is there: what is broken off is gone on with by the next, and nothing of it is taken for somebody else's.
    let both = paths.iter().copied().chain(before.iter().map(String::as_str)).collect();
    write(&folder.join(LIST), &list(&both))?;
    for (path, text) in &exported.files {
        write(&folder.join(path), text)?;
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
        text += &format!("\nremoved what is no longer part of it: {}", removed.join(", "));
    }
    text += &lacking(&exported);
    text += &format!("\n{} says how they are made, and how it is applied", folder.join("README.md"));
    let mut document = about.document(&exported);
    document["folder"] = json!(folder);
    document["removed"] = json!(removed);
    Ok(Success::new(text, document))
}

/// One file, or standard output.
fn stream(session: &Session, exported: Exported, about: About, out: Option<&Utf8Path>) -> Result<Success, Failure> {
    let mut document = about.document(&exported);
    let secrets = lacking(&exported);
    let text = exported.files.into_iter().map(|(_, text)| text).collect::<String>();
    let Some(out) = out else {
        document["text"] = json!(text);
        return Ok(Success::new(text.trim_end(), document));
    };
    let path = session.here.join(out);
    write(&path, &text)?;
    document["file"] = json!(path);
    Ok(Success::new(format!("wrote {path}{secrets}\nits first lines say how they are made"), document))
}

/// Which site of which environment it is of.
struct About {
    environment: String,
    site: SiteName,
}

impl About {
    fn document(&self, exported: &Exported) -> serde_json::Value {
        let paths: Vec<&String> = exported.files.iter().map(|(path, _)| path).collect();
        let secrets: Vec<_> = exported
            .secrets
            .iter()
            .map(|(name, kind, keys)| json!({ "name": name, "type": kind, "keys": keys }))
            .collect();
        json!({ "environment": self.environment, "site": self.site, "files": paths, "secrets": secrets })
    }
}

async fn exported(session: &Session, tool: Tool, console: Console) -> Result<(Exported, About), Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = Deployment::described(session, chosen, console).await?;
    let environment = &deployment.chosen.loaded.environment;
    let mut there = deployment.sites.iter().filter(|(_, site)| site.place.runtime == IN_CLUSTER);
    let (Some((name, site)), None) = (there.next(), there.next()) else {
        let error = anyhow!("environment {} has not exactly one site in a cluster", deployment.chosen.name);
        return Err(Failure::usage("no_such_site", error)
            .hint("set `runtime: kubernetes` for a site, or choose one of several with --site"));
    };
    let exported = clouds::exported(&site.wanted, environment, tool).map_err(|e| Failure::usage("not_available", e))?;
    Ok((exported, About { environment: deployment.chosen.name.to_string(), site: name.clone() }))
}

/// What an export there wrote before. What is not ours is not written into.
fn earlier(folder: &Utf8Path, tool: Tool) -> Result<Vec<String>, Failure> {
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
            // Files of an operator's lie beside those of the other tool: secrets that its own files keep out of a repository.
            if list.lines().next() != Some(&tool.to_string()) {
                return Err(refused(format!("{folder} holds an export for another tool, and nothing was changed")));
            }
            // A path that leads out of the folder was not written by us.
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

/// The Secrets that are no part of it, for a person.
fn lacking(exported: &Exported) -> String {
    if exported.secrets.is_empty() {
        return String::new();
    }
    let line = |(name, _, keys): &(String, String, Vec<String>)| match keys.is_empty() {
        true => format!("\n  {name}, which others make"),
        false => format!("\n  {name}: {}", keys.join(", ")),
    };
    format!("\nit holds no secrets; these have to be there:{}", exported.secrets.iter().map(line).collect::<String>())
}
