//! The schema and the keys: a JSON text behind SQLite's header, so that the provider sees a database file.

use std::io::Read;

use serde_json::{Value, json};

const HEADER: &[u8] = b"SQLite format 3\0";
const NEWEST: u64 = 4;

fn path(config: &Value) -> String {
    config["database"]["url"].as_str().unwrap().strip_prefix("sqlite://").unwrap().to_owned()
}

fn load(config: &Value) -> Value {
    let bytes = std::fs::read(path(config)).unwrap();
    bytes
        .strip_prefix(HEADER)
        .map_or_else(|| json!({ "version": 0, "keys": {} }), |rest| serde_json::from_slice(rest).unwrap())
}

fn store(config: &Value, database: &Value) {
    std::fs::write(path(config), [HEADER, database.to_string().as_bytes()].concat()).unwrap();
}

pub(crate) fn migrate(config: &Value, to: Option<u64>) {
    let mut database = load(config);
    let from = database["version"].as_u64().unwrap();
    database["version"] = json!(to.unwrap_or(NEWEST));
    store(config, &database);
    println!("{}", json!({ "from": from, "to": database["version"] }));
}

pub(crate) fn keys(config: &Value) {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let command: Value = serde_json::from_str(&text).unwrap();
    let mut database = load(config);
    if database["version"] == 0 {
        println!("{}", json!({ "error": { "message": "the database has no schema", "hint": "migrate it" } }));
        std::process::exit(1);
    }
    let id = command["public_id"].as_str().unwrap_or_default().to_owned();
    match command["do"].as_str().unwrap() {
        "put" => {
            database["keys"][&id] = json!({ "public_id": id, "sha256": command["sha256"], "revoked_at": null });
            println!("{}", json!({ "public_id": id, "changed": true }));
        }
        "revoke" => {
            database["keys"][&id]["revoked_at"] = json!("now");
            println!("{}", json!({ "public_id": id, "revoked": true }));
        }
        "list" => {
            let keys: Vec<&Value> = database["keys"].as_object().unwrap().values().collect();
            println!("{}", json!({ "keys": keys }));
        }
        other => panic!("do {other}"),
    }
    store(config, &database);
}
