//! The closed choices of an environment that providers realise: each is one word in files, components and journals.

/// Defines an enum that is written as one word.
#[macro_export]
macro_rules! words {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant),* }
        impl $name {
            /// The value in files.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// How programs run at a site.
    pub enum Runtime {
        /// As local processes.
        Process = "process",
        /// As pods.
        Kubernetes = "kubernetes",
        /// As an inference endpoint of Amazon SageMaker.
        Sagemaker = "sagemaker",
        /// As a service of Google Cloud Run.
        CloudRun = "cloud-run",
        /// As an endpoint of Google Vertex AI.
        Vertex = "vertex",
        /// As an online endpoint of Azure Machine Learning.
        AzureMl = "azure-ml",
    }
}

words! {
    /// What an identity may do in a cluster.
    pub enum AccessLevel {
        /// Everything.
        Admin = "admin",
        /// Read everything but secrets.
        View = "view",
    }
}

words! {
    /// A day of the week.
    pub enum Weekday {
        /// Monday.
        Monday = "monday",
        /// Tuesday.
        Tuesday = "tuesday",
        /// Wednesday.
        Wednesday = "wednesday",
        /// Thursday.
        Thursday = "thursday",
        /// Friday.
        Friday = "friday",
        /// Saturday.
        Saturday = "saturday",
        /// Sunday.
        Sunday = "sunday",
    }
}

impl Weekday {
    /// All of them, from Monday on.
    pub const ALL: [Self; 7] =
        [Self::Monday, Self::Tuesday, Self::Wednesday, Self::Thursday, Self::Friday, Self::Saturday, Self::Sunday];
}

words! {
    /// The role of a site in disaster recovery.
    pub enum Role {
        /// Accepts writes of control data.
        Primary = "primary",
        /// Serves, and can be promoted.
        Secondary = "secondary",
        /// Runs without traffic, and can be promoted.
        Standby = "standby",
    }
}

words! {
    /// The kind of database of keys, quotas and usage.
    pub enum DatabaseKind {
        /// A file on the server's machine.
        Sqlite = "sqlite",
        /// A PostgreSQL server.
        Postgres = "postgres",
    }
}

words! {
    /// The hosting of a database or a cache.
    pub enum Hosting {
        /// The cloud's managed service.
        Managed = "managed",
        /// Created in the cluster.
        Cluster = "cluster",
        /// An external server at a configured address.
        External = "external",
    }
}

words! {
    /// The cache of vectors of texts.
    pub enum CacheKind {
        /// No cache: each text is computed.
        None = "none",
        /// In the memory of each server.
        Memory = "memory",
        /// In the memory of each server, and in a Redis that they share.
        Redis = "redis",
    }
}

words! {
    /// The source of the server certificate.
    pub enum TlsMode {
        /// Plain HTTP; only in development.
        Off = "off",
        /// The site's built-in certificate authority.
        LocalCa = "local-ca",
        /// A public certificate authority that supports ACME.
        Acme = "acme",
        /// An existing certificate.
        Existing = "existing",
    }
}

words! {
    /// The size class of a GPU machine; each provider maps it to a machine type.
    pub enum GpuSize {
        /// No GPU.
        None = "none",
        /// One small GPU.
        Small = "small",
        /// One small GPU, more CPU.
        Medium = "medium",
        /// One large GPU.
        Large = "large",
        /// Eight large GPUs.
        Xlarge = "xlarge",
    }
}

impl GpuSize {
    /// The GPUs of a machine.
    pub fn gpus(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Small | Self::Medium | Self::Large => 1,
            Self::Xlarge => 8,
        }
    }
}

words! {
    /// The size of a node without GPU; each provider maps it to a machine type.
    pub enum NodeSize {
        /// 4 vCPUs and 16 GiB of memory.
        Small = "small",
        /// 8 vCPUs and 32 GiB of memory.
        Medium = "medium",
        /// 16 vCPUs and 64 GiB of memory.
        Large = "large",
        /// 32 vCPUs and 128 GiB of memory.
        Xlarge = "xlarge",
    }
}

words! {
    /// Whether cheaper spot capacity is used, which the provider can reclaim.
    pub enum Spot {
        /// Never.
        Never = "never",
        /// If it is available.
        Prefer = "prefer",
        /// Only spot capacity.
        Only = "only",
    }
}

words! {
    /// How the provider replaces the machines of a pool when it upgrades them.
    pub enum NodeUpgrade {
        /// One after another, and each is missing until it is replaced: no quota for another machine is needed.
        Minimal = "minimal",
        /// One after another, and each is replaced before it is removed: the quota has to allow one more.
        Surge = "surge",
        /// First all new ones, then the old ones are emptied one after another and stay for an hour: the quota has to allow twice as many.
        BlueGreen = "blue-green",
    }
}

words! {
    /// How clients are routed to a site.
    pub enum TrafficMode {
        /// Through the built-in global endpoint.
        Gateway = "gateway",
        /// Through DNS records.
        Dns = "dns",
    }
}

words! {
    /// The replication of a database.
    pub enum DatabaseCopy {
        /// No replication.
        None = "none",
        /// Streaming replication.
        Streaming = "streaming",
    }
}

words! {
    /// How a failover or a failback starts.
    pub enum Failover {
        /// No failover: there is no second site.
        None = "none",
        /// By a command of the operator.
        Manual = "manual",
        /// By a site agent, with a grant of the witness.
        Automatic = "automatic",
    }
}

words! {
    /// How a new release replaces the old one.
    pub enum Strategy {
        /// Replaces one replica after the other.
        Rolling = "rolling",
        /// Starts a second set of replicas, then moves all traffic at once.
        BlueGreen = "blue-green",
        /// Moves part of the traffic first.
        Canary = "canary",
    }
}

words! {
    /// The role of a model.
    pub enum ModelRole {
        /// It serves requests without a model name.
        Default = "default",
        /// It serves requests for embeddings without a model name.
        Embeddings = "embeddings",
    }
}

words! {
    /// What computes a model.
    pub enum ModelExecutor {
        /// The own kernels.
        Own = "own",
        /// candle, in programs that are built with it.
        Candle = "candle",
    }
}

words! {
    /// The number format of weights in memory.
    pub enum Quantize {
        /// 32-bit floats.
        F32 = "f32",
        /// 16-bit floats.
        F16 = "f16",
        /// 8-bit integers in groups of 32.
        Q8 = "q8_0",
        /// 4-bit integers in groups of 32.
        Q4 = "q4_0",
    }
}

words! {
    /// The algorithm that signs DNS updates.
    pub enum DnsAlgorithm {
        /// HMAC with SHA-256.
        Sha256 = "hmac-sha256",
        /// HMAC with SHA-512.
        Sha512 = "hmac-sha512",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::component::{Cache, Certificate, Database, GpuPool};

    #[test]
    fn components_serialise_with_the_field_names_of_journals_and_bundles() {
        let hosting = Some(Hosting::Cluster);
        let database = Database { kind: DatabaseKind::Postgres, hosting, schema: None, postgres: None };
        let written = [
            json!(database).to_string(),
            json!(Database { kind: DatabaseKind::Sqlite, hosting: None, ..database }).to_string(),
            json!(Cache { kind: CacheKind::Redis, managed: None }).to_string(),
            json!(Certificate { mode: TlsMode::LocalCa, names: Vec::new(), days: 90, acme: None }).to_string(),
            json!(GpuPool { spot: Spot::Prefer, ..GpuPool::of(GpuSize::Xlarge, 2) }).to_string(),
        ];
        assert_eq!(
            written,
            [
                r#"{"kind":"postgres","hosting":"cluster","schema":null,"postgres":null}"#,
                r#"{"kind":"sqlite","hosting":null,"schema":null,"postgres":null}"#,
                r#"{"kind":"redis"}"#,
                r#"{"mode":"local-ca","names":[],"days":90}"#,
                r#"{"size":"xlarge","count":2,"spot":"prefer"}"#,
            ]
        );
    }
}
