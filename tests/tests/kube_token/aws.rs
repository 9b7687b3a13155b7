//! EKS: what botocore would have signed, by whoever AWS's own tools would sign in as.

use base64::Engine;
use serde_json::json;
use textnlp_tests::Sandbox;
use textnlp_tests::servers::token_oracle;
use textnlp_tests::stand_in::{Reply, StandIn, decoded};

use super::{TESTS, failure, file, refused, run, token};

const KEY: (&str, &str) = ("AWS_ACCESS_KEY_ID", "AKIDVARIABLE");
const SECRET: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "hunter2/variable+");
const REGION: (&str, &str) = ("AWS_REGION", "eu-central-1");
const PROD: [&str; 3] = ["aws", "--cluster", "prod"];

/// The address that a token stands for.
#[track_caller]
fn address(token: &str) -> String {
    let encoded = token.strip_prefix("k8s-aws-v1.").expect("the prefix of EKS");
    String::from_utf8(base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap()
}

/// A field of an address.
fn field(address: &str, name: &str) -> String {
    let (_, query) = address.split_once('?').unwrap();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| decoded(value)).unwrap_or_default()
}

/// Whose key signed it.
fn signer(token: &str) -> String {
    field(&address(token), "X-Amz-Credential").split('/').next().unwrap_or_default().to_owned()
}

/// What STS answers for a role.
fn role(action: &str) -> String {
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>\
         <SecretAccessKey>hunter2role</SecretAccessKey><SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
         </Credentials><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn><AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser>\
         </{action}Result></{action}Response>"
    )
}

#[test]
fn eks_token_matches_the_botocore_signature() {
    let sandbox = Sandbox::new("kube-token");
    let variables = [KEY, SECRET, REGION, ("AWS_SESSION_TOKEN", "se/ss+ion==")];
    let (token, ends) = token(&sandbox, &PROD, &variables);
    let ours = address(&token);
    assert!(ours.starts_with("https://sts.eu-central-1.amazonaws.com/?"), "{ours}");
    assert!(!ends.is_empty());
    let asked = json!({
        "time": field(&ours, "X-Amz-Date"), "access": KEY.1, "secret": SECRET.1, "session": "se/ss+ion==",
        "region": REGION.1, "cluster": "prod",
    });
    let Some(theirs) = token_oracle(TESTS, "sign", &asked) else { return };
    let theirs = theirs["url"].as_str().unwrap();
    assert_eq!(field(&ours, "X-Amz-Signature"), field(theirs, "X-Amz-Signature"), "{ours}\n{theirs}");
    assert_eq!(ours.len(), theirs.len(), "{ours}\n{theirs}");
}

#[test]
fn eks_identity_is_chosen_like_the_aws_tools_do() {
    let sandbox = Sandbox::new("kube-token");
    let config = file(
        &sandbox,
        "config",
        "[profile files]\nregion = eu-west-1\n\
         [profile program]\nregion = eu-west-1\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":\"AKIDPROGRAM\",\"SecretAccessKey\":\"hunter2program\"}'\n",
    );
    let keys =
        file(&sandbox, "credentials", "[files]\naws_access_key_id = AKIDFILE\naws_secret_access_key = hunter2file\n");
    let files =
        [("AWS_CONFIG_FILE", config.as_str()), ("AWS_SHARED_CREDENTIALS_FILE", &keys), ("PATH", "/usr/bin:/bin")];
    let by =
        |args: &[&str], more: &[(&str, &str)]| token(&sandbox, &[&PROD, args].concat(), &[&files, more].concat()).0;

    let named = by(&["--profile", "files"], &[KEY, SECRET]);
    assert_eq!(signer(&named), "AKIDFILE", "a profile that was typed counts before variables");
    assert!(address(&named).starts_with("https://sts.eu-west-1.amazonaws.com/?"), "its region too");
    assert_eq!(signer(&by(&[], &[("AWS_PROFILE", "files")])), "AKIDFILE");
    assert_eq!(signer(&by(&["--profile", "program"], &[])), "AKIDPROGRAM");
    let elsewhere = by(&["--region", "cn-north-1"], &[KEY, SECRET, REGION]);
    assert!(
        address(&elsewhere).starts_with("https://sts.cn-north-1.amazonaws.com.cn/?"),
        "what was typed counts first"
    );

    // Pods of EKS: an agent of the node, and a token of the service account.
    let agent = StandIn::of(
        200,
        r#"{"AccessKeyId":"ASIAPOD","SecretAccessKey":"hunter2pod","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#,
    );
    let proof = file(&sandbox, "token", "hunter2proof");
    let endpoint = format!("{}/v1/credentials", agent.url());
    let pod = [
        REGION,
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", endpoint.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &proof),
    ];
    assert_eq!(signer(&by(&[], &pod)), "ASIAPOD");
    assert_eq!(agent.requests()[0].header("authorization"), "hunter2proof");

    let sts = StandIn::start(|request| Reply::Answer(200, role(&request.field("Action"))));
    let at = sts.url();
    let account = [
        REGION,
        ("AWS_ENDPOINT_URL_STS", at.as_str()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &proof),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/irsa"),
    ];
    assert_eq!(signer(&by(&[], &account)), "ASIAROLE");
    assert_eq!(sts.requests()[0].field("WebIdentityToken"), "hunter2proof");

    let taken = by(&["--role-arn", "arn:aws:iam::1:role/admin"], &[KEY, SECRET, REGION, ("AWS_ENDPOINT_URL_STS", &at)]);
    assert_eq!(
        (signer(&taken), field(&address(&taken), "X-Amz-Security-Token")),
        ("ASIAROLE".to_owned(), "session".to_owned())
    );
    let asked = sts.requests().pop().unwrap();
    assert_eq!(
        (asked.field("Action"), asked.field("RoleArn")),
        ("AssumeRole".to_owned(), "arn:aws:iam::1:role/admin".to_owned())
    );
    assert!(asked.header("authorization").contains("AKIDVARIABLE"), "{asked:?}");

    // A machine of EC2, which wants a session first.
    let machine = StandIn::start(|request| {
        match request.line.as_str() {
        "PUT /latest/api/token" => Reply::Headed(200, "x-aws-ec2-metadata-token-ttl-seconds: 600", "hunter2session".to_owned()),
        _ if request.header("x-aws-ec2-metadata-token") != "hunter2session" => Reply::Answer(401, String::new()),
        "GET /latest/meta-data/placement/region" => Reply::Answer(200, "us-gov-west-1".to_owned()),
        line if line.ends_with("/security-credentials/") => Reply::Answer(200, "nodes".to_owned()),
        line if line.ends_with("/security-credentials/nodes") => Reply::Answer(
            200,
            r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAMACHINE","SecretAccessKey":"hunter2machine","Token":"t","LastUpdated":"2026-01-01T00:00:00Z","Expiration":"2099-01-01T00:00:00Z"}"#.to_owned(),
        ),
        _ => Reply::Answer(404, String::new()),
    }
    });
    let at = machine.url();
    let found = by(&[], &[("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &at)]);
    assert_eq!(signer(&found), "ASIAMACHINE");
    assert!(address(&found).starts_with("https://sts.us-gov-west-1.amazonaws.com/?"), "{}", address(&found));
}

#[test]
fn failed_aws_sign_in_reports_the_reason() {
    let sandbox = Sandbox::new("kube-token");
    refused(&sandbox, &PROD, &[REGION], 1, &["sign in to aws", "cause: ", "hint: ", "aws sts get-caller-identity"]);
    refused(&sandbox, &PROD, &[KEY, SECRET], 2, &["no region", "--region"]);
    refused(&sandbox, &["aws", "--cluster", ""], &[KEY, SECRET, REGION], 2, &["--cluster", "it is empty"]);
    refused(&sandbox, &["aws", "--cluster", "a\nb"], &[KEY, SECRET, REGION], 2, &["--cluster"]);
    refused(&sandbox, &[&PROD[..], &["--region", "evil.example/"]].concat(), &[KEY, SECRET], 2, &["--region"]);
    refused(&sandbox, &PROD, &[KEY, SECRET, ("AWS_REGION", "x@evil.example/")], 2, &["the region"]);
    refused(
        &sandbox,
        &[&PROD[..], &["--profile", "nobody"]].concat(),
        &[REGION],
        1,
        &["sign in to aws with the profile nobody"],
    );
    let said = run(&sandbox, &["aws"], &[]).expect(2);
    assert!(said.out.is_empty() && said.err.contains("--cluster"), "{said:?}");

    let arn = [&PROD[..], &["--role-arn", "arn:aws:iam::1:role/admin"]].concat();
    let by = |sts: &StandIn, says: &[&str]| {
        refused(&sandbox, &arn, &[KEY, SECRET, REGION, ("AWS_ENDPOINT_URL_STS", &sts.url())], 1, says)
    };
    let expired = "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>The security token included in the request is expired</Message></Error><RequestId>r</RequestId></ErrorResponse>";
    by(&StandIn::of(403, expired), &["ExpiredToken", "hint: "]);
    by(&StandIn::of(200, "garbage hunter2"), &["cause: "]);
    by(&StandIn::of(200, "x".repeat(1 << 20)), &["cause: "]);
    // One who has nobody to answer is let go of.
    by(&StandIn::start(|_| Reply::Silence), &["cause: "]);

    let said = run(&sandbox, &[&PROD[..], &["-o", "json"]].concat(), &[REGION]).expect(1);
    assert_eq!(failure(&said)["code"], "not_signed_in", "{said:?}");
}
