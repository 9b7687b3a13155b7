//! Arguments of `backup` and `restore`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

/// See `Command::Backup`.
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Create a backup of the running service
    Create(Create),
    /// List backups with age and verification result
    List,
    /// Verify a backup by a temporary restore
    ///
    /// With a backup file and --key, or a passphrase and --signed-by, no environment is needed, and no result is recorded.
    Verify(Verify),
    /// Remove backups older than `backup.keep`; keep the newest and the newest verified one
    ///
    /// Lists what is removed, and asks, or needs --yes.
    Prune {
        /// Maximum age instead of `backup.keep`, at least 1d: `14d`
        #[arg(long, value_name = "AGE")]
        keep: Option<String>,
    },
    /// Show the backup encryption key
    #[command(subcommand)]
    Key(Key),
    /// Run the backup schedule; started by the supervisor
    #[command(hide = true)]
    Run(Run),
    /// Archive the PostgreSQL log; started by the supervisor
    #[command(hide = true)]
    Archive(Archive),
    /// Encrypt a database dump into a folder; started by a job in a cluster
    #[command(hide = true)]
    Encrypt(Encrypt),
    /// Decrypt a database dump from a folder; started by a job in a cluster
    #[command(hide = true)]
    Decrypt(Decrypt),
}

/// See [`Backup::Create`].
#[derive(Debug, Args)]
pub struct Create {
    /// Encrypt for this additional public key: `age1…` (repeatable)
    #[arg(long, value_name = "KEY", conflicts_with_all = ["passphrase_file", "passphrase_env", "plain"])]
    pub recipient: Vec<String>,
    #[command(flatten)]
    pub passphrase: Passphrase,
    /// Write an unencrypted backup; it contains every secret
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_env"])]
    pub plain: bool,
    /// Include the models' content
    #[arg(long)]
    pub with_models: bool,
}

/// Source of a passphrase.
#[derive(Debug, Clone, Default, Args)]
pub struct Passphrase {
    /// Use the passphrase in this file
    #[arg(long, value_name = "FILE", env = "TEXTNLP_PASSPHRASE_FILE", conflicts_with = "passphrase_env")]
    pub passphrase_file: Option<Utf8PathBuf>,
    /// Use the passphrase in this environment variable
    #[arg(long, value_name = "VARIABLE")]
    pub passphrase_env: Option<String>,
}

/// How to decrypt a backup.
#[derive(Debug, Clone, Default, Args)]
pub struct Opening {
    /// Key file, as printed by `backup key show` [default: the environment's key on this machine]
    #[arg(long, value_name = "FILE", env = "TEXTNLP_KEY")]
    pub key: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub passphrase: Passphrase,
}

/// See [`Backup::Verify`].
#[derive(Debug, Args)]
pub struct Verify {
    /// Backup file or its name [default: the newest]
    pub backup: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub opening: Opening,
    /// Require the signature of this key, `RW…`; `any` accepts every backup and runs what its database contains [default: the key in the --key file, or of the environment on this machine]
    #[arg(long, value_name = "KEY", env = "TEXTNLP_BACKUP_SIGNER")]
    pub signed_by: Option<String>,
    /// Verify keys and database only; load no model
    #[arg(long)]
    pub light: bool,
}

/// See [`Backup::Key`].
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Print the backup key for off-site storage
    Show {
        /// Write it to this new file, readable only by you, instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
}

/// See [`Backup::Run`].
#[derive(Debug, Args)]
pub struct Run {
    /// State folder of the environment
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// File with the backup settings
    #[arg(long)]
    pub order: Utf8PathBuf,
}

/// See [`Backup::Archive`].
#[derive(Debug, Args)]
pub struct Archive {
    /// State folder of the environment
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// File with the backup settings
    #[arg(long)]
    pub order: Utf8PathBuf,
    /// Data folder of the PostgreSQL server
    #[arg(long)]
    pub postgres: Utf8PathBuf,
}

/// See [`Backup::Encrypt`].
#[derive(Debug, Args)]
pub struct Encrypt {
    /// Dump in the format of `pg_dump --format=custom`; removed once it is stored
    #[arg(long)]
    pub dump: Utf8PathBuf,
    /// File with the result of its verification
    #[arg(long)]
    pub report: Utf8PathBuf,
    /// Folder of the encrypted dumps
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// Remove dumps and their copies older than this, in seconds
    #[arg(long)]
    pub keep: u64,
    /// Encrypt for this public key: `age1…` (repeatable)
    #[arg(long, required = true)]
    pub recipient: Vec<String>,
    /// Copy the encrypted dumps to this folder of a bucket: `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "URL")]
    pub destination: Option<String>,
    /// File with the variables that sign in to the bucket [default: the variables of this process]
    #[arg(long, value_name = "FILE", requires = "destination")]
    pub credentials: Option<Utf8PathBuf>,
}

/// See [`Backup::Decrypt`].
#[derive(Debug, Args)]
pub struct Decrypt {
    /// Folder of the dumps
    #[arg(long)]
    pub folder: Utf8PathBuf,
    /// Name of the dump [default: the newest]
    #[arg(long, env = "DUMP")]
    pub dump: Option<String>,
    /// Key file, as printed by `backup key show`
    #[arg(long)]
    pub key: Utf8PathBuf,
    /// File for the dump
    #[arg(long)]
    pub out: Utf8PathBuf,
    /// File for the name of the dump
    #[arg(long)]
    pub report: Utf8PathBuf,
}

/// See `Command::Restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// Backup file or its name, or with --at a backup folder [default with --at: the environment's own folder]
    #[arg(required_unless_present = "at")]
    pub backup: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub opening: Opening,
    /// Require the signature of this key, `RW…`; `any` accepts every backup [default: the key in the --key file, or of the replaced state]
    #[arg(long, value_name = "KEY", env = "TEXTNLP_BACKUP_SIGNER")]
    pub signed_by: Option<String>,
    /// Replace the state of the same deployment; type the environment's name
    ///
    /// The replaced state is kept as ENV.replaced-TIME.
    #[arg(long, value_name = "ENV")]
    pub replace: Option<String>,
    /// Run `up` after the restore
    #[arg(long)]
    pub up: bool,
    /// Restore the database to this point in time: 2026-11-20T12:00:00Z
    ///
    /// Requires `backup.point_in_time`. Changes acknowledged at that time are included.
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}
