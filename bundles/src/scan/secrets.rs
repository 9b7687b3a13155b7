//! Finds keys and passwords in files. Findings never contain the secret.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::LazyLock;

use regex::bytes::{Captures, Regex, RegexSet};

use super::finding::{Finding, Kind, Severity};

/// Texts longer than this are data.
pub(crate) const MOST_BYTES: u64 = 10 << 20;
/// A longer line is scanned in pieces that overlap by [`OVERLAP`].
const LONGEST_LINE: usize = 64 << 10;
/// Longer than any supported key.
const OVERLAP: usize = 4 << 10;
/// The most findings of one file.
const MOST_PER_FILE: usize = 50;

/// What one file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileContent {
    /// Read to its end.
    Text,
    /// Not a text: not read further.
    Binary,
    /// A text that is too long; not scanned.
    TooLong,
}

/// How closely a file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScanDepth {
    /// Key formats, and all values assigned to a `password`.
    All,
    /// Only known key formats: for texts, vocabularies and third-party programs.
    Shapes,
}

struct Shape {
    id: &'static str,
    severity: Severity,
    title: &'static str,
    pattern: &'static str,
    /// The prefix that all such keys share, which may be shown.
    shown: &'static str,
}

const PRIVATE_KEY: &str = "private-key";
const ASSIGNED: &str = "password-in-file";

/// Group 1, where there is one, is the secret.
const SHAPES: [Shape; 14] = [
    Shape {
        id: PRIVATE_KEY,
        severity: Severity::Critical,
        title: "A private key",
        pattern: r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
        shown: "-----BEGIN … PRIVATE KEY-----",
    },
    Shape {
        id: "textnlp-key",
        severity: Severity::Critical,
        title: "An API key of this service",
        pattern: r"\btnlp_[0-9a-f]{16}_[0-9a-f]{64}\b",
        shown: "tnlp_",
    },
    Shape {
        id: "aws-secret-key",
        severity: Severity::Critical,
        title: "A secret access key of AWS",
        pattern: r#"(?i)aws.{0,20}(?:secret|sk).{0,20}?["'\s:=]([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)"#,
        shown: "aws_secret_access_key = ",
    },
    Shape {
        id: "aws-key-id",
        severity: Severity::High,
        title: "An access key id of AWS",
        pattern: r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        shown: "AKIA",
    },
    Shape {
        id: "google-api-key",
        severity: Severity::High,
        title: "An API key of Google",
        pattern: r"\bAIza[0-9A-Za-z_-]{35}",
        shown: "AIza",
    },
    Shape {
        id: "google-service-account",
        severity: Severity::High,
        title: "A key file of a Google service account",
        pattern: r#""private_key_id"\s*:\s*"[0-9a-f]{40}""#,
        shown: "\"private_key_id\": ",
    },
    Shape {
        id: "azure-storage-key",
        severity: Severity::Critical,
        title: "A key of an Azure storage account",
        pattern: r"AccountKey=[A-Za-z0-9+/]{86}==",
        shown: "AccountKey=",
    },
    Shape {
        id: "azure-client-secret",
        severity: Severity::Critical,
        title: "A client secret of Azure",
        pattern: r"(?:^|[^A-Za-z0-9_~.-])[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}(?:[^A-Za-z0-9_~.-]|$)",
        shown: "",
    },
    Shape {
        id: "azure-signature",
        severity: Severity::High,
        title: "A shared access signature of Azure",
        pattern: r"[?&]sig=[A-Za-z0-9%/+]{43,64}(?:%3D|=)",
        shown: "sig=",
    },
    Shape {
        id: "code-host-token",
        severity: Severity::Critical,
        title: "A token of GitHub or GitLab",
        pattern: r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82}|glpat-[A-Za-z0-9_-]{20})",
        shown: "",
    },
    Shape {
        id: "hub-token",
        severity: Severity::High,
        title: "A token of a model hub",
        pattern: r"\bhf_[A-Za-z]{34}\b",
        shown: "hf_",
    },
    Shape {
        id: "json-web-token",
        severity: Severity::Medium,
        title: "A JSON web token",
        pattern: r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}",
        shown: "eyJ",
    },
    Shape {
        id: "client-key",
        severity: Severity::Critical,
        title: "A private key inside a kubeconfig",
        pattern: r"client-key-data:\s*[A-Za-z0-9+/=]{64,}",
        shown: "client-key-data: ",
    },
    Shape {
        id: "password-in-address",
        severity: Severity::High,
        title: "A password inside an address",
        pattern: r"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@'\x22<>]{1,64}:([^@\s/'\x22<>{}$*]{3,128})@[A-Za-z0-9]",
        shown: "scheme://user:",
    },
];

static SET: LazyLock<RegexSet> =
    LazyLock::new(|| RegexSet::new(SHAPES.iter().map(|s| s.pattern)).expect("the patterns are constants"));
static EACH: LazyLock<Vec<Regex>> =
    LazyLock::new(|| SHAPES.iter().map(|s| Regex::new(s.pattern).expect("the pattern is a constant")).collect());
/// A name of a secret, `=` or `:`, and a value: quoted (2), or up to the next space (3).
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?i)([A-Za-z0-9_.-]{0,40}(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key))["']?\s{0,4}(?::|=)\s{0,4}(?:["']([^"'\s]{8,200})["']|([^\s"',;#]{8,200}))"#,
    )
    .expect("the pattern is a constant")
});

/// Scans one file. Memory is bounded for any file length.
pub(crate) fn scan_file(
    place: &str,
    size: u64,
    care: ScanDepth,
    reader: &mut dyn Read,
    findings: &mut Vec<Finding>,
) -> io::Result<FileContent> {
    let mut buffer = Vec::with_capacity(8192);
    reader.take(8192).read_to_end(&mut buffer)?;
    if buffer.contains(&0) {
        return Ok(FileContent::Binary);
    }
    if size > MOST_BYTES {
        return Ok(FileContent::TooLong);
    }
    let mut file = InFile { place, care, code: is_code(place), line: 1, opened: None, seen: BTreeSet::new(), findings };
    let mut reader = reader.take(MOST_BYTES);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let mut from = 0;
        while let Some(end) = buffer[from..].iter().position(|b| *b == b'\n') {
            file.line(&buffer[from..from + end]);
            file.line += 1;
            from += end + 1;
        }
        buffer.drain(..from);
        if buffer.len() > LONGEST_LINE {
            file.line(&buffer);
            buffer.drain(..buffer.len() - OVERLAP);
        }
        match reader.read(&mut chunk)? {
            0 => break,
            n => buffer.extend_from_slice(&chunk[..n]),
        }
    }
    file.line(&buffer);
    Ok(FileContent::Text)
}

/// Files whose name is sufficient for a finding.
pub(crate) fn by_name(place: &str, path: &str) -> Option<Finding> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let example = ["example", "sample", "template", "dist"].iter().any(|e| name.ends_with(e));
    let (id, severity, title, reason, fix) =
        if (name == ".env" || name.starts_with(".env.") || name.ends_with(".env")) && !example {
            (
                "environment-file",
                Severity::Medium,
                "A file of environment variables",
                "Such files hold passwords of a developer's machine; they do not belong into a bundle.",
                "remove it; give the values as `secret:env:…` where the service runs",
            )
        } else if [".p12", ".pfx", ".jks", ".keystore", ".kdbx"].iter().any(|e| name.ends_with(e)) {
            (
                "key-store",
                Severity::High,
                "A key store",
                "It holds private keys; its password is often short or stored next to it.",
                "remove it; let the target create or fetch its own keys",
            )
        } else {
            return None;
        };
    Some(finding(id, severity, title, place.to_owned(), reason.to_owned(), fix))
}

fn is_code(place: &str) -> bool {
    let extension = place.rsplit_once('.').map_or("", |(_, e)| e);
    [
        "py", "js", "ts", "go", "rs", "c", "h", "cc", "cpp", "java", "rb", "pl", "pm", "php", "lua", "sh", "bash",
        "el", "md", "html",
    ]
    .contains(&extension)
}

struct InFile<'a> {
    place: &'a str,
    care: ScanDepth,
    code: bool,
    line: u64,
    /// The first line of a private key was found; the next lines decide.
    opened: Option<u64>,
    seen: BTreeSet<(&'static str, u64)>,
    findings: &'a mut Vec<Finding>,
}

impl InFile<'_> {
    fn line(&mut self, line: &[u8]) {
        if let Some(at) = self.opened.take() {
            self.key_goes_on(at, line);
        }
        for nth in SET.matches(line) {
            let shape = &SHAPES[nth];
            let Some(found) = EACH[nth].captures(line) else { continue };
            if shape.id == PRIVATE_KEY {
                self.key_begins(line, &found);
            } else if !is_sample(&found) {
                self.found(shape.id, shape.severity, shape.title, shape.shown, self.line);
            }
        }
        // A line with a known key format is already reported.
        if self.care == ScanDepth::All && !self.seen.iter().any(|(_, line)| *line == self.line) {
            self.assignment(line);
        }
    }

    /// The header is not sufficient: programs that read keys contain it too. In JSON the whole key is one line.
    fn key_begins(&mut self, line: &[u8], found: &Captures<'_>) {
        let end = found.get(0).map_or(line.len(), |m| m.end());
        let rest = line[end..].strip_prefix(b"\\r").unwrap_or(&line[end..]);
        match rest.strip_prefix(b"\\n") {
            Some(body) if is_base64(body) => self.key(self.line),
            Some(_) => {}
            None if rest.trim_ascii().is_empty() => self.opened = Some(self.line),
            None => {}
        }
    }

    fn key_goes_on(&mut self, at: u64, line: &[u8]) {
        let text = line.trim_ascii();
        let head = [&b"Proc-Type:"[..], b"DEK-Info:", b"Version:", b"Comment:"].iter().any(|h| text.starts_with(h));
        if text.is_empty() || head {
            // A bounded number of blank lines and headers may precede the body.
            self.opened = (self.line - at < 8).then_some(at);
        } else if is_base64(text) {
            self.key(at);
        }
    }

    fn key(&mut self, at: u64) {
        let shape = &SHAPES[0];
        self.found(shape.id, shape.severity, shape.title, shape.shown, at);
    }

    fn assignment(&mut self, line: &[u8]) {
        let Some(found) = ASSIGNMENT.captures(line) else { return };
        let quoted = found.get(2);
        // In source code an unquoted value is an expression.
        let Some(value) = quoted.or_else(|| found.get(3).filter(|_| !self.code)) else { return };
        let name = String::from_utf8_lossy(&found[1]).into_owned();
        if looks_secret(value.as_bytes()) {
            let shown = format!("{name} = ");
            self.found(ASSIGNED, Severity::High, "A password or token", &shown, self.line);
        }
    }

    fn found(&mut self, id: &'static str, severity: Severity, title: &str, shown: &str, line: u64) {
        if self.seen.len() >= MOST_PER_FILE || !self.seen.insert((id, line)) {
            return;
        }
        let reason = format!("`{shown}***`: every recipient of this file has it; treat it as compromised");
        let fix = "remove it, and rotate the key or password: it stays in copies and older layers";
        self.findings.push(finding(id, severity, title, format!("{}:{line}", self.place), reason, fix));
    }
}

fn finding(id: &str, severity: Severity, title: &str, place: String, reason: String, fix: &str) -> Finding {
    Finding {
        id: id.to_owned(),
        kind: Kind::Secret,
        severity,
        title: title.to_owned(),
        place,
        package: None,
        installed: None,
        fixed_in: None,
        score: None,
        aliases: Vec::new(),
        reason,
        fix: fix.to_owned(),
        url: None,
    }
}

/// A password in a URL may be any word; for key formats only the vendors' examples are excluded.
fn is_sample(found: &Captures<'_>) -> bool {
    match found.get(1) {
        Some(password) => is_example(password.as_bytes()),
        None => found[0].to_ascii_lowercase().windows(7).any(|w| w == b"example" || w == b"xxxxxxx"),
    }
}

fn is_base64(bytes: &[u8]) -> bool {
    let body: Vec<u8> = bytes.iter().copied().take_while(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b)).collect();
    body.len() >= 32
}

/// Placeholders in documentation.
fn is_example(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    [
        "example",
        "changeme",
        "change-me",
        "change_me",
        "placeholder",
        "your",
        "xxxx",
        "****",
        "dummy",
        "password",
        "redacted",
        "1234567",
    ]
    .iter()
    .any(|w| text.contains(w))
}

/// Whether a value is long enough, has several kinds of characters and is not predictable, and is no reference, path, type
/// or call.
fn looks_secret(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let refers = text.starts_with("secret:")
        || text.starts_with(['$', '/', '<', '{', '%', '.', '~', '@', '&', '*'])
        || text.contains("://")
        || text.contains("${")
        || text.contains("{{")
        || text.contains("::")
        || text.contains("->")
        || text.contains(['(', ')', '[', ']', '|']);
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    let letters = text.bytes().any(|b| b.is_ascii_alphabetic());
    !refers && digits && letters && !is_example(value) && !is_dated(text) && entropy(value) >= 3.0
}

/// `2024-01-31`, `v1.2.3-rc1`, `sha256`: versions, days and names of algorithms.
fn is_dated(text: &str) -> bool {
    let parts = text.trim_start_matches(['v', 'V']).split(['.', '-', ':', 'T', 'Z', '_', '/']);
    let words = [
        "sha1", "sha256", "sha384", "sha512", "hs256", "rs256", "es256", "rc", "beta", "alpha", "utf8", "x509",
        "oauth2",
    ];
    parts
        .filter(|p| !p.is_empty())
        .all(|p| p.bytes().all(|b| b.is_ascii_digit()) || words.contains(&p.to_ascii_lowercase().as_str()))
}

/// Bits per character, by Shannon.
fn entropy(value: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    value.iter().for_each(|b| counts[usize::from(*b)] += 1);
    let length = value.len() as f64;
    counts.iter().filter(|c| **c > 0).map(|c| f64::from(*c) / length).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        scan_file(path, text.len() as u64, ScanDepth::All, &mut text.as_bytes(), &mut findings).unwrap();
        // Whatever is found, nothing of it may be shown.
        for finding in &findings {
            let shown = serde_json::to_string(finding).unwrap();
            for word in
                text.split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '/').filter(|w| w.len() > 14)
            {
                let telling =
                    ["password", "secret", "token", "key", "azure"].iter().any(|t| word.to_lowercase().contains(t));
                assert!(telling || !shown.contains(word), "`{word}` is shown in {shown}");
            }
        }
        findings.into_iter().map(|f| format!("{} {}", f.id, f.place)).collect()
    }

    /// Made up here, so that this file holds no text that is itself found.
    fn body(length: usize) -> String {
        "aB3dE5gH7jK9mN1pQ2sT4vW6xY8zC0fR".chars().cycle().take(length).collect()
    }

    #[test]
    fn secret_patterns_are_found_with_their_line_number() {
        let hex: String = "0123456789abcdef".repeat(5);
        for (text, wanted) in [
            (format!("a\n-----BEGIN RSA {}-----\n{}\n", "PRIVATE KEY", body(64)), "private-key f:2"),
            (
                format!("-----BEGIN RSA {}-----\nProc-Type: 4,ENCRYPTED\n\n{}\n", "PRIVATE KEY", body(64)),
                "private-key f:1",
            ),
            (
                format!("{{\"private_key\": \"-----BEGIN {}-----\\n{}\\n\"}}", "PRIVATE KEY", body(64)),
                "private-key f:1",
            ),
            (format!("key: tnlp_{}_{}", &hex[..16], &hex[16..]), "textnlp-key f:1"),
            (format!("id = AKIA{}", "QZ7JX3MWNB5RT2VY"), "aws-key-id f:1"),
            (format!("aws_secret_access_key = {}", body(40)), "aws-secret-key f:1"),
            (format!("k=AIza{}", body(35)), "google-api-key f:1"),
            (format!("AccountKey={}==", body(86)), "azure-storage-key f:1"),
            (format!("x '{}8Q~{}'", body(3), body(34)), "azure-client-secret f:1"),
            (format!("ghp_{}", body(36)), "code-host-token f:1"),
            (format!("eyJ{}.eyJ{}.{}", body(20), body(30), body(43)), "json-web-token f:1"),
            (format!("client-key-data: {}", body(100)), "client-key f:1"),
            ("u: postgres://app:s3cr3tvalue@db/x".to_owned(), "password-in-address f:1"),
            ("DB_PASSWORD=kX8/tq0aZ2w".to_owned(), "password-in-file f:1"),
            ("\n\nsecret: \"q7Rt-99xLmPz\"".to_owned(), "password-in-file f:3"),
        ] {
            assert_eq!(check("f", &text), [wanted], "{text}");
        }
    }

    #[test]
    fn secret_lookalikes_are_not_findings() {
        for text in [
            "-----BEGIN PRIVATE KEY-----",
            "if line == \"-----BEGIN PRIVATE KEY-----\" {",
            "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUabcdefghijklmnopqrstuvwxyz\n",
            "id = AKIAIOSFODNN7EXAMPLE",
            "password: secret:env:DB_PASSWORD1",
            "password=${DB_PASSWORD1}",
            "password: changeme123",
            "password_file: /run/secrets/db1",
            "max_tokens: 4096\ntoken_count = 123456789",
            "api_key: <your-api-key-2>",
            "secret: 2024-01-31T10:00:00Z",
            "url: https://example.com:8443/a@b",
            "postgres://user:${PASSWORD}@db/x",
            "token = aaaaaaaaaaaa1",
        ] {
            assert_eq!(check("f", text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(check("f.py", "password = settings.password_of_user_1"), Vec::<String>::new());
        assert_eq!(check("f.py", "password = 'q7Rt-99xLmPz'").len(), 1);
    }

    #[test]
    fn binaries_and_oversized_files_are_skipped_and_long_lines_scanned() {
        let mut findings = Vec::new();
        let mut one = |bytes: &[u8], size: u64| {
            findings.clear();
            (scan_file("f", size, ScanDepth::All, &mut &*bytes, &mut findings).unwrap(), findings.len())
        };
        assert_eq!(one(b"a\0b DB_PASSWORD=kX8/tq0aZ2w", 30), (FileContent::Binary, 0));
        assert_eq!(one(b"DB_PASSWORD=kX8/tq0aZ2w", MOST_BYTES + 1), (FileContent::TooLong, 0));
        // Across the border of two pieces of a long line.
        for before in [LONGEST_LINE - 10, LONGEST_LINE, LONGEST_LINE * 3 + 8192 - 20] {
            let mut text = vec![b' '; before];
            text.extend_from_slice(format!("ghp_{}", body(36)).as_bytes());
            assert_eq!(one(&text, text.len() as u64), (FileContent::Text, 1), "after {before}");
        }
    }

    #[test]
    fn secret_files_are_recognised_by_name() {
        let id = |path: &str| by_name(path, path).map(|f| f.id);
        assert_eq!(id("a/.env").as_deref(), Some("environment-file"));
        assert_eq!(id("a/prod.env").as_deref(), Some("environment-file"));
        assert_eq!(id("a/server.p12").as_deref(), Some("key-store"));
        assert_eq!((id(".env.example"), id("a/environment")), (None, None));
    }
}
