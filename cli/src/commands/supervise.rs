//! The supervisor, which only this program starts, and shell completions.

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::{CommandFactory, Parser};

use crate::args::{Cli, Completions, Supervise};
use crate::clouds;
use crate::report::{Exit, Failure, Success};

/// What a supervisor is told; only this program starts one.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct SuperviseArgs {
    /// The site's folder
    #[arg(long)]
    folder: Utf8PathBuf,
    /// Become this child instead
    #[arg(long)]
    child: Option<String>,
    /// Order or renew the public certificate of the site instead
    #[arg(long)]
    certificate: bool,
}

/// `supervise`: hidden, started by the provider.
pub fn supervise(args: &Supervise) -> Result<Success, Failure> {
    let args = SuperviseArgs::try_parse_from(&args.args).map_err(|e| Failure::new(Exit::Usage, "usage", e))?;
    if args.certificate {
        clouds::supervise::renew_certificate(&args.folder)
            .map_err(anyhow::Error::msg)
            .context("order the public certificate")?;
        return Ok(Success::default());
    }
    clouds::supervise::run(&args.folder, args.child.as_deref()).context("supervise")?;
    Ok(Success::default())
}

/// `completions SHELL`.
pub fn completions(args: &Completions) -> Success {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "textnlp-deploy", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if args.shell == clap_complete::Shell::Bash {
        // clap_complete 4.6 writes the hyphen of this program's name in two ways, and then no command below the top has candidates.
        script = script.replace("textnlp__subcmd__deploy", "textnlp__deploy");
    }
    Success::new(script, serde_json::json!({ "shell": args.shell.to_string() }))
}
