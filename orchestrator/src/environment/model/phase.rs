//! Degrees of maturity: their order, what they bring by default, and which machine's minimum is theirs.

use serde_json::{Value, json};

use textnlp_provider::Minimum;

use super::{Gates, words};

words! {
    /// A phase of maturity.
    pub enum Phase {
        /// The service runs on one machine, for development.
        Development = "development",
        /// The release is reachable over HTTPS, needs keys and sustains a load test.
        Staging = "staging",
        /// The first users work with three replicas and a database that survives a failure.
        Pilot = "pilot",
        /// The service grows with its load and is hardened.
        ScaleUp = "scale-up",
        /// Many tenants share the service.
        Enterprise = "enterprise",
        /// The service survives a site failure.
        MultiRegion = "multi-region",
        /// The service runs without a network to the outside.
        AirGapped = "air-gapped",
        /// The service is twice as fast and costs a third less.
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

    /// Whether production users rely on it.
    pub fn is_production(self) -> bool {
        self >= Phase::Pilot
    }

    /// The minimum hardware. A smaller machine is a warning up to staging and blocks from pilot on; in phase air-gapped it is a warning,
    /// because the operator rarely chooses the machine in an isolated network.
    pub fn minimum(self) -> Minimum {
        match self {
            Phase::Development | Phase::Staging => Minimum::DEVELOPMENT,
            Phase::AirGapped => Minimum { blocks: false, ..Minimum::PRODUCTION },
            _ => Minimum::PRODUCTION,
        }
    }

    /// The targets of its gate that an environment does not set.
    pub fn gates(self) -> Gates {
        serde_json::from_value(self.defaults()["gates"].clone()).unwrap_or_default()
    }

    /// The defaults of this phase, over the general ones.
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
            // Outdated advisories need a network to be replaced, and a first service comes up without one.
            Phase::Staging => json!({"data": "disposable", "gates": {"advisories": "warn"}}),
            Phase::AirGapped => json!({
                "data": "protected",
                "backup": {"enabled": true},
                "server": {"api": {"docs": false}, "monitoring": {"log_level": "WARNING"}},
                "gates": {"advisories": "warn"},
            }),
            Phase::Optimized => json!({
                "data": "protected",
                "backup": {"enabled": true},
                "server": {"api": {"docs": false}, "monitoring": {"log_level": "WARNING"}},
                // A day of probes every ten seconds is too short for this target: one failure would miss it.
                "gates": {"p95_ms": 200, "availability": 0.9999, "availability_window": "7d"},
            }),
            _ => json!({
                "data": "protected",
                "backup": {"enabled": true},
                "server": {"api": {"docs": false}, "monitoring": {"log_level": "WARNING"}},
            }),
        }
    }
}
