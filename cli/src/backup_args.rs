//! What a person may type after `backup` and `restore`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

/// See `Command::Backup`.
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Makes a copy now, while the service runs
    Create(Create),
    /// Every copy, its age and its proof
    List,
    /// Reads a copy whole and proves it: restored beside, asked with its own key, taken away again
    Verify(Verify),
    /// Removes copies that are older than `backup.keep`; the newest and the newest proven one stay
    Prune {
        /// Another age than `backup.keep`: `14d`, `12h`
        #[arg(long, value_name = "AGE")]
        keep: Option<String>,
    },
    /// The key that opens this environment's copies
    #[command(subcommand)]
    Key(Key),
    /// What the supervisor runs
    #[command(hide = true)]
    Run(Run),
    /// Takes the parts of a PostgreSQL's log: what the supervisor keeps running
    #[command(hide = true)]
    Archive(Archive),
}

/// See [`Backup::Create`].
#[derive(Debug, Args)]
pub struct Create {
    /// Somebody else's public key that opens it too: `age1…`; may be repeated
    #[arg(long, value_name = "KEY", conflicts_with_all = ["passphrase_file", "passphrase_env", "plain"])]
    pub recipient: Vec<String>,
    #[command(flatten)]
    pub passphrase: Passphrase,
    /// Does not seal it: whoever reads the file has every key
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_env"])]
    pub plain: bool,
    /// Takes the models' content in, for places where it cannot be fetched again
    #[arg(long)]
    pub with_models: bool,
}

/// A passphrase, from where it is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct Passphrase {
    /// Sealed with the passphrase in this file
    #[arg(long, value_name = "FILE", env = "TEXTNLP_PASSPHRASE_FILE", conflicts_with = "passphrase_env")]
    pub passphrase_file: Option<Utf8PathBuf>,
    /// Sealed with the passphrase in this variable
    #[arg(long, value_name = "VARIABLE")]
    pub passphrase_env: Option<String>,
}

/// What opens a copy.
#[derive(Debug, Clone, Default, Args)]
pub struct Opening {
    /// The file with the key, as `backup key show` printed it [default: the environment's own, while it is here]
    #[arg(long, value_name = "FILE", env = "TEXTNLP_KEY")]
    pub key: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub passphrase: Passphrase,
}

/// See [`Backup::Verify`].
#[derive(Debug, Args)]
pub struct Verify {
    /// Which copy [default: the newest]
    pub backup: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub opening: Opening,
    /// Loads no model: proves the keys and the database, not an answer
    #[arg(long)]
    pub light: bool,
}

/// See [`Backup::Key`].
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Prints it, to be carried to where a fire here does not reach
    Show,
}

/// See [`Backup::Run`].
#[derive(Debug, Args)]
pub struct Run {
    /// The state folder of the environment
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// What the environment says of copies
    #[arg(long)]
    pub order: Utf8PathBuf,
}

/// See [`Backup::Archive`].
#[derive(Debug, Args)]
pub struct Archive {
    /// The state folder of the environment
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// What the environment says of copies
    #[arg(long)]
    pub order: Utf8PathBuf,
    /// The folder of the PostgreSQL
    #[arg(long)]
    pub postgres: Utf8PathBuf,
}

/// See `Command::Restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The copy; with --at also a folder of them [default with --at: the environment's own]
    #[arg(required_unless_present = "at")]
    pub backup: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub opening: Opening,
    /// Puts it in the place of the same deployment's state; the environment's name, typed. What is replaced is kept beside
    #[arg(long, value_name = "ENV")]
    pub replace: Option<String>,
    /// Runs `up` right after
    #[arg(long)]
    pub up: bool,
    /// A moment to go back to, with its zone: 2026-11-20T12:00:00Z. Takes `backup.point_in_time`; what was stored in that very moment is there
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}
