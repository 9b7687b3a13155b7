//! Promotes the replica of a database in another region: why it was not promoted and what to do, and the environment
//! that uses the promoted one.

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Outcome, StepFailure};
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::replica::ReplicaError;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::capabilities::{RuntimeSupport, Setting};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{CloudId, Recorded, SecretRef, Verified};

use crate::up::run_failed;
use crate::{Exit, Failure, Scope};

/// What a provider without such replicas supports.
const NONE: RuntimeSupport = RuntimeSupport { runtime: Runtime::Kubernetes, supported: &[], refused: &[] };
/// Stands for the file with the authorities of the region or of the server, whose path has to be absolute.
const AUTHORITIES: &str = "/PATH/authorities-of-the-database.pem";
/// The variable with the password of the promoted server: files in state folders are refused as secrets of an environment.
pub const PASSWORD: &str = "DATABASE_PASSWORD";

/// The command that promotes the replica in a region.
pub fn command(scope: &Scope, region: &str) -> String {
    scope.same(&format!("db promote --region {region}"))
}

/// Why the replica in a region was not promoted.
pub fn failed(error: ReplicaError, scope: &Scope, region: &str) -> Failure {
    let again = command(scope, region);
    let (code, hint) = match error {
        ReplicaError::Run(error) => return run_failed(error, Purpose::Up, scope),
        ReplicaError::Incomplete { id, outcome } => return incomplete(&id, &outcome, again),
        ReplicaError::Unread { source, .. } => {
            let hint = source.hint.clone().unwrap_or_else(|| format!("once its region can be reached: {again}"));
            let error = anyhow::Error::from(source).context(format!("read the replica in {region}"));
            return Failure::new(Exit::Failed, "replica_unread", error).hint(hint);
        }
        ReplicaError::Unsupported { .. } => {
            let reason = NONE.reason(Setting::DatabaseReplica.path()).unwrap_or_default();
            (
                "not_supported",
                format!("{reason}; restore a backup of the provider, and use it with `database.hosting: external`"),
            )
        }
        ReplicaError::NotRecorded { ref elsewhere, .. } => {
            let hint = match elsewhere.first() {
                Some(other) => command(scope, other),
                None => "`up` with `database.replica_region` creates one, before its source is lost; a backup can be restored without it".to_owned(),
            };
            ("no_replica", hint)
        }
        ReplicaError::SeveralSites { .. } => ("several_sites", format!("choose one: {again} --site SITE")),
        ReplicaError::Unfit { .. } => {
            ("other_object", format!("compare it with the records: {}", scope.command("state list")))
        }
        ReplicaError::NotReady { .. } => ("replica_not_ready", format!("once it is available: {again}")),
        ReplicaError::Busy { .. } => ("operation_open", format!("finish it first: {}", scope.last_up())),
        ReplicaError::SourceRuns { .. } => (
            "source_runs",
            format!(
                "wait if it recovers. Else stop what writes to it, and accept that later writes are lost: {again} --force-while-source-runs --reason TEXT"
            ),
        ),
        ReplicaError::Changed { .. } => ("state_changed", again),
    };
    Failure::refused(code, error).hint(hint)
}

/// Why a promotion that was begun did not end.
fn incomplete(id: &CloudId, outcome: &Outcome, again: String) -> Failure {
    let Outcome { failed, open, stopped, .. } = outcome;
    let action = format!("promote the replica {id}");
    if let Some(first) = failed.first() {
        let lines: Vec<String> = failed.iter().map(StepFailure::line).collect();
        let hint = match &first.hint {
            Some(hint) => format!("{hint}\nthen run again: {again}"),
            None => format!("fix the cause and run again: {again}"),
        };
        return Failure::new(Exit::Failed, "not_promoted", anyhow::anyhow!(lines.join("\n")).context(action))
            .hint(hint);
    }
    let waits: Vec<&str> =
        open.iter().map(|open| open.because.as_str()).filter(|because| !because.is_empty()).collect();
    let (exit, code, because) = match *stopped {
        true => (Exit::Stopped, "stopped", "stopped; the same command continues"),
        false => (Exit::Failed, "incomplete", "it takes longer than its time limit"),
    };
    let because = std::iter::once(because).chain(waits).collect::<Vec<_>>().join(": ");
    Failure::new(exit, code, anyhow::anyhow!(because).context(action)).hint(again)
}

/// The file with the password of a promoted server, if it is on this machine.
pub fn password_file(scope: &Scope, password: Option<&SecretRef>) -> Option<Utf8PathBuf> {
    scope.platform.secret_file(&scope.folder, password?)
}

/// The part of an environment file that deploys a site beside the promoted server and uses it.
pub fn environment(promoted: &Recorded, verified: Verified, place: &SiteLocation, region: &str) -> Value {
    let output = |name: &str| promoted.outputs.get(name).cloned().unwrap_or_default();
    let password = format!("secret:env:{PASSWORD}");
    let database = match verified {
        Verified::ByRegion | Verified::Public => json!({
            "kind": "postgres",
            "hosting": "external",
            "host": output("host"),
            "port": output("port"),
            "name": output("database"),
            "user": output("user"),
            "password": password,
        }),
        // Its certificate does not have its address.
        Verified::ByServer => {
            let text = |name: &str| output(name).as_str().unwrap_or_default().to_owned();
            let (user, host, port, name) = (text("user"), text("host"), output("port"), text("database"));
            let url = format!("postgresql://{user}@{host}:{port}/{name}?sslmode=verify-ca");
            json!({ "kind": "postgres", "hosting": "external", "url": url, "password": password })
        }
    };
    let mut environment = json!({
        "sites": [{
            "name": promoted.site,
            "provider": place.provider,
            "runtime": place.runtime,
            "region": region,
        }],
        "database": database,
    });
    if verified != Verified::Public {
        environment["network"] = json!({ "private_ca": AUTHORITIES });
    }
    environment
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{Outputs, Ownership, Spec};

    use super::*;

    #[test]
    fn only_a_server_with_a_public_authority_needs_no_file() {
        let outputs = [("host", json!("db.example.com")), ("port", json!(5432)), ("database", json!("texts"))];
        let promoted = Recorded {
            id: "main/database/remote".parse().unwrap(),
            kind: "cloud.server".parse().unwrap(),
            site: "main".parse().unwrap(),
            via: None,
            spec: Spec::default(),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: CloudId::new("replica").unwrap(),
            created: None,
            outputs: outputs.map(|(name, value)| (name.to_owned(), value)).into_iter().collect::<Outputs>(),
            protected: true,
            tainted: false,
        };
        let (provider, account, region) = ("cloud".to_owned(), String::new(), "here".to_owned());
        let place = SiteLocation { provider, account, region, runtime: Runtime::Kubernetes };
        let of = |verified| environment(&promoted, verified, &place, "there");
        let public = of(Verified::Public);
        assert_eq!((&public["network"], &public["sites"][0]["region"]), (&Value::Null, &json!("there")));
        assert_eq!((&public["database"]["host"], &public["database"]["url"]), (&json!("db.example.com"), &Value::Null));
        for verified in [Verified::ByRegion, Verified::ByServer] {
            assert_eq!(of(verified)["network"]["private_ca"], AUTHORITIES);
        }
    }
}
