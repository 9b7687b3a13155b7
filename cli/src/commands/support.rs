//! `support-bundle`: creates one file for support, with secrets redacted.
//!
//! It contains documents and logs, never files as they are. The environment is the output of `env show`, and the state
//! is that of `state export`. Every line is then compared with all secrets of the environment that this machine stores
//! or refers to. A line with a match is replaced, and the list of files counts such lines.

use jiff::Timestamp;
use textnlp_service::logs;
use textnlp_service::support::{self, SupportFile};

use super::prelude::*;
use super::{doctor, state, status};
use crate::state_args::SupportBundle;

/// `support-bundle [--out FILE]`.
pub async fn support_bundle(session: &Session, args: &SupportBundle, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let now = Timestamp::now();
    let file =
        args.out.clone().unwrap_or_else(|| format!("support-{name}-{}.tar", now.strftime("%Y%m%dT%H%M%SZ")).into());
    let path = session.here.join(file);
    let quiet = session.quiet();
    let mut pieces = vec![("environment.yaml".to_owned(), chosen.loaded.to_yaml(false))];
    let document_of = |result: Result<Success, Failure>| match result {
        Ok(success) => Value::Object(success.document),
        Err(failure) => json!({ "error": format!("{:#}", failure.error), "hint": failure.hint }),
    };
    let documents = [
        ("doctor.json", document_of(doctor::doctor(session, quiet).await)),
        ("status.json", document_of(status::status(session, quiet).await)),
        ("state.json", document_of(state::exported(session, quiet).await)),
    ];
    for (name, document) in documents {
        pieces.push((name.to_owned(), format!("{document:#}")));
    }
    for (process, log) in logs::newest(&chosen.scope.folder, args.lines)? {
        pieces.push((format!("logs/{process}.log"), log));
    }
    let machine = json!({
        "program": concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")),
        "at": now,
        "system": rustix::system::uname().release().to_string_lossy(),
        "architecture": std::env::consts::ARCH,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
    });
    pieces.push(("machine.json".to_owned(), format!("{machine:#}")));
    let SupportFile { bytes, names, listed, left_out } = support::write(&chosen, &path, pieces, now)?;
    let mut text = format!("{path}  {}\n{}", size(bytes), listed.trim_end());
    text.push_str("\nIt is an uncompressed tar file: review it before you send it.");
    let document =
        json!({ "environment": name, "file": path, "bytes": bytes, "files": names, "lines_left_out": left_out });
    Ok(Success::new(text, document))
}
