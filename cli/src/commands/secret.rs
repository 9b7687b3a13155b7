//! `secret`: rotation of the credentials that an environment generates.

use anyhow::Context;
use jiff::Timestamp;
use textnlp_orchestrator::dr::report;
use textnlp_orchestrator::environment::model::DatabaseKind;
use textnlp_orchestrator::environment::{
    ACCOUNT_KEY, CACHE_PASSWORD, DATABASE_PASSWORD, REPLICATION_PASSWORD, SIGNING_KEY, names,
};
use textnlp_orchestrator::rotation::{self, RotationTarget};
use textnlp_provider::{Recorded, Rotation};
use textnlp_service::backup::{backup_status, key};
use textnlp_service::keys::Admin;
use textnlp_service::security::replaces_password;
use textnlp_service::up::is_not_frozen;
use textnlp_service::{Scope, gate, running};

use super::prelude::*;
use super::up;
use crate::args::{Global, RotatedSecret, SecretCommand, Up};
use crate::clouds::Linked;
use crate::deployment::{self, Deployment};
use crate::rerun_flags::quoted;
use crate::signals;

/// `secret …`.
pub async fn secret(session: &Session, command: &SecretCommand, console: Console) -> Result<Success, Failure> {
    let SecretCommand::Rotate { what, immediately, no_gate } = *command;
    if matches!(what, RotatedSecret::Backup | RotatedSecret::Report) {
        return own_key(session, what, immediately, no_gate, console).await;
    }
    let part = |name: &str| format!("{}/{name}", names::SECRETS);
    let signing_key = part(SIGNING_KEY);
    let account_key = part(ACCOUNT_KEY);
    let cache_password = part(CACHE_PASSWORD);
    let passwords = [DATABASE_PASSWORD, REPLICATION_PASSWORD].map(part);
    let chosen = session.load(session.quiet())?;
    if what == RotatedSecret::Database && chosen.loaded.environment.database.kind == DatabaseKind::Sqlite {
        let error = anyhow::anyhow!("environment {} uses SQLite, which has no password", chosen.scope.name);
        let hint = "its file is protected by its owner and permissions; the other credentials are `jwt`, `ca`, `acme`, `cache`, `backup` and `report`";
        return Err(Failure::usage("nothing_to_rotate", error).hint(hint));
    }
    if what == RotatedSecret::Cache && immediately {
        let error = anyhow::anyhow!("when the old password of a cache ends is up to its cloud");
        let hint =
            "omit `--immediately`; on AWS rotate twice: the second rotation ends the password from before the first";
        return Err(Failure::usage("no_such_option", error).hint(hint));
    }
    let again = typed(&session.global, what, immediately, no_gate);
    changes_nothing_else(&chosen, &again)?;
    let is_wanted = |recorded: &Recorded| match what {
        RotatedSecret::Jwt => is_part(recorded, &signing_key),
        RotatedSecret::Acme => is_part(recorded, &account_key),
        RotatedSecret::Cache => is_part(recorded, &cache_password),
        RotatedSecret::Ca => chosen.scope.platform.is_authority(recorded),
        RotatedSecret::Backup | RotatedSecret::Report => false,
        RotatedSecret::Database => {
            passwords.iter().any(|password| is_part(recorded, password)) && replaces_password(recorded)
        }
    };
    let says = description_of(what);
    let rotation = Rotation { at: Timestamp::now(), immediately, new_id: false };
    let first = async || Ok::<(), Failure>(());
    let last = async || {
        record(session, what, immediately).await?;
        if let (RotatedSecret::Jwt, true) = (what, immediately) {
            console.say(
                "Tokens that the old key signed are refused within two minutes. Clients exchange their API keys again.",
            );
        }
        Ok::<(), Failure>(())
    };
    let rotated = rotate(session, is_wanted, says, &rotation, (first, last), no_gate, console).await;
    rotated.map_err(|failure| match (failure.exit, immediately) {
        // A server that still signs with the old key vouches for it again.
        (Exit::Failed | Exit::Stopped, true) => {
            let first = failure.hint.as_ref().map_or(String::new(), |hint| format!("{hint}\n"));
            let again = chosen.scope.command(&again);
            failure.hint(format!("{first}then again, or the old one may still be accepted: {again}"))
        }
        _ => failure,
    })
}

/// Refuses a rotation whose `up` would apply other settings than those that run: the operator approves only the rotation.
fn changes_nothing_else(chosen: &ChosenEnvironment, rotation: &str) -> Result<(), Failure> {
    let ran = gate::runs_the_configuration(chosen);
    if ran.err().is_none_or(|failure| failure.code != "settings_not_applied") {
        return Ok(());
    }
    let scope = &chosen.scope;
    let first = format!("apply them first: {}", scope.last_up());
    let last = scope.last(rotation);
    // Where only the file has changed, the same command would be refused again.
    let hint = match last == scope.same(rotation) {
        true => first,
        false => format!("with the settings of the last `up`: {last}\nor {first}"),
    };
    let error = anyhow::anyhow!("the settings of {} have changes that `up` has not applied", scope.name)
        .context("a rotation is an `up`, which would apply them too");
    Err(Failure::refused("settings_not_applied", error).hint(hint))
}

/// The command as it was typed, for hints: with the reason and the approval, but without what selects the environment.
fn typed(global: &Global, what: RotatedSecret, immediately: bool, no_gate: bool) -> String {
    let reason = global.reason.as_ref().map(|reason| format!(" --reason {}", quoted(reason)));
    let flags = [(" --immediately", immediately), (" --no-gate", no_gate), (" --yes", global.yes)];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag.to_owned());
    format!("secret rotate {}{}", name_of(what), flags.chain(reason).collect::<String>())
}

/// Its name on the command line and in audit logs.
fn name_of(what: RotatedSecret) -> &'static str {
    match what {
        RotatedSecret::Jwt => "jwt",
        RotatedSecret::Ca => "ca",
        RotatedSecret::Database => "database",
        RotatedSecret::Backup => "backup",
        RotatedSecret::Report => "report",
        RotatedSecret::Acme => "acme",
        RotatedSecret::Cache => "cache",
    }
}

fn description_of(what: RotatedSecret) -> &'static str {
    match what {
        RotatedSecret::Jwt => "the key that signs tokens",
        RotatedSecret::Ca => "the certificate authority",
        RotatedSecret::Database => "the database passwords",
        RotatedSecret::Backup => "the key that encrypts backups",
        RotatedSecret::Report => "the key that signs reports, evidence of gates and backups",
        RotatedSecret::Acme => "the key of the account at the certificate authority",
        RotatedSecret::Cache => "the password of the cache",
    }
}

/// The keys that no resource has: `secret rotate backup` and `secret rotate report`.
async fn own_key(
    session: &Session,
    what: RotatedSecret,
    immediately: bool,
    no_gate: bool,
    console: Console,
) -> Result<Success, Failure> {
    let says = description_of(what);
    if immediately {
        let error = anyhow::anyhow!("{says} is replaced at once in any case");
        return Err(Failure::usage("no_such_option", error).hint("omit --immediately"));
    }
    let deployment = deployment::recorded(session, session.load_to_run(session.quiet())?).await?;
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let in_cluster = matches!(what, RotatedSecret::Backup) && environment.dumps_in_cluster();
    let locked = deployment.locked().await?;
    let replaced = async {
        if in_cluster {
            is_not_frozen(scope, &locked).await?;
        }
        console.say(match what {
            RotatedSecret::Backup => {
                format!("Replaces {says}. Older backups stay readable with the old one, which is kept.")
            }
            _ => format!(
                "Replaces {says}. What the old one signed is not accepted any more: measured gates, baselines and \
                 drills count as not measured, and older backups and reports need its public half."
            ),
        });
        approved(session, scope, console)?;
        if let RotatedSecret::Backup = what {
            let recipient = key::rotate(&Linked, &scope.folder).await?.recipient().to_string();
            backup_status::key_was_replaced(&scope.folder)?;
            let show = scope.command("backup key show --out FILE");
            let text = format!("Replaced {says}: {recipient}\nStore the new key off this machine: {show}");
            return Ok(Success::new(text, json!({ "rotated": [name_of(what)], "recipient": recipient })));
        }
        let (old, new) = report::rotate_signing_key(&scope.folder).context("replace the key")?;
        let (old, new) = (old.to_base64(), new.to_base64());
        let text = format!(
            "Replaced {says}: {new}\nOlder backups: `restore FILE --signed-by {old}`, if you know that the file is yours\n\
             Measure the gate again: {}",
            scope.last("gate")
        );
        Ok(Success::new(text, json!({ "rotated": [name_of(what)], "old": old, "new": new })))
    };
    let replaced: Result<Success, Failure> = replaced.await;
    locked.close().await.map_err(|error| deployment.failed(error))?;
    let mut done = replaced?;
    // Whether or not the service runs, the key is replaced; the log of a stopped one cannot be written.
    if let Err(failure) = record(session, what, false).await {
        console.warn(format!("the audit log has no record of it: {:#}", failure.error));
    }
    // Backups in a cluster are encrypted by a job that has the public half.
    if in_cluster {
        let went_up = up::up(session, &Up { no_gate, ..Up::default() }, console).await?;
        done.text = format!("{}\n{}", done.text, went_up.text);
    }
    Ok(done)
}

/// Whether a resource is this part of its site, `COMPONENT/PART`.
pub fn is_part(recorded: &Recorded, part: &str) -> bool {
    recorded.id.as_str().split_once('/').is_some_and(|(_, rest)| rest == part)
}

/// Requests the rotation of recorded resources, and carries it out by `up`. An interrupted one is finished by the next
/// `up`. `first` is done once it is approved, `last` once the new secrets are recorded: also where the gate did not open.
pub async fn rotate(
    session: &Session,
    is_wanted: impl Fn(&Recorded) -> bool,
    says: &str,
    rotation: &Rotation,
    (first, last): (impl AsyncFnOnce() -> Result<(), Failure>, impl AsyncFnOnce() -> Result<(), Failure>),
    no_gate: bool,
    console: Console,
) -> Result<Success, Failure> {
    let chosen = session.load(session.quiet())?;
    gate::is_measured(&chosen.scope, &chosen.loaded.environment, no_gate, false)
        .map_err(|failure| failure.hint("add --no-gate"))?;
    is_not_frozen(&chosen.scope, &running::state(&chosen.scope).await?).await?;
    let (deployment, targets) = request(session, is_wanted, says, rotation, first, console).await?;
    let args = Up { no_gate, ..Up::default() };
    let went_up = up::up(session, &args, console).await;
    let went_up = went_up.map_err(|failure| finished_by(&deployment.chosen.scope.last_up(), failure));
    let left = match deployment.state().await {
        Ok(state) => rotation::pending(&state, &targets),
        Err(failure) => return Err(went_up.err().unwrap_or(failure)),
    };
    if let Some(resource) = left.first() {
        let error = anyhow::anyhow!("`{resource}` was not rotated");
        let failure = Failure::refused("not_rotated", error).hint(deployment.chosen.scope.last("plan"));
        return Err(went_up.err().unwrap_or(failure));
    }
    let ended = last().await;
    let mut done = went_up?;
    ended?;
    let rotated: Vec<_> = targets.iter().map(|target| target.resource.to_string()).collect();
    done.text = format!("Replaced {says}: {}\n{}", rotated.join(", "), done.text);
    done.document.insert("rotated".to_owned(), json!(rotated));
    Ok(done)
}

/// The failure of a rotation, whose hint says what finishes it.
fn finished_by(up: &str, failure: Failure) -> Failure {
    let finishes = format!("the next `up` finishes the rotation: {up}");
    match &failure.hint {
        Some(hint) if hint.contains(up) => failure,
        Some(hint) => {
            let both = format!("{hint}\n{finishes}");
            failure.hint(both)
        }
        None => failure.hint(finishes),
    }
}

/// Records in the journal that the next `up` replaces these resources.
pub async fn request(
    session: &Session,
    is_wanted: impl Fn(&Recorded) -> bool,
    says: &str,
    rotation: &Rotation,
    first: impl AsyncFnOnce() -> Result<(), Failure>,
    console: Console,
) -> Result<(Deployment, Vec<RotationTarget>), Failure> {
    let deployment = deployment::recorded(session, session.load_to_run(session.quiet())?).await?;
    let scope = &deployment.chosen.scope;
    let failed = |error| deployment.failed(error);
    let mut locked = deployment.locked().await?;
    let prepared = async {
        let targets = rotation::targets(&locked, is_wanted).map_err(failed)?;
        let targets: Vec<_> =
            targets.into_iter().filter(|target| deployment.sites.contains_key(&target.site)).collect();
        if targets.is_empty() {
            let error = anyhow::anyhow!("environment {} has not generated {says}", scope.name);
            return Err(Failure::usage("nothing_to_rotate", error).hint(scope.command("state list")));
        }
        for target in &targets {
            let open = locked.open(&target.site).map_err(failed)?;
            // Its end would be recorded over the request.
            if open.values().any(|open| open.intent.operation.resource == target.resource) {
                let error = anyhow::anyhow!("an operation on `{}` is open", target.resource);
                return Err(
                    Failure::refused("operation_open", error).hint(format!("finish it first: {}", scope.last_up()))
                );
            }
        }
        let names: Vec<_> = targets.iter().map(|target| target.resource.to_string()).collect();
        console.say(format!("Replaces {says}: {}", names.join(", ")));
        // The lock is released in any case.
        signals::stop(console);
        approved(session, scope, console)?;
        first().await?;
        rotation::request(&mut locked, &targets, rotation).await.map_err(failed)?;
        Ok(targets)
    };
    let prepared = prepared.await;
    locked.close().await.map_err(failed)?;
    Ok((deployment, prepared?))
}

/// The operator's approval of what was just said.
fn approved(session: &Session, scope: &Scope, console: Console) -> Result<(), Failure> {
    if session.global.yes || console.confirm("Make this change?") {
        return Ok(());
    }
    if signals::is_stopped() {
        return Err(signals::stopped_at_question(scope.command("status")));
    }
    let error = anyhow::anyhow!("not approved, so nothing was done");
    Err(Failure::refused("not_approved", error).hint("approve it with --yes"))
}

/// Records the rotation in the audit logs. The servers forget the public halves of a leaked signing key.
async fn record(session: &Session, what: RotatedSecret, immediately: bool) -> Result<(), Failure> {
    let chosen = session.load(session.quiet())?;
    let running = running::running(&chosen.scope).await?;
    let admin = Admin::of(&chosen, &running);
    admin.rotated(name_of(what), immediately).await
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn hint_repeats_every_flag_of_the_rotation() {
        for command in [
            "secret rotate jwt",
            "secret rotate jwt --immediately --no-gate --yes --reason 'key leaked'",
            "secret rotate ca --yes",
        ] {
            let words = command.replace("'key leaked'", "key_leaked");
            let words = words.split(' ').map(|word| word.replace('_', " "));
            let Cli { command: parsed, global } =
                Cli::try_parse_from(["textnlp-deploy".to_owned()].into_iter().chain(words)).unwrap();
            let Command::Secret(SecretCommand::Rotate { what, immediately, no_gate }) = parsed else { unreachable!() };
            assert_eq!(typed(&global, what, immediately, no_gate), command);
        }
    }

    #[test]
    fn rotation_that_failed_says_what_finishes_it() {
        const UP: &str = "textnlp-deploy up --env shop";
        let failure = |kind: ErrorKind| Failure::from(anyhow::Error::new(Error::from(kind)));
        let finishes = format!("the next `up` finishes the rotation: {UP}");
        assert_eq!(finished_by(UP, failure(ErrorKind::ConnectionRefused)).hint.as_deref(), Some(finishes.as_str()));
        let full = finished_by(UP, failure(ErrorKind::StorageFull)).hint.unwrap();
        assert!(full.starts_with("free some space") && full.ends_with(&finishes), "{full}");
        let again = format!("then run again: {UP} --set scaling.min=2");
        let named = finished_by(UP, failure(ErrorKind::StorageFull).hint(again.clone()));
        assert_eq!(named.hint, Some(again), "it is named once");
    }
}
