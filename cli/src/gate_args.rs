//! Arguments of `gate` and `phase`.

use clap::{Args, Subcommand};
use textnlp_orchestrator::environment::model::Phase as PhaseName;

/// See [`crate::args::Command::Gate`].
#[derive(Debug, Args)]
pub struct Gate {
    /// Measure again, even when valid evidence exists
    #[arg(long)]
    pub again: bool,
    /// Accept that this check cannot be measured, with --until and --reason (repeatable)
    #[arg(long, value_name = "CHECK", requires = "until")]
    pub waive: Vec<String>,
    /// Last day (UTC) of the waivers, at most 90 days from today: `2026-12-31`
    #[arg(long, value_name = "DATE", requires = "waive")]
    pub until: Option<jiff::civil::Date>,
    #[command(flatten)]
    pub audit: AuditArgs,
}

/// See [`crate::args::Command::Phase`].
#[derive(Debug, Subcommand)]
pub enum Phase {
    /// List the phases in order
    List,
    /// Show a phase: prerequisites, steps, monitoring, checks of the gate, deliverables and rollback
    #[command(after_help = "Examples:\n  \
        textnlp-deploy phase show pilot               with the limits of the shipped environment\n  \
        textnlp-deploy phase show --env staging       with the limits of your environment")]
    Show {
        /// Name of the phase [default: that of the environment]
        #[arg(value_name = "PHASE", value_parser = phase)]
        phase: Option<PhaseName>,
    },
}

fn phase(word: &str) -> Result<PhaseName, String> {
    let all = PhaseName::ALL;
    all.into_iter()
        .find(|phase| phase.as_str() == word)
        .ok_or_else(|| format!("the phases are {}", all.map(|phase| phase.as_str()).join(", ")))
}

/// The advisories of a gate or an audit.
#[derive(Debug, Clone, Default, Args)]
pub struct AuditArgs {
    /// Use these advisories for the check of known vulnerabilities: a folder, or the URL of a git repository [default: the recorded ones]
    #[arg(long, value_name = "DIR|URL", env = "TEXTNLP_ADVISORIES")]
    pub advisories: Option<String>,
}
