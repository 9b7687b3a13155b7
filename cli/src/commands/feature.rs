//! `feature`: feature flags of a running environment. The server program changes them beside the database, as a one-off
//! job; replicas read them within seconds.

use std::fmt::Write as _;

use textnlp_service::keys::Admin;
use textnlp_service::running::ServerProcess;

use super::prelude::*;
use crate::args::{Feature, FeatureState};

/// `feature …`.
pub async fn feature(session: &Session, command: &Feature, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("feature flags", session.quiet()).await?;
    let failed = |failure: Failure| Failure { code: "feature", ..failure.or_hint(chosen.scope.command("status")) };
    let admin = Admin::of(&chosen, &running);
    let mut request = request(command);
    request["operator"] = json!(admin.operator());
    let mut answers = Vec::new();
    for place in places(&admin).await {
        let site = admin.site(place).await.map_err(failed)?;
        answers.push(site.run("features", &request).await.map_err(failed)?);
    }
    let answer = answers.first().cloned().unwrap_or_default();
    match command {
        Feature::List => {
            for name in answer["replaced"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let clear = chosen.scope.command(&format!("feature clear {name}"));
                console
                    .say(format!("The change of `{name}` has no effect: the environment has another value. {clear}"));
            }
            let document = json!({ "features": answer["data"], "replaced": answer["replaced"] });
            Ok(Success::new(table(&answer["data"]), document))
        }
        Feature::Set { name, .. } => {
            console.say("In effect at all replicas within 5 seconds, until the environment has another value.");
            Ok(Success::new(format!("{name}: {}", described(&answer)), answer))
        }
        Feature::Clear { name } => {
            if !answers.iter().any(|answer| answer["cleared"] == true) {
                let error = anyhow::anyhow!("there is no feature flag `{name}`");
                return Err(Failure::usage("no_such_feature", error).hint(chosen.scope.command("feature list")));
            }
            let now = match &answer["flag"] {
                Value::Null => "removed".to_owned(),
                flag => format!("{}, as in the environment", described(flag)),
            };
            Ok(Success::new(format!("{name}: {now}"), answer))
        }
    }
}

/// The JSON command of the server program.
fn request(command: &Feature) -> Value {
    match command {
        Feature::List => json!({ "do": "list" }),
        Feature::Clear { name } => json!({ "do": "clear", "feature": name }),
        Feature::Set { name, state, percent, tenants, all_tenants, model } => {
            let tenants = (*all_tenants || !tenants.is_empty()).then_some(tenants);
            json!({
                "do": "set", "feature": name, "enabled": *state == FeatureState::On, "percent": percent,
                "tenants": tenants, "model": model,
            })
        }
    }
}

/// The databases of an environment: one where sites replicate or share it, else that of each site.
pub(super) async fn places<'a>(admin: &Admin<'a>) -> Vec<Option<&'a ServerProcess>> {
    match admin.running.serving().await {
        Some(serving) if serving.watch.is_some() => vec![Some(serving)],
        _ => admin.places(),
    }
}

fn table(flags: &Value) -> String {
    let mut text = format!("{:<24} {:<40} {:<12} {:<16} {}", "NAME", "VALUE", "SOURCE", "CHANGED", "BY");
    for flag in flags.as_array().into_iter().flatten() {
        let word = |field: &str| flag[field].as_str().unwrap_or("-");
        let changed = flag["changed_at"].as_i64().and_then(|at| jiff::Timestamp::from_second(at).ok());
        let changed = changed.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string());
        let _ = write!(
            text,
            "\n{:<24} {:<40} {:<12} {changed:<16} {}",
            word("feature"),
            described(flag),
            word("source"),
            word("changed_by")
        );
    }
    text
}

/// A flag in words: `on`, `on for 10% of keys, tenants acme globex, model large`.
fn described(flag: &Value) -> String {
    if flag["enabled"] != true {
        return "off".to_owned();
    }
    let mut text = "on".to_owned();
    if let Some(percent) = flag["percent"].as_u64().filter(|percent| *percent != 100) {
        let _ = write!(text, " for {percent}% of keys");
    }
    let tenants: Vec<&str> = flag["tenants"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !tenants.is_empty() {
        let _ = write!(text, ", tenants {}", tenants.join(" "));
    }
    if let Some(model) = flag["model"].as_str() {
        let _ = write!(text, ", model {model}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_a_change_stays_as_it_is() {
        let set = |tenants: &[&str], all_tenants: bool| {
            let tenants = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
            let (name, state) = ("beta".to_owned(), FeatureState::Off);
            request(&Feature::Set { name, state, percent: None, tenants, all_tenants, model: None })
        };
        let off = set(&[], false);
        assert_eq!((&off["enabled"], &off["tenants"], &off["percent"]), (&json!(false), &Value::Null, &Value::Null));
        assert_eq!((&set(&[], true)["tenants"], &set(&["a"], false)["tenants"]), (&json!([]), &json!(["a"])));
    }

    #[test]
    fn flags_are_described_with_what_limits_them() {
        let flag = |more: Value| {
            let mut flag = json!({ "enabled": true, "percent": 100, "tenants": [], "model": null });
            flag.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            described(&flag)
        };
        assert_eq!((flag(json!({})).as_str(), flag(json!({ "enabled": false })).as_str()), ("on", "off"));
        let limited = flag(json!({ "percent": 10, "tenants": ["acme", "globex"], "model": "large" }));
        assert_eq!(limited, "on for 10% of keys, tenants acme globex, model large");
    }
}
