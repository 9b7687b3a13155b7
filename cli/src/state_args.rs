//! Arguments of `state`, `hold`, `support-bundle` and `export`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use textnlp_provider::GitFolder;
use textnlp_provider::units::Span;

/// See [`crate::args::Command::State`].
#[derive(Debug, Subcommand)]
#[command(after_help = "Read (no lock, no changes):\n  \
    textnlp-deploy state list --env staging                   list recorded resources\n  \
    textnlp-deploy state history here/gateway/process         show a resource's history\n  \
    textnlp-deploy state diff 2h                              show changes of the last two hours\n  \
    textnlp-deploy state at 2026-05-01T08:00:00Z              show the state at that time\n\n\
    Change (each shows its changes and asks first):\n  \
    textnlp-deploy state repair                               check the state and repair damage\n  \
    textnlp-deploy state move --to s3://bucket/prefix         move the state to another store\n  \
    textnlp-deploy state import --lineage UUID                rebuild a lost state from the providers\n  \
    textnlp-deploy state import --from-tfstate state.json     import from a Terraform state")]
pub enum State {
    /// List recorded resources and open operations
    List,
    /// Show the complete record of a resource
    Show {
        /// Resource ID, as shown by `state list`
        resource: String,
    },
    /// List journal records, oldest first
    History(History),
    /// Show the state at an earlier time
    At {
        /// Record number, date (`2026-05-01`, UTC), time (`2026-05-01T08:00:00Z`) or age (`90m`, `2h`, `3d`)
        moment: String,
        /// Show only this resource, with its complete record
        resource: Option<String>,
    },
    /// Compare the state at two times
    Diff {
        /// Record number, date, time or age
        from: String,
        /// Record number, date, time or age to compare with [default: now]
        to: Option<String>,
    },
    /// Check the state and repair what can be repaired safely
    Repair(Repair),
    /// Move the state to another store, or rebind a site
    Move(Move),
    /// Take over a state that was copied, cloned or unpacked; its author decides what runs
    Adopt,
    /// Remove resources from the state without destroying them
    Remove {
        /// Resource IDs, as shown by `state list`
        #[arg(required = true)]
        resources: Vec<String>,
    },
    /// Import existing objects of this deployment into the state
    Import(Import),
    /// Export the state as one JSON document
    Export {
        /// Write to this file [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
}

/// `state history`.
#[derive(Debug, Args)]
pub struct History {
    /// Show only this resource
    pub resource: Option<String>,
    /// Show only this number of the newest records
    #[arg(long, short = 'n', value_name = "LINES")]
    pub last: Option<usize>,
}

/// `state repair`.
#[derive(Debug, Args)]
pub struct Repair {
    /// Accept the loss of missing records; type the environment's name
    #[arg(long, value_name = "ENV")]
    pub accept_loss: Option<String>,
}

/// `state move`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Move {
    /// Move to this store: `local`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`
    #[arg(long, value_name = "STORE", conflicts_with = "rebind")]
    pub to: Option<String>,
    /// Bind this site to the environment's current account, region and runtime
    #[arg(long, value_name = "SITE")]
    pub rebind: Option<String>,
}

/// `state import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Objects to import: `RESOURCE=ID`, with the provider's ID
    #[arg(value_name = "RESOURCE=ID")]
    pub objects: Vec<String>,
    /// Lineage of the deployment, if its state is lost
    #[arg(long, value_name = "UUID")]
    pub lineage: Option<uuid::Uuid>,
    /// Import objects from this Terraform or OpenTofu state file (version 4)
    #[arg(long, value_name = "FILE", conflicts_with = "objects")]
    pub from_tfstate: Option<Utf8PathBuf>,
}

/// See [`crate::args::Command::Hold`].
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    textnlp-deploy hold --env staging --reason 'exam week'   block changes\n  \
    textnlp-deploy hold --env staging                        show the hold\n  \
    textnlp-deploy hold --env staging --release              remove the hold")]
pub struct Hold {
    /// Remove the hold
    #[arg(long)]
    pub release: bool,
}

/// See [`crate::args::Command::SupportBundle`].
#[derive(Debug, Args)]
pub struct SupportBundle {
    /// File to write [default: support-ENV-TIME.tar]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// Number of lines of each log
    #[arg(long, short = 'n', default_value_t = 2000)]
    pub lines: usize,
}

/// See [`crate::args::Command::Export`].
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Export what exists, or what is wanted, as a Terraform configuration
    ///
    /// Each object of a cloud becomes a resource with an `import` block, so that Terraform takes it over instead of creating it.
    /// With --planned, what does not exist yet becomes a resource without one, which `terraform apply` creates.
    /// Without a cloud, each recorded resource becomes a `terraform_data` block, from which Terraform creates nothing.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy export terraform --env staging --out infrastructure          AWS, Google Cloud, Azure\n  \
        cd infrastructure && terraform init && terraform plan -var-file=staging.tfvars\n  \
        textnlp-deploy export terraform --env staging --planned --out infrastructure/aws  before the first `up`\n  \
        textnlp-deploy export terraform --env development --out development.tf.json  your own machines")]
    Terraform {
        /// Write to this folder; without a cloud, to this file [default: stdout]
        #[arg(long, value_name = "FOLDER")]
        out: Option<Utf8PathBuf>,
        /// Also declare wanted objects that are not recorded, for the tool to create
        #[arg(long)]
        planned: bool,
    },
    /// Export what exists, or what is wanted, on AWS as CloudFormation templates
    ///
    /// A second file lists the objects that exist, for a change set that imports them.
    #[command(
        name = "cloudformation",
        after_help = "Example:\n  \
        textnlp-deploy export cloudformation --env staging --out stacks && cat stacks/README.md"
    )]
    CloudFormation(ExportDeclared),
    /// Export what exists, or what is wanted, on Azure as Bicep files
    #[command(after_help = "Example:\n  \
        textnlp-deploy export bicep --env staging --out bicep && cat bicep/README.md")]
    Bicep(ExportDeclared),
    /// Export to Deployment Manager, which Google ended; use `export terraform`
    #[command(hide = true)]
    DeploymentManager,
    /// Export a cluster site as YAML for `kubectl apply`
    ///
    /// Needs neither a cluster nor a running environment.
    #[command(after_help = "Example:\n  \
        textnlp-deploy export yaml --env pilot --out textnlp.yaml && kubectl apply --server-side -f textnlp.yaml")]
    Yaml {
        /// Write to this file [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<Utf8PathBuf>,
    },
    /// Export a cluster site as a Kustomize base
    #[command(after_help = "Example:\n  \
        textnlp-deploy export kustomize --env pilot --out deploy/base && kubectl apply --server-side -k deploy/base")]
    Kustomize(ExportFolder),
    /// Export a cluster site as a Helm chart
    #[command(after_help = "Example:\n  \
        textnlp-deploy export helm --env pilot --out chart && helm lint chart && cat chart/README.md")]
    Helm(ExportFolder),
    /// Export a cluster site for Argo CD, which applies it from a Git repository
    ///
    /// The folder has manifests without secrets, and an Application that refers to them.
    #[command(
        name = "argocd",
        after_help = "Example:\n  \
        textnlp-deploy export argocd --env pilot --repo https://git.example.com/clusters.git --path pilot --out clusters/pilot"
    )]
    ArgoCd(ExportArgoCd),
    /// Export a cluster site for Flux, which applies it from a Git repository
    ///
    /// The folder has manifests without secrets, a GitRepository, and a Kustomization for each stage of the site.
    #[command(after_help = "Example:\n  \
        textnlp-deploy export flux --env pilot --repo https://git.example.com/clusters.git --path pilot --out clusters/pilot")]
    Flux(ExportFlux),
}

/// Where a controller finds an export, once it is committed.
#[derive(Debug, Args)]
pub struct ExportSource {
    /// Repository that the folder is committed to, without credentials: `https://HOST/PATH`, `ssh://git@HOST/PATH`
    // Not parsed by clap, whose errors repeat the value: it may contain a password.
    #[arg(long = "repo", value_name = "URL")]
    pub repository: String,
    /// Path of the folder in the repository; `.` for all of it
    #[arg(long, value_name = "PATH")]
    pub path: String,
    /// Branch, reference (`refs/tags/v1.2.0`) or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    #[command(flatten)]
    pub folder: ExportFolder,
}

impl ExportSource {
    /// The folder of the repository.
    pub fn git(&self) -> GitFolder {
        let Self { repository, path, revision, .. } = self;
        GitFolder { repository: repository.clone(), path: path.clone(), revision: revision.clone() }
    }
}

/// `export argocd`.
#[derive(Debug, Args)]
pub struct ExportArgoCd {
    #[command(flatten)]
    pub source: ExportSource,
    /// Namespace of Argo CD
    #[arg(long, value_name = "NAMESPACE", default_value = "argocd")]
    pub namespace: String,
    /// AppProject of the Application
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub project: String,
    /// Cluster of the site, by its name in Argo CD
    #[arg(long, value_name = "NAME", default_value = "in-cluster")]
    pub cluster: String,
}

/// `export flux`.
#[derive(Debug, Args)]
pub struct ExportFlux {
    #[command(flatten)]
    pub source: ExportSource,
    /// Namespace of Flux
    #[arg(long, value_name = "NAMESPACE", default_value = "flux-system")]
    pub namespace: String,
    /// How often Flux reads the repository and corrects drift
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub interval: Span,
    /// Secret in that namespace with the credentials of the repository
    #[arg(long, value_name = "NAME")]
    pub secret: Option<String>,
}

/// Arguments of an export of objects in a cloud.
#[derive(Debug, Args)]
pub struct ExportDeclared {
    #[command(flatten)]
    pub folder: ExportFolder,
    /// Also declare wanted objects that are not recorded, for the tool to create
    #[arg(long)]
    pub planned: bool,
}

/// Output folder of an export.
#[derive(Debug, Args)]
pub struct ExportFolder {
    /// Folder to write; it must be new, empty, or hold an earlier export
    #[arg(long, value_name = "FOLDER")]
    pub out: Utf8PathBuf,
}
