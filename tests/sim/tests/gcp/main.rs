//! The simulated Google Cloud, driven by Google's own Python clients and by plain requests.
#![allow(clippy::unwrap_used)]

mod bigquery;
mod budgets;
mod clients;
mod compute;
mod container;
mod dns;
mod identity;
mod keys;
mod ledger;
mod monitoring;
mod objects;
mod redis;
mod refusals;
mod run;
mod services;
mod sql;
mod storage;
mod vertex;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::{GoogleCloud, Options};

/// A service's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// The reason and the status of an error.
    pub(crate) fn reason(&self) -> (u16, &str) {
        (self.status, self.body["error"]["errors"][0]["reason"].as_str().unwrap_or_default())
    }

    pub(crate) fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// The answer of a call that has to succeed.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }
}

/// A simulated cloud and a token of its owner.
pub(crate) struct Client {
    pub(crate) cloud: GoogleCloud,
    pub(crate) token: String,
}

impl Client {
    /// All APIs are on, and all is done at the next request.
    pub(crate) fn quick() -> Self {
        Self::with(Options::zero_latency().enabled())
    }

    pub(crate) fn with(options: Options) -> Self {
        let cloud = GoogleCloud::start(options);
        let token = cloud.token();
        Self { cloud, token }
    }

    /// Calls a method; the path follows the service's address.
    pub(crate) fn call(&self, method: &str, service: &str, path: &str, body: Value) -> Answer {
        let path = path.replace("PROJECT", self.cloud.project());
        let headers =
            [("authorization", format!("Bearer {}", self.token)), ("content-type", "application/json".into())];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        send(method, &format!("{}{path}", self.cloud.url_of(service)), &headers, &body)
    }

    pub(crate) fn get(&self, service: &str, path: &str) -> Answer {
        self.call("GET", service, path, Value::Null)
    }

    pub(crate) fn post(&self, service: &str, path: &str, body: Value) -> Answer {
        self.call("POST", service, path, body)
    }

    /// Waits for an operation of Compute Engine, Kubernetes Engine or Cloud SQL: as it ended.
    pub(crate) fn wait(&self, service: &str, answer: Answer) -> Value {
        let operation = answer.ok();
        let link = operation["selfLink"].as_str().unwrap();
        let path = &link[link.find("projects/").unwrap()..];
        let path = if service == "compute" { path.to_owned() } else { format!("v1/{path}") };
        for _ in 0..2000 {
            let read = self.get(service, &path).ok();
            if read["status"] == "DONE" {
                return read;
            }
        }
        panic!("{path} does not end");
    }

    /// Waits for a `google.longrunning` operation.
    pub(crate) fn wait_long(&self, service: &str, answer: Answer) -> Value {
        let operation = answer.ok();
        let path = format!("v1/{}", operation["name"].as_str().unwrap());
        for _ in 0..2000 {
            let read = self.get(service, &path).ok();
            if read["done"] == true {
                return read;
            }
        }
        panic!("{path} does not end");
    }

    /// Makes a network and a subnetwork `n` in `europe-west4`.
    pub(crate) fn network(&self) {
        let body = json!({ "name": "n", "autoCreateSubnetworks": false });
        self.wait("compute", self.post("compute", "projects/PROJECT/global/networks", body));
        self.cloud.advance(Duration::from_secs(60));
        let body = json!({ "name": "n", "network": format!("projects/{}/global/networks/n", self.cloud.project()),
            "ipCidrRange": "10.0.0.0/20", "secondaryIpRanges": [
                { "rangeName": "pods", "ipCidrRange": "10.16.0.0/14" },
                { "rangeName": "services", "ipCidrRange": "10.1.0.0/20" }] });
        self.wait("compute", self.post("compute", "projects/PROJECT/regions/europe-west4/subnetworks", body));
        self.cloud.advance(Duration::from_secs(60));
    }
}

/// Sends a request, and reads the whole answer.
pub(crate) fn send(method: &str, url: &str, headers: &[(&str, String)], body: &str) -> Answer {
    let rest = url.strip_prefix("http://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(authority).unwrap();
    let mut text = format!(
        "{method} /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("\r\n{body}"));
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Answer { status: 0, body: Value::Null } };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, body: serde_json::from_str(body).unwrap_or_default() }
}
