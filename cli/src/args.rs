//! What a person may type. Every flag but `--set` can also be given as a variable `TEXTNLP_<FLAG>`.

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run your own text-generation service anywhere.
#[derive(Debug, Parser)]
#[command(
    name = "textnlp-deploy",
    version,
    about = "Run your own text-generation service anywhere",
    long_about = "Takes one environment file and makes it so: provisions, delivers, and proves by gates that the service is\n\
                  healthy. It plans before it acts, survives being killed at any point, and a second `up` plans nothing.",
    after_help = "Examples:\n  \
        textnlp-deploy up --env staging          provision, deliver, verify; prints the address, the key and a curl to try\n  \
        textnlp-deploy plan --env staging        show what `up` would do, and do nothing\n  \
        textnlp-deploy generate \"Once upon a time\"   text from the running environment\n  \
        textnlp-deploy status --env staging      what runs, and what differs from the plan\n  \
        textnlp-deploy down --env staging        remove everything that holds no data\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 a gate is not open, 4 refused for safety, 5 stopped and resumable, 6 changes are planned.",
    max_term_width = 110,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command knows.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The environment, by name
    #[arg(long, global = true, env = "TEXTNLP_ENV", value_name = "NAME", help_heading = "Environment")]
    pub env: Option<String>,
    /// The environment, by file
    #[arg(
        long,
        global = true,
        env = "TEXTNLP_FILE",
        value_name = "PATH",
        conflicts_with = "env",
        help_heading = "Environment"
    )]
    pub file: Option<Utf8PathBuf>,
    /// Changes one value for this run: `--set gates.users=20`; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", help_heading = "Environment")]
    pub set: Vec<String>,
    /// Where state, keys and reports live [default: .textnlp beside `environments/`, else the user's state directory]
    #[arg(long, global = true, env = "TEXTNLP_STATE_DIR", value_name = "DIR", help_heading = "Environment")]
    pub state_dir: Option<Utf8PathBuf>,
    /// Only this site
    #[arg(long, global = true, env = "TEXTNLP_SITE", value_name = "NAME", help_heading = "Environment")]
    pub site: Option<String>,
    /// Another provider for every site
    #[arg(long, global = true, env = "TEXTNLP_PROVIDER", value_name = "NAME", help_heading = "Environment")]
    pub provider: Option<String>,
    /// Agrees to the plan without being asked
    #[arg(long, short = 'y', global = true, env = "TEXTNLP_YES", help_heading = "Behaviour")]
    pub yes: bool,
    /// Takes a field of objects in clusters from whoever owns it, as a refusal names it: `--take-ownership spec.replicas`; may be repeated
    #[arg(long, global = true, value_name = "FIELD", help_heading = "Behaviour")]
    pub take_ownership: Vec<String>,
    /// Why, for the journal
    #[arg(long, global = true, env = "TEXTNLP_REASON", value_name = "TEXT", help_heading = "Behaviour")]
    pub reason: Option<String>,
    /// How results are written to stdout
    #[arg(long, short = 'o', global = true, env = "TEXTNLP_OUTPUT", value_enum, default_value_t = Output::Text, help_heading = "Behaviour")]
    pub output: Output,
    /// Says more; twice says everything
    #[arg(long, short = 'v', global = true, action = clap::ArgAction::Count, help_heading = "Behaviour")]
    pub verbose: u8,
    /// Says only results and errors
    #[arg(
        long,
        short = 'q',
        global = true,
        env = "TEXTNLP_QUIET",
        help_heading = "Behaviour",
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
    /// The program that becomes server and gateway [default: `textnlp-server` beside this program, else this program]
    #[arg(long, global = true, env = "TEXTNLP_SERVER", value_name = "FILE", help_heading = "Environment")]
    pub server: Option<Utf8PathBuf>,
}

/// How results are written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON document, also on failure
    Json,
    /// An event a line; the last line is the document
    Jsonl,
}

/// How results were wanted by a command line that is wrong: what it says of `--output`, else the variable.
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

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copies the environment files here, to be changed
    Init(Init),
    /// Shows, checks and makes environment files
    #[command(subcommand)]
    Env(Env),
    /// What each provider offers here, and why not
    Providers,
    /// Looks for what would make `up` fail; changes nothing
    Preflight,
    /// Shows what `up` would do; changes nothing
    Plan(Plan),
    /// Does what a saved plan says: exactly that, or nothing
    Apply(Apply),
    /// Provisions, delivers and verifies
    Up(Up),
    /// What runs, and what differs from what is wanted
    Status,
    /// What happened to one resource and what it waits for
    Explain(Explain),
    /// The logs of what runs
    Logs(Logs),
    /// Measures the environment's gate on the running service
    Gate(Gate),
    /// Removes everything that holds no data
    Down(Down),
    /// What differs between the record and reality
    Drift,
    /// What was written down of an environment: shown, compared, mended, moved
    #[command(subcommand)]
    State(crate::state_args::State),
    /// Freezes an environment: `up` and `down` are refused until it is released
    Hold(crate::state_args::Hold),
    /// Looks at everything that this program needs, and says how to mend what is not well
    Doctor,
    /// What is recorded or wanted, in the words of other tools: Terraform, kubectl, Kustomize, Helm
    #[command(subcommand)]
    Export(crate::state_args::Export),
    /// One file with what somebody who helps needs to see, and no secret
    SupportBundle(crate::state_args::SupportBundle),
    /// Makes, lists and revokes API keys
    #[command(subcommand)]
    Key(Key),
    /// What runs, by digest: the lock, its history, and what differs
    #[command(subcommand)]
    Release(Release),
    /// Makes the release that one environment has proven the next one's
    Promote(Promote),
    /// Sets the lock back to an earlier release
    Rollback(Rollback),
    /// A new release on its first pods in a cluster: how it goes, and a person's word on it
    #[command(subcommand)]
    Rollout(Rollout),
    /// Lists, pulls and inspects models
    #[command(subcommand)]
    Model(Model),
    /// One sealed file for a machine without a network: made, checked, installed, updated
    #[command(subcommand)]
    Bundle(Box<crate::bundle_args::Bundle>),
    /// Losing a site: how things are, failover, failback, and the rehearsal of it
    #[command(subcommand)]
    Dr(crate::dr_args::Dr),
    /// Copies that bring the deployment back: made, listed, proven, let go
    #[command(subcommand)]
    Backup(crate::backup_args::Backup),
    /// Who is told when something is wrong: a test message, what is wrong now
    #[command(subcommand)]
    Alert(crate::alert_args::Alert),
    /// Brings a deployment back from a copy, also onto a bare machine
    Restore(crate::backup_args::Restore),
    /// Text from the running environment
    Generate(Generate),
    /// A conversation with the running environment
    Chat(Chat),
    /// The tokens of a text
    Tokenize(Tokenize),
    /// How close one text is to another (BLEU, ROUGE)
    Validate(Validate),
    /// Asks the running environment whether it is well
    Health,
    /// Puts load on an address and measures
    Load(Load),
    /// Runs the inference server, the gateway, or their chores
    Serve(textnlp_server::ServeArgs),
    /// Runs a site's supervisor
    #[command(hide = true)]
    Supervise(Supervise),
    /// Tells the autoscaler of a cluster how many requests there are; runs in the cluster
    #[command(hide = true)]
    Adapter(Adapter),
    /// Signs in to a cluster of EKS, GKE or AKS for kubectl, Helm and this program: a kubeconfig names it under `exec`
    #[command(subcommand)]
    KubeToken(KubeToken),
    /// A completion script for a shell
    Completions(Completions),
}

/// See [`Command::KubeToken`].
#[derive(Debug, Clone, Subcommand)]
pub enum KubeToken {
    /// For a cluster of EKS, as whoever AWS's own tools would sign in as
    Aws {
        /// The cluster's name; its token is good for no other
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// Its region [default: AWS_REGION, else the profile's, else the machine's]
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
        /// The profile in the files of AWS; counts before AWS_ACCESS_KEY_ID
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
        /// A role that is taken on first
        #[arg(long, value_name = "ARN")]
        role_arn: Option<String>,
    },
    /// For any cluster of GKE, by application default credentials
    Gcp,
    /// For a cluster of AKS that asks Entra: a federated token, a client secret, a managed identity, else `az`
    Azure {
        /// The application that stands for the API server
        #[arg(long, value_name = "ID", default_value = "6dae42f8-4368-4678-94ff-3960e28e3630")]
        server_id: String,
        /// The tenant [default: AZURE_TENANT_ID]
        #[arg(long, value_name = "ID")]
        tenant: Option<String>,
        /// The application or managed identity that signs in [default: AZURE_CLIENT_ID]
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
    },
}

/// See [`Command::Rollout`].
#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// How the rollout goes, or what the last one came to
    Status,
    /// All pods become new ones now, if the first ones answer
    Promote,
    /// The old release is put back now
    Abort,
    /// It does not go on by itself; its deadline stays
    Pause,
    /// It goes on by itself again
    Resume,
    /// A release that was put back may be tried once more as it is
    Retry,
    /// Judges the new pods and ends the rollout; runs in the cluster
    #[command(hide = true)]
    Watch {
        /// The folder with the service account's token and authority
        #[arg(long)]
        account: Utf8PathBuf,
        /// The folder with the token and the authority of the Prometheus that is asked too
        #[arg(long)]
        prometheus: Option<Utf8PathBuf>,
        /// Said where clients are shared by the weights of a route: whoever takes it knows how
        #[arg(long)]
        shares: bool,
    },
}

/// See [`Command::Adapter`].
#[derive(Debug, Args)]
pub struct Adapter {
    /// The folder with the service account's token and authority
    #[arg(long)]
    pub account: Utf8PathBuf,
    /// The folder with `tls.crt` and `tls.key`, which the API server is shown
    #[arg(long)]
    pub tls: Utf8PathBuf,
    /// The namespace of the pods
    #[arg(long)]
    pub namespace: String,
    /// The labels of the pods: `app=textnlp-api`
    #[arg(long)]
    pub pods: String,
    /// Where it listens
    #[arg(long)]
    pub address: std::net::IpAddr,
    /// The port there
    #[arg(long)]
    pub port: u16,
}

/// See [`Command::Init`].
#[derive(Debug, Args)]
pub struct Init {
    /// Where `environments/` is made
    #[arg(default_value = ".", value_name = "DIR")]
    pub dir: Utf8PathBuf,
}

/// See [`Command::Env`].
#[derive(Debug, Subcommand)]
pub enum Env {
    /// Every environment that is found, and where
    List,
    /// The environment with all layers applied
    Show {
        /// The environment [default: the one of --env]
        name: Option<String>,
        /// Says of every value where it comes from
        #[arg(long)]
        explain: bool,
    },
    /// What differs between two environments
    Diff {
        /// One environment
        left: String,
        /// Another
        right: String,
    },
    /// All mistakes of an environment at once
    Check {
        /// The environments [default: the one of --env, else all]
        names: Vec<String>,
    },
    /// Makes a new environment file
    New {
        /// Its name
        name: String,
        /// What it extends
        #[arg(long, value_name = "NAME", default_value = "staging")]
        from: String,
    },
    /// Turns an older configuration file into an environment file
    Migrate {
        /// The older file
        from: Utf8PathBuf,
        /// Where the new one goes [default: stdout]
        #[arg(long, value_name = "PATH")]
        out: Option<Utf8PathBuf>,
    },
    /// The JSON Schema of environment files
    Schema,
}

/// See [`Command::Plan`].
#[derive(Debug, Args)]
pub struct Plan {
    /// Exits with 6 when changes are planned
    #[arg(long)]
    pub exit_code: bool,
    /// Plans the removal instead
    #[arg(long, conflicts_with = "gated")]
    pub down: bool,
    /// Plans a gate in front of what is replaced or no longer wanted, as `up --gated` does
    #[arg(long)]
    pub gated: bool,
    /// Plans the removal of data too; the environment's name, typed
    #[arg(long, value_name = "ENV", requires = "down")]
    pub delete_data: Option<String>,
    /// Saves the plan for `apply`
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
}

/// See [`Command::Apply`].
#[derive(Debug, Args)]
#[command(
    after_help = "A saved plan is the agreement: nobody is asked again. Whoever applies it plans anew from what is there then; when that is not\n\
                        the saved plan, what changed since is named and nothing is done.\n\n\
                        Example:\n  \
        textnlp-deploy plan --env staging --out staging.plan     here, for somebody to read\n  \
        textnlp-deploy apply staging.plan                        there, once they agreed"
)]
pub struct Apply {
    /// What `plan --out` saved
    #[arg(value_name = "PLAN")]
    pub plan: Utf8PathBuf,
    /// Does not measure the gate at the end
    #[arg(long)]
    pub no_gate: bool,
}

/// See [`Command::Up`].
#[derive(Debug, Default, Args)]
pub struct Up {
    /// Does not measure the gate at the end
    #[arg(long, conflicts_with = "gated")]
    pub no_gate: bool,
    /// Removes what is replaced or no longer wanted only when the new passes the gate
    #[arg(long)]
    pub gated: bool,
    /// The prompt of the first text
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
}

/// See [`Command::Explain`].
#[derive(Debug, Args)]
pub struct Explain {
    /// A resource id, as `status` shows it
    pub resource: String,
}

/// See [`Command::Logs`].
#[derive(Debug, Args)]
pub struct Logs {
    /// Which process [default: all]
    pub name: Option<String>,
    /// How many lines of each
    #[arg(long, short = 'n', default_value_t = 40)]
    pub lines: usize,
    /// Goes on as lines come
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only lines of at least this level
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,
}

/// See [`Command::Gate`].
#[derive(Debug, Args)]
pub struct Gate {
    /// Measures again although nothing changed since the recorded evidence
    #[arg(long)]
    pub again: bool,
}

/// See [`Command::Down`].
#[derive(Debug, Args)]
pub struct Down {
    /// Removes data too; the environment's name, typed
    #[arg(long, value_name = "ENV")]
    pub delete_data: Option<String>,
}

/// See [`Command::Key`].
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Makes a key and prints it once
    Create {
        /// What it is for
        name: String,
        /// Whose it is
        #[arg(long, default_value = "default")]
        tenant: String,
        /// Requests it may make: `1000/hour`, `20/minute`
        #[arg(long, value_name = "RATE")]
        rate_limit: Option<String>,
        /// Tokens it may spend: `100000/hour`
        #[arg(long, value_name = "RATE")]
        token_rate_limit: Option<String>,
        /// Tokens that one bearer token from `/auth/token` may spend; left out, `server.security.jwt_token_limit`
        #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
        token_limit: Option<u64>,
        /// Days until it ends
        #[arg(long, value_name = "DAYS")]
        expires_days: Option<u32>,
    },
    /// All keys without their secrets
    List,
    /// A new secret in the place of an old one
    Rotate {
        /// The public id, as `key list` shows it
        id: String,
    },
    /// Ends a key at once
    Revoke {
        /// The public id, as `key list` shows it
        id: String,
    },
}

/// See [`Command::Release`].
#[derive(Debug, Subcommand)]
pub enum Release {
    /// What the lock names, and what is here
    Show,
    /// Writes what is here into the lock: the next `up` rolls to it
    Set,
    /// Every release that `up` applied here: when, by whom, why, and the digests
    #[command(after_help = "Examples:\n  \
        textnlp-deploy release history --env staging\n  \
        textnlp-deploy release history --env staging -o json   with whole digests")]
    History,
    /// What differs between two releases
    #[command(after_help = "Examples:\n  \
        textnlp-deploy release diff --env staging          the lock, and what is here\n  \
        textnlp-deploy release diff 3 --env staging        release 3 of the history, and the lock\n  \
        textnlp-deploy release diff 3 here --env staging   release 3, and what is here")]
    Diff {
        /// A number of the history, `lock` or `here` [default: lock]
        #[arg(value_name = "A")]
        left: Option<Side>,
        /// The same [default: the lock for a number, else what is here]
        #[arg(value_name = "B")]
        right: Option<Side>,
    },
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
    after_help = "The digests of server, models, templates and schema go over; the configuration stays the target's own.\n\
                        Refused with 3 and every blocker when the gate of the source was not measured open for exactly\n\
                        the release that runs there.\n\n\
                        Example:\n  \
        textnlp-deploy up --env staging                          runs it, and measures its gate\n  \
        textnlp-deploy promote --from staging --to pilot\n  \
        textnlp-deploy up --env pilot"
)]
pub struct Promote {
    /// Where the release was proven
    #[arg(long, value_name = "ENV")]
    pub from: String,
    /// Whose lock is written
    #[arg(long, value_name = "ENV")]
    pub to: String,
}

/// See [`Command::Rollback`].
#[derive(Debug, Args)]
#[command(
    after_help = "Changes the lock alone; the `up` that is printed rolls to it. Refused with 4 when the server or a model\n\
                        of that release is not here any more, or the database has a schema that its server does not work with.\n\n\
                        Examples:\n  \
        textnlp-deploy rollback --env staging            to the newest release other than the lock's\n  \
        textnlp-deploy rollback --env staging --to 3     to that one of `release history`"
)]
pub struct Rollback {
    /// The number in the history [default: the newest release other than the lock's]
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,
}

/// See [`Command::Model`].
#[derive(Debug, Subcommand)]
pub enum Model {
    /// The catalogue and what is in the cache
    List,
    /// Fetches a model into the cache
    Pull {
        /// A catalogue name, `hf:ORG/NAME@REVISION`, `https://…`, `file:…` or `bundled`
        source: String,
        /// Uses only what is in the cache
        #[arg(long)]
        offline: bool,
    },
    /// What a model is made of
    Inspect {
        /// A source, or a folder
        source: String,
    },
    /// Memory needed against memory there
    Fit {
        /// A source, or a folder
        source: String,
        /// `f32`, `f16`, `q8_0`
        #[arg(long)]
        quantize: Option<String>,
        /// Tokens of context
        #[arg(long)]
        context: Option<u32>,
    },
}

/// JSON has no NaN and no Infinity: sent on, they would quietly become the server's default.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("it must be a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// From a tenth of a second to an hour.
fn span(text: &str) -> Result<f64, String> {
    finite(text).and_then(|seconds| match (0.1..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("it must be from 0.1 to 3600 seconds".to_owned()),
    })
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// Which model [default: the environment's default]
    #[arg(long, short = 'm')]
    pub model: Option<String>,
    /// The most tokens to generate
    #[arg(long, default_value_t = 160, allow_negative_numbers = true)]
    pub max_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true, value_parser = finite)]
    pub temperature: f64,
    /// The likeliest tokens that make up this probability
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub top_p: Option<f64>,
    /// The same seed gives the same text
    #[arg(long)]
    pub seed: Option<u64>,
    /// A text that ends the answer; may be repeated
    #[arg(long)]
    pub stop: Vec<String>,
    /// Another server than the environment's: its address
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// The key for that server [default: the environment's first key]
    #[arg(long, value_name = "KEY", env = "TEXTNLP_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// The certificate authority of that server
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<Utf8PathBuf>,
}

/// See [`Command::Generate`].
#[derive(Debug, Args)]
pub struct Generate {
    /// The prompt; `-` reads standard input
    pub prompt: String,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Waits for the whole text instead of streaming it
    #[arg(long)]
    pub no_stream: bool,
}

/// See [`Command::Chat`].
#[derive(Debug, Args)]
pub struct Chat {
    /// How the assistant should be
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// See [`Command::Tokenize`].
#[derive(Debug, Args)]
pub struct Tokenize {
    /// The text; `-` reads standard input
    pub text: String,
    /// Which model
    #[arg(long, short = 'm')]
    pub model: Option<String>,
}

/// See [`Command::Validate`].
#[derive(Debug, Args)]
pub struct Validate {
    /// The text as it should be
    #[arg(long)]
    pub reference: String,
    /// The text as it is
    #[arg(long)]
    pub candidate: String,
}

/// See [`Command::Load`].
#[derive(Debug, Args)]
pub struct Load {
    /// Another server than the environment's: its address
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// The key for that server [default: a temporary key of the environment]
    #[arg(long, value_name = "KEY", env = "TEXTNLP_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// The certificate authority of that server
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<Utf8PathBuf>,
    /// How many users at once
    #[arg(long, default_value_t = 100)]
    pub users: u32,
    /// Holds so many open sessions instead, each with a connection of its own
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["users", "find_limit"],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions: Option<u32>,
    /// Seconds between two questions of one session
    #[arg(long, requires = "sessions", default_value_t = 20.0, value_parser = span)]
    pub every: f64,
    /// Tokens that a question of a session asks for
    #[arg(long, requires = "sessions", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,
    /// Users, or sessions, that come each second [default: 10 users, 200 sessions]
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    pub ramp: Option<f64>,
    /// How long, in seconds, once all of them are there
    #[arg(long, default_value_t = 30)]
    pub seconds: u32,
    /// Searches how many users the address bears
    #[arg(long)]
    pub find_limit: bool,
    /// The p95 that still counts as good, in milliseconds
    #[arg(long, default_value_t = 500.0, allow_negative_numbers = true, value_parser = finite)]
    pub p95_ms: f64,
}

/// See [`Command::Supervise`].
#[derive(Debug, Args)]
pub struct Supervise {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// See [`Command::Completions`].
#[derive(Debug, Args)]
pub struct Completions {
    /// For which shell
    pub shell: clap_complete::Shell,
}
