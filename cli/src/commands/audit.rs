//! The recorded result of holding this program's dependencies against an advisory database.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use textnlp_orchestrator::gate::Check;

const RECORD: &str = include_str!("../../evidence/audit.json");
const LOCK: &[u8] = include_bytes!("../../../Cargo.lock");

#[derive(Deserialize)]
struct Record {
    lock_sha256: String,
    advisories: u64,
    newest_advisory: String,
    dependencies: u64,
    vulnerabilities: Vec<String>,
}

/// The staging gate's check: no known vulnerability, found in the very dependencies that this program was built from.
pub fn check() -> Check {
    const NAME: &str = "known vulnerabilities";
    let record: Record = match serde_json::from_str(RECORD) {
        Ok(record) => record,
        Err(error) => return Check::unmeasured(NAME, 0, "found", format!("the record cannot be read: {error}")),
    };
    if record.lock_sha256 != hex::encode(Sha256::digest(LOCK)) {
        return Check::unmeasured(
            NAME,
            0,
            "found",
            "the record is of other dependencies: run .ci/audit DATABASE --write",
        );
    }
    let found = record.vulnerabilities.len();
    let mut note = format!(
        "{} dependencies, {} advisories, newest {}",
        record.dependencies, record.advisories, record.newest_advisory
    );
    if found > 0 {
        note = format!("{}; {note}", record.vulnerabilities.join("; "));
    }
    Check::new(NAME, found, 0, "found", found == 0).note(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_of_the_lock_file_that_this_program_is_built_from() {
        let check = check();
        assert!(check.ok, "{check}");
    }
}
