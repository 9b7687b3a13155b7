//! Degrees of maturity: their order, what they bring by default, and which machine's minimum is theirs.

use serde_json::{Value, json};

use textnlp_provider::Minimum;

use super::words;

words! {
    /// A degree of maturity.
    pub enum Phase {
        /// Local processes, debug logs.
        Development = "development",
        /// TLS, keys, a load test.
        Staging = "staging",
        /// Replicas, a database that fails over, monitoring, backups.
        Pilot = "pilot",
        /// Autoscaling, hardening, compliance.
        ScaleUp = "scale-up",
        /// Tenants, single sign-on, analytics, custom models.
        Enterprise = "enterprise",
        /// Several places, drills.
        MultiRegion = "multi-region",
        /// No route to the outside.
        AirGapped = "air-gapped",
        /// Faster and cheaper.
        Optimized = "optimized",
    }
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 8] = [
        Phase::Development,
        Phase::Staging,
        Phase::Pilot,
        Phase::ScaleUp,
        Phase::Enterprise,
        Phase::MultiRegion,
        Phase::AirGapped,
        Phase::Optimized,
    ];

    /// Whether people outside rely on it.
    pub fn is_production(self) -> bool {
        self >= Phase::Pilot
    }

    /// The smallest machine: it warns up to staging and blocks from pilot on.
    pub fn minimum(self) -> Minimum {
        if self.is_production() { Minimum::PRODUCTION } else { Minimum::DEVELOPMENT }
    }

    /// What this phase puts in place of the general defaults.
    pub(crate) fn defaults(self) -> Value {
        match self {
            Phase::Development => json!({
                "data": "disposable",
                "tls": {"mode": "off"},
                "server": {
                    "api": {"host": "127.0.0.1", "port": 8080, "workers": 2},
                    "monitoring": {"log_level": "DEBUG"},
                },
            }),
            Phase::Staging => json!({"data": "disposable"}),
            Phase::Optimized => json!({
                "data": "protected",
                "backup": {"enabled": true},
                "server": {"api": {"docs": false}, "monitoring": {"log_level": "WARNING"}},
                "gates": {"p95_ms": 200, "availability": 0.9999},
            }),
            _ => json!({
                "data": "protected",
                "backup": {"enabled": true},
                "server": {"api": {"docs": false}, "monitoring": {"log_level": "WARNING"}},
            }),
        }
    }
}
