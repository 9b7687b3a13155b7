//! What may be typed after `alert`.

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
    textnlp-deploy alert test --env staging                   a message to every receiver, now\n  \
    textnlp-deploy alert list --env staging                   what is wrong, and what waits to be sent")]
pub enum Alert {
    /// Sends a message to every receiver, and says of each whether it arrived
    Test(Test),
    /// What the supervisors see going wrong now, and what still waits to be sent
    List,
    /// What the supervisor runs
    #[command(hide = true)]
    Send(Send),
}

/// `alert test`.
#[derive(Debug, Args)]
pub struct Test {
    /// Only this receiver; may be repeated
    #[arg(long, value_name = "NAME")]
    pub receiver: Vec<String>,
}

/// `alert send`.
#[derive(Debug, Args)]
pub struct Send {
    /// The folder of the site
    #[arg(long)]
    pub folder: Utf8PathBuf,
}
