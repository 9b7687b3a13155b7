//! The environment of the programs that a supervisor starts.

/// The variables that programs inherit; all others are removed.
const INHERITED_VARIABLES: [&str; 15] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// The cleaned environment of every started program.
pub(crate) fn clean_environment() -> Vec<(&'static str, std::ffi::OsString)> {
    INHERITED_VARIABLES.iter().filter_map(|name| std::env::var_os(name).map(|value| (*name, value))).collect()
}
