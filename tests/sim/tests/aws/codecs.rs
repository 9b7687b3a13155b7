//! Every operation of every service that providers use, in both directions: requests as botocore writes them are read to
//! the same input, and answers are read by botocore to the same output.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use textnlp_sim::aws::check;
use textnlp_sim::aws::model::{self, Model, Protocol};
use textnlp_sim::aws::protocol::{self, Request};
use textnlp_sim::{Fault, Service};

/// The folders of the models of the services that `providers/aws` has SDKs for.
const MODELS: [&str; 21] = [
    "acm",
    "application-autoscaling",
    "budgets",
    "cloudwatch",
    "ec2",
    "ecr",
    "eks",
    "elasticache",
    "elbv2",
    "iam",
    "kms",
    "logs",
    "rds",
    "resourcegroupstaggingapi",
    "route53",
    "s3",
    "sagemaker",
    "secretsmanager",
    "service-quotas",
    "sns",
    "sts",
];

fn script(arguments: &[&str], input: Option<String>) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws/codecs.py");
    let mut child = Command::new(model::python().unwrap())
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It reads while it writes.
    let writer = std::thread::spawn(move || stdin.write_all(input.unwrap_or_default().as_bytes()));
    let output = child.wait_with_output().unwrap();
    let is_written = writer.join().unwrap().is_ok();
    (is_written && output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn protocol_of(name: &str) -> Protocol {
    match name {
        "ec2" => Protocol::Ec2,
        "query" => Protocol::Query,
        "json" => Protocol::Json,
        "rest-json" => Protocol::RestJson,
        "rest-xml" => Protocol::RestXml,
        "smithy-rpc-v2-cbor" => Protocol::RpcCbor,
        other => panic!("{other} is a new protocol"),
    }
}

fn bytes(line: &Value, member: &str) -> Vec<u8> {
    STANDARD.decode(line[member].as_str().unwrap()).unwrap()
}

/// What of a request is read otherwise than botocore wrote it.
fn compare(model: &'static Model, line: &Value) -> Vec<String> {
    let sent = &line["request"];
    // By hand: a parser would normalise the path.
    let address = sent["url"].as_str().unwrap().strip_prefix("http://").unwrap();
    let target = address.find(['/', '?']).map_or("", |start| &address[start..]);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let raw_query = query.to_owned();
    let mut headers = http::HeaderMap::new();
    for (name, value) in sent["headers"].as_object().unwrap() {
        let value = http::HeaderValue::from_bytes(value.as_str().unwrap().as_bytes()).unwrap();
        headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    let request = Request {
        method: sent["method"].as_str().unwrap().to_owned(),
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        query: url::form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect(),
        raw_query,
        headers,
        body: bytes(sent, "body").into(),
    };
    let service = Service { name: "", model: "", operations: &[], quotas: &[], ledger: &[] };
    let mut wrong = Vec::new();
    let protocol = protocol::protocol_of(model, &request);
    if protocol != protocol_of(line["protocol"].as_str().unwrap()) {
        wrong.push(format!("the protocol is read as {protocol:?}"));
    }
    let wanted = line["operation"].as_str().unwrap();
    let (name, operation) = protocol::operation_of(model, &service, protocol, &request);
    // Some operations share method and path, and one of each pair is simulated if any.
    if name != wanted && !TWINS.iter().any(|(one, other)| (wanted, name.as_str()) == (*one, *other)) {
        wrong.push(format!("it is taken for {name:?}"));
    }
    let Some(operation) = operation.filter(|_| name == wanted).or_else(|| model.operation(wanted)) else {
        return wrong;
    };
    let input = protocol::parse(model, protocol, &operation, &request);
    wrong.extend(input.problems);
    let mut value = input.value.clone();
    if line["input"].get("ContentLength").is_none() {
        // A header that the client adds, and a member of some inputs too.
        value.as_object_mut().unwrap().shift_remove("ContentLength");
    }
    if value != line["input"] {
        wrong.push(format!("{} is read as {value}", line["input"]));
    }
    if input.body != bytes(line, "streamed") {
        wrong.push("the body differs".to_owned());
    }
    if let Some(reference) = &operation.input {
        let mut problems = Vec::new();
        check::check(model, reference, &input.value, "input", &mut problems);
        // Not every pattern has an example in the script.
        wrong.extend(problems.into_iter().filter(|problem| !problem.contains("does not match")));
    }
    wrong
}

/// Operations that look the same, the first as the second: older versions of another, and one for another kind of bucket.
const TWINS: &[(&str, &str)] = &[
    ("GetBucketLifecycle", "GetBucketLifecycleConfiguration"),
    ("GetBucketNotification", "GetBucketNotificationConfiguration"),
    ("ListDirectoryBuckets", "ListBuckets"),
    ("PutBucketLifecycle", "PutBucketLifecycleConfiguration"),
    ("PutBucketNotification", "PutBucketNotificationConfiguration"),
];

/// The answers to an operation: its output, and each of its errors.
fn answers(model: &'static Model, line: &Value) -> Vec<Value> {
    let protocol = protocol_of(line["protocol"].as_str().unwrap());
    let operation = model.operation(line["operation"].as_str().unwrap()).unwrap();
    let as_line = |reply: &protocol::Reply| {
        let mut answer = line.clone();
        answer["status"] = reply.status.into();
        answer["headers"] = json!(reply.headers);
        answer["body"] = STANDARD.encode(&reply.body).into();
        answer["method"] = operation.http.method.clone().into();
        answer
    };
    let reply = protocol::reply(model, protocol, &operation, &line["output"], bytes(line, "streamed").into(), "an-id");
    let mut lines = vec![as_line(&reply)];
    let request = Request { method: operation.http.method.clone(), ..Request::default() };
    for shape in line["errors"].as_array().unwrap() {
        let fault = Fault::new(shape.as_str().unwrap(), "a <message>");
        let mut answer = as_line(&protocol::fault(model, protocol, Some(&operation), &fault, &request, "an-id"));
        let declared = model.shape(shape.as_str().unwrap()).unwrap();
        let declared = declared.error.as_ref().and_then(|error| error.code.clone());
        // JSON carries the name of the shape, unless the service speaks the query protocol too.
        let is_name = matches!(protocol, Protocol::Json | Protocol::RestJson | Protocol::RpcCbor)
            && model.metadata.aws_query_compatible.is_none();
        answer["error"] = declared.filter(|_| !is_name).map_or_else(|| shape.clone(), Value::from);
        lines.push(answer);
    }
    lines
}

#[test]
fn every_operation_is_read_and_answered_as_botocore_does() {
    let arguments: Vec<&str> = std::iter::once("requests").chain(MODELS).collect();
    let (is_done, lines) = script(&arguments, None);
    assert!(is_done);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut replies = String::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (folder, protocol) = (line["service"].as_str().unwrap(), line["protocol"].as_str().unwrap());
        let model = Model::of(folder).unwrap();
        if line.get("request").is_some() {
            *counts.entry(format!("{protocol} requests")).or_default() += 1;
            let problems = compare(model, &line);
            if !problems.is_empty() {
                wrong.push(format!("{folder} {protocol} {}: {}", line["operation"], problems.join("; ")));
            }
        } else {
            for answer in answers(model, &line) {
                *counts.entry(format!("{protocol} answers")).or_default() += 1;
                replies.push_str(&answer.to_string());
                replies.push('\n');
            }
        }
    }
    println!("{counts:#?}");
    for name in ["ec2", "query", "json", "rest-json", "rest-xml", "smithy-rpc-v2-cbor"] {
        assert!(counts.get(&format!("{name} requests")).is_some_and(|count| *count > 100), "{name}");
    }
    let (is_same, differences) = script(&["replies"], Some(replies));
    let count = wrong.len();
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{count} requests are read otherwise:\n{}", wrong.join("\n"));
    assert!(is_same, "{differences}");
}
