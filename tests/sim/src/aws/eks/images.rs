//! Images of nodes.

use jiff::Timestamp;

use super::KUBERNETES;

/// How often a new image of each version comes out, in days.
const INTERVAL: i64 = 14;
/// How many images of a version there are.
const KEPT: i64 = 8;
const SECONDS_PER_DAY: i64 = 24 * 60 * 60;
const VARIANTS: [&str; 4] = ["arm64-nvidia", "arm64-standard", "x86_64-nvidia", "x86_64-standard"];

/// The days on which the images came out, the newest first: `20260901`.
fn days(now: Timestamp) -> Vec<String> {
    let today = now.as_second().div_euclid(SECONDS_PER_DAY);
    let newest = today - today.rem_euclid(INTERVAL);
    let day = |place: i64| Timestamp::from_second((newest - place * INTERVAL) * SECONDS_PER_DAY).ok();
    (0..KEPT).filter_map(day).map(|day| day.strftime("%Y%m%d").to_string()).collect()
}

/// The releases of a version of Kubernetes, the newest first: `1.34.1-20260901`.
pub(super) fn releases(version: &str, now: Timestamp) -> Vec<String> {
    days(now).into_iter().map(|day| format!("{version}.1-{day}")).collect()
}

/// The names of all images of nodes: `amazon-eks-node-al2023-x86_64-standard-1.34-v20260901`.
pub(crate) fn image_names(now: Timestamp) -> Vec<String> {
    let mut names = Vec::new();
    for day in days(now) {
        for version in KUBERNETES {
            names.extend(VARIANTS.iter().map(|variant| format!("amazon-eks-node-al2023-{variant}-{version}-v{day}")));
        }
    }
    names
}
