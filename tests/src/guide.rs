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

/// The fenced blocks of a section of a guide in their order: their language, and their text without the indentation of lists.
///
/// `guide` is a path below the repository's root, and `section` the title of a second level.
#[track_caller]
pub fn blocks(guide: &str, section: &str) -> Vec<(String, String)> {
    let file = format!("{}/../{guide}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {guide}: {error}"));
    let (_, rest) =
        text.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("{guide} has no section `{section}`"));
    fenced(rest.split("\n## ").next().unwrap_or_default())
}

/// The fenced blocks of a text in their order: their language, and their text without the indentation of lists.
fn fenced(text: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    // The indentation of the fence that is open.
    let mut open: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), open, blocks.last_mut()) {
            (Some(language), None, _) => {
                blocks.push((language.to_owned(), String::new()));
                open = Some(indent);
            }
            (Some(_), Some(_), _) => open = None,
            (None, Some(of_fence), Some((_, text))) => {
                text.push_str(&line[indent.min(of_fence)..]);
                text.push('\n');
            }
            (None, ..) => {}
        }
    }
    blocks
}

/// The fenced blocks of a whole guide in a language, in their order, without the indentation of lists.
///
/// `guide` is a path below the repository's root.
#[track_caller]
pub fn blocks_of(guide: &str, language: &str) -> Vec<String> {
    let file = format!("{}/../{guide}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {guide}: {error}"));
    fenced(&text).into_iter().filter(|(of, _)| of == language).map(|(_, block)| block).collect()
}

/// The commands of the program that a section of a guide shows in blocks for a shell, in their order.
#[track_caller]
pub fn commands(guide: &str, section: &str) -> Vec<String> {
    let shell = blocks(guide, section).into_iter().filter(|(language, _)| language == "sh");
    let lines = shell.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("textnlp-deploy ")).collect()
}

/// The lines in blocks for a shell of the README and of all pages below `docs`, each with its page. A line that ends in a
/// backslash is one with the next.
#[track_caller]
pub fn shell_lines() -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for (page, text) in pages() {
        for (language, block) in fenced(&text) {
            if language != "sh" {
                let command = block.lines().find(|line| line.starts_with("textnlp-deploy "));
                assert!(command.is_none(), "{page}: a block with commands is no block of `sh`: {command:?}");
                continue;
            }
            let joined = block.replace("\\\n", " ");
            lines.extend(joined.lines().map(|line| (page.clone(), line.to_owned())));
        }
    }
    lines
}

/// The code within the text of the same pages, each with its page.
#[track_caller]
pub fn code_spans() -> Vec<(String, String)> {
    let mut spans = Vec::new();
    for (page, text) in pages() {
        let mut is_block = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                is_block = !is_block;
            } else if !is_block {
                spans.extend(line.split('`').skip(1).step_by(2).map(|span| (page.clone(), span.to_owned())));
            }
        }
    }
    spans
}

/// The README and all pages below `docs`, each with its text.
#[track_caller]
fn pages() -> Vec<(String, String)> {
    let root = format!("{}/..", env!("CARGO_MANIFEST_DIR"));
    let (mut pages, mut folders) = (vec!["README.md".to_owned()], vec!["docs".to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(format!("{root}/{folder}"));
        for entry in entries.unwrap_or_else(|error| panic!("list {folder}: {error}")).flatten() {
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.path() {
                path if path.is_dir() => folders.push(name),
                path if path.extension().is_some_and(|end| end == "md") => pages.push(name),
                _ => {}
            }
        }
    }
    pages.sort();
    let read = |page: String| {
        let text = std::fs::read_to_string(format!("{root}/{page}"));
        let text = text.unwrap_or_else(|error| panic!("read {page}: {error}"));
        (page, text)
    };
    pages.into_iter().map(read).collect()
}
