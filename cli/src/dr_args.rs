//! What may be typed after `dr`.

use camino::Utf8PathBuf;
use clap::{Args, Parser as _, Subcommand, ValueEnum};
use textnlp_orchestrator::environment::model::Span;

/// See [`crate::args::Command::Dr`].
#[derive(Debug, Subcommand)]
#[command(after_help = "At night:\n  \
    textnlp-deploy dr status                 who is primary, who is behind, what would be lost\n  \
    textnlp-deploy dr failover --to SITE     another site takes over; refused where that would lose data\n  \
    textnlp-deploy dr failback               the home site is primary again, once it has caught up\n\n\
    By day:\n  \
    textnlp-deploy dr drill                  takes the primary away for a moment, and proves that nothing is lost")]
pub enum Dr {
    /// Who is primary, who is behind, and what would be lost; exits with 1 when something is not well
    Status,
    /// The status, again and again until Ctrl-C
    Watch,
    /// Makes another site primary: by a handover while the primary lives, by a claim when it is gone
    Failover(Failover),
    /// Makes the home site primary again, once it has caught up
    Failback(Failback),
    /// Rehearses the loss of a site, and measures what it costs; exits with 3 when a target is missed
    Drill(Drill),
    /// All drills with their figures
    History,
    /// What a drill found
    Report(Report),
    /// Whether a report is as it was signed
    VerifyReport(VerifyReport),
    /// Gives back the nodes of a cluster that a drill took; what keeps the witness begins it when a drill died
    #[command(hide = true)]
    TakeBack(TakeBack),
}

/// `dr take-back`.
#[derive(Debug, Clone, Args)]
pub struct TakeBack {
    /// The environment's state folder
    #[arg(long, value_name = "FOLDER")]
    pub state: Utf8PathBuf,
    /// The fault
    #[arg(long, value_name = "ID")]
    pub fault: String,
    /// The kubeconfig [default: as for kubectl]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<Utf8PathBuf>,
    /// The context in it [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The API server that was lost: another one behind the same names is left alone
    #[arg(long, value_name = "URL")]
    pub api_server: String,
    /// Only asks whether it could be done
    #[arg(long)]
    pub look: bool,
}

/// `dr failover`.
#[derive(Debug, Args)]
pub struct Failover {
    /// The site that becomes primary
    #[arg(long, value_name = "SITE")]
    pub to: String,
}

/// `dr failback`.
#[derive(Debug, Args)]
pub struct Failback {
    /// How long the home site may take to catch up
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = span)]
    pub wait: Span,
}

/// What is done to the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum FaultWord {
    /// Every process is gone at once
    Kill,
    /// Every process stands still
    Freeze,
    /// Nothing passes between the site and the others
    Blackhole,
    /// The site's disk takes no more bytes; only where it has a filesystem of its own
    DiskFull,
}

/// `dr drill`. Which site: `--site`, else the primary.
#[derive(Debug, Args)]
pub struct Drill {
    /// What is done to the site
    #[arg(long, value_enum, default_value_t = FaultWord::Kill)]
    pub fault: FaultWord,
    /// Its data is gone too; only with `--fault kill`
    #[arg(long)]
    pub lose_data: bool,
    /// The fault ends after this, whatever happens to the drill
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = span)]
    pub ttl: Span,
    /// Agrees to rehearse on the running service: the environment's name, typed
    #[arg(long, value_name = "ENV")]
    pub live: Option<String>,
}

/// `dr report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Which drill [default: the last one]
    pub id: Option<String>,
    /// Prints only the path of the page
    #[arg(long)]
    pub open_path: bool,
}

/// `dr verify-report`.
#[derive(Debug, Args)]
pub struct VerifyReport {
    /// `report.html` or `report.json`, with its signature beside it
    // Not `file`: that is the environment's.
    #[arg(value_name = "FILE")]
    pub report: Utf8PathBuf,
    /// The key that must have signed it, or its file [default: the environment's]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

impl TakeBack {
    /// As it is typed, after the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let mut typed = vec!["dr", "take-back", "--state", self.state.as_str(), "--fault", &self.fault];
        typed.extend(["--api-server", &self.api_server]);
        typed.extend(self.kubeconfig.iter().flat_map(|file| ["--kubeconfig", file.as_str()]));
        typed.extend(self.context.iter().flat_map(|context| ["--context", context]));
        typed.extend(self.look.then_some("--look"));
        typed.into_iter().map(str::to_owned).collect()
    }

    /// What was typed so.
    pub fn of(typed: &[String]) -> Result<Self, String> {
        let program = std::iter::once("textnlp-deploy".to_owned());
        let read = crate::args::Cli::try_parse_from(program.chain(typed.iter().cloned()));
        match read.map_err(|error| error.to_string())?.command {
            crate::args::Command::Dr(Dr::TakeBack(args)) => Ok(args),
            _ => Err("what takes the fault back is no command that does".to_owned()),
        }
    }
}

/// A time as in environment files.
fn span(text: &str) -> Result<Span, String> {
    text.parse::<Span>().map_err(|misread| misread.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_fault_back_is_read_as_it_was_written() {
        let whole = TakeBack {
            state: "/s t".into(),
            fault: "d-1".to_owned(),
            kubeconfig: Some("/k".into()),
            context: Some("a b".to_owned()),
            api_server: "https://127.0.0.1:1".to_owned(),
            look: false,
        };
        let least = TakeBack { kubeconfig: None, context: None, look: true, ..whole.clone() };
        for command in [whole, least] {
            let read = TakeBack::of(&command.arguments()).unwrap();
            assert_eq!(read.arguments(), command.arguments());
        }
        assert!(TakeBack::of(&["dr".to_owned(), "status".to_owned()]).is_err());
    }
}
