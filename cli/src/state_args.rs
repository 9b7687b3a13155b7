//! What may be typed after `state`, and what belongs to it: `hold`, `doctor`, `support-bundle`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

/// See [`crate::args::Command::State`].
#[derive(Debug, Subcommand)]
#[command(after_help = "Looking (no lock, nothing is changed):\n  \
    textnlp-deploy state list --env staging                   what is recorded\n  \
    textnlp-deploy state history here/gateway/process         everything that ever happened to it\n  \
    textnlp-deploy state diff 2h                              what changed in the last two hours\n  \
    textnlp-deploy state at 2026-05-01T08:00:00Z              what was recorded then\n\n\
    Changing (each says first what it would do, and asks):\n  \
    textnlp-deploy state repair                               what is damaged, and what can be done without a guess\n  \
    textnlp-deploy state move --to s3://bucket/prefix         into another store\n  \
    textnlp-deploy state import --lineage UUID                a lost state again, from what the providers show\n  \
    textnlp-deploy state import --from-tfstate state.json     what a Terraform state names, and why the rest is left")]
pub enum State {
    /// What is recorded, and which operations are open
    List,
    /// One record as a whole
    Show {
        /// A resource id, as `state list` shows it
        resource: String,
    },
    /// What was written down, oldest first
    History(History),
    /// What was recorded at an earlier moment
    At {
        /// A record's number, a time (`2026-05-01T08:00:00Z`), or how long ago (`90m`, `2h`, `3d`)
        moment: String,
        /// Only this resource, with its whole record
        resource: Option<String>,
    },
    /// What differs between two moments
    Diff {
        /// A record's number, a time, or how long ago
        from: String,
        /// The later moment [default: now]
        to: Option<String>,
    },
    /// Looks at every byte of the state, and mends what can be mended without a guess
    Repair(Repair),
    /// Takes the state into another store, or binds a site to the place that the environment says now
    Move(Move),
    /// Lets go of records; the objects themselves stay
    Remove {
        /// Resource ids, as `state list` shows them
        #[arg(required = true)]
        resources: Vec<String>,
    },
    /// Takes objects of this deployment into the record: those that a look finds, or those that are named
    Import(Import),
    /// The whole state as one JSON document
    Export {
        /// Where it goes [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
}

/// `state history`.
#[derive(Debug, Args)]
pub struct History {
    /// Only this resource
    pub resource: Option<String>,
    /// Only this many of the newest lines
    #[arg(long, short = 'n', value_name = "LINES")]
    pub last: Option<usize>,
}

/// `state repair`.
#[derive(Debug, Args)]
pub struct Repair {
    /// Agrees that records which are missing stay missing; the environment's name, typed
    #[arg(long, value_name = "ENV")]
    pub accept_loss: Option<String>,
}

/// `state move`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Move {
    /// The new store: `local`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`
    #[arg(long, value_name = "STORE", conflicts_with = "rebind")]
    pub to: Option<String>,
    /// Binds this site to the account, region and runtime that the environment says now
    #[arg(long, value_name = "SITE")]
    pub rebind: Option<String>,
}

/// `state import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Objects by name: `RESOURCE=ID`, with the provider's own id
    #[arg(value_name = "RESOURCE=ID")]
    pub objects: Vec<String>,
    /// The deployment whose objects are looked for, where the state that knew it is lost
    #[arg(long, value_name = "UUID")]
    pub lineage: Option<uuid::Uuid>,
    /// A state file of Terraform or OpenTofu (version 4): the objects that it names are asked for
    #[arg(long, value_name = "FILE", conflicts_with = "objects")]
    pub from_tfstate: Option<Utf8PathBuf>,
}

/// See [`crate::args::Command::Hold`].
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    textnlp-deploy hold --env staging --reason 'exam week'   `up` and `down` are refused from now on\n  \
    textnlp-deploy hold --env staging                        who holds it, and why\n  \
    textnlp-deploy hold --env staging --release              it may be changed again")]
pub struct Hold {
    /// Lets the environment be changed again
    #[arg(long)]
    pub release: bool,
}

/// See [`crate::args::Command::SupportBundle`].
#[derive(Debug, Args)]
pub struct SupportBundle {
    /// The file to make [default: support-ENV-TIME.tar here]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// How many lines of each log go in
    #[arg(long, short = 'n', default_value_t = 2000)]
    pub lines: usize,
}

/// See [`crate::args::Command::Export`].
#[derive(Debug, Subcommand)]
pub enum Export {
    /// JSON that Terraform and OpenTofu read: each resource as documented data with what it needs; it makes nothing
    #[command(after_help = "Example:\n  \
        textnlp-deploy export terraform --env staging --out staging.tf.json && terraform init && terraform validate")]
    Terraform {
        /// Where it goes [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
    /// The objects of a site in a cluster as one stream of YAML, for `kubectl apply`; nothing has to be up, and no cluster is asked
    #[command(after_help = "Example:\n  \
        textnlp-deploy export yaml --env pilot --out textnlp.yaml && kubectl apply --server-side -f textnlp.yaml")]
    Yaml {
        /// Where it goes [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
    /// The same as a Kustomize base
    #[command(after_help = "Example:\n  \
        textnlp-deploy export kustomize --env pilot --out deploy/base && kubectl apply --server-side -k deploy/base")]
    Kustomize(ExportFolder),
    /// The same as a Helm chart
    #[command(after_help = "Example:\n  \
        textnlp-deploy export helm --env pilot --out chart && helm lint chart && cat chart/README.md")]
    Helm(ExportFolder),
}

/// Where files for another tool go.
#[derive(Debug, Args)]
pub struct ExportFolder {
    /// A folder that is empty, not there yet, or holds an earlier export, which is replaced
    #[arg(long, value_name = "FOLDER")]
    pub out: Utf8PathBuf,
}
