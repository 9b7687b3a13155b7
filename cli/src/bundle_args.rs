//! What may be typed after `bundle`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};

/// See [`crate::args::Command::Bundle`].
#[derive(Debug, Subcommand)]
pub enum Bundle {
    /// Seals programs, models, images and environments into one file
    Create(Create),
    /// Checks every byte of a bundle
    Verify(Verify),
    /// What is in a bundle
    Inspect(Inspect),
    /// What differs between two bundles
    Diff(Diff),
    /// Installs a bundle on this machine, with no network
    Install(Install),
    /// Serves a bundle's images and models to others, straight from the file
    Serve(Serve),
    /// Looks for known vulnerabilities, weak settings and forgotten secrets
    Scan(Scan),
    /// Makes and applies bundles that hold only what changed
    #[command(subcommand)]
    Update(Update),
    /// Writes a bundle's content in another layout
    Export(Export),
    /// Makes a pair of keys to sign bundles with
    Keygen(Keygen),
    /// Signs a bundle in place
    Sign(Sign),
}

/// `bundle create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The file to write
    #[arg(long, env = "TEXTNLP_OUT", value_name = "FILE")]
    pub out: Utf8PathBuf,
    /// A further environment beside the one of --env; may be repeated
    #[arg(long, value_name = "NAME")]
    pub with_env: Vec<String>,
    /// A further model: a source, or NAME=SOURCE; may be repeated
    #[arg(long, value_name = "SOURCE")]
    pub model: Vec<String>,
    /// The program for a platform: `linux/arm64=FILE`, or FILE, whose platform is read; may be repeated [default: this program]
    #[arg(long, value_name = "FILE")]
    pub program: Vec<String>,
    /// A container image: `NAME:TAG@sha256:…` of a registry, or `oci:FOLDER[:TAG]`; may be repeated
    #[arg(long, value_name = "IMAGE")]
    pub image: Vec<String>,
    /// A package of an operating system or a language, taken as it is; may be repeated
    #[arg(long, value_name = "FILE")]
    pub package: Vec<Utf8PathBuf>,
    /// Leaves out the container image of the server
    #[arg(long)]
    pub no_server_image: bool,
    /// The version that the bundle says it has [default: this program's]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Splits the file into FILE.001, FILE.002, … of this size: `4GB`, `700MiB`
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub volume_size: Option<u64>,
    /// Signs with this secret key
    #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
    pub sign_key: Option<Utf8PathBuf>,
    /// A folder of RustSec advisories, carried along for scans on the other side
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ADVISORIES")]
    pub advisories: Option<Utf8PathBuf>,
    /// Takes models only from the cache
    #[arg(long)]
    pub offline: bool,
}

/// Which keys are trusted: they come on another way than the bundle.
#[derive(Debug, Args)]
pub struct Trust {
    /// A public key whose signature is believed; may be repeated
    #[arg(long, value_name = "KEY.pub", env = "TEXTNLP_TRUST", value_delimiter = ',')]
    pub trust: Vec<Utf8PathBuf>,
}

/// `bundle verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The bundle, its first volume, or `-` for standard input
    pub bundle: Utf8PathBuf,
    #[command(flatten)]
    pub trust: Trust,
}

/// `bundle inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Lists every file
    #[arg(long)]
    pub files: bool,
    #[command(flatten)]
    pub trust: Trust,
}

/// `bundle diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// One bundle
    pub left: Utf8PathBuf,
    /// Another
    pub right: Utf8PathBuf,
}

/// Where bundles are installed.
#[derive(Debug, Args)]
pub struct Root {
    /// Where content, environments and state are kept
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ROOT", default_value = "/opt/textnlp")]
    pub root: Utf8PathBuf,
}

/// `bundle install`.
#[derive(Debug, Args)]
pub struct Install {
    /// The bundle, its first volume, or `-` for standard input
    pub bundle: Utf8PathBuf,
    #[command(flatten)]
    pub root: Root,
    #[command(flatten)]
    pub trust: Trust,
    /// Unpacks and verifies, and starts nothing
    #[arg(long)]
    pub no_up: bool,
    /// Starts, and does not measure the gate
    #[arg(long)]
    pub no_gate: bool,
    /// Only looks for what would stand in the way
    #[arg(long)]
    pub preflight: bool,
}

/// `bundle serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000", env = "TEXTNLP_LISTEN")]
    pub listen: std::net::SocketAddr,
    #[command(flatten)]
    pub trust: Trust,
}

/// `bundle scan`.
#[derive(Debug, Args)]
pub struct Scan {
    /// A bundle or an unpacked folder [default: this program and the environment of --env]
    pub target: Option<Utf8PathBuf>,
    /// Where reports are written: scan.json, scan.html, scan.pdf
    #[arg(long, value_name = "DIR")]
    pub out: Option<Utf8PathBuf>,
    /// A folder of RustSec advisories, or of OSV files; may be repeated [default: those that the bundle carries]
    #[arg(long, value_name = "DIR", env = "TEXTNLP_ADVISORIES")]
    pub advisories: Vec<Utf8PathBuf>,
    /// The severity that shuts the gate
    #[arg(long, value_enum, default_value_t = FailOn::Critical)]
    pub fail_on: FailOn,
    /// Findings that are known and borne, with reasons
    #[arg(long, value_name = "FILE")]
    pub allow: Option<Utf8PathBuf>,
    /// Writes one file for each image, scan_IMAGE.json, and scan_configs.json into the folder of --out
    #[arg(long, requires = "out")]
    pub per_image: bool,
    /// Scans nothing, and makes one report of those that are there: `scan_*.json`
    #[arg(long, value_name = "PATTERN", alias = "docker-scans", conflicts_with_all = ["target", "per_image"])]
    pub reports: Option<String>,
}

/// From which severity on a scan is no pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Anything that is found
    Low,
    /// Medium and worse
    Medium,
    /// High and critical
    High,
    /// Critical alone
    Critical,
}

/// `bundle update …`.
#[derive(Debug, Subcommand)]
pub enum Update {
    /// Seals what is new in one bundle against another
    Create {
        /// The bundle that the site has
        #[arg(long, value_name = "BUNDLE")]
        from: Utf8PathBuf,
        /// The bundle that the site shall have
        #[arg(long, value_name = "BUNDLE")]
        to: Utf8PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
        /// Only these items: `model/textnlp-tiny`, `environment/air-gapped`; may be repeated
        #[arg(long, value_name = "KIND/NAME")]
        only: Vec<String>,
        /// Signs with this secret key
        #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
        sign_key: Option<Utf8PathBuf>,
    },
    /// Applies such bundles onto what is installed, and rolls to it
    Apply {
        /// The bundles, in the order in which they are applied
        #[arg(required = true)]
        bundles: Vec<Utf8PathBuf>,
        #[command(flatten)]
        root: Root,
        #[command(flatten)]
        trust: Trust,
        /// Applies, and starts nothing
        #[arg(long)]
        no_up: bool,
        /// Starts, and does not measure the gate
        #[arg(long)]
        no_gate: bool,
    },
    /// Puts models of a folder into a zip file, as older sites take them; a model that is not there is skipped
    Zip {
        /// The models
        #[arg(required = true)]
        names: Vec<String>,
        /// The folder that holds them
        #[arg(long, value_name = "DIR", default_value = "/opt/textnlp/models")]
        models: Utf8PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
        /// The version that the update says it has
        #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
    },
    /// Brings the models of such a zip file into a folder; nothing is replaced before all of it was compared
    Unzip {
        /// The zip file
        file: Utf8PathBuf,
        /// The folder
        #[arg(long, value_name = "DIR", default_value = "/opt/textnlp/models")]
        models: Utf8PathBuf,
    },
    /// Goes back to the content that was installed before
    Rollback {
        #[command(flatten)]
        root: Root,
        /// Goes back, and starts nothing
        #[arg(long)]
        no_up: bool,
        /// Starts, and does not measure the gate
        #[arg(long)]
        no_gate: bool,
    },
}

/// `bundle export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// Which layout
    #[arg(long, value_enum, default_value_t = Layout::Legacy)]
    pub layout: Layout,
    /// The folder to write into
    #[arg(long, value_name = "DIR")]
    pub out: Utf8PathBuf,
    #[command(flatten)]
    pub trust: Trust,
}

/// How a bundle's content may be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// `offline_bundle/` with image archives that `docker load` reads, and its own install.sh
    Legacy,
}

/// `bundle keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// The two files: NAME.key, which is secret, and NAME.pub
    #[arg(long, value_name = "NAME", default_value = "textnlp-bundle")]
    pub out: Utf8PathBuf,
    /// Protects the secret key with the password in this file
    #[arg(long, value_name = "FILE", env = "TEXTNLP_PASSWORD_FILE")]
    pub password_file: Option<Utf8PathBuf>,
}

/// `bundle sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// The bundle, or its first volume
    pub bundle: Utf8PathBuf,
    /// The secret key
    #[arg(long, value_name = "FILE", env = "TEXTNLP_SIGN_KEY")]
    pub key: Utf8PathBuf,
    /// The file with the key's password
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
