//! Arguments of `alert`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

/// See [`crate::args::Command::Alert`].
#[derive(Debug, Subcommand)]
#[command(after_help = "Receivers are named in the environment file:\n  \
    monitoring:\n    \
    receivers:\n      \
    oncall: secret:env:ONCALL_URL     # https://hooks.example.com/… with its token\n      \
    team: secret:env:TEAM_MAIL        # smtps://USER:PASSWORD@HOST?from=a@example.com&to=b@example.com\n\n\
    Examples:\n  \
    textnlp-deploy alert test --env staging                   send a test message to every receiver\n  \
    textnlp-deploy alert list --env staging                   list active alerts and unsent messages")]
pub enum Alert {
    /// Send a test message to every receiver
    Test(Test),
    /// List active alerts and unsent messages
    List,
    /// Send queued alerts; started by the supervisor
    #[command(hide = true)]
    Send(Send),
}

/// `alert test`.
#[derive(Debug, Args)]
pub struct Test {
    /// Use only this receiver (repeatable)
    #[arg(long, value_name = "NAME")]
    pub receiver: Vec<String>,
}

/// `alert send`.
#[derive(Debug, Args)]
pub struct Send {
    /// Folder of the site
    #[arg(long)]
    pub folder: Utf8PathBuf,
}
