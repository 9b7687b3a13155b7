//! An operator who follows the guide of a cloud: the environment and the commands are those that it shows.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;
use textnlp_tests::{Said, Sandbox, guide, program, said};

pub(super) struct Follower<'a> {
    sandbox: &'a Sandbox,
    /// The file of the environment, as the commands name it.
    file: &'static str,
    commands: Vec<String>,
    variables: Vec<(String, String)>,
    /// Has the program by its name. It adds what holds for tests only: addresses of this machine, and the consent to changes.
    folder: Utf8PathBuf,
}

impl<'a> Follower<'a> {
    /// `variables` are those of one who is signed in.
    pub(super) fn of(
        sandbox: &'a Sandbox,
        (page, section): (&str, &str),
        file: &'static str,
        sets: &[String],
        variables: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        let blocks = guide::blocks(page, section);
        let (_, yaml) = blocks.iter().find(|(language, _)| language == "yaml").unwrap();
        std::fs::write(sandbox.folder().join(file), yaml).unwrap();
        let folder = sandbox.folder().join("bin");
        // One who signs in another way follows the same guide again.
        std::fs::create_dir_all(&folder).unwrap();
        let sets: String = sets.iter().map(|set| format!(" --set '{set}'")).collect();
        let script = format!(
            "#!/bin/sh\ncase $1 in up | down | secret) set -- \"$@\" --yes ;; esac\nexec '{}' \"$@\"{sets}\n",
            program()
        );
        let name = folder.join("textnlp-deploy");
        std::fs::write(&name, script).unwrap();
        std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o755)).unwrap();
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { sandbox, file, commands: guide::commands(page, section), variables, folder }
    }

    /// The same, with the commands of another section.
    pub(super) fn and(mut self, page: &str, section: &str) -> Self {
        self.commands.extend(guide::commands(page, section));
        self
    }

    /// The command of the guide that begins so.
    #[track_caller]
    pub(super) fn printed(&self, start: &str) -> &str {
        let found = self.commands.iter().find(|command| command.starts_with(start));
        found.unwrap_or_else(|| panic!("the guide has no `{start}`: {:#?}", self.commands))
    }

    /// Runs a line of a shell.
    pub(super) fn run(&self, line: &str) -> Said {
        let template = self.sandbox.command(&[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(self.sandbox.folder()).stdin(Stdio::null()).env_clear();
        shell.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", self.folder));
        shell.envs(self.variables.iter().map(|(name, value)| (name, value)));
        said(shell.output().unwrap())
    }

    /// Runs a command about the environment of the guide.
    pub(super) fn about(&self, command: &str) -> Said {
        self.run(&format!("textnlp-deploy {command} --file {}", self.file))
    }
}
