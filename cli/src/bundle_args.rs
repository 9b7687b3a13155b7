//! Arguments of `bundle`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use textnlp_bundle::Site;
use textnlp_service::bundle::advisories::RUSTSEC;

/// See [`crate::args::Command::Bundle`].
#[derive(Debug, Subcommand)]
pub enum Bundle {
    /// Create a bundle of programs, models, images and environments
    Create(Create),
    /// Verify every byte of a bundle
    Verify(Verify),
    /// Show the content of a bundle
    Inspect(Inspect),
    /// Compare two bundles
    Diff(Diff),
    /// Install a bundle on this machine, without a network
    Install(Install),
    /// Serve a bundle's images and models over HTTP
    Serve(Serve),
    /// Scan for vulnerabilities, weak settings and leaked secrets
    Scan(Scan),
    /// Create, apply and roll back updates
    #[command(subcommand)]
    Update(Update),
    /// Export a bundle's content in another layout
    Export(Export),
    /// Create a key pair for signing bundles
    Keygen(Keygen),
    /// Sign a bundle in place, or another file beside it
    Sign(Sign),
    /// List the keys that an installation trusts
    Trust(Root),
}

/// `bundle create`.
#[derive(Debug, Args)]
pub struct Create {
    /// File to write
    #[arg(long, env = "TEXTNLP_OUT", value_name = "FILE")]
    pub out: Utf8PathBuf,
    /// Include another environment (repeatable)
    #[arg(long, value_name = "NAME")]
    pub with_env: Vec<String>,
    /// Include another model: SOURCE or NAME=SOURCE (repeatable)
    #[arg(long, value_name = "SOURCE")]
    pub model: Vec<String>,
    /// Include a program: `linux/arm64=FILE`, or FILE to detect its platform (repeatable) [default: this program]
    #[arg(long, value_name = "FILE")]
    pub program: Vec<String>,
    /// Include a container image: `NAME:TAG@sha256:…`, or `oci:FOLDER[:TAG]` (repeatable)
    #[arg(long, value_name = "IMAGE")]
    pub image: Vec<String>,
    /// Include a package file unchanged (repeatable)
    #[arg(long, value_name = "FILE")]
    pub package: Vec<Utf8PathBuf>,
    /// Leave out the container image of the server
    #[arg(long)]
    pub no_server_image: bool,
    /// Version of the bundle [default: this program's]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Split the bundle into FILE.001, FILE.002, … of this size: `4GB`, `700MiB`
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub volume_size: Option<u64>,
    /// Sign with this secret key
    #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
    pub sign_key: Option<Utf8PathBuf>,
    /// Let installations that trust the signing key trust this key too (repeatable)
    #[arg(long, value_name = "KEY.pub")]
    pub next_key: Vec<Utf8PathBuf>,
    /// Let installations that trust the signing key never trust this key again (repeatable)
    #[arg(long, value_name = "KEY.pub")]
    pub revoke: Vec<Utf8PathBuf>,
    /// Include this copy of the RustSec advisory database [default: the newest found]
    ///
    /// A bundle with an air-gapped environment includes the newest of: an earlier clone, the caches of cargo-audit and cargo-deny, and a clone of --advisories-url unless --offline is given.
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ADVISORIES")]
    pub advisories: Option<Utf8PathBuf>,
    /// Clone advisories from this git repository
    #[arg(
        long,
        value_name = "URL",
        env = "TEXTNLP_ADVISORIES_URL",
        default_value = RUSTSEC
    )]
    pub advisories_url: String,
    /// Download nothing: take models from the cache and advisories from folders
    #[arg(long)]
    pub offline: bool,
}

/// How old advisories may be.
#[derive(Debug, Clone, Copy, Args)]
pub struct Age {
    /// Warn if advisories are older than this number of days
    #[arg(long, value_name = "DAYS", default_value_t = textnlp_bundle::scan::MAX_AGE_DAYS, value_parser = clap::value_parser!(i64).range(0..=36_500))]
    pub advisories_max_age: i64,
}

/// Trusted public keys, obtained by another channel than the bundle.
#[derive(Debug, Args)]
pub struct Trust {
    /// Trust signatures of this public key (repeatable)
    #[arg(long, value_name = "KEY.pub", env = "TEXTNLP_TRUST", value_delimiter = ',')]
    pub trust: Vec<Utf8PathBuf>,
}

/// Overrides of what an installation trusts.
#[derive(Debug, Clone, Copy, Args)]
pub struct Overrides {
    /// Forget the keys that the installation has pinned, and pin those of --trust
    #[arg(long)]
    pub forget_trust: bool,
    /// Accept a bundle that is older than the newest one installed
    #[arg(long)]
    pub downgrade: bool,
}

/// `bundle verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Bundle, its first volume, or `-` for standard input
    pub bundle: Utf8PathBuf,
    #[command(flatten)]
    pub trust: Trust,
    /// Verify that this installation accepts the bundle: signed by a pinned key, and not older
    #[arg(long, value_name = "DIR")]
    pub root: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub age: Age,
}

/// `bundle inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// List every file
    #[arg(long)]
    pub files: bool,
    #[command(flatten)]
    pub trust: Trust,
}

/// `bundle diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// First bundle
    pub left: Utf8PathBuf,
    /// Second bundle
    pub right: Utf8PathBuf,
}

/// Installation folder.
#[derive(Debug, Args)]
pub struct Root {
    /// Installation folder for content, environments and state
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ROOT", default_value_t = default_root())]
    pub root: Utf8PathBuf,
}

/// That of the installed program.
fn default_root() -> Utf8PathBuf {
    Site::of_this_program().map_or_else(|| "/opt/textnlp".into(), |site| site.root().to_owned())
}

/// `bundle install`.
#[derive(Debug, Args)]
pub struct Install {
    /// Bundle, its first volume, or `-` for standard input
    pub bundle: Utf8PathBuf,
    #[command(flatten)]
    pub root: Root,
    #[command(flatten)]
    pub trust: Trust,
    #[command(flatten)]
    pub overrides: Overrides,
    /// User that runs the environment [default where root installs: textnlp]
    ///
    /// The user `textnlp` is created if it is missing. `root` runs everything as root.
    #[arg(long, value_name = "NAME", env = "TEXTNLP_USER")]
    pub user: Option<String>,
    /// Unpack and verify, but start nothing
    #[arg(long)]
    pub no_up: bool,
    /// Skip the gate at the end
    #[arg(long)]
    pub no_gate: bool,
    /// Run only the preflight checks
    #[arg(long)]
    pub preflight: bool,
}

/// `bundle serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Address to listen on; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000", env = "TEXTNLP_LISTEN")]
    pub listen: std::net::SocketAddr,
    #[command(flatten)]
    pub trust: Trust,
}

/// `bundle scan`.
#[derive(Debug, Args)]
pub struct Scan {
    /// Bundle or unpacked folder [default: this program and the environment of --env]
    pub target: Option<Utf8PathBuf>,
    /// Write scan.json, scan.html and scan.pdf into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<Utf8PathBuf>,
    /// Folder of RustSec or OSV advisories (repeatable) [default: the bundle's, else the newest on this machine]
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ADVISORIES")]
    pub advisories: Vec<Utf8PathBuf>,
    #[command(flatten)]
    pub age: Age,
    /// Fail on findings of at least this severity
    #[arg(long, value_enum, default_value_t = FailOn::Critical)]
    pub fail_on: FailOn,
    /// File of accepted findings with reasons
    #[arg(long, value_name = "FILE")]
    pub allow: Option<Utf8PathBuf>,
    /// Also write scan_IMAGE.json for each image, scan_configs.json and scan_python_packages.json
    #[arg(long, requires = "out")]
    pub per_image: bool,
    /// Merge existing scan files instead of scanning: `scan_*.json`
    #[arg(long, value_name = "PATTERN", alias = "docker-scans", conflicts_with_all = ["target", "per_image"])]
    pub reports: Option<String>,
}

/// Lowest severity that fails a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Any finding
    Low,
    /// Medium and above
    Medium,
    /// High and critical
    High,
    /// Critical only
    Critical,
}

/// `bundle update …`.
#[derive(Debug, Subcommand)]
pub enum Update {
    /// Create an update with the changes from one bundle to another
    Create {
        /// Installed bundle
        #[arg(long, value_name = "BUNDLE")]
        from: Utf8PathBuf,
        /// New bundle
        #[arg(long, value_name = "BUNDLE")]
        to: Utf8PathBuf,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
        /// Include only these items: `model/textnlp-tiny`, `environment/air-gapped` (repeatable)
        #[arg(long, value_name = "KIND/NAME")]
        only: Vec<String>,
        /// Sign with this secret key
        #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
        sign_key: Option<Utf8PathBuf>,
    },
    /// Apply updates and roll out the result
    Apply {
        /// Updates, in the order to apply
        #[arg(required = true)]
        bundles: Vec<Utf8PathBuf>,
        #[command(flatten)]
        root: Root,
        #[command(flatten)]
        trust: Trust,
        #[command(flatten)]
        overrides: Overrides,
        /// Apply, but start nothing
        #[arg(long)]
        no_up: bool,
        /// Skip the gate at the end
        #[arg(long)]
        no_gate: bool,
    },
    /// Pack models into a zip file for older sites
    ///
    /// Models that do not exist are skipped.
    Zip {
        /// Names of models
        #[arg(required = true)]
        names: Vec<String>,
        /// Folder of the models
        #[arg(long, value_name = "DIR", default_value = "/opt/textnlp/models")]
        models: Utf8PathBuf,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
        /// Version of the update
        #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
    },
    /// Unpack models from a zip file into a folder
    ///
    /// All checksums are verified before any file is replaced.
    Unzip {
        /// Zip file
        file: Utf8PathBuf,
        /// Folder of the models
        #[arg(long, value_name = "DIR", default_value = "/opt/textnlp/models")]
        models: Utf8PathBuf,
    },
    /// Roll back to the previously installed content
    Rollback {
        #[command(flatten)]
        root: Root,
        /// Roll back, but start nothing
        #[arg(long)]
        no_up: bool,
        /// Skip the gate at the end
        #[arg(long)]
        no_gate: bool,
    },
}

/// `bundle export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Layout to write
    #[arg(long, value_enum, default_value_t = Layout::Legacy)]
    pub layout: Layout,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    pub out: Utf8PathBuf,
    #[command(flatten)]
    pub trust: Trust,
}

/// Layouts of an exported bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// `offline_bundle/` with image archives for `docker load` and an install.sh
    Legacy,
}

/// `bundle keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Write NAME.key (secret) and NAME.pub
    #[arg(long, value_name = "NAME", default_value = "textnlp-bundle")]
    pub out: Utf8PathBuf,
    /// Protect the secret key with the password in this file
    #[arg(long, value_name = "FILE", env = "TEXTNLP_PASSWORD_FILE")]
    pub password_file: Option<Utf8PathBuf>,
}

/// `bundle sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// Bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Sign any file: write FILE.minisig beside it
    #[arg(long)]
    pub detached: bool,
    /// Secret key
    #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
    pub key: Utf8PathBuf,
    /// File with the key's password
    #[arg(long, value_name = "FILE", env = "TEXTNLP_PASSWORD_FILE")]
    pub password_file: Option<Utf8PathBuf>,
}

/// A size with its unit: `4GB`, `700MiB`, `1048576`.
fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{unit}` is none of kB, MB, GB, KiB, MiB, GiB")),
    };
    let number: u64 = number.parse().map_err(|_| "a number is missing before the unit".to_owned())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(|| "too large, or nothing".to_owned())
}
