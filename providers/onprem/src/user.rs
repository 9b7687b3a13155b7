//! Users of this machine, and which of them runs an environment.

use std::io;

use textnlp_files::Account;
use textnlp_provider::Problem;

/// The setting of the user that runs an environment.
const SETTING: &str = "prerequisites.user";
/// Where the choice is explained.
const GUIDE: &str = "docs/guide/security.md, \"Users and privileges\"";

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemUser {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// Its groups, the primary one first.
    pub groups: Vec<u32>,
    /// Its home directory.
    pub home: String,
}

impl SystemUser {
    /// The user of this name in `/etc/passwd`.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let Some(account) = Account::find(|account| account.name == name)? else { return Ok(None) };
        let group = std::fs::read("/etc/group").unwrap_or_default();
        Ok(Some(Self::of(account, &String::from_utf8_lossy(&group))))
    }

    fn of(account: Account, group: &str) -> Self {
        let Account { name, uid, gid, home } = account;
        let mut groups = vec![gid];
        for line in group.lines() {
            // `name:password:gid:members`
            let fields: Vec<&str> = line.split(':').collect();
            let number: Option<u32> = fields.get(2).and_then(|number| number.parse().ok());
            if fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)) {
                groups.extend(number.filter(|number| !groups.contains(number)));
            }
        }
        let home = if home.starts_with('/') { home } else { "/".to_owned() };
        Self { name, uid, groups, home }
    }
}

/// Whether this process has the rights of the user that runs the environment, and whether there is one where it is root.
pub(crate) fn check(wanted: Option<&str>, is_required: bool, problems: &mut Vec<Problem>) {
    let me = rustix::process::geteuid();
    let Some(name) = wanted.filter(|name| *name != "root" || !me.is_root()) else {
        if me.is_root() && is_required && wanted.is_none() {
            let cause = "in this phase root has to name the user that runs the environment";
            let fix = format!(
                "create a user and set `{SETTING}`: see {GUIDE}; to run everything as root: `--set {SETTING}=root`"
            );
            problems.push(Problem::new(SETTING, cause, fix));
        } else if me.is_root() {
            let cause = "the programs of this environment run as root";
            let fix = format!("create a user and set `{SETTING}`: see {GUIDE}");
            problems.push(Problem::warning(SETTING, cause, fix));
        }
        return;
    };
    let cause = match SystemUser::find(name) {
        // A command of root that acts for the environment changes to the user before it does anything.
        Ok(Some(user)) if user.uid == me.as_raw() || (me.is_root() && user.uid != 0) => return,
        Ok(Some(_)) => "this command does not run as that user".to_owned(),
        Ok(None) => "this machine has no such user".to_owned(),
        Err(error) => format!("/etc/passwd cannot be read: {error}"),
    };
    let fix = format!("run it as root or as `{name}`, or remove the setting: see {GUIDE}");
    problems.push(Problem::new(SETTING, format!("the environment runs as `{name}`, and {cause}"), fix));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_with_their_groups() {
        let line = "textnlp:x:998:997::/var/lib/textnlp:/usr/sbin/nologin";
        let group = "root:x:0:\ntextnlp:x:997:textnlp\nssl-cert:x:110:postgres,textnlp\nother:x:111:textnlp2\n";
        let wanted = SystemUser {
            name: "textnlp".to_owned(),
            uid: 998,
            groups: vec![997, 110],
            home: "/var/lib/textnlp".to_owned(),
        };
        assert_eq!(SystemUser::of(Account::parse(line).unwrap(), group), wanted);
        assert_eq!(SystemUser::find("root").unwrap().map(|root| root.uid), Some(0));
        for short in ["", "short:x", ":x:1:1::/:", "name:x:one:1::/:"] {
            assert_eq!(Account::parse(short), None, "{short}");
        }
    }

    #[test]
    fn missing_user_is_a_problem_and_root_a_warning() {
        let mut problems = Vec::new();
        check(Some("no-such-user"), false, &mut problems);
        assert!(problems.len() == 1 && !problems[0].warning, "{problems:?}");
        assert!(problems[0].cause.contains("has no such user"), "{problems:?}");
        problems.clear();
        check(None, false, &mut problems);
        check(Some("root"), true, &mut problems);
        let warnings = problems.iter().filter(|problem| problem.warning && problem.cause.contains("as root")).count();
        // Of `root`, another user hears that it is not root.
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!((problems.len(), warnings), if is_root { (2, 2) } else { (1, 0) });
        problems.clear();
        check(None, true, &mut problems);
        let refused = problems.iter().filter(|problem| !problem.warning && problem.fix.contains("=root")).count();
        assert_eq!((problems.len(), refused), if is_root { (1, 1) } else { (0, 0) }, "{problems:?}");
    }
}
