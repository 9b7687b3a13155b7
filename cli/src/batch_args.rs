//! Arguments of `batch`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

use crate::server_args::OtherServer;

/// See [`crate::args::Command::Batch`].
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    textnlp-deploy batch submit --env staging requests.jsonl --wait\n  \
    textnlp-deploy batch list --env staging\n  \
    textnlp-deploy batch show --env staging batch_0199f2\n  \
    textnlp-deploy batch results --env staging batch_0199f2 --out results.jsonl\n  \
    textnlp-deploy batch cancel --env staging batch_0199f2\n  \
    textnlp-deploy batch delete --env staging batch_0199f2\n\n\
    `server.batch.enabled: true` turns batches on. The format of the file: docs/guide/batches.md")]
pub enum Batch {
    /// Send a file of requests, and create a batch of them
    ///
    /// The file is checked first, and one report has all its problems; nothing is sent of a file with problems. With --wait the
    /// command ends when the batch has ended, with status 1 unless every request has an answer.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy batch submit --env staging requests.jsonl\n  \
        textnlp-deploy batch submit --env staging requests.jsonl --wait\n\n\
        A line of the file:\n  \
        {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Once\"}}")]
    Submit(BatchSubmit),
    /// List batches, the newest first
    List(BatchList),
    /// Show a batch: its status, and the count of its requests with a result
    Show(BatchShow),
    /// Print the results of a batch that has ended, or a file
    ///
    /// One JSON document a line: first the answers, then the errors, each in the order of the requests.
    Results(BatchResults),
    /// Cancel the requests of a batch that have not run
    Cancel(BatchId),
    /// Delete the texts of a batch that has ended: its requests and its results; or a file
    ///
    /// The batch stays in the list, without texts, until the time of `server.batch.retention_days`.
    Delete(BatchId),
}

/// `batch submit`.
#[derive(Debug, Args)]
pub struct BatchSubmit {
    /// File of requests, one JSON document a line
    pub requests: Utf8PathBuf,
    /// Wait until the batch has ended
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub other: OtherServer,
}

/// `batch list`.
#[derive(Debug, Args)]
pub struct BatchList {
    /// Number of batches
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// List those before this batch
    #[arg(long, value_name = "ID", value_parser = id)]
    pub after: Option<String>,
    #[command(flatten)]
    pub other: OtherServer,
}

/// `batch show`.
#[derive(Debug, Args)]
pub struct BatchShow {
    #[command(flatten)]
    pub batch: BatchId,
    /// Wait until the batch has ended
    #[arg(long)]
    pub wait: bool,
}

/// `batch results`.
#[derive(Debug, Args)]
pub struct BatchResults {
    #[command(flatten)]
    pub batch: BatchId,
    /// Write to this file [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
}

/// The batch of a command.
#[derive(Debug, Args)]
pub struct BatchId {
    /// ID of the batch; `results` and `delete` take that of a file too
    #[arg(value_parser = id)]
    pub id: String,
    #[command(flatten)]
    pub other: OtherServer,
}

/// An id of a batch or of a file: it becomes a part of a path.
fn id(typed: &str) -> Result<String, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match (1..=64).contains(&typed.len()) && typed.bytes().all(is_plain) {
        true => Ok(typed.to_owned()),
        false => Err("expected an id, such as batch_0199f2: `batch list` shows them"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::Cli;

    fn is_valid(words: &[&str]) -> bool {
        Cli::try_parse_from(["textnlp-deploy", "batch"].iter().chain(words)).is_ok()
    }

    #[test]
    fn ids_cannot_leave_their_part_of_a_path() {
        let long = "a".repeat(65);
        for verb in ["show", "results", "cancel", "delete"] {
            assert!(is_valid(&[verb, "batch_0199f2"]), "{verb}");
            for wrong in ["", "../keys", "a/b", "a%2f", "a?b", long.as_str()] {
                assert!(!is_valid(&[verb, wrong]), "{verb} {wrong}");
            }
        }
        assert!(!is_valid(&["list", "--after", "a/b"]));
    }

    #[test]
    fn pages_of_the_list_are_bounded() {
        for (limit, valid) in [("0", false), ("1", true), ("100", true), ("101", false)] {
            assert_eq!(is_valid(&["list", "--limit", limit]), valid, "{limit}");
        }
    }
}
