//! An S3 bucket for the state of a test environment.

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

    /// The number of objects in a state folder of an environment, at most one thousand.
    pub fn count(&self, environment: &str, folder: &str) -> usize {
        let listed = http::get(self.port(), &format!("/{NAME}?list-type=2&prefix={PREFIX}/{environment}/{folder}/"));
        listed.map_or(0, |answer| answer.text().matches("<Key>").count())
    }

    fn port(&self) -> u16 {
        let port = self.server.address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("an address ends with its port")
    }
}
