//! Rendering of the templates in `templates/kubernetes` into specs, with typed inputs. An undefined variable is an
//! error.

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;

use crate::table::{ROWS, Row};

macro_rules! templates {
    ($($name:ident = $file:literal;)*) => {
        /// One template.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Template {
            $($name,)*
        }

        impl Template {
            #[cfg(test)]
            pub(super) const ALL: &[Template] = &[$(Template::$name,)*];

            pub(super) fn file(self) -> &'static str {
                match self {
                    $(Self::$name => $file,)*
                }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!(concat!("../../../../templates/kubernetes/", $file)),)*
                }
            }
        }
    };
}

templates! {
    Namespace = "namespace.yaml";
    ServiceAccount = "service-account.yaml";
    Role = "role.yaml";
    RoleBinding = "role-binding.yaml";
    ConfigMap = "config-map.yaml";
    Secret = "secret.yaml";
    Deny = "deny.yaml";
    AllowIn = "allow-in.yaml";
    AllowOut = "allow-out.yaml";
    AllowSolver = "allow-solver.yaml";
    AllowDatabase = "allow-database.yaml";
    Postgres = "postgres.yaml";
    VolumeClaim = "volume-claim.yaml";
    DatabaseJob = "database-job.yaml";
    Analytics = "analytics.yaml";
    Job = "job.yaml";
    Deployment = "deployment.yaml";
    DevicePlugin = "device-plugin.yaml";
    NodeAutoscaler = "node-autoscaler.yaml";
    NodeAutoscalerRole = "node-autoscaler-role.yaml";
    NodeAutoscalerBinding = "node-autoscaler-binding.yaml";
    Service = "service.yaml";
    Metrics = "metrics.yaml";
    Ingress = "ingress.yaml";
    Route = "route.yaml";
    HttpRoute = "http-route.yaml";
    ServiceNew = "service-new.yaml";
    ServiceReady = "service-ready.yaml";
    BackendTls = "backend-tls.yaml";
    Authority = "authority.yaml";
    DisruptionBudget = "disruption-budget.yaml";
    Autoscaler = "autoscaler.yaml";
    Adapter = "adapter.yaml";
    AdapterService = "adapter-service.yaml";
    AdapterRole = "adapter-role.yaml";
    AdapterTrust = "adapter-trust.yaml";
    AdapterRegistration = "adapter-registration.yaml";
    AllowAdapter = "allow-adapter.yaml";
    ServiceMonitor = "service-monitor.yaml";
    PrometheusRule = "prometheus-rule.yaml";
    AlertmanagerConfig = "alertmanager-config.yaml";
    Dashboard = "dashboard.yaml";
}

/// The execution limit of one template: an endless loop becomes an error.
const FUEL: u64 = 100_000;

/// The filter `tojson`; MiniJinja's own one renders an undefined value as `null`.
fn json_of(value: &minijinja::Value, arguments: Kwargs) -> Result<minijinja::Value, minijinja::Error> {
    if value.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    minijinja::filters::tojson(value, None, arguments)
}

/// Renders a template; returns the row of its kind and the spec.
pub(super) fn render(template: Template, inputs: &impl Serialize) -> Result<(&'static Row, Value), String> {
    let mut texts = Environment::new();
    texts.set_undefined_behavior(UndefinedBehavior::Strict);
    texts.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    texts.set_fuel(Some(FUEL));
    texts.add_filter("tojson", json_of);
    // MiniJinja has a function of this name, which would hide a missing input.
    texts.remove_global("namespace");
    let rendered = texts
        .render_named_str(template.file(), template.text(), minijinja::value::Serde(inputs))
        .map_err(|e| e.to_string())?;
    let mut object: Value = serde_yaml::from_str(&rendered).map_err(|error| format!("it is not YAML: {error}"))?;
    let fields = object.as_object_mut().ok_or("it is not an object")?;
    let mut take = |field: &str| fields.shift_remove(field).and_then(|value| value.as_str().map(str::to_owned));
    let (Some(version), Some(kind)) = (take("apiVersion"), take("kind")) else {
        return Err("it has no `apiVersion` and `kind`".to_owned());
    };
    let row = ROWS.iter().find(|row| row.kind == kind && row.api_version() == version);
    Ok((row.ok_or_else(|| format!("{kind} of {version} is not supported here"))?, object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_fail_on_undefined_variables() {
        for template in Template::ALL {
            let why = render(*template, &serde_json::json!({})).map(|(row, _)| row.kind).unwrap_err();
            assert!(why.contains("undefined"), "{}: {why}", template.file());
        }
    }
}
