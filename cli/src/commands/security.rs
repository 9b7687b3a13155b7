//! `security audit`: what is known of the security of a running environment, with evidence and the command that fixes it.

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_files::Replace;
use textnlp_service::checks::CheckLine;
use textnlp_service::security::{self, sarif};
use textnlp_service::{output, running};

use super::prelude::*;
use crate::check_view;
use crate::deployment::{self, Deployment};
use crate::gate_args::AuditArgs;
use crate::operations_args::{Security, SecurityAudit};

/// `security …`.
pub async fn security(session: &Session, command: &Security, console: Console) -> Result<Success, Failure> {
    let Security::Audit(SecurityAudit { full, sarif: file, audit }) = command;
    let (deployment, lines) = lines(session, audit, *full, console).await?;
    let name = &deployment.chosen.scope.name;
    if let Some(file) = file {
        let environment = deployment.chosen.loaded.files.first().map(String::as_str);
        let subject = sarif::SarifSubject {
            environment: name.as_str(),
            file: &relative(environment.unwrap_or_default(), name.as_str()),
            at: Timestamp::now(),
        };
        let document = serde_json::to_vec_pretty(&sarif::document(&subject, &lines))?;
        output::write(file, Replace::umask(), &document)?;
    }
    let rows: Vec<Value> = lines.iter().map(CheckLine::document).collect();
    let document = json!({ "environment": name, "full": full, "sarif": file, "lines": rows });
    Ok(check_view::states(&lines, &counted(lines.len(), "line"), document, console))
}

/// The lines of an audit, with its progress.
pub async fn lines(
    session: &Session,
    args: &AuditArgs,
    is_full: bool,
    console: Console,
) -> Result<(Deployment, Vec<CheckLine>), Failure> {
    let chosen = session.load(console)?;
    let running = running::running(&chosen.scope).await?;
    let deployment = deployment::recorded(session, chosen).await?;
    let progress = Progress::new(console);
    let sources = session.advisories();
    let given = match &args.advisories {
        Some(from) => Some(sources.given(from, &progress).await?.database),
        None => None,
    };
    let advisories = (&sources, given.as_ref());
    let audited = security::audit(&deployment, &running, &session.library, advisories, is_full, &progress).await;
    progress.finish();
    Ok((deployment, audited?.lines))
}

/// The path of an environment file in its repository: code-scanning services take no absolute paths.
fn relative(file: &str, name: &str) -> String {
    let file = Utf8Path::new(file);
    let here = std::env::current_dir().ok().and_then(|here| Utf8PathBuf::from_path_buf(here).ok());
    let inside = here.and_then(|here| file.strip_prefix(here).ok().map(Utf8Path::to_owned));
    match inside {
        Some(inside) => inside.into_string(),
        None if file.is_relative() && file.extension().is_some() => file.as_str().to_owned(),
        None => format!("environments/{name}.yaml"),
    }
}
