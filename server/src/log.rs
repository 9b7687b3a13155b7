//! The log: one JSON object per line, to a file or to standard output. Requests are lines with the target `access`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Monitoring;

/// Starts logging. The file is opened for appending, so that rotation by copy and truncate loses nothing.
pub(crate) fn begin(monitoring: &Monitoring) -> std::io::Result<()> {
    let level = monitoring.log_level;
    // Libraries log warnings and above; sqlx would otherwise log every statement.
    let targets = Targets::new()
        .with_default(level.min(tracing::Level::WARN))
        .with_target("textnlp", level)
        .with_target("access", level.max(tracing::Level::INFO));
    let spans = if monitoring.enable_tracing { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let format =
        tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false).with_span_events(spans);
    let registry = tracing_subscriber::registry().with(targets);
    // A subscriber that is there already (a test's, a program's that embeds us) stays.
    match &monitoring.log_file {
        Some(path) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
            let _ = registry.with(format.with_writer(std::sync::Mutex::new(file))).try_init();
        }
        None => {
            let _ = registry.with(format).try_init();
        }
    }
    Ok(())
}
