//! Command-line arguments. Most global flags can also be set by a variable `TEXTNLP_<FLAG>`.

use camino::Utf8PathBuf;
use clap::parser::ValueSource;
use clap::{Args, Parser, Subcommand, ValueEnum};
use textnlp_models::WeightFormat;
use textnlp_orchestrator::environment::model::Span;
use textnlp_orchestrator::load::Mix;
use textnlp_provider::units::Bytes;

use crate::server_args::OtherServer;

/// Deploy your own text-generation service anywhere.
#[derive(Debug, Parser)]
#[command(
    name = "textnlp-deploy",
    version,
    about = "Deploy your own text-generation service anywhere",
    long_about = "Deploy your own text-generation service anywhere.\n\n\
                  One environment file describes the service. `up` plans the changes, applies them and measures a gate on \
                  the running service. An interrupted command resumes when you run it again.",
    after_help = "Examples:\n  \
        textnlp-deploy up --env staging          deploy and verify; print the address, the key and a curl command\n  \
        textnlp-deploy plan --env staging        show what `up` would do; change nothing\n  \
        textnlp-deploy generate \"Once upon a time\"   generate text with the running service\n  \
        textnlp-deploy status --env staging      show what runs, and drift\n  \
        textnlp-deploy down --env staging        remove everything that holds no data\n\n\
        Exit statuses: 0 done, 1 failed, 2 usage, 3 a gate is not open, 4 refused for safety, 5 stopped and resumable, 6 changes or drift.",
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Use the environment with this name
    #[arg(long, global = true, env = "TEXTNLP_ENV", value_name = "NAME", help_heading = "Environment")]
    pub env: Option<String>,
    /// Use this environment file
    #[arg(
        long,
        global = true,
        env = "TEXTNLP_FILE",
        value_name = "PATH",
        conflicts_with = "env",
        help_heading = "Environment"
    )]
    pub file: Option<Utf8PathBuf>,
    /// Set one value for this run: `--set gates.users=20` (repeatable)
    #[arg(long, global = true, value_name = "KEY=VALUE", help_heading = "Environment")]
    pub set: Vec<String>,
    /// Keep state, keys and reports in this folder [default: .textnlp beside `environments/`, else the user's state directory]
    #[arg(long, global = true, env = "TEXTNLP_STATE_DIR", value_name = "DIR", help_heading = "Environment")]
    pub state_dir: Option<Utf8PathBuf>,
    /// Whether `--state-dir` was typed: an installed site ignores the variable.
    #[arg(skip)]
    pub is_state_dir_typed: bool,
    /// Limit the command to this site; commands that concern all sites ignore TEXTNLP_SITE
    #[arg(long, global = true, env = "TEXTNLP_SITE", value_name = "NAME", help_heading = "Environment")]
    pub site: Option<String>,
    /// Use this provider for every site
    #[arg(long, global = true, env = "TEXTNLP_PROVIDER", value_name = "NAME", help_heading = "Environment")]
    pub provider: Option<String>,
    /// Approve the plan without a prompt
    #[arg(long, short = 'y', global = true, env = "TEXTNLP_YES", help_heading = "Behaviour")]
    pub yes: bool,
    /// Force ownership of a field on a server-side apply conflict: `--take-ownership spec.replicas` (repeatable)
    #[arg(long, global = true, value_name = "FIELD", help_heading = "Behaviour")]
    pub take_ownership: Vec<String>,
    /// Record this reason in the journal
    #[arg(long, global = true, env = "TEXTNLP_REASON", value_name = "TEXT", help_heading = "Behaviour")]
    pub reason: Option<String>,
    /// Set the output format
    #[arg(long, short = 'o', global = true, env = "TEXTNLP_OUTPUT", value_enum, default_value_t = Output::Text, help_heading = "Behaviour")]
    pub output: Output,
    /// Print more; `-vv` prints everything
    #[arg(long, short = 'v', global = true, action = clap::ArgAction::Count, help_heading = "Behaviour")]
    pub verbose: u8,
    /// Print only results and errors
    #[arg(
        long,
        short = 'q',
        global = true,
        env = "TEXTNLP_QUIET",
        help_heading = "Behaviour",
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
    /// Deploy this program as server and gateway [default: `textnlp-server` beside this program, else this program]
    #[arg(long, global = true, env = "TEXTNLP_SERVER", value_name = "FILE", help_heading = "Environment")]
    pub server: Option<Utf8PathBuf>,
}

impl Cli {
    /// The command line with what only clap's matches tell.
    pub fn of_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = <Self as clap::FromArgMatches>::from_arg_matches(matches)?;
        cli.global.is_state_dir_typed = matches.value_source("state_dir") == Some(ValueSource::CommandLine);
        Ok(cli)
    }
}

/// Format of the results on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people
    Text,
    /// One JSON document, also on failure
    Json,
    /// One JSON event a line; the last line is the document
    Jsonl,
}

/// The output format of an invalid command line: its `--output`, else the variable.
pub fn output_of(args: impl Iterator<Item = String>) -> Output {
    let mut wanted = std::env::var("TEXTNLP_OUTPUT").ok();
    let mut before = String::new();
    for arg in args {
        let value = arg.strip_prefix("--output=").or_else(|| arg.strip_prefix("-o").filter(|v| !v.is_empty()));
        if let Some(value) = value {
            wanted = Some(value.trim_start_matches('=').to_owned());
        } else if before == "--output" || before == "-o" {
            wanted = Some(arg.clone());
        }
        before = arg;
    }
    wanted.and_then(|word| Output::from_str(&word, true).ok()).unwrap_or(Output::Text)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy the shipped environment files into a folder
    Init(Init),
    /// Show, check and create environment files
    #[command(subcommand)]
    Env(Env),
    /// List providers and whether each is available
    Providers,
    /// Check for problems that would make `up` fail
    Preflight,
    /// Show what `up` would do; change nothing
    Plan(Plan),
    /// Apply a saved plan exactly, or change nothing
    Apply(Apply),
    /// Deploy an environment and measure its gate
    Up(Up),
    /// Show what runs, and drift
    Status,
    /// Show a resource's state, dependencies and history
    Explain(Explain),
    /// Show logs of the running processes, and their errors
    Logs(Logs),
    /// Group the errors of logs, with their likely causes
    #[command(after_help = "Examples:\n  \
        textnlp-deploy analyze --env staging --since 1h\n  \
        journalctl --unit textnlp --output cat | textnlp-deploy analyze -\n  \
        kubectl logs --prefix --timestamps --selector app=textnlp-api | textnlp-deploy analyze -")]
    Analyze(Analyze),
    /// Show metrics of the running service over a period
    #[command(subcommand)]
    Metrics(crate::operations_args::Metrics),
    /// Show insights into the usage of each hour: summaries, and what was unusual
    #[command(subcommand)]
    Analytics(crate::operations_args::Analytics),
    /// Probe the running service from outside, and record its availability
    ///
    /// Each probe generates one token, as a client does. The gates of pilot and optimized read the record. Exits with status 5
    /// when it is stopped before the time of --for.
    Probe(crate::operations_args::Probe),
    /// Report what the deployment and its tokens cost
    #[command(subcommand)]
    Cost(crate::operations_args::Cost),
    /// Report what the service did in a month
    #[command(subcommand)]
    Performance(crate::operations_args::Performance),
    /// Record cost and speed, and compare later releases with them
    #[command(subcommand)]
    Baseline(crate::operations_args::Baseline),
    /// Measure the gate on the running service
    Gate(crate::gate_args::Gate),
    /// List the phases, and show the steps, monitoring and checks of each
    #[command(subcommand)]
    Phase(crate::gate_args::Phase),
    /// Remove everything that holds no data
    Down(Down),
    /// Show differences between recorded and observed state
    Drift {
        /// Exit with status 6 when there is drift
        #[arg(long)]
        exit_code: bool,
    },
    /// Inspect, repair, move and import state
    #[command(subcommand)]
    State(crate::state_args::State),
    /// Block `up` and `down` for an environment, or release it
    Hold(crate::state_args::Hold),
    /// Check the machine, state and service, and suggest fixes
    Doctor,
    /// Export to Terraform, CloudFormation, Bicep, YAML, Kustomize, Helm, Argo CD or Flux
    #[command(subcommand)]
    Export(crate::state_args::Export),
    /// Maintain and measure the database
    #[command(subcommand)]
    Db(crate::operations_args::Db),
    /// Remove old files that nothing needs: programs, models, logs
    Cleanup(crate::operations_args::Cleanup),
    /// Create a support bundle (secrets redacted)
    SupportBundle(crate::state_args::SupportBundle),
    /// Create, list, rotate and revoke API keys
    #[command(subcommand)]
    Key(Key),
    /// Show and change feature flags of the running service
    #[command(subcommand)]
    Feature(Feature),
    /// Rotate signing keys, certificate authorities and database passwords
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Show and export the audit log: who did what, when and from where
    #[command(subcommand)]
    Audit(Audit),
    /// Check what the environment depends on: database, stores, registries, DNS, model sources
    ///
    /// Each line has its address, whether it answers and how fast, and otherwise the cause and a fix. Without a subcommand,
    /// nothing is changed. Exits with status 1 when a dependency failed.
    Deps(crate::operations_args::Deps),
    /// Report which controls of GDPR, HIPAA or SOC 2 a running environment meets
    #[command(subcommand)]
    Compliance(crate::operations_args::Compliance),
    /// Report what is known of the security of a running environment
    #[command(subcommand)]
    Security(crate::operations_args::Security),
    /// Show, set and compare releases
    #[command(subcommand)]
    Release(Release),
    /// Promote a tested release to another environment
    Promote(Promote),
    /// Set the release lock back to an earlier release
    Rollback(Rollback),
    /// Show, promote, abort or pause a rollout in a cluster
    #[command(subcommand)]
    Rollout(Rollout),
    /// List, pull and inspect models
    #[command(subcommand)]
    Model(Model),
    /// Create, verify, install and update offline bundles
    #[command(subcommand)]
    Bundle(Box<crate::bundle_args::Bundle>),
    /// Manage disaster recovery: status, failover, failback, drills
    #[command(subcommand)]
    Dr(crate::dr_args::Dr),
    /// Create, list, verify and prune backups
    #[command(subcommand)]
    Backup(crate::backup_args::Backup),
    /// Test alert receivers and list active alerts
    #[command(subcommand)]
    Alert(crate::alert_args::Alert),
    /// Restore a deployment from a backup
    Restore(crate::backup_args::Restore),
    /// Generate text with the running service
    Generate(Generate),
    /// Chat with the running service
    Chat(Chat),
    /// Show the tokens of a text
    Tokenize(Tokenize),
    /// Make embeddings of texts
    Embed(Embed),
    /// Send files of requests that are answered later, and read their results
    #[command(subcommand)]
    Batch(crate::batch_args::Batch),
    /// Score a text against a reference (BLEU, ROUGE)
    Validate(Validate),
    /// Check whether the running service is healthy
    Health(crate::operations_args::Health),
    /// Run a load test against the service or an endpoint
    Load(Load),
    #[command(flatten)]
    Server(ServerCommand),
    /// Run a site's supervisor
    #[command(hide = true)]
    Supervise(Supervise),
    /// Serve the custom metrics API for the autoscaler; runs in the cluster
    #[command(hide = true)]
    Adapter(Adapter),
    /// Print a credential for an EKS, GKE or AKS cluster (kubeconfig `exec` plugin)
    #[command(subcommand)]
    KubeToken(KubeToken),
    /// Print a shell completion script
    Completions(Completions),
    /// Print the manual page, or write the pages of all commands
    Man(Man),
}

/// See [`Command::KubeToken`].
#[derive(Debug, Clone, Subcommand)]
pub enum KubeToken {
    /// Sign in to an EKS cluster with the AWS default credential chain
    Aws {
        /// Name of the cluster; the token is valid for this cluster only
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// Region of the cluster [default: AWS_REGION, else the profile's, else the machine's]
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
        /// AWS profile; takes precedence over AWS_ACCESS_KEY_ID
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
        /// IAM role to assume
        #[arg(long, value_name = "ARN")]
        role_arn: Option<String>,
    },
    /// Sign in to GKE clusters with application default credentials
    Gcp,
    /// Sign in to an AKS cluster with Entra ID
    ///
    /// Tries a federated token, a client secret, a client certificate, a managed identity and the Azure CLI, in this order.
    Azure {
        /// Application ID of the API server
        #[arg(long, value_name = "ID", default_value = "6dae42f8-4368-4678-94ff-3960e28e3630")]
        server_id: String,
        /// Entra tenant [default: AZURE_TENANT_ID]
        #[arg(long, value_name = "ID")]
        tenant: Option<String>,
        /// Application or managed identity that signs in [default: AZURE_CLIENT_ID]
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
    },
}

/// See [`Command::Rollout`].
#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Show the current rollout, or the result of the last one
    Status,
    /// Promote the new release now, if its pods are ready
    Promote,
    /// Abort the rollout and revert to the old release now
    Abort,
    /// Pause the rollout (the deadline keeps running)
    Pause,
    /// Resume a paused rollout
    Resume,
    /// Allow a reverted release to be tried again unchanged
    Retry,
    /// Analyse the new pods and finish the rollout; runs in the cluster
    #[command(hide = true)]
    Watch {
        /// Folder with the service account's token and CA certificate
        #[arg(long)]
        account: Utf8PathBuf,
        /// Folder with the token and CA certificate of the Prometheus server to query
        #[arg(long)]
        prometheus: Option<Utf8PathBuf>,
        /// Enable weighted traffic splitting
        #[arg(long)]
        shares: bool,
    },
}

/// See [`Command::Adapter`].
#[derive(Debug, Args)]
pub struct Adapter {
    /// Folder with the service account's token and CA certificate
    #[arg(long)]
    pub account: Utf8PathBuf,
    /// Folder with `tls.crt` and `tls.key` of this server
    #[arg(long)]
    pub tls: Utf8PathBuf,
    /// Namespace of the pods
    #[arg(long)]
    pub namespace: String,
    /// Label selector of the pods: `app=textnlp-api`
    #[arg(long)]
    pub pods: String,
    /// Address to listen on
    #[arg(long)]
    pub address: std::net::IpAddr,
    /// Port to listen on
    #[arg(long)]
    pub port: u16,
}

/// See [`Command::Init`].
#[derive(Debug, Args)]
pub struct Init {
    /// Create `environments/` in this folder
    #[arg(default_value = ".", value_name = "DIR")]
    pub dir: Utf8PathBuf,
}

/// See [`Command::Env`].
#[derive(Debug, Subcommand)]
pub enum Env {
    /// List environments and where each one is found
    List,
    /// Show an environment with all layers applied
    Show {
        /// Name of the environment [default: the one of --env]
        name: Option<String>,
        /// Show where every value comes from
        #[arg(long)]
        explain: bool,
    },
    /// Compare two environments
    Diff {
        /// First environment
        left: String,
        /// Second environment
        right: String,
    },
    /// Check environments and report every problem at once
    Check {
        /// Names of environments [default: the one of --env, else all]
        names: Vec<String>,
    },
    /// Create an environment file
    New {
        /// Name of the new environment
        name: String,
        /// Environment to extend
        #[arg(long, value_name = "NAME", default_value = "staging")]
        from: String,
    },
    /// Convert an older configuration file to an environment file
    Migrate {
        /// The file to convert
        from: Utf8PathBuf,
        /// Write to this file [default: stdout]
        #[arg(long, value_name = "PATH")]
        out: Option<Utf8PathBuf>,
    },
    /// Print the JSON Schema of environment files
    Schema,
}

/// See [`Command::Plan`].
#[derive(Debug, Args)]
pub struct Plan {
    /// Exit with status 6 when changes are planned, 4 when some are refused, and 1 when some cannot be planned now
    #[arg(long)]
    pub exit_code: bool,
    /// Plan `down` instead of `up`
    #[arg(long, conflicts_with = "gated")]
    pub down: bool,
    /// Plan a gate before removals, as `up --gated` does
    #[arg(long)]
    pub gated: bool,
    /// Plan the removal of data too; type the environment's name
    #[arg(long, value_name = "ENV", requires = "down")]
    pub delete_data: Option<String>,
    /// Plan the removal of the dumps in the cluster too; type the environment's name
    #[arg(long, value_name = "ENV", requires = "down", conflicts_with = "delete_data")]
    pub delete_dumps: Option<String>,
    /// Plan an empty database in place of a lost one; type the environment's name
    #[arg(long, value_name = "ENV", conflicts_with = "down")]
    pub accept_data_loss: Option<String>,
    /// Compare with the recorded state only, without reading the sites
    #[arg(long, conflicts_with_all = ["out", "policy"])]
    pub no_refresh: bool,
    /// Save the plan for `apply`
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// List every price with its source and date
    #[arg(long)]
    pub costs: bool,
    /// Print only the least-privilege policy for this plan
    #[arg(long, conflicts_with_all = ["costs", "exit_code", "out"])]
    pub policy: bool,
    /// Compare the monthly cost on these providers, by list prices: `aws,gcp=us-central1,azure`
    ///
    /// Each is a provider, or a provider and a region. No provider is asked, and no credentials are needed. Without a region,
    /// sites of another provider are where most prices are recorded: us-east-1 (aws), us-central1 (gcp) or westeurope (azure). A
    /// provider without some price is not ranked. Exits with status 1 when every provider refuses the environment.
    #[arg(long, value_name = "PROVIDERS", value_delimiter = ',',
          conflicts_with_all = ["exit_code", "down", "gated", "no_refresh", "out", "costs", "policy"])]
    pub compare: Vec<String>,
    /// Print the permissions boundary for the roles of this plan instead
    #[arg(long, requires = "policy")]
    pub boundary: bool,
    /// Write each document of --policy to a file of its own in this folder
    #[arg(long, value_name = "FOLDER", requires = "policy")]
    pub policy_folder: Option<Utf8PathBuf>,
}

/// See [`Command::Apply`].
#[derive(Debug, Args)]
#[command(
    after_help = "A saved plan counts as approval: there is no prompt. `apply` plans again from the current state. When the result differs\n\
                        from the saved plan, it names what changed and changes nothing.\n\n\
                        Example:\n  \
        textnlp-deploy plan --env staging --out staging.plan     save a plan for review\n  \
        textnlp-deploy apply staging.plan                        apply it after the review"
)]
pub struct Apply {
    /// File written by `plan --out`
    #[arg(value_name = "PLAN")]
    pub plan: Utf8PathBuf,
    /// Skip the gate at the end
    #[arg(long)]
    pub no_gate: bool,
    /// In an emergency, enter a phase without the evidence of the phase before; the journal records the --reason
    #[arg(long)]
    pub from_scratch: bool,
}

/// See [`Command::Up`].
#[derive(Debug, Default, Args)]
pub struct Up {
    /// Skip the gate at the end
    #[arg(long, conflicts_with = "gated")]
    pub no_gate: bool,
    /// Remove replaced and unwanted resources only after the gate is open
    #[arg(long)]
    pub gated: bool,
    /// In an emergency, enter a phase without the evidence of the phase before; the journal records the --reason
    #[arg(long)]
    pub from_scratch: bool,
    /// Create an empty database in place of a lost one; type the environment's name
    ///
    /// With `data: protected`, `up` is refused while the database is gone: its disk may not be mounted, or a backup is to
    /// be restored first.
    #[arg(long, value_name = "ENV")]
    pub accept_data_loss: Option<String>,
    /// Prompt of the first text
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

/// See [`Command::Explain`].
#[derive(Debug, Args)]
pub struct Explain {
    /// Resource ID, as shown by `status`
    pub resource: String,
}

/// See [`Command::Logs`].
#[derive(Debug, Args)]
pub struct Logs {
    #[command(subcommand)]
    pub command: Option<crate::operations_args::LogsCommand>,
    /// Name of the process, in a cluster of the pod or container [default: all]
    pub name: Option<String>,
    /// Number of lines of each process or container [default: 40]
    #[arg(long, short = 'n')]
    pub lines: Option<usize>,
    /// Follow the logs
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Show only lines of at least this level
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,
}

/// See [`Command::Analyze`].
#[derive(Debug, Args)]
pub struct Analyze {
    /// Files with logs, `-` for standard input [default: the last 4 MiB of each log of the environment, with --since all of its
    /// logs since then; in a cluster at most 20,000 lines]
    #[arg(value_name = "FILE")]
    pub files: Vec<Utf8PathBuf>,
    /// Lines since this date (UTC), time or duration before now: `1h`, `2026-11-01`
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
}

/// See [`Command::Down`].
#[derive(Debug, Args)]
pub struct Down {
    /// Remove data too; type the environment's name
    #[arg(long, value_name = "ENV")]
    pub delete_data: Option<String>,
    /// Remove the dumps in the cluster too, of a database that a cloud runs; type the environment's name
    ///
    /// The database stays, with the cloud's own backups and the copies in a bucket. Without the volume of dumps the
    /// cluster and its nodes can be removed.
    #[arg(long, value_name = "ENV", conflicts_with = "delete_data")]
    pub delete_dumps: Option<String>,
}

/// See [`Command::Key`].
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Create a key and print it once
    Create {
        /// Description of the key, at most 200 bytes
        #[arg(value_parser = key_name)]
        name: String,
        /// Tenant that owns the key
        #[arg(long, default_value = "default", value_parser = tenant_id)]
        tenant: String,
        /// Request limit: `1000/hour`, `20/minute`
        #[arg(long, value_name = "RATE")]
        rate_limit: Option<String>,
        /// Token limit: `100000/hour`
        #[arg(long, value_name = "RATE")]
        token_rate_limit: Option<String>,
        /// Tokens that the key may ever use, with all its bearer tokens [default: unlimited]
        #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
        token_limit: Option<u64>,
        /// Days until the key expires, 1 to 36500 [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=textnlp_server::auth::key::MAX_EXPIRY_DAYS))]
        expires_days: Option<u32>,
        /// Allow this scope (repeatable) [default: everything but `admin`]
        #[arg(long = "scope", value_name = "SCOPE", value_parser = scope_values())]
        scopes: Vec<String>,
    },
    /// List keys without their secrets
    ///
    /// `--output json` has all keys.
    List {
        /// Include the keys of gates, load tests and drills that have ended
        #[arg(long)]
        all: bool,
    },
    /// Replace the secret of a key
    ///
    /// The first key is in the secret store: it is replaced there, and `up` runs.
    Rotate {
        /// Public ID, as shown by `key list`, or the whole key
        #[arg(value_parser = public_id)]
        id: String,
        /// How long the replaced first key stays valid: `1h`, `7d` [default: not at all]
        #[arg(long, value_name = "TIME", value_parser = crate::dr_args::span)]
        grace: Option<Span>,
        /// Skip the gate of that `up`
        #[arg(long)]
        no_gate: bool,
    },
    /// Revoke a key immediately
    ///
    /// The first key needs another key with all scopes that does not expire. The next `up` creates a new first key.
    Revoke {
        /// Public ID, as shown by `key list`, or the whole key
        #[arg(value_parser = public_id)]
        id: String,
    },
}

/// A description of a key, as the database and the audit log accept it.
fn key_name(typed: &str) -> Result<String, &'static str> {
    match textnlp_server::auth::key::is_name(typed) {
        true => Ok(typed.to_owned()),
        false => Err("expected 1 to 200 bytes without control characters"),
    }
}

fn tenant_id(typed: &str) -> Result<String, &'static str> {
    match textnlp_server::auth::tenant::is_tenant_id(typed) {
        true => Ok(typed.to_owned()),
        false => Err("expected 1 to 40 of a-z, 0-9, - and _, beginning with a letter or a digit"),
    }
}

/// The public ID in what was typed. A whole key is never repeated in an error.
fn public_id(typed: &str) -> Result<String, &'static str> {
    use textnlp_server::auth::key;
    let id = key::public_id(typed).unwrap_or(typed);
    if key::is_public_id(id) {
        Ok(id.to_owned())
    } else {
        Err("expected the public ID, the part between `tnlp_` and the next `_`: 4 to 64 of a-z, 0-9 and -")
    }
}

/// The scopes that a key can have, `*` for everything but `admin`.
fn scope_values() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(["*"].iter().chain(textnlp_server::auth::SCOPES).copied())
}

/// See [`Command::Feature`].
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
        textnlp-deploy feature list --env staging\n  \
        textnlp-deploy feature set new_model on --model textnlp-large --percent 5 --env staging\n  \
        textnlp-deploy feature set new_model off --env staging    roll back\n  \
        textnlp-deploy feature set beta_ui on --tenant acme --tenant globex --env staging\n  \
        textnlp-deploy feature clear beta_ui --env staging        return to the environment's value")]
pub enum Feature {
    /// List feature flags with their values
    List,
    /// Turn a feature flag on or off
    ///
    /// What is not given stays as it is; a new flag is on for all keys of all tenants. In effect at all replicas within
    /// 5 seconds, until the environment file has another value for this flag.
    Set {
        /// Name of the flag; `new_model` gives the share another model
        name: String,
        /// State of the flag
        #[arg(value_enum)]
        state: FeatureState,
        /// Share of API keys that have it
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: Option<u8>,
        /// Tenant that has it (repeatable)
        #[arg(long = "tenant", value_name = "TENANT")]
        tenants: Vec<String>,
        /// Give it to all tenants
        #[arg(long, conflicts_with = "tenants")]
        all_tenants: bool,
        /// Model of `new_model`
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Return a feature flag to the environment's value, or remove it
    Clear {
        /// Name of the flag
        name: String,
    },
}

/// The state of a feature flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FeatureState {
    /// On for the keys of its share
    On,
    /// Off for all keys
    Off,
}

/// See [`Command::Secret`].
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Replace a generated credential and run `up`
    ///
    /// The old one stays accepted: the signing key until the last token that it signed has ended, the authority for 30
    /// days beside the new one in the CA file, the password of a cache on AWS until the next rotation. A database
    /// password has no such time. The keys of backups and reports are replaced without an `up`, except for backups
    /// that a cluster makes.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy secret rotate jwt --env staging                 replace the key that signs tokens\n  \
        textnlp-deploy secret rotate jwt --env staging --immediately   the same after a leak\n  \
        textnlp-deploy secret rotate ca --env pilot --no-gate          replace the certificate authority\n  \
        textnlp-deploy secret rotate database --env staging            replace the passwords of its PostgreSQL\n  \
        textnlp-deploy secret rotate backup --env staging              encrypt backups with a new key from now on\n  \
        textnlp-deploy secret rotate report --env staging              sign reports and evidence with a new key\n  \
        textnlp-deploy secret rotate acme --env staging                order certificates with another account\n  \
        textnlp-deploy secret rotate cache --env production            replace the password of its managed Redis\n\n\
        The first API key: `textnlp-deploy key rotate`. Steps after a leak: docs/runbooks/leaked-credentials.md")]
    Rotate {
        /// Credential to replace
        #[arg(value_enum)]
        what: RotatedSecret,
        /// Refuse at once what the old one signed: it was leaked
        #[arg(long)]
        immediately: bool,
        /// Skip the gate of that `up`
        #[arg(long)]
        no_gate: bool,
    },
}

/// A credential that `secret rotate` replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RotatedSecret {
    /// The key that signs the tokens of /auth/token
    Jwt,
    /// The local certificate authority, with the certificates that it issued
    Ca,
    /// The passwords of a PostgreSQL that it runs for one site, or that CloudNativePG or a cloud manages
    Database,
    /// The key that encrypts backups; the old one is kept for older backups
    Backup,
    /// The key that signs reports, evidence of gates and backups
    Report,
    /// The key of the account at a public certificate authority; the certificate stays
    Acme,
    /// The password of a Redis that a cloud runs; on AWS the old one is accepted until the next rotation, on Azure it ends at once
    Cache,
}

/// See [`Command::Audit`].
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List the commands that changed the environment: who, when, and how they ended
    ///
    /// The records are in the store of the state, each with the digest of the one before it. Exits with status 1 when that
    /// chain is broken.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy audit list --env pilot\n  \
        textnlp-deploy audit list --env pilot --since 7d --limit 500\n  \
        textnlp-deploy audit list --env pilot --since 2026-11-01 --until 2026-12-01 -o json")]
    List(AuditList),
    /// Export the audit log as JSON lines
    ///
    /// What the service recorded of keys, sign-ins and data; with --commands, what operators did with this program.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy audit export --env pilot > audit.jsonl\n  \
        textnlp-deploy audit export --env pilot --since 2026-11-01\n  \
        textnlp-deploy audit export --env pilot --since 2026-11-01T08:00:00Z\n  \
        textnlp-deploy audit export --env pilot --commands > commands.jsonl")]
    Export(AuditExport),
}

/// `audit list`.
#[derive(Debug, Args)]
pub struct AuditList {
    /// Commands since this date (UTC), time or duration before now; left out, all
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
    /// Commands before this date (UTC), time or duration before now
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub until: Option<jiff::Timestamp>,
    /// Number of the newest commands
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    pub limit: usize,
}

/// `audit export`.
#[derive(Debug, Args)]
pub struct AuditExport {
    /// Events since this date (UTC), time or duration before now; left out, all
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<jiff::Timestamp>,
    /// Export the commands of `audit list` instead
    #[arg(long)]
    pub commands: bool,
}

/// A date, from its first second in UTC, a time, or a duration before now.
pub fn since(text: &str) -> Result<jiff::Timestamp, String> {
    let before = || text.parse::<Span>().ok().and_then(|span| jiff::Timestamp::now().checked_sub(span.0).ok());
    let wrong = || "write a date like 2026-11-01, a time like 2026-11-01T08:00:00Z or a duration like 1h".to_owned();
    time_or_day(text).ok().or_else(before).ok_or_else(wrong)
}

/// A time, or a date from its first second in UTC. A time without a zone is neither.
pub fn time_or_day(text: &str) -> Result<jiff::Timestamp, jiff::Error> {
    let of_day = |day: jiff::civil::Date| day.to_zoned(jiff::tz::TimeZone::UTC).map(|at| at.timestamp());
    match text.len() {
        // `2026-11-01`; the parser of dates leaves out a time that follows.
        10 => text.parse::<jiff::civil::Date>().and_then(of_day),
        _ => text.parse(),
    }
}

/// See [`Command::Release`].
#[derive(Debug, Subcommand)]
pub enum Release {
    /// Show the release lock and the local release
    Show,
    /// Write the local release into the lock; the next `up` rolls it out
    Set,
    /// Check the steps of a release, and what a release needs to be ready
    ///
    /// Each step is done, with its evidence, open, with the command that does it, or yours. What you have done is recorded
    /// for this release, so that a later run continues. Exits with status 3 until everything is done.
    ///
    /// --run asks for the steps that it names, then runs them in order up to one that fails or needs you. A second --run continues there.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy release checklist --env staging --production pilot\n  \
        textnlp-deploy release checklist --env staging --done tests --reason CI-4711\n  \
        textnlp-deploy release checklist --env staging --production pilot --run\n  \
        textnlp-deploy release checklist --env staging --production pilot -o json")]
    Checklist(Checklist),
    /// List the releases that `up` applied
    #[command(after_help = "Examples:\n  \
        textnlp-deploy release history --env staging\n  \
        textnlp-deploy release history --env staging -o json   include complete digests")]
    History,
    /// Compare two releases
    #[command(after_help = "Examples:\n  \
        textnlp-deploy release diff --env staging          compare the lock with the local release\n  \
        textnlp-deploy release diff 3 --env staging        compare release 3 with the lock\n  \
        textnlp-deploy release diff 3 here --env staging   compare release 3 with the local release")]
    Diff {
        /// Number from `release history`, `lock` or `here` [default: lock]
        #[arg(value_name = "A")]
        left: Option<Side>,
        /// Number from `release history`, `lock` or `here` [default: `lock` for a number, else `here`]
        #[arg(value_name = "B")]
        right: Option<Side>,
    },
}

/// `release checklist`.
#[derive(Debug, Args)]
pub struct Checklist {
    /// Production environment of the last two steps, and of readiness
    #[arg(long, value_name = "ENV")]
    pub production: Option<String>,
    /// Record that you have done this step, with --reason (repeatable)
    #[arg(long, value_name = "STEP")]
    pub done: Vec<String>,
    /// Run the commands of open steps: `release set`, `up`, `gate` and `promote`
    #[arg(long, conflicts_with = "done")]
    pub run: bool,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

/// One side of a comparison of releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// An entry of the history.
    Entry(u64),
    /// The lock.
    Lock,
    /// What is here.
    Here,
}

impl std::str::FromStr for Side {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "lock" => Ok(Side::Lock),
            "here" => Ok(Side::Here),
            number => {
                number.parse().map(Side::Entry).map_err(|_| "a number of the history, `lock` or `here`".to_owned())
            }
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Side::Entry(number) => write!(f, "release {number}"),
            Side::Lock => f.write_str("the lock"),
            Side::Here => f.write_str("here"),
        }
    }
}

/// See [`Command::Promote`].
#[derive(Debug, Args)]
#[command(
    after_help = "Copies the digests of server, models, templates and schema. The target keeps its configuration.\n\
                        Exits with status 3 and lists every problem unless the gate of the source is open for exactly\n\
                        the release that runs there, and with status 4 if a phase would be skipped.\n\n\
                        Example:\n  \
        textnlp-deploy up --env staging                          deploy and measure the gate\n  \
        textnlp-deploy promote --from staging --to pilot\n  \
        textnlp-deploy up --env pilot --no-gate                  without the gate, which needs measurements of days"
)]
pub struct Promote {
    /// Source environment
    #[arg(long, value_name = "ENV")]
    pub from: String,
    /// Target environment
    #[arg(long, value_name = "ENV")]
    pub to: String,
}

/// See [`Command::Rollback`].
#[derive(Debug, Args)]
#[command(
    after_help = "Changes only the release lock; run the printed `up` to roll back. Exits with status 4 when the server or a model\n\
                        of that release is not available, or its server does not support the database schema.\n\n\
                        Examples:\n  \
        textnlp-deploy rollback --env staging            roll back to the newest other release\n  \
        textnlp-deploy rollback --env staging --to 3     roll back to release 3 of `release history`\n  \
        textnlp-deploy rollback --config --env staging   list the commits of the environment's file\n  \
        textnlp-deploy rollback --config --env staging --to 1f0c2ab    restore the file of a commit"
)]
pub struct Rollback {
    /// Number from `release history` [default: the newest release other than the lock's]; with --config a Git commit
    #[arg(long, value_name = "N|COMMIT")]
    pub to: Option<String>,
    /// Restore the environment's file from its Git history instead; without --to list its commits
    #[arg(long)]
    pub config: bool,
}

/// See [`Command::Model`].
#[derive(Debug, Subcommand)]
pub enum Model {
    /// List the model catalogue and the cache
    List,
    /// Download a model into the cache
    #[command(visible_alias = "add")]
    Pull {
        /// A catalogue name, `hf:ORG/NAME@REVISION`, `https://…`, `s3://…`, `gs://…`, `az://…`, `file:…` or `bundled`
        source: String,
        /// Use only the cache
        #[arg(long)]
        offline: bool,
    },
    /// Put a model into buckets, from which servers fetch it
    Push {
        /// Model source; downloaded first if it is not in the cache
        source: String,
        /// `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`; if unset, the buckets of the environment's sites. The
        /// model gets a folder named by its digest there
        bucket: Option<String>,
        /// Send all files, also those that are there with the same size
        #[arg(long)]
        overwrite: bool,
    },
    /// Show a model's architecture, size and files
    Inspect {
        /// Model source or folder
        source: String,
    },
    /// Compare a model's memory needs with free memory
    Fit {
        /// Model source or folder
        source: String,
        /// Weight format: `f32`, `f16`, `q8_0` or `q4_0`
        #[arg(long)]
        quantize: Option<WeightFormat>,
        /// Context length in tokens; at most the model's own counts
        #[arg(long)]
        context: Option<u32>,
        /// Memory of another machine or container, instead of this machine's free memory
        #[arg(long, value_name = "SIZE")]
        memory: Option<Bytes>,
        /// Measure what the format changes in predictions for this text, such as a page of your users' texts
        #[arg(long, value_name = "FILE", requires = "quantize")]
        text: Option<Utf8PathBuf>,
    },
    /// Measure the speed of models on this machine, by each executor that serves them
    ///
    /// For each length of a prompt and each count of sequences: tokens of prompts per second, and 32 tokens that are
    /// generated after each prompt. An encoder computes vectors of texts of these lengths.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy model bench bundled\n  \
        textnlp-deploy model bench gpt2 bundled --prompt-tokens 128,256,512 --sequences 1,8,16,32 --csv results.csv")]
    Bench(ModelBench),
}

/// `model bench`.
#[derive(Debug, Args)]
pub struct ModelBench {
    /// Model sources or folders
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Weight format: `f32`, `f16`, `q8_0` or `q4_0`
    #[arg(long)]
    pub quantize: Option<WeightFormat>,
    /// Compute threads, at most one for each CPU core; 0 uses as many as this process may use
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Tokens of a prompt, with commas between several [default: 128, or half of a shorter context]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=131_072))]
    pub prompt_tokens: Vec<u32>,
    /// Sequences that are computed together, 1 to 256, with commas between several
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub sequences: Vec<u32>,
    /// Write every result to this file, as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<Utf8PathBuf>,
}

/// JSON has no NaN and no Infinity; the server would silently use its default.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("it must be a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Between 0.01 and 100,000 requests per second.
fn requests_per_second(text: &str) -> Result<f64, String> {
    finite(text).and_then(|rate| match (0.01..=100_000.0).contains(&rate) {
        true => Ok(rate),
        false => Err("it must be from 0.01 to 100000 requests per second".to_owned()),
    })
}

/// Between 0.1 and 3600 seconds.
fn span(text: &str) -> Result<f64, String> {
    finite(text).and_then(|seconds| match (0.1..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("it must be from 0.1 to 3600 seconds".to_owned()),
    })
}

/// Sampling parameters and the server to call.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Model to use [default: the environment's default]
    #[arg(long, short = 'm')]
    pub model: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = 160, allow_negative_numbers = true)]
    pub max_tokens: u32,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true, value_parser = finite)]
    pub temperature: f64,
    /// Nucleus sampling threshold
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub top_p: Option<f64>,
    /// Random seed; the same seed gives the same text
    #[arg(long, allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Stop sequence (repeatable)
    #[arg(long)]
    pub stop: Vec<String>,
    #[command(flatten)]
    pub server: OtherServer,
}

/// See [`Command::Generate`].
#[derive(Debug, Args)]
pub struct Generate {
    /// Prompt; `-` reads standard input
    pub prompt: String,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print the complete text instead of streaming it
    #[arg(long)]
    pub no_stream: bool,
}

/// See [`Command::Chat`].
#[derive(Debug, Args)]
pub struct Chat {
    /// System prompt
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// See [`Command::Tokenize`].
#[derive(Debug, Args)]
pub struct Tokenize {
    /// Text; `-` reads standard input
    pub text: String,
    /// Model to use
    #[arg(long, short = 'm')]
    pub model: Option<String>,
}

/// See [`Command::Embed`].
#[derive(Debug, Args)]
pub struct Embed {
    /// Texts; `-` reads one from standard input
    #[arg(required = true, num_args = 1..=2048)]
    pub texts: Vec<String>,
    /// Model to use
    #[arg(long, short = 'm')]
    pub model: Option<String>,
    /// Shorten each vector to this many numbers, if the model allows that
    #[arg(long, value_name = "COUNT")]
    pub dimensions: Option<u32>,
    /// Put the model's prompt of this name before each text
    #[arg(long, value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// Cut longer texts at the model's limit instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    #[command(flatten)]
    pub server: OtherServer,
}

/// See [`Command::Validate`].
#[derive(Debug, Args)]
pub struct Validate {
    /// Reference text
    #[arg(long)]
    pub reference: String,
    /// Candidate text
    #[arg(long)]
    pub candidate: String,
}

/// See [`Command::Load`].
#[derive(Debug, Args)]
#[command(
    after_help = "By default each user waits for an answer before the next request, so a service that stalls gets fewer requests.\n\
                        With --rate, requests do not wait and latency begins when a request was due. Exits with status 1 when\n\
                        the rate was not sustained.\n\n\
                        Examples:\n  \
        textnlp-deploy load --env staging --users 20\n  \
        textnlp-deploy load --env staging --mix generate-validate    load test A: generate and validate\n  \
        textnlp-deploy load --env staging --mix short-long           load test B: gpt2 and gpt2-large, 3:1\n  \
        textnlp-deploy load --env staging --rate 1000 --seconds 60 --pdf load.pdf\n  \
        textnlp-deploy load --env staging --rate 20 --mix 3:generate:50,1:generate:500 --p95-ms 2000\n  \
        textnlp-deploy load --env staging --find-limit"
)]
pub struct Load {
    #[command(flatten)]
    pub server: OtherServer,
    /// Number of concurrent users
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub users: u32,
    /// Send this number of requests each second instead, whether or not earlier ones were answered
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["users", "sessions", "find_limit"],
        value_parser = requests_per_second)]
    pub rate: Option<f64>,
    /// Times between the requests of --rate
    #[arg(long, requires = "rate", conflicts_with_all = ["users", "sessions", "find_limit"], value_enum, default_value_t = Arrivals::Poisson)]
    pub arrivals: Arrivals,
    /// Most requests of --rate in flight; one that is due then is dropped and counted [default: those of 10 seconds, from 100
    /// to 10000]
    #[arg(long, requires = "rate", conflicts_with_all = ["users", "sessions", "find_limit"], value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight: Option<u32>,
    /// Hold this number of open sessions instead, each with its own connection
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["users", "find_limit"],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions: Option<u32>,
    /// Seconds between two requests of a session
    #[arg(long, requires = "sessions", conflicts_with_all = ["users", "rate", "find_limit"], default_value_t = 20.0, value_parser = span)]
    pub every: f64,
    /// Tokens to generate for each session request
    #[arg(long, requires = "sessions", conflicts_with_all = ["users", "rate", "find_limit"], default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,
    /// Requests by weight: `generate-validate`, `short-long`, or a list of `WEIGHT:generate:TOKENS[:MODEL]`,
    /// `WEIGHT:embed[:MODEL]` and `WEIGHT:validate` [default: 9:generate:50-100,1:validate]
    #[arg(long, conflicts_with = "sessions")]
    pub mix: Option<Mix>,
    /// New users, sessions or requests per second in each second [default: 10 users, 200 sessions, a fifth of --rate]
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub ramp: Option<f64>,
    /// Duration in seconds after ramp-up
    #[arg(long, default_value_t = 30)]
    pub seconds: u32,
    /// Find the maximum sustainable number of users (takes several minutes)
    #[arg(long)]
    pub find_limit: bool,
    /// Maximum p95 latency in milliseconds of --find-limit and --rate [default: 500 of --find-limit, none of --rate]
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub p95_ms: Option<f64>,
    /// Write the report as a PDF to this file
    #[arg(long, value_name = "FILE")]
    pub pdf: Option<Utf8PathBuf>,
}

/// The times between requests at a fixed rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// Random, as of many independent clients
    Poisson,
    /// All the same
    Uniform,
}

/// The programs of `textnlp-server`. Only `serve` is in the help: the others are started by providers.
#[derive(Debug)]
pub struct ServerCommand(pub textnlp_server::Command);

impl Subcommand for ServerCommand {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        let programs = textnlp_server::Command::augment_subcommands(clap::Command::new("textnlp-server"));
        command.subcommands(programs.get_subcommands().map(|program| {
            let is_hidden = program.get_name() != "serve";
            program.clone().hide(is_hidden)
        }))
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        textnlp_server::Command::has_subcommand(name)
    }
}

impl clap::FromArgMatches for ServerCommand {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        textnlp_server::Command::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// See [`Command::Supervise`].
#[derive(Debug, Args)]
pub struct Supervise {
    /// Arguments for the supervisor
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// See [`Command::Completions`].
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell to generate the script for
    pub shell: clap_complete::Shell,
}

/// See [`Command::Man`].
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this folder [default: print the page of the program]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<Utf8PathBuf>,
}
