//! The user of a site that root installed: the owner of its state, which is recorded in its settings.

use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use camino::Utf8Path;
use rustix::fs::Mode;
use serde_yaml::{Mapping, Value};
use textnlp_files::user_name;

use crate::Failure;

/// Makes what is written readable for other users, whatever the umask of root, until it is dropped.
pub struct SharedFiles(Mode);

impl SharedFiles {
    /// From now on.
    pub fn begin() -> Self {
        Self(rustix::process::umask(Mode::WGRP | Mode::WOTH))
    }
}

impl Drop for SharedFiles {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

/// The user of a site that root installed for it: the owner of its state. `None` if that is root, or if the caller is
/// not root.
pub(super) fn of_site(state: &Utf8Path) -> Result<Option<String>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let uid = owner(state)?.filter(|uid| *uid != 0);
    uid.map(|uid| name_of(uid, state)).transpose()
}

/// The settings of a site with this user; as they are if they name one. `None` if they have a form that cannot be
/// extended.
pub fn with_user(text: &str, user: &str) -> Option<String> {
    let mut wanted: Value = serde_yaml::from_str(text).ok()?;
    let settings = wanted.as_mapping_mut()?.entry("prerequisites".into()).or_insert_with(|| Mapping::new().into());
    let settings = settings.as_mapping_mut()?;
    if settings.contains_key("user") {
        return Some(text.to_owned());
    }
    settings.insert("user".into(), user.into());
    // The text is extended and not rewritten, because the operator's comments are in it.
    const KEY: &str = "\nprerequisites:\n";
    let inserted = text.find(KEY).map(|at| {
        let (head, rest) = text.split_at(at + KEY.len());
        let indentation = &rest[..rest.len() - rest.trim_start_matches(' ').len()];
        format!("{head}{indentation}user: {user}\n{rest}")
    });
    let appended = format!("{}{KEY}  user: {user}\n", text.trim_end());
    let is_wanted = |text: &String| serde_yaml::from_str::<Value>(text).is_ok_and(|found| found == wanted);
    inserted.into_iter().chain([appended]).find(is_wanted)
}

/// The failure for settings that [`with_user`] cannot extend.
pub fn not_recordable(file: &Utf8Path, user: &str) -> Failure {
    let error = anyhow::anyhow!("{file} names no user, and it has a form that the installation does not change");
    Failure::refused("user_not_recorded", error).hint(format!("add `prerequisites: {{ user: {user} }}` to {file}"))
}

/// The owner of a state folder with content.
pub fn owner(state: &Utf8Path) -> Result<Option<u32>, Failure> {
    let has_content = state.read_dir_utf8().is_ok_and(|mut entries| entries.next().is_some());
    if !has_content {
        return Ok(None);
    }
    Ok(Some(std::fs::metadata(state).with_context(|| format!("read {state}"))?.uid()))
}

/// The name of the owner of a state.
pub fn name_of(uid: u32, state: &Utf8Path) -> Result<String, Failure> {
    user_name(uid).ok_or_else(|| {
        Failure::refused("unknown_user", anyhow::anyhow!("{state} belongs to uid {uid}, which has no name here"))
            .hint("create that user, or choose another folder with --state-dir DIR")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_added_to_settings_and_comments_stay() {
        let user = |text: &str| with_user(text, "textnlp");
        let bare = "# mine\nextends: bundle-a\n";
        assert_eq!(user(bare).unwrap(), format!("{bare}prerequisites:\n  user: textnlp\n"));
        let nested = "a: 1\nprerequisites:\n    # small\n    allow_below_minimum: true\nb: 2\n";
        let extended = "a: 1\nprerequisites:\n    user: textnlp\n    # small\n    allow_below_minimum: true\nb: 2\n";
        assert_eq!(user(nested).unwrap(), extended);
        for named in ["prerequisites: { user: other }\n", "prerequisites:\n  user: root\n"] {
            assert_eq!(user(named).unwrap(), named);
        }
        for closed in
            ["a: 1\nprerequisites: { git: {} }\n", "{ a: 1 }\n", "a: 1\n...\n", "- a\n", "", "prerequisites: 1\n"]
        {
            assert_eq!(user(closed), None, "{closed}");
        }
        assert_eq!(with_user(bare, "null"), None, "it would not be a name");
    }
}
