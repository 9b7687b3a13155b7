use std::io::{self, BufRead, BufReader};

/// A user of this machine, as `/etc/passwd` has it. Users of other sources, such as LDAP, are not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of the primary group.
    pub gid: u32,
    /// The home directory.
    pub home: String,
}

impl Account {
    /// The first account that matches.
    ///
    /// # Errors
    /// If `/etc/passwd` cannot be read.
    pub fn find(mut matches: impl FnMut(&Self) -> bool) -> io::Result<Option<Self>> {
        for line in BufReader::new(std::fs::File::open("/etc/passwd")?).split(b'\n') {
            if let Some(found) = Self::parse(&String::from_utf8_lossy(&line?)).filter(&mut matches) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Reads a line: `name:password:uid:gid:comment:home:shell`.
    pub fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let number = |at: usize| fields.get(at)?.parse().ok();
        let name = fields.first().filter(|name| !name.is_empty())?;
        let home = fields.get(5).copied().unwrap_or_default();
        Some(Self { name: (*name).to_owned(), uid: number(2)?, gid: number(3)?, home: home.to_owned() })
    }
}
