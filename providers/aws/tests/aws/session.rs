//! Roles that are assumed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_aws::{Access, AskCode, AssumedRole, Aws};
use textnlp_provider::conformance::Violation;
use textnlp_provider::{CloudId, Error, ErrorKind, Provider, Result, Secret, error_chain};
use textnlp_sim::aws::sts::Sts;
use textnlp_sim::{Disruption, Rule, Scope};

use crate::network::with;
use crate::{ACCOUNT, Bench, REGION, Secrets, iam, output, run};

const OPERATOR: &str = "arn:aws:iam::123456789012:user/operator";
const DEVICE: &str = "arn:aws:iam::123456789012:mfa/operator";

/// The role of a deployer, which trusts the operator on a condition.
async fn role(bench: &Bench, condition: Value) -> Result<AssumedRole, Violation> {
    let wanted = iam::role("deployer", "unused.amazonaws.com", &[]);
    let statement = json!({
        "Effect": "Allow", "Principal": { "AWS": OPERATOR }, "Action": "sts:AssumeRole", "Condition": condition,
    });
    let trust = json!({ "Version": "2012-10-17", "Statement": [statement] });
    let wanted = textnlp_provider::Wanted { spec: with(&wanted, "trust", trust), ..wanted };
    let made = bench.bed().make(&wanted).await?;
    Ok(AssumedRole { arn: output(&made, "arn"), ..AssumedRole::default() })
}

fn access(bench: &Bench, role: AssumedRole, ask_code: Option<AskCode>) -> Access {
    Access { role: Some(role), ask_code, ..bench.access() }
}

/// The error of a role that is not assumed, with its causes, and the hint.
async fn refused(access: &Access) -> (String, String) {
    let error: Error = Aws::sign_in(access).await.unwrap_err();
    assert!(!error.kind.may_pass(), "{error:?}");
    (error_chain(&error), error.hint.unwrap_or_default())
}

#[test]
fn a_role_of_another_account_is_assumed_with_the_external_id_of_its_trust_policy() {
    let bench = Bench::new();
    run(async {
        let role = role(&bench, json!({ "StringEquals": { "sts:ExternalId": "4711" } })).await?;
        let with = |id: Option<&str>| AssumedRole { external_id: id.map(str::to_owned), ..role.clone() };
        let (why, hint) = refused(&access(&bench, with(None), None)).await;
        assert!(why.contains(OPERATOR) && why.contains(&role.arn), "{why}");
        assert!(hint.contains("account.external_id"), "{hint}");
        let (why, hint) = refused(&access(&bench, with(Some("0815")), None)).await;
        assert!(why.contains(OPERATOR) && hint.contains("name your identity and the external id"), "{why} {hint}");
        let identity = Aws::sign_in(&access(&bench, with(Some("4711")), None)).await.unwrap();
        assert_eq!(identity.account, ACCOUNT);
        assert!(identity.arn.contains(":assumed-role/") && identity.arn.contains("/textnlp-deploy-"), "{identity:?}");
        Ok(())
    });
}

#[test]
fn a_code_of_an_mfa_device_is_asked_for_once() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    fn ask(serial: &str) -> Result<Secret> {
        assert_eq!(serial, DEVICE);
        ASKED.fetch_add(1, Ordering::Relaxed);
        Ok(Secret::new(*b"123456"))
    }
    fn shows_words(_: &str) -> Result<Secret> {
        Ok(Secret::new(*b"secret"))
    }
    let bench = Bench::new();
    run(async {
        let role = role(&bench, json!({ "Bool": { "aws:MultiFactorAuthPresent": "true" } })).await?;
        let (_, hint) = refused(&access(&bench, role.clone(), Some(ask))).await;
        assert!(hint.contains("account.mfa_serial") && ASKED.load(Ordering::Relaxed) == 0, "{hint}");
        let device = |duration| AssumedRole { mfa_serial: Some(DEVICE.to_owned()), duration, ..role.clone() };
        let (why, _) = refused(&access(&bench, device(None), None)).await;
        assert!(why.contains(DEVICE) && why.contains("no operator can be asked"), "{why}");
        let words = device(Some(Duration::from_secs(901)));
        let (why, _) = refused(&access(&bench, words, Some(shows_words))).await;
        assert!(why.contains("six digits") && !why.contains("secret"), "{why}");

        let fresh = access(&bench, device(Some(Duration::from_secs(1800))), Some(ask));
        let (why, hint) = refused(&fresh).await;
        assert!(why.contains("MultiFactorAuthentication failed") && why.contains(OPERATOR), "{why}");
        assert!(hint.contains("use a code once"), "{hint}");
        let codes = BTreeSet::from(["123456".to_owned()]);
        bench.simulator.world().state::<Sts>(&Scope::global(ACCOUNT)).devices.insert(DEVICE.to_owned(), codes);
        let before = ASKED.load(Ordering::Relaxed);
        for _ in 0..3 {
            Aws::sign_in(&fresh).await.unwrap();
        }
        assert!(Aws::assumed(&fresh).await.unwrap().is_some(), "the cluster's tokens are of the same session");
        assert_eq!((ASKED.load(Ordering::Relaxed) - before, bench.calls("AssumeRole")), (1, 1));

        // The operator is not asked again during a run.
        bench.simulator.advance(Duration::from_secs(7200));
        let provider = Aws::new(fresh, Arc::new(Secrets(Default::default())));
        let kind = "aws.vpc".parse().unwrap();
        let error = provider.read(&kind, &CloudId::new("vpc-00000000000000000").unwrap()).await.unwrap_err();
        assert_eq!((error.kind, ASKED.load(Ordering::Relaxed) - before), (ErrorKind::Denied, 1));
        Ok(())
    });
}

#[test]
fn a_session_that_ended_is_renewed() {
    let bench = Bench::new();
    run(async {
        let role = role(&bench, json!({})).await?;
        let too_long = AssumedRole { duration: Some(Duration::from_secs(7200)), ..role.clone() };
        let (why, hint) = refused(&access(&bench, too_long, None)).await;
        assert!(why.contains("MaxSessionDuration") && hint.contains("account.session_duration"), "{why} {hint}");

        let provider = Aws::new(access(&bench, role, None), Arc::new(Secrets(Default::default())));
        let (kind, id) = ("aws.vpc".parse().unwrap(), CloudId::new("vpc-00000000000000000").unwrap());
        provider.read(&kind, &id).await.unwrap();
        bench.simulator.advance(Duration::from_secs(7200));
        let error = provider.read(&kind, &id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "the engine repeats the call: {error:?}");
        provider.read(&kind, &id).await.unwrap();
        assert_eq!(bench.calls("AssumeRole"), 2);
        Ok(())
    });
}

#[test]
fn an_account_is_signed_in_to_in_another_region_while_its_own_does_not_answer() {
    let bench = Bench::new();
    run(async {
        let role = role(&bench, json!({})).await?;
        bench.simulator.faults().add(Rule::always("", "", Disruption::Unavailable).in_region(REGION));
        for role in [None, Some(role)] {
            let own = Access { role, ..bench.access() };
            assert_eq!(Aws::sign_in(&own).await.unwrap_err().kind, ErrorKind::Unavailable);
            let other = Access { other_region: Some("eu-central-1".to_owned()), ..own };
            assert_eq!(Aws::sign_in(&other).await.unwrap().account, ACCOUNT);
            // The clients are still those of the region of the site.
            let provider = Aws::new(other, Arc::new(Secrets(Default::default())));
            let read =
                provider.read(&"aws.vpc".parse().unwrap(), &CloudId::new("vpc-00000000000000000").unwrap()).await;
            assert_eq!(read.unwrap_err().kind, ErrorKind::Unavailable);
        }
        Ok(())
    });
}
