//! The simulated Azure, driven by Azure's own Python libraries and by plain requests.
#![allow(clippy::unwrap_used)]

mod blobs;
mod budgets;
mod clients;
mod container;
mod costs;
mod data;
mod dns;
mod identity;
mod ledger;
mod machine_learning;
mod monitoring;
mod network;
mod operations;
mod refusals;
mod traffic;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::{AzureCloud, Options};

/// The API versions of the types.
const VERSIONS: &[(&str, &str)] = &[
    ("/microsoft.authorization/locks", "2020-05-01"),
    ("/microsoft.authorization/", "2022-04-01"),
    ("/microsoft.compute/skus", "2021-07-01"),
    ("/microsoft.compute/", "2024-07-01"),
    ("/microsoft.consumption/", "2023-11-01"),
    ("/microsoft.costmanagement/", "2023-11-01"),
    ("/microsoft.insights/actiongroups", "2023-01-01"),
    ("/microsoft.insights/autoscalesettings", "2022-10-01"),
    ("/microsoft.insights/workbooks", "2023-06-01"),
    ("/microsoft.insights/", "2018-03-01"),
    ("/microsoft.network/privatednszones", "2024-06-01"),
    ("/microsoft.network/dnszones", "2018-05-01"),
    ("/microsoft.network/trafficmanagerprofiles", "2022-04-01"),
    ("/microsoft.network/", "2024-05-01"),
    ("/microsoft.policyinsights/", "2024-10-01"),
    ("/microsoft.managedidentity/", "2023-01-31"),
    ("/microsoft.containerservice/", "2025-05-01"),
    ("/microsoft.storage/", "2024-01-01"),
    ("/microsoft.containerregistry/", "2023-07-01"),
    ("/microsoft.dbforpostgresql/", "2024-08-01"),
    ("/microsoft.keyvault/", "2023-07-01"),
    ("/microsoft.cache/", "2025-07-01"),
    ("/microsoft.machinelearningservices/", "2024-10-01"),
];

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Value,
}

impl Answer {
    /// The status and the code of an error.
    pub(crate) fn code(&self) -> (u16, &str) {
        (self.status, self.body["error"]["code"].as_str().unwrap_or_default())
    }

    /// The answer of a call that has to succeed.
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.body);
        self.body
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .headers
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(header, _)| header.eq_ignore_ascii_case(name)))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

/// A simulated cloud and a token of its owner. Paths that begin with `G/` are below the providers of the group `g`.
pub(crate) struct Client {
    pub(crate) cloud: AzureCloud,
    pub(crate) token: String,
}

impl Client {
    /// All namespaces are registered, all is done at the next request, and there is a group `g`.
    pub(crate) fn quick() -> Self {
        Self::with(Options::zero_latency().registered())
    }

    pub(crate) fn with(options: Options) -> Self {
        let cloud = AzureCloud::start(options);
        let token = cloud.token();
        let client = Self { cloud, token };
        client.put("GROUP", json!({ "location": "westeurope" })).ok();
        client.cloud.advance(Duration::from_secs(60));
        client
    }

    pub(crate) fn path(&self, path: &str) -> String {
        let subscription = format!("/subscriptions/{}", self.cloud.subscription());
        let group = format!("{subscription}/resourceGroups/g");
        match path.strip_prefix("G/") {
            Some(rest) => format!("{group}/providers/{rest}"),
            None if path == "GROUP" => group,
            None if path.starts_with('/') => path.to_owned(),
            None => format!("{subscription}/{path}").trim_end_matches('/').to_owned(),
        }
    }

    /// The id of the group's resource.
    pub(crate) fn id(&self, path: &str) -> String {
        self.path(&format!("G/{path}"))
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let path = self.path(path);
        let lower = path.to_lowercase();
        let is_namespace =
            lower.rsplit_once("/providers/").is_some_and(|(_, end)| !end.contains('/') || end.ends_with("/register"));
        let of = |row: &&(&str, &str)| lower.rsplit_once("/providers").is_some_and(|(_, end)| end.starts_with(row.0));
        let of_subscription = lower.matches('/').count() <= 2 || lower.ends_with("/locations");
        let version = VERSIONS
            .iter()
            .find(|row| !is_namespace && of(row))
            .map_or(if of_subscription { "2022-12-01" } else { "2021-04-01" }, |row| row.1);
        let mark = if path.contains('?') { '&' } else { '?' };
        let target = if path.contains("api-version") { path } else { format!("{path}{mark}api-version={version}") };
        self.send(method, &target, body, &[])
    }

    pub(crate) fn send(&self, method: &str, target: &str, body: Value, more: &[(&str, &str)]) -> Answer {
        let mut headers =
            vec![("authorization", format!("Bearer {}", self.token)), ("content-type", "application/json".into())];
        headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        send(method, &format!("{}{}", self.cloud.url(), target.replace(' ', "%20")), &headers, &body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null)
    }

    pub(crate) fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, body)
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, body)
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, Value::Null)
    }

    /// Waits for an operation: the body of its status, or of its result.
    pub(crate) fn wait(&self, answer: Answer) -> Value {
        let address = answer.header("azure-asyncoperation").or_else(|| answer.header("location")).map(str::to_owned);
        answer.ok();
        let Some(address) = address else { return json!({ "status": "Succeeded" }) };
        let path = address.strip_prefix("https://management.azure.com").unwrap().to_owned();
        for _ in 0..2000 {
            let read = self.send("GET", &path, Value::Null, &[]);
            let is_pending =
                read.status == 202 || ["InProgress", "Accepted"].iter().any(|word| read.body["status"] == *word);
            if !is_pending {
                let is_document = read.body.get("status").is_some() || read.body.get("error").is_some();
                return if is_document { read.body } else { json!({ "status": "Succeeded", "result": read.body }) };
            }
        }
        panic!("{path} does not end");
    }

    /// Puts a resource and waits until it is there.
    pub(crate) fn make(&self, path: &str, body: Value) -> Value {
        let said = self.wait(self.put(path, body));
        assert_eq!(said["status"], "Succeeded", "{path}: {said}");
        for _ in 0..200 {
            let read = self.get(path);
            let state =
                read.body.pointer("/properties/provisioningState").and_then(Value::as_str).unwrap_or("Succeeded");
            if read.status == 200 && state == "Succeeded" {
                return read.body;
            }
        }
        panic!("{path} does not become ready");
    }

    /// The error of an operation: its code.
    pub(crate) fn failure(&self, answer: Answer) -> String {
        let said = self.wait(answer);
        said["error"]["code"].as_str().unwrap_or_else(|| panic!("it succeeded: {said}")).to_owned()
    }

    /// Deletes a resource and waits until it is gone.
    pub(crate) fn drop_one(&self, path: &str) {
        let said = self.wait(self.delete(path));
        assert!(said.get("error").is_none(), "{path}: {said}");
        assert_eq!(self.get(path).status, 404, "{path}");
    }

    /// A network `n` with a subnet `nodes` and a delegated one, `database`.
    pub(crate) fn network(&self) {
        let delegation =
            json!({ "name": "d", "properties": { "serviceName": "Microsoft.DBforPostgreSQL/flexibleServers" } });
        let body = json!({ "location": "westeurope",
            "properties": { "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] },
            "subnets": [{ "name": "nodes", "properties": { "addressPrefix": "10.20.0.0/20" } },
                { "name": "database", "properties": { "addressPrefix": "10.20.16.0/24",
                    "delegations": [delegation] } }] } });
        self.make("G/Microsoft.Network/virtualNetworks/n", body);
    }

    /// Grants a role to an identity: its name is the GUID's last part.
    pub(crate) fn grant(&self, scope: &str, role: &str, principal: &str, name: u32) -> Answer {
        let definition = format!("{}/providers/Microsoft.Authorization/roleDefinitions/{role}", self.path(""));
        let path =
            format!("{scope}/providers/Microsoft.Authorization/roleAssignments/00000000-0000-4000-8000-{name:012}");
        self.put(
            &path,
            json!({ "properties": { "roleDefinitionId": definition, "principalId": principal,
            "principalType": "ServicePrincipal" } }),
        )
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
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Answer { status: 0, headers: String::new(), body: Value::Null };
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}
