//! The wanted resources of a site, and what an environment has, as files for other tools.

use std::collections::BTreeSet;
use std::fmt::Display;

use anyhow::{Context, anyhow};
use camino::{Utf8Component, Utf8Path};
use textnlp_provider::SiteName;
use textnlp_provider::operations::{Export as Exported, ExportFile, ExportFormat};

use crate::backup::{key, put_file};
use crate::doctor::Select;
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Progress, Scope};

/// The list file in an export folder: the tool, then one exported file per line. The next export there deletes the
/// files that it does not write again.
const LIST: &str = ".textnlp-export";

/// The files of the only site in a cluster.
pub async fn exported(
    chosen: ChosenEnvironment,
    select: Select<'_>,
    tool: ExportFormat<'_>,
    progress: &dyn Progress,
) -> Result<(SiteName, Exported), Failure> {
    let mut deployment = Deployment::wanted(select(chosen)?, false, progress).await?;
    if key::prepare(&deployment.chosen).await? {
        deployment = Deployment::wanted(select(deployment.chosen)?, false, progress).await?;
    }
    let environment = &deployment.chosen.loaded.environment;
    let mut found = Vec::new();
    for (name, site) in &deployment.sites {
        let Scope { platform, folder, .. } = &deployment.chosen.scope;
        let Some(operations) = platform.operations_of(folder, environment, name.as_str(), None)? else { continue };
        let exported = operations.export(&site.wanted, environment.environment.as_str(), tool);
        let exported = exported.map_err(|e| Failure::usage("not_available", e))?;
        found.extend(exported.map(|exported| (exported, name)));
    }
    match (found.pop(), found.is_empty()) {
        (Some((exported, site)), true) => Ok((site.clone(), exported)),
        _ => {
            let error = anyhow!("environment {} must have exactly one site in a cluster", deployment.chosen.scope.name);
            Err(Failure::usage("no_such_site", error)
                .hint("set `runtime: kubernetes` for a site, or choose one of several with --site"))
        }
    }
}

/// Writes the files of an export into a folder. Returns the outdated ones that it removed. `before`: see [`earlier`].
pub fn write_folder(
    folder: &Utf8Path,
    tool: impl Display,
    before: &[String],
    files: &[ExportFile],
) -> Result<Vec<String>, Failure> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let list = |paths: &BTreeSet<&str>| paths.iter().fold(format!("{tool}\n"), |all, path| all + path + "\n");
    let named = files.iter().map(|file| file.path.as_str()).chain(before.iter().map(String::as_str));
    no_links(folder, named.chain([LIST]))?;
    // Written before the files. The next export thus recognises the files of an interrupted one as its own.
    let both = paths.iter().copied().chain(before.iter().map(String::as_str)).collect();
    write(&folder.join(LIST), &list(&both))?;
    for file in files {
        write(&folder.join(&file.path), &file.text)?;
    }
    let mut removed = Vec::new();
    for path in before.iter().map(String::as_str).filter(|path| !paths.contains(path)) {
        match std::fs::remove_file(folder.join(path)) {
            Ok(()) => removed.push(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(anyhow!(error).context(format!("remove {}", folder.join(path))).into()),
        }
    }
    write(&folder.join(LIST), &list(&paths))?;
    Ok(removed)
}

/// The files of the previous export. Refuses a folder with foreign files.
pub fn earlier(folder: &Utf8Path, tool: impl Display) -> Result<Vec<String>, Failure> {
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

/// Refuses links below the folder: the author of a folder that came from elsewhere would choose what is changed by them.
fn no_links<'a>(folder: &Utf8Path, paths: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    for path in paths {
        let mut walked = folder.to_owned();
        for part in Utf8Path::new(path).components() {
            walked.push(part);
            if walked.is_symlink() {
                let error = anyhow!("{walked} is a symbolic link, and nothing was changed");
                return Err(Failure::new(Exit::Refused, "folder_in_use", error)
                    .hint("remove the link, or choose another folder for --out"));
            }
        }
    }
    Ok(())
}

/// Writes a file, with the folders above it.
fn write(path: &Utf8Path, text: &str) -> Result<(), Failure> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {parent}"))?;
    }
    Ok(put_file(path, text.as_bytes()).with_context(|| format!("write {path}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_the_same_export_is_written_to() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let tool = ExportFormat::Helm;
        assert!(earlier(&folder.join("new"), tool).unwrap().is_empty() && earlier(folder, tool).unwrap().is_empty());
        std::fs::write(folder.join("mine"), "").unwrap();
        assert_eq!(earlier(folder, tool).unwrap_err().code, "folder_in_use");
        std::fs::write(folder.join(LIST), format!("{tool}\na.yaml\n../b\n/c\n")).unwrap();
        assert_eq!(earlier(folder, tool).unwrap(), ["a.yaml"]);
        assert_eq!(earlier(folder, ExportFormat::Kustomize).unwrap_err().code, "folder_in_use");
        std::os::unix::fs::symlink("/", folder.join("templates")).unwrap();
        assert!(no_links(folder, ["a.yaml"].into_iter()).is_ok());
        assert_eq!(no_links(folder, ["templates/a.yaml"].into_iter()).unwrap_err().code, "folder_in_use");
    }
}
