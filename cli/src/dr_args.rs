//! Arguments of `dr`.

use camino::Utf8PathBuf;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser as _, Subcommand};
use textnlp_orchestrator::dr::fault::FaultKind;
use textnlp_orchestrator::environment::model::Span;

/// See [`crate::args::Command::Dr`].
#[derive(Debug, Subcommand)]
#[command(after_help = "In an incident:\n  \
    textnlp-deploy dr status                 show the primary, lag and data at risk\n  \
    textnlp-deploy dr failover --to SITE     make SITE the primary; refused if data would be lost\n  \
    textnlp-deploy dr failback               make the home site primary again\n\n\
    Before an incident:\n  \
    textnlp-deploy dr drill                  fail the primary on purpose and measure RTO and RPO")]
pub enum Dr {
    /// Show the primary, replication lag and data at risk
    ///
    /// Exits with status 1 when a site is unhealthy.
    Status,
    /// Show the status continuously until Ctrl-C
    Watch,
    /// Make another site the primary
    ///
    /// A live primary hands over, and there is no automatic failback until `dr failback`. A dead primary is replaced after
    /// its grace period.
    Failover(Failover),
    /// Make the home site the primary again
    Failback(Failback),
    /// Run a disaster-recovery drill
    ///
    /// Exits with status 3 when a target is missed.
    Drill(Drill),
    /// List drills with their results, and failovers by commands
    History,
    /// Show the report of a drill
    Report(Report),
    /// Verify the signature of a report
    VerifyReport(VerifyReport),
    /// Revert the fault of a drill in a cluster; started by the supervisor when a drill died
    #[command(hide = true)]
    TakeBack(TakeBack),
}

/// `dr take-back`.
#[derive(Debug, Clone, Default, Args)]
pub struct TakeBack {
    /// State folder of the environment
    #[arg(long, value_name = "FOLDER")]
    pub state: Utf8PathBuf,
    /// ID of the fault
    #[arg(long, value_name = "ID")]
    pub fault: String,
    /// Path of the kubeconfig [default: as for kubectl]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<Utf8PathBuf>,
    /// Context in the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// URL of the API server; a server with another URL is not changed
    #[arg(long, value_name = "URL", required = true)]
    pub api_server: Option<String>,
    /// Environment as JSON, for a cluster that its cloud made
    #[arg(long, value_name = "JSON", requires = "of", conflicts_with_all = ["kubeconfig", "context"])]
    pub environment: Option<String>,
    /// Site in that environment
    // Not `site`: that is every command's.
    #[arg(long, value_name = "SITE", requires = "environment")]
    pub of: Option<String>,
    /// Only check whether the fault could be reverted
    #[arg(long)]
    pub look: bool,
}

/// `dr failover`.
#[derive(Debug, Args)]
pub struct Failover {
    /// Site to make the primary
    #[arg(long, value_name = "SITE")]
    pub to: String,
}

/// `dr failback`.
#[derive(Debug, Args)]
pub struct Failback {
    /// Maximum time for the home site to catch up
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = span)]
    pub wait: Span,
}

/// `dr drill`. Which site: `--site`, else the primary.
#[derive(Debug, Args)]
pub struct Drill {
    /// Fault to inject
    #[arg(long, value_parser = fault(), default_value = "kill")]
    pub fault: FaultKind,
    /// Make the site's data unreadable too; only with `--fault kill`
    #[arg(long)]
    pub lose_data: bool,
    /// End the fault after this time, even if the drill dies
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = span)]
    pub ttl: Span,
    /// Run the drill on the running service; type the environment's name
    #[arg(long, value_name = "ENV")]
    pub live: Option<String>,
    /// Revert and finish interrupted drills of all sites, and inject no fault
    #[arg(long, conflicts_with_all = ["fault", "lose_data", "ttl", "live"])]
    pub finish: bool,
}

/// `dr report`.
#[derive(Debug, Args)]
pub struct Report {
    /// ID of the drill [default: the last one]
    pub id: Option<String>,
    /// Print only the path of the HTML report
    #[arg(long)]
    pub open_path: bool,
}

/// `dr verify-report`.
#[derive(Debug, Args)]
pub struct VerifyReport {
    /// `report.html` or `report.json`, next to its signature
    // Not `file`: that is the environment's.
    #[arg(value_name = "FILE")]
    pub report: Utf8PathBuf,
    /// Public key or key file [default: the environment's key]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

impl TakeBack {
    /// The arguments after the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let mut typed = vec!["dr", "take-back", "--state", self.state.as_str(), "--fault", &self.fault];
        typed.extend(self.api_server.iter().flat_map(|url| ["--api-server", url]));
        typed.extend(self.environment.iter().flat_map(|json| ["--environment", json]));
        typed.extend(self.of.iter().flat_map(|site| ["--of", site]));
        typed.extend(self.kubeconfig.iter().flat_map(|file| ["--kubeconfig", file.as_str()]));
        typed.extend(self.context.iter().flat_map(|context| ["--context", context]));
        typed.extend(self.look.then_some("--look"));
        typed.into_iter().map(str::to_owned).collect()
    }

    /// Parse the arguments of `arguments()`.
    pub fn parse(typed: &[String]) -> Result<Self, String> {
        let program = std::iter::once("textnlp-deploy".to_owned());
        let read = crate::args::Cli::try_parse_from(program.chain(typed.iter().cloned()));
        match read.map_err(|error| error.to_string())?.command {
            crate::args::Command::Dr(Dr::TakeBack(args)) => Ok(args),
            _ => Err("the command that reverts the fault is invalid".to_owned()),
        }
    }
}

/// Parse a fault of a drill.
fn fault() -> impl TypedValueParser<Value = FaultKind> {
    let faults = [
        (FaultKind::Kill, "Kill every process at once"),
        (FaultKind::Freeze, "Freeze every process"),
        (FaultKind::Blackhole, "Cut the network between the site and the others"),
        (FaultKind::DiskFull, "Fill the site's disk; requires a separate filesystem"),
    ];
    PossibleValuesParser::new(faults.map(|(fault, help)| PossibleValue::new(fault.word()).help(help))).try_map(
        move |word| faults.into_iter().find(|(fault, _)| fault.word() == word).map(|(fault, _)| fault).ok_or("unknown"),
    )
}

/// Parse a duration as in environment files.
pub fn span(text: &str) -> Result<Span, String> {
    text.parse::<Span>().map_err(|misread| misread.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_undo_arguments_round_trip() {
        let whole = TakeBack {
            state: "/s t".into(),
            fault: "d-1".to_owned(),
            kubeconfig: Some("/k".into()),
            context: Some("a b".to_owned()),
            api_server: Some("https://127.0.0.1:1".to_owned()),
            environment: None,
            of: None,
            look: false,
        };
        let least = TakeBack { kubeconfig: None, context: None, look: true, ..whole.clone() };
        let of_cloud =
            TakeBack { environment: Some("{\"a\": \"--b\"}".to_owned()), of: Some("main".to_owned()), ..least.clone() };
        for command in [whole, least, of_cloud] {
            let read = TakeBack::parse(&command.arguments()).unwrap();
            assert_eq!(read.arguments(), command.arguments());
        }
        assert!(TakeBack::parse(&["dr".to_owned(), "status".to_owned()]).is_err());
    }
}
