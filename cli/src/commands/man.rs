//! `man`: manual pages in the format of man(7), from the same descriptions as `--help`.

use std::fmt::Write as _;

use anyhow::Context;
use clap::{Arg, Command};
use textnlp_files::Replace;

use super::prelude::*;
use crate::args::Man;
use crate::help;

/// The last line of the help of the program.
const EXIT_STATUSES: &str = "Exit statuses: ";

/// `man`.
pub fn man(args: &Man) -> Result<Success, Failure> {
    let pages = pages();
    let Some(dir) = &args.dir else {
        let text = pages.into_iter().next().map(|page| page.text).unwrap_or_default();
        let document = json!({ "text": text });
        return Ok(Success::new(text, document));
    };
    std::fs::create_dir_all(dir).with_context(|| format!("create the folder {dir}"))?;
    for page in &pages {
        let file = dir.join(page.file());
        // They are written again after a crash of the machine.
        let replace = Replace::umask().without_sync();
        replace.write(&file, page.text.as_bytes()).with_context(|| format!("write {file}"))?;
    }
    let files: Vec<String> = pages.iter().map(Page::file).collect();
    let text = format!("wrote {} into {dir}", counted(files.len(), "page"));
    Ok(Success::new(text, json!({ "folder": dir, "files": files })))
}

/// A manual page of section 1.
struct Page {
    name: String,
    text: String,
}

impl Page {
    fn file(&self) -> String {
        format!("{}.1", self.name)
    }
}

/// The page of the program, and then those of its visible commands.
fn pages() -> Vec<Page> {
    let mut program = help::described();
    program.build();
    let date = date();
    let statuses = exit_statuses(&program);
    let mut pages = Vec::new();
    let mut todo = vec![vec![&program]];
    while let Some(path) = todo.pop() {
        let Some(&command) = path.last() else { continue };
        pages.push(Page { name: page_name(&path), text: text(&path, &date, &statuses) });
        let below: Vec<_> = visible(command).map(|sub| [&path[..], &[sub]].concat()).collect();
        todo.extend(below.into_iter().rev());
    }
    pages
}

/// The date of the pages: that of the build of a package, else of today.
fn date() -> String {
    let built = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let built = built.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    built.unwrap_or_else(jiff::Timestamp::now).to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn page_name(path: &[&Command]) -> String {
    path.iter().map(|command| command.get_name()).collect::<Vec<_>>().join("-")
}

/// The exit statuses that the help of the program lists, with their meanings.
fn exit_statuses(program: &Command) -> Vec<(String, String)> {
    let help = program.get_after_help().map(ToString::to_string).unwrap_or_default();
    let listed = help.lines().find_map(|line| line.strip_prefix(EXIT_STATUSES)).unwrap_or_default();
    let statuses = listed.trim_end_matches('.').split(", ").filter_map(|status| status.split_once(' '));
    statuses.map(|(number, meaning)| (number.to_owned(), meaning.to_owned())).collect()
}

/// The text of the page of the last command of a path.
fn text(path: &[&Command], date: &str, statuses: &[(String, String)]) -> String {
    let Some((&command, parents)) = path.split_last() else { return String::new() };
    let name = page_name(path);
    let mut roff = Roff::default();
    let program = path.first().map_or(name.as_str(), |program| program.get_name());
    roff.line(format!(
        ".TH \"{}\" \"1\" \"{}\" \"{} {}\" \"User Commands\"",
        escaped(&name.to_uppercase()),
        escaped(date),
        escaped(program),
        escaped(env!("CARGO_PKG_VERSION"))
    ));
    // No hyphens in words, and no spaces between them that a copied command would have.
    roff.line(".nh");
    roff.line(".ad l");
    roff.section("NAME");
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.line(format!("{} \\- {}", escaped(&name), prose(&about)));
    roff.section("SYNOPSIS");
    synopsis(&mut roff, path, command);
    roff.section("DESCRIPTION");
    let described = command.get_long_about().map_or(about, ToString::to_string);
    let below = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let below: Vec<&str> = below.split("\n\n").filter(|block| !block.starts_with(EXIT_STATUSES)).collect();
    let (examples, remarks): (Vec<&str>, Vec<&str>) = below.into_iter().partition(|block| is_example(block));
    for (number, block) in described.split("\n\n").chain(remarks).filter(|block| !block.is_empty()).enumerate() {
        if number > 0 {
            roff.line(".PP");
        }
        roff.text(block);
    }
    let aliases: Vec<String> = command.get_visible_aliases().map(bold).collect();
    if !aliases.is_empty() {
        roff.line(".PP");
        roff.line(format!("Other names: {}", aliases.join(", ")));
    }
    let below: Vec<&Command> = visible(command).collect();
    if !below.is_empty() {
        roff.section("COMMANDS");
    }
    for sub in &below {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        roff.tagged(&format!("{}(1)", bold(&format!("{name}-{}", sub.get_name()))), &about);
    }
    arguments(&mut roff, command);
    if !statuses.is_empty() {
        roff.section("EXIT STATUS");
    }
    for (number, meaning) in statuses {
        roff.tagged(&bold(number), meaning);
    }
    if !examples.is_empty() {
        roff.section("EXAMPLES");
    }
    for block in examples {
        example(&mut roff, block);
    }
    let above = (1..=parents.len()).map(|length| page_name(&path[..length]));
    let related: Vec<String> = above.chain(below.iter().map(|sub| format!("{name}-{}", sub.get_name()))).collect();
    if !related.is_empty() {
        roff.section("SEE ALSO");
    }
    for (number, page) in related.iter().enumerate() {
        let comma = if number + 1 < related.len() { "," } else { "" };
        roff.line(format!(".BR {} (1){comma}", escaped(page)));
    }
    roff.0
}

/// The usage lines of a command.
fn synopsis(roff: &mut Roff, path: &[&Command], command: &Command) {
    let typed = path.iter().map(|command| command.get_name()).collect::<Vec<_>>().join(" ");
    let usage = command.clone().render_usage().to_string();
    for (number, line) in usage.trim_start_matches("Usage:").lines().map(str::trim).enumerate() {
        if number > 0 {
            roff.line(".br");
        }
        roff.line(match line.strip_prefix(&typed) {
            Some(rest) => format!("{}{}", bold(&typed), escaped(rest)),
            None => guarded(escaped(line)),
        });
    }
}

/// Arguments, options under their headings, and environment variables.
fn arguments(roff: &mut Roff, command: &Command) {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) = shown.partition(|arg| arg.is_positional());
    if !positional.is_empty() {
        roff.section("ARGUMENTS");
    }
    for arg in positional {
        argument(roff, arg);
    }
    if !options.is_empty() {
        roff.section("OPTIONS");
    }
    // Those of the command itself have no heading.
    let mut headings = vec![None];
    for arg in &options {
        let heading = arg.get_help_heading();
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            roff.line(format!(".SS {}", escaped(heading)));
        }
        for arg in options.iter().filter(|arg| arg.get_help_heading() == heading) {
            argument(roff, arg);
        }
    }
    let variables: Vec<_> = options.iter().filter_map(|arg| Some((arg.get_env()?, arg.get_long()?))).collect();
    if !variables.is_empty() {
        roff.section("ENVIRONMENT");
    }
    for (variable, long) in variables {
        roff.tagged(&bold(&variable.to_string_lossy()), &format!("The value of `--{long}`, if that is not given"));
    }
}

/// An argument or option, with what it accepts.
fn argument(roff: &mut Roff, arg: &Arg) {
    let values = values(arg);
    let short = arg.get_short().map(|short| bold(&format!("-{short}")));
    let names: Vec<String> = short.into_iter().chain(arg.get_long().map(|long| bold(&format!("--{long}")))).collect();
    let tag = match (names.is_empty(), values.is_empty()) {
        (true, _) if arg.is_required_set() => values,
        (true, _) => format!("[{values}]"),
        (false, true) => names.join(", "),
        (false, false) => format!("{} {values}", names.join(", ")),
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    roff.tagged(&tag, &help);
    let accepted = arg.get_possible_values();
    let accepted = accepted.iter().filter(|value| !value.is_hide_set() && !arg.is_hide_possible_values_set());
    let accepted: Vec<String> = accepted
        .map(|value| match value.get_help() {
            Some(help) => format!("{} ({})", bold(value.get_name()), prose(&help.to_string())),
            None => bold(value.get_name()),
        })
        .collect();
    if !accepted.is_empty() {
        roff.line(".br");
        roff.line(format!("Possible values: {}", accepted.join(", ")));
    }
    // A flag has `false`.
    let has_default = arg.get_action().takes_values() && !arg.is_hide_default_value_set();
    let defaults = arg.get_default_values().iter().filter(|_| has_default);
    let defaults: Vec<String> = defaults.map(|value| bold(&value.to_string_lossy())).collect();
    if !defaults.is_empty() {
        roff.line(".br");
        roff.line(format!("Default: {}", defaults.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        roff.line(".br");
        roff.line(format!("Environment variable: {}", bold(&variable.to_string_lossy())));
    }
}

/// The placeholders of the values of an argument.
fn values(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let names: Vec<String> = match arg.get_value_names() {
        Some(names) => names.iter().map(|name| italic(name)).collect(),
        None => vec![italic(&arg.get_id().as_str().to_uppercase())],
    };
    let more = if arg.get_num_args().is_some_and(|count| count.max_values() > names.len()) { "..." } else { "" };
    format!("{}{more}", names.join(" "))
}

/// Whether a block of help is a list of commands, which keeps its lines.
fn is_example(block: &str) -> bool {
    block.lines().any(is_indented)
}

fn is_indented(line: &str) -> bool {
    line.starts_with("  ")
}

/// A block of commands, with its heading unless that is of the section.
fn example(roff: &mut Roff, block: &str) {
    for heading in block.lines().take_while(|line| !is_indented(line)) {
        if !["Example:", "Examples:"].contains(&heading) {
            roff.line(".PP");
            roff.text(heading);
        }
    }
    roff.line(".RS 4");
    roff.line(".nf");
    for line in block.lines().skip_while(|line| !is_indented(line)) {
        roff.line(guarded(escaped(line.trim())));
    }
    roff.line(".fi");
    roff.line(".RE");
}

/// A page that is written line by line.
#[derive(Default)]
struct Roff(String);

impl Roff {
    /// A line that is escaped.
    fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    fn section(&mut self, title: &str) {
        self.line(format!(".SH {title}"));
    }

    /// A paragraph.
    fn text(&mut self, text: &str) {
        self.line(prose(text));
    }

    /// A description with its tag, which is escaped.
    fn tagged(&mut self, tag: &str, text: &str) {
        self.line(".TP");
        self.line(tag);
        for (number, block) in text.split("\n\n").enumerate() {
            if number > 0 {
                self.line(".IP");
            }
            self.text(block);
        }
    }
}

/// A paragraph in one line, with code in bold.
fn prose(text: &str) -> String {
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let pieces: Vec<&str> = text.split('`').collect();
    // Without its other half, a backquote is one.
    if pieces.len().is_multiple_of(2) {
        return guarded(escaped(&text));
    }
    let shown = pieces.iter().enumerate().map(|(number, piece)| match number.is_multiple_of(2) {
        true => escaped(piece),
        false => bold(piece),
    });
    guarded(shown.collect())
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escaped(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escaped(text))
}

/// A line of text that is no request of roff, and not empty.
fn guarded(line: String) -> String {
    if line.is_empty() || line.starts_with('.') { format!("\\&{line}") } else { line }
}

/// Text as it is shown: roff would take a backslash as an escape, and typeset hyphens and quotes as other characters, which
/// a shell does not accept.
fn escaped(text: &str) -> String {
    let mut roff = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => roff.push_str("\\(rs"),
            '-' => roff.push_str("\\-"),
            '\'' => roff.push_str("\\(aq"),
            '`' => roff.push_str("\\(ga"),
            '"' => roff.push_str("\\(dq"),
            '^' => roff.push_str("\\(ha"),
            '~' => roff.push_str("\\(ti"),
            c if c.is_control() => roff.push(' '),
            c if c.is_ascii() => roff.push(c),
            c => {
                let _ = write!(roff, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use super::*;

    fn page(name: &str) -> String {
        pages().into_iter().find(|page| page.name == name).unwrap().text
    }

    /// The names of all commands that help shows.
    fn names(command: &Command, above: &str, found: &mut Vec<String>) {
        let name = format!("{above}{}", command.get_name());
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            names(sub, &format!("{name}-"), found);
        }
        found.push(name);
    }

    #[test]
    fn every_visible_command_has_a_page() {
        let (pages, mut found) = (pages(), Vec::new());
        assert_eq!(pages[0].name, "textnlp-deploy");
        names(&help::described(), "", &mut found);
        let mut written: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        written.sort_unstable();
        found.sort_unstable();
        assert_eq!(written, found);
        assert!(written.contains(&"textnlp-deploy-bundle-create") && !written.contains(&"textnlp-deploy-supervise"));
        for Page { name, text } in &pages {
            assert!(text.starts_with(&format!(".TH \"{}\"", escaped(&name.to_uppercase()))), "{text}");
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "EXIT STATUS", "SEE ALSO"] {
                assert!(text.contains(&format!("\n.SH {section}\n")), "{section}: {text}");
            }
            assert!(!text.contains("\n\n") && !text.contains('`'), "{text}");
        }
    }

    #[test]
    fn page_has_what_help_has() {
        let bench = page("textnlp-deploy-db-bench");
        for part in [
            ".SH NAME\ntextnlp\\-deploy\\-db\\-bench \\- Measure transactions per second",
            ".SH SYNOPSIS\n\\fBtextnlp\\-deploy db bench\\fR [OPTIONS]\n",
            ".TP\n\\fB\\-\\-clients\\fR \\fIN\\fR\n",
            ".br\nDefault: \\fB4\\fR\n",
            ".SS Environment\n",
            ".br\nEnvironment variable: \\fBTEXTNLP_ENV\\fR\n",
            "\\fB\\-o\\fR, \\fB\\-\\-output\\fR",
            "Possible values: \\fBtext\\fR (Text for people), \\fBjson\\fR",
            ".nf\ntextnlp\\-deploy db bench \\-\\-env staging\n",
            ".TP\n\\fB4\\fR\nrefused for safety\n",
            ".BR textnlp\\-deploy (1),\n.BR textnlp\\-deploy\\-db (1)\n",
        ] {
            assert!(bench.contains(part), "{part}: {bench}");
        }
        let program = page("textnlp-deploy");
        assert!(program.contains(".TP\n\\fBtextnlp\\-deploy\\-up\\fR(1)\nDeploy an environment"), "{program}");
        assert!(page("textnlp-deploy-model-pull").contains("Other names: \\fBadd\\fR\n"));
        assert_eq!(exit_statuses(&help::described()).len(), 7);
    }

    #[test]
    fn text_of_a_page_is_shown_as_written() {
        for (text, expect) in [
            (".hidden", "\\&.hidden"),
            ("'quoted'", "\\(aqquoted\\(aq"),
            ("C:\\dir", "C:\\(rsdir"),
            ("use `--env a` or\n  `.b`", "use \\fB\\-\\-env a\\fR or \\fB.b\\fR"),
            ("one ` only", "one \\(ga only"),
            ("", "\\&"),
            ("± …", "\\[u00B1] \\[u2026]"),
        ] {
            assert_eq!(prose(text), expect);
        }
    }

    /// Runs a checker of manual pages, if it is installed, and returns its warnings.
    fn warnings(program: &str, args: &[&str], package: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let dir = camino::Utf8Path::from_path(folder.path()).unwrap();
        man(&Man { dir: Some(dir.to_owned()) }).unwrap();
        let files: Vec<_> = dir.read_dir_utf8().unwrap().map(|entry| entry.unwrap().path().to_owned()).collect();
        match Process::new(program).args(args).args(&files).output() {
            Ok(output) => {
                assert!(files.len() > 60, "{files:?}");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Some(text(&output.stdout) + &text(&output.stderr))
            }
            Err(why) => {
                assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{program}: {why}");
                eprintln!("NOT TESTED: {program} is not installed (Debian: apt-get install {package})");
                None
            }
        }
    }

    #[test]
    fn groff_has_no_warnings_about_any_page() {
        let warnings = warnings("groff", &["-man", "-ww", "-z", "-Tutf8"], "groff-base");
        assert_eq!(warnings.unwrap_or_default(), "");
    }
}
