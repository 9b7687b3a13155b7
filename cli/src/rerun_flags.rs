//! The flags of this session that the commands in hints need as well.

use camino::Utf8PathBuf;
pub use textnlp_service::rerun_flags::{RerunFlags, quoted};

use crate::args::Global;

/// The flags from the command line. Values from variables are left out, which keeps suggestions short.
pub fn of(global: &Global) -> RerunFlags {
    beside(global, |variable| std::env::var(variable).ok())
}

fn beside(global: &Global, variable: impl Fn(&str) -> Option<String>) -> RerunFlags {
    let typed = |value: Option<String>, name: &str| value.filter(|value| variable(name).as_ref() != Some(value));
    let text = |path: &Option<Utf8PathBuf>| path.as_ref().map(ToString::to_string);
    let mut changes: Vec<_> = global.set.iter().map(|set| ("--set".to_owned(), set.clone())).collect();
    let flags = [
        ("--site", typed(global.site.clone(), "TEXTNLP_SITE")),
        ("--provider", typed(global.provider.clone(), "TEXTNLP_PROVIDER")),
        ("--server", typed(text(&global.server), "TEXTNLP_SERVER")),
    ];
    changes.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag.to_owned(), value?))));
    changes.extend(global.take_ownership.iter().map(|field| ("--take-ownership".to_owned(), field.clone())));
    // If a variable names a file, `--env` beside it would be rejected, so the file is named again.
    let env = typed(global.env.clone(), "TEXTNLP_ENV").filter(|_| global.file.is_none());
    RerunFlags {
        env,
        file: text(&global.file),
        state_dir: typed(text(&global.state_dir), "TEXTNLP_STATE_DIR"),
        program: None,
        changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    fn beside(flags: &[&str], variable: &str, value: &str) -> RerunFlags {
        let arguments = ["textnlp-deploy", "status"].iter().chain(flags);
        let global = Cli::try_parse_from(arguments).unwrap().global;
        super::beside(&global, |name| (name == variable).then(|| value.to_owned()))
    }

    fn again(flags: &[&str]) -> RerunFlags {
        beside(flags, "", "")
    }

    #[test]
    fn hinted_command_omits_flags_set_by_variables() {
        let of = |variable_value: &str| {
            beside(&["--state-dir", "/srv"], "TEXTNLP_STATE_DIR", variable_value).named("up", "dev")
        };
        assert_eq!(of("/srv"), "textnlp-deploy up --env dev");
        assert_eq!(of("/other"), "textnlp-deploy up --env dev --state-dir /srv");
    }

    #[test]
    fn hints_of_providers_get_the_flags_of_the_environment() {
        let flags = again(&["--file", "service.yaml"]);
        assert_eq!(
            flags.complete("`textnlp-deploy plan --policy` prints the role; or run `gcloud auth login`", "shop"),
            "`textnlp-deploy plan --policy --file service.yaml` prints the role; or run `gcloud auth login`"
        );
        let named = again(&[]).complete("`textnlp-deploy state import` adopts it", "shop");
        assert_eq!(named, "`textnlp-deploy state import --env shop` adopts it");
        assert_eq!(
            flags.complete("see `textnlp-deploy explain here/cluster`", "shop"),
            "see `textnlp-deploy explain here/cluster --file service.yaml`"
        );
        for other in ["`textnlp-deploy model pull` prints it", "textnlp-deploy logs", "remove it"] {
            assert_eq!(flags.complete(other, "shop"), other);
        }
    }

    #[test]
    fn hinted_commands_repeat_the_session_flags() {
        let plain = again(&["--env", "staging"]);
        assert_eq!(plain.same("up", "staging"), "textnlp-deploy up --env staging");
        let with_flags =
            again(&["--file", "my env.yaml", "--state-dir", "/srv/it's", "--set", "scaling.min=2", "--site", "here"]);
        assert_eq!(
            (plain.check("pilot"), plain.check("")),
            ("textnlp-deploy env check --env pilot".into(), "textnlp-deploy env check --env staging".into())
        );
        assert_eq!(again(&[]).check(""), "textnlp-deploy env check");
        let checked = "textnlp-deploy env check --file 'my env.yaml' --site here, with the same `--set scaling.min`";
        assert_eq!(with_flags.check("dev"), checked);
        assert_eq!(with_flags.bare("model list"), r"textnlp-deploy model list --state-dir '/srv/it'\''s'");
        assert_eq!(with_flags.named("up", "dev"), r"textnlp-deploy up --env dev --state-dir '/srv/it'\''s'");
        assert_eq!(
            with_flags.command("up", "dev"),
            r"textnlp-deploy up --file 'my env.yaml' --state-dir '/srv/it'\''s'"
        );
        assert_eq!(with_flags.same("up", "dev"), with_flags.command("up", "dev") + " --set scaling.min=2 --site here");
    }
}
