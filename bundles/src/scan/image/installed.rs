//! The lists of packages that distributions keep in an image.

use crate::scan::package::Package;

/// Which distribution, from `etc/os-release`: `Debian:12`, `Alpine:v3.19`.
pub(crate) fn distribution(text: &str) -> Option<String> {
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    let id = value("ID")?;
    let version = value("VERSION_ID").unwrap_or_default();
    let with = |name: &str, version: &str| {
        if version.is_empty() { name.to_owned() } else { format!("{name}:{version}") }
    };
    Some(match id.as_str() {
        "debian" => with("Debian", &version),
        "ubuntu" => with("Ubuntu", &version),
        "alpine" => {
            let short = version.split('.').take(2).collect::<Vec<_>>().join(".");
            if short.is_empty() { "Alpine".to_owned() } else { format!("Alpine:v{short}") }
        }
        "wolfi" => "Wolfi".to_owned(),
        "chainguard" => "Chainguard".to_owned(),
        _ => with(&id, &version),
    })
}

fn paragraphs(text: &str) -> impl Iterator<Item = Vec<(&str, &str)>> {
    text.split("\n\n").map(|paragraph| {
        // A line that begins with a blank goes on with the one before; nothing here needs those.
        let fields = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
        fields.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect()
    })
}

fn field<'a>(fields: &[(&'a str, &'a str)], key: &str) -> Option<&'a str> {
    fields.iter().find(|(name, _)| *name == key).map(|(_, value)| *value).filter(|value| !value.is_empty())
}

/// `var/lib/dpkg/status`, or a file of `status.d`, which says nothing of a state.
pub(crate) fn dpkg(text: &str, ecosystem: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    for fields in paragraphs(&text.replace('\r', "")) {
        let installed = field(&fields, "Status").is_none_or(|s| s.split_whitespace().next_back() == Some("installed"));
        let (Some(name), Some(version)) = (field(&fields, "Package"), field(&fields, "Version")) else { continue };
        if !installed {
            continue;
        }
        // `Source: openssl (3.0.11-1)`; the version is present only if it differs.
        let origin = match field(&fields, "Source").map(|s| s.split_once(" (").unwrap_or((s, ""))) {
            Some((source, "")) => (source.to_owned(), version.to_owned()),
            Some((source, other)) => (source.to_owned(), other.trim_end_matches(')').to_owned()),
            None => (name.to_owned(), version.to_owned()),
        };
        packages.push(Package {
            ecosystem: ecosystem.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            origin: Some(origin),
            architecture: field(&fields, "Architecture").map(str::to_owned),
        });
    }
    packages
}

/// `lib/apk/db/installed`.
pub(crate) fn apk(text: &str, ecosystem: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    for fields in paragraphs(text) {
        if let (Some(name), Some(version)) = (field(&fields, "P"), field(&fields, "V")) {
            packages.push(Package {
                ecosystem: ecosystem.to_owned(),
                name: name.to_owned(),
                version: version.to_owned(),
                origin: field(&fields, "o").map(|origin| (origin.to_owned(), version.to_owned())),
                architecture: field(&fields, "A").map(str::to_owned),
            });
        }
    }
    packages
}

/// `…/NAME-VERSION.dist-info/METADATA` of a Python package.
pub(crate) fn python(text: &str) -> Option<Package> {
    let head = text.split("\n\n").next()?;
    let fields: Vec<(&str, &str)> =
        head.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
    Some(Package::of_python(field(&fields, "Name")?, field(&fields, "Version")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_status_lists_installed_packages_with_their_source() {
        let text = "Package: libssl3\nStatus: install ok installed\nSource: openssl (3.0.11-1~deb12u2)\nArchitecture: amd64\nVersion: 3.0.11-1~deb12u2+b1\n\
            Description: x\n more: text\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: bash\nStatus: install ok installed\nVersion: 5.2\n";
        let packages = dpkg(text, "Debian:12");
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].matched_by(), ("openssl", "3.0.11-1~deb12u2"));
        assert_eq!(packages[0].purl(), "pkg:deb/debian/libssl3@3.0.11-1~deb12u2%2Bb1?arch=amd64&distro=debian-12");
        assert_eq!(packages[1].matched_by(), ("bash", "5.2"));
    }

    #[test]
    fn dpkg_parser_agrees_with_dpkg_query() {
        let format = "${db:Status-Status} ${Package} ${Version} ${source:Package} ${source:Version}\n";
        let Some(output) = crate::scan::tool::run("dpkg-query", "dpkg-query", &["-W", "-f", format], "") else {
            return;
        };
        let mut wanted: Vec<String> =
            output.lines().filter_map(|l| l.strip_prefix("installed ")).map(str::to_owned).collect();
        let status = std::fs::read_to_string("/var/lib/dpkg/status").unwrap();
        let line = |p: &Package| format!("{} {} {} {}", p.name, p.version, p.matched_by().0, p.matched_by().1);
        let mut found: Vec<String> = dpkg(&status, "Debian:12").iter().map(line).collect();
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn apk_and_python_package_lists_are_parsed() {
        let text = "C:Q1abc=\nP:musl\nV:1.2.4-r2\nA:x86_64\no:musl\nF:lib\nR:x\n\nP:busybox-binsh\nV:1.36.1-r15\no:busybox\n\n";
        let packages = apk(text, "Alpine:v3.19");
        assert_eq!(
            packages.iter().map(|p| p.matched_by()).collect::<Vec<_>>(),
            [("musl", "1.2.4-r2"), ("busybox", "1.36.1-r15")]
        );
        let package = python("Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\n\nName: no\n").unwrap();
        assert_eq!(package.purl(), "pkg:pypi/foo-bar@1.0");
    }

    #[test]
    fn distributions_get_their_osv_names() {
        for (text, wanted) in [
            ("ID=debian\nVERSION_ID=\"12\"", "Debian:12"),
            ("ID=ubuntu\nVERSION_ID=\"22.04\"", "Ubuntu:22.04"),
            ("ID=alpine\nVERSION_ID=3.19.1", "Alpine:v3.19"),
            ("ID=fedora\nVERSION_ID=40", "fedora:40"),
            ("ID=wolfi", "Wolfi"),
        ] {
            assert_eq!(distribution(text).as_deref(), Some(wanted));
        }
        assert_eq!(distribution("NAME=x"), None);
    }
}
