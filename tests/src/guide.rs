//! Tables of guides that are made from what the program states.

/// Fails unless a guide has this text between `<!-- NAME -->` and `<!-- end of NAME -->`. With `UPDATE_EXPECT=1` it is written.
///
/// `guide` is a path below the repository's root.
#[track_caller]
pub fn expect_section(guide: &str, name: &str, made: &str) {
    let file = format!("{}/../{guide}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {guide}: {error}"));
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?)));
    let (before, (found, after)) = parts.unwrap_or_else(|| panic!("{guide} has no section `{name}`"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let new = format!("{before}{begin}{made}{end}{after}");
        return std::fs::write(&file, new).unwrap_or_else(|error| panic!("write {guide}: {error}"));
    }
    assert!(found == made, "run this test with UPDATE_EXPECT=1 and commit {guide}; it should say:\n{made}");
}
