//! `export`: writes the recorded or the wanted resources as files for other tools.

use std::collections::BTreeSet;

use camino::Utf8Path;
use textnlp_files::Replace;
use textnlp_provider::operations::{Export as Exported, ExportFormat, NeededSecret};
use textnlp_provider::{Controller, Delivery, Problems, SiteName, Tool};
use textnlp_service::{export, output};

use super::prelude::*;
use super::state;
use crate::deployment::{preflight_failure, selection};
use crate::state_args::{Export, ExportArgoCd, ExportFlux, ExportSource};

/// `export TOOL`.
pub async fn export(session: &Session, command: &Export, console: Console) -> Result<Success, Failure> {
    let delivery;
    let (tool, folder) = match command {
        Export::Terraform { out, planned } => {
            return declared(session, Tool::Terraform, (out.as_deref(), *planned), console).await;
        }
        Export::CloudFormation(args) => {
            return declared(session, Tool::CloudFormation, (Some(&args.folder.out), args.planned), console).await;
        }
        Export::Bicep(args) => {
            return declared(session, Tool::Bicep, (Some(&args.folder.out), args.planned), console).await;
        }
        Export::DeploymentManager => return Err(ended()),
        Export::Yaml { out } => {
            let (exported, about) = exported(session, ExportFormat::Yaml, console).await?;
            return stream(session, exported, about, out.as_deref());
        }
        Export::Kustomize(args) => (ExportFormat::Kustomize, &args.out),
        Export::Helm(args) => (ExportFormat::Helm, &args.out),
        Export::ArgoCd(ExportArgoCd { source, namespace, project, cluster }) => {
            let controller = Controller::ArgoCd { project: project.clone(), cluster: cluster.clone() };
            delivery = checked(source, namespace, controller)?;
            (ExportFormat::Delivery(&delivery), &source.folder.out)
        }
        Export::Flux(ExportFlux { source, namespace, interval, secret }) => {
            let controller = Controller::Flux { interval: *interval, secret: secret.clone() };
            delivery = checked(source, namespace, controller)?;
            (ExportFormat::Delivery(&delivery), &source.folder.out)
        }
    };
    let folder = session.here.join(folder);
    let before = export::earlier(&folder, tool)?;
    let (exported, about) = exported(session, tool, console).await?;
    let removed = export::write_folder(&folder, tool, &before, &exported.files)?;
    let mut text = format!(
        "wrote {} files into {folder}",
        exported.files.iter().map(|file| &file.path).collect::<BTreeSet<_>>().len()
    );
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

/// The delivery that the options describe.
fn checked(source: &ExportSource, namespace: &str, controller: Controller) -> Result<Delivery, Failure> {
    Delivery::new(source.git(), namespace.to_owned(), controller)
        .map_err(|Problems(found)| preflight_failure("export", "invalid_delivery", Exit::Usage, &found))
}

/// What exists, or also what is wanted, in the terms of a tool.
async fn declared(
    session: &Session,
    tool: Tool,
    (out, planned): (Option<&Utf8Path>, bool),
    console: Console,
) -> Result<Success, Failure> {
    match planned {
        true => state::planned(session, tool, out, console).await,
        false => state::declared(session, tool, out, console).await,
    }
}

/// Google shut Deployment Manager down on 31 March 2026 (<https://cloud.google.com/deployment-manager/docs/deprecations>).
fn ended() -> Failure {
    let error = anyhow::anyhow!("Google ended Deployment Manager on 31 March 2026");
    Failure::usage("not_available", error)
        .hint("its successor is Terraform: textnlp-deploy export terraform --out FOLDER")
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
    output::write(&path, Replace::private(), text.as_bytes())?;
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

async fn exported(
    session: &Session,
    tool: ExportFormat<'_>,
    console: Console,
) -> Result<(Exported, ExportScope), Failure> {
    let chosen = session.load_to_run(console)?;
    let environment = chosen.scope.name.to_string();
    let (select, progress) = (|chosen| selection(session, chosen), Progress::new(console));
    let (site, exported) = export::exported(chosen, &select, tool, &progress).await?;
    Ok((exported, ExportScope { environment, site }))
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
