//! The SAML settings file of python3-saml (`saml2_settings.json`). It is checked for secrets, since everyone in the
//! namespace can read the config map it is stored in.

use std::io::Read;

use camino::Utf8Path;
use serde_json::Value;

use super::units::cut;

/// A Kubernetes config map holds at most 1 MiB; SAML settings are a few certificates.
const LARGEST: u64 = 256 << 10;

/// Why a settings file is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SamlProblem {
    /// The cause.
    pub(super) cause: String,
    /// How to fix it.
    pub(super) fix: String,
}

/// Reads a settings file. It names both parties and must contain no private key: every reader of the config map would
/// see it.
pub(super) fn saml_settings(path: &Utf8Path) -> Result<String, SamlProblem> {
    let absent =
        |cause: String| SamlProblem { cause, fix: "give the settings file in the format of python3-saml".to_owned() };
    let mut text = Vec::new();
    let file = match std::fs::File::open(path) {
        Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => file,
        Ok(_) => return Err(absent(format!("{} is not a file", cut(path.as_str())))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(absent(format!("there is no file {}", cut(path.as_str()))));
        }
        Err(error) => return Err(absent(format!("the file {} cannot be read: {error}", cut(path.as_str())))),
    };
    if let Err(error) = file.take(LARGEST + 1).read_to_end(&mut text) {
        return Err(absent(format!("the file {} cannot be read: {error}", cut(path.as_str()))));
    }
    let text = looked_at(text).map_err(|(cause, fix)| SamlProblem {
        cause: format!("{}: {cause}", cut(path.as_str())),
        fix: fix.to_owned(),
    })?;
    Ok(text)
}

fn looked_at(text: Vec<u8>) -> Result<String, (String, &'static str)> {
    const FORM: &str = "write a JSON object with `sp` and `idp`, each with its `entityId`";
    if text.len() as u64 > LARGEST {
        return Err((format!("it is larger than {LARGEST} bytes"), "keep only the settings of python3-saml"));
    }
    let text = String::from_utf8(text).map_err(|_| ("it is not UTF-8".to_owned(), FORM))?;
    let settings: Value = serde_json::from_str(&text).map_err(|error| (format!("it is not JSON: {error}"), FORM))?;
    if let Some(secret_path) = secret_in(&settings, "") {
        let fix =
            "remove it: the service provider reads its key from a Secret of the namespace, not from this ConfigMap";
        return Err((
            format!("`{secret_path}` is a secret, and every account that can read ConfigMaps could read it"),
            fix,
        ));
    }
    for side in ["sp", "idp"] {
        if settings[side]["entityId"].as_str().is_none_or(str::is_empty) {
            return Err((format!("it has no `{side}.entityId`"), FORM));
        }
    }
    // Serialized from the parsed value: with duplicate keys, only the last one was checked.
    serde_json::to_string_pretty(&settings).map_err(|error| (format!("it cannot be written: {error}"), FORM))
}

/// The path of a secret: a key name that holds one, or a PEM private key under any name.
fn secret_in(value: &Value, path: &str) -> Option<String> {
    const NAMES: [&str; 4] = ["privatekey", "password", "passphrase", "secret"];
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
            let named = NAMES.iter().any(|secret| plain.to_lowercase().contains(secret));
            let holds = !matches!(value, Value::Null | Value::Bool(_)) && value.as_str() != Some("");
            if named && holds { Some(below(&cut(name))) } else { secret_in(value, &below(&cut(name))) }
        }),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(n, value)| secret_in(value, &format!("{path}[{n}]")))
        }
        Value::String(text) if text.contains("PRIVATE KEY-----") => Some(path.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, says: Option<&str>) {
        let found = looked_at(text.as_bytes().to_vec());
        match (says, found) {
            (None, found) => {
                let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                assert_eq!(read(&found.unwrap()), read(text));
            }
            (Some(says), Err((cause, _))) => {
                assert!(cause.contains(says) && !cause.contains("MIIE"), "{says}: {cause}")
            }
            (Some(says), Ok(_)) => panic!("{text} is taken, although {says}"),
        }
    }

    #[test]
    fn saml_settings_need_both_entities_and_no_private_key() {
        let valid = r#"{"strict":true,"sp":{"entityId":"https://a","x509cert":"","privateKey":""},"idp":{"entityId":"https://b"},"security":{"wantNameIdEncrypted":false}}"#;
        check(valid, None);
        // Of duplicate keys only the last one counts; the first is dropped.
        let twice = valid.replace(r#""privateKey":"""#, r#""privateKey":"MIIE","privateKey":"""#);
        assert!(!looked_at(twice.into_bytes()).unwrap().contains("MIIE"));
        check(&valid.replace(r#""privateKey":"""#, r#""privateKey":"MIIE""#), Some("`sp.privateKey` is a secret"));
        check(&valid.replace(r#""x509cert":"""#, r#""private_key":["MIIE"]"#), Some("`sp.private_key` is a secret"));
        let pem = r#""x509cert":"-----BEGIN RSA PRIVATE KEY-----\nMIIE""#;
        check(&valid.replace(r#""x509cert":"""#, pem), Some("`sp.x509cert` is a secret"));
        check(&valid.replace("https://b", ""), Some("it has no `idp.entityId`"));
        check("[]", Some("it has no `sp.entityId`"));
        check("{", Some("it is not JSON"));
        check(&" ".repeat(300 << 10), Some("it is larger than 262144 bytes"));
    }

    #[test]
    fn saml_settings_errors_name_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = Utf8Path::from_path(folder.path()).expect("a path");
        let absent = saml_settings(&folder.join("none.json")).expect_err("there is none");
        assert!(absent.cause.contains("there is no file"), "{absent:?}");
        assert!(saml_settings(folder).expect_err("a folder").cause.contains("is not a file"));
        std::fs::write(folder.join("broken.json"), "x").expect("written");
        let broken = saml_settings(&folder.join("broken.json")).expect_err("no JSON");
        assert!(broken.cause.contains("broken.json: it is not JSON"), "{broken:?}");
    }
}
