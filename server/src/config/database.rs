//! `database:` in a configuration file.

use camino::Utf8PathBuf;
use textnlp_store::{Database, DatabaseAt, PostgresAt};

use super::document::Section;

const EXAMPLES: &str = "url: \"sqlite:///var/lib/textnlp/textnlp.db\" or \"postgresql://textnlp@db.internal/textnlp\"";

pub(super) fn database(section: Section<'_>) -> Database {
    let file = |key: &'static str| section.text(key).map(Utf8PathBuf::from);
    let (password_file, ca_file, url_file) = (file("password_file"), file("ca_file"), file("url_file"));
    let mut at = DatabaseAt::File(Utf8PathBuf::from("textnlp.db"));
    match (section.text("url"), url_file) {
        (Some(_), Some(_)) => {
            section.wrong("url_file", "cannot be combined with `url`", Some("keep one of them".to_owned()))
        }
        (None, Some(file)) => {
            at = DatabaseAt::Server(with_secrets(PostgresAt::in_file(&file), password_file, ca_file));
        }
        (None, None) => {
            if !section.has("url") {
                section.wrong("url", "is missing", Some(EXAMPLES.to_owned()));
            }
        }
        (Some(url), None) => match (url.strip_prefix("sqlite:"), PostgresAt::new(&url)) {
            (Some(rest), _) => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                let path = path.split_once('?').map_or(path, |(path, _)| path);
                if path.is_empty() || path.contains(":memory:") {
                    section.wrong(
                        "url",
                        "has no file",
                        Some("replicas share it: sqlite:///var/lib/textnlp/textnlp.db".to_owned()),
                    );
                }
                for (key, there) in [("password_file", password_file.is_some()), ("ca_file", ca_file.is_some())] {
                    if there {
                        section.wrong(key, "does not apply: SQLite is a file", Some("omit it".to_owned()));
                    }
                }
                at = DatabaseAt::File(path.into());
            }
            (None, Ok(server)) => {
                at = DatabaseAt::Server(with_secrets(server, password_file, ca_file));
            }
            (None, Err(why)) => {
                let redis = url.starts_with("redis:") || url.starts_with("rediss:");
                let several = why.contains("several hosts");
                let message = match () {
                    () if redis => "is a Redis URL, which is not supported as the database".to_owned(),
                    () if several => why,
                    () => "is not a database URL".to_owned(),
                };
                section.wrong("url", message, Some(EXAMPLES.to_owned()));
            }
        },
    }
    let database = Database {
        at,
        pool_size: section.integer("pool_size", 1..=1000).unwrap_or(20) as u32,
        max_overflow: section.integer("max_overflow", 0..=1000).unwrap_or(40) as u32,
    };
    section.finish();
    database
}

fn with_secrets(at: PostgresAt, password_file: Option<Utf8PathBuf>, ca_file: Option<Utf8PathBuf>) -> PostgresAt {
    let at = match password_file {
        Some(file) => at.with_password(&file),
        None => at,
    };
    match ca_file {
        Some(file) => at.with_authority(&file),
        None => at,
    }
}
