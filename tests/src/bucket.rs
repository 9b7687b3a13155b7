//! An S3 bucket for the state and the backups of a test environment.

use crate::http;
use crate::servers::{Server, moto};

/// A bucket on a server of its own.
pub struct Bucket {
    server: Server,
}

const NAME: &str = "states";
const PREFIX: &str = "company";

impl Bucket {
    /// Creates an empty bucket; `None` if the server cannot be installed.
    pub fn start() -> Option<Self> {
        let bucket = Self { server: moto(env!("CARGO_MANIFEST_DIR"))? };
        let made = http::ask(bucket.port(), "PUT", &format!("/{NAME}"), &[("Content-Length", "0")], b"");
        assert_eq!(made.expect("make the bucket").status, 200);
        Some(bucket)
    }

    /// The variables that select this bucket as the state backend.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("TEXTNLP_SET__state__store", format!("s3://{NAME}/{PREFIX}")),
            ("TEXTNLP_SET__state__endpoint", self.server.address.clone()),
            ("TEXTNLP_SET__state__region", "us-east-1".to_owned()),
        ]
    }

    /// The lines of a file of credentials that open this bucket.
    pub fn credentials(&self) -> String {
        credentials(&self.server.address)
    }

    /// The number of objects in a state folder of an environment, at most one thousand.
    pub fn count(&self, environment: &str, folder: &str) -> usize {
        self.keys(&format!("{PREFIX}/{environment}/{folder}/")).len()
    }

    /// The keys of the objects with a prefix, at most one thousand.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = http::get(self.port(), &format!("/{NAME}?list-type=2&prefix={prefix}"));
        let text = listed.map_or(String::new(), |answer| answer.text());
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.to_owned()).collect()
    }

    fn port(&self) -> u16 {
        let port = self.server.address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("an address ends with its port")
    }
}

/// The address of a folder in a [`Bucket`].
pub fn url(folder: &str) -> String {
    format!("s3://{NAME}/{folder}")
}

/// The lines of a file of credentials for an S3 server at this address.
pub fn credentials(address: &str) -> String {
    format!(
        "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=hunter2hunter2\nAWS_REGION=us-east-1\nAWS_ENDPOINT_URL_S3={address}\n"
    )
}
