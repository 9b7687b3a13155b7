//! Python packages in `packages/`, by the names of their files. The files are not opened.

use super::package::Package;
use super::version::Scheme;

/// The package of a wheel, `NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl`, or of a source distribution,
/// `NAME-VERSION.tar.gz`. Sources:
/// <https://packaging.python.org/en/latest/specifications/binary-distribution-format/> and
/// <https://packaging.python.org/en/latest/specifications/source-distribution-format/>.
pub(super) fn package(file: &str) -> Option<Package> {
    let (name, version) = match file.strip_suffix(".whl") {
        Some(wheel) => {
            let parts: Vec<&str> = wheel.split('-').collect();
            match parts.as_slice() {
                [name, version, _, _, _] => (*name, *version),
                [name, version, build, _, _, _] if build.starts_with(|c: char| c.is_ascii_digit()) => (*name, *version),
                _ => return None,
            }
        }
        None => file.strip_suffix(".tar.gz")?.rsplit_once('-')?,
    };
    // `a-1.0-2.tar.gz` has an ambiguous version: 2, or 1.0.post2.
    let is_ambiguous = name.rsplit_once('-').is_some_and(|(_, last)| is_version(last));
    (is_name(name) && is_version(version) && !is_ambiguous).then(|| Package::of_python(name, version))
}

fn is_name(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.chars().all(is_inner) && is_outer(text.chars().next()) && is_outer(text.chars().next_back())
}

/// Whether advisories can be compared with it: another version would count as affected by all of them.
fn is_version(text: &str) -> bool {
    !text.contains(char::is_whitespace) && Scheme::Pep440.compare(text, text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_python_files_have_the_package_and_its_version() {
        for (file, wanted) in [
            ("Foo_Bar-1.0.post1-py3-none-any.whl", Some(("foo-bar", "1.0.post1"))),
            ("torch-2.1.0+cpu-1-cp311-cp311-linux_x86_64.whl", Some(("torch", "2.1.0+cpu"))),
            ("zope.interface-1!7.0-cp312-cp312-manylinux_2_17_x86_64.whl", Some(("zope-interface", "1!7.0"))),
            ("python-dateutil-2.9.0.tar.gz", Some(("python-dateutil", "2.9.0"))),
            ("v8-1.0-py3-none-any.whl", Some(("v8", "1.0"))),
            ("foo- 1.0-py3-none-any.whl", None),
            ("libssl3_3.0.11-1_amd64.deb", None),
            ("foo-1.0.whl", None),
            ("foo-1.0-build-py3-none-any.whl", None),
            ("foo-latest-py3-none-any.whl", None),
            ("-1.0-py3-none-any.whl", None),
            ("fo o-1.0-py3-none-any.whl", None),
            ("foo-1.0-1.tar.gz", None),
            ("notes-final.tar.gz", None),
            ("notes.tar.gz", None),
        ] {
            let found = package(file);
            assert_eq!(found.as_ref().map(|one| (one.name.as_str(), one.version.as_str())), wanted, "{file}");
        }
    }
}
