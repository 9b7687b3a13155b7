//! In the place of [`cluster`](super::cluster) where that was left out of the program: the same questions, and why there is no answer.

use std::time::Duration;

use camino::Utf8Path;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::{Lineage, SiteName, Wanted};

use super::faults::{Outage, Way};
use super::{Exported, FEATURE, Said, Scale, Tool};
use crate::args;
use crate::dr_args::TakeBack;
use crate::report::Failure;

/// Its name in environment files.
pub(super) const NAME: &str = "kubernetes";

macro_rules! left_out {
    () => {
        anyhow::bail!("provider `{NAME}`: {FEATURE}")
    };
}

pub(super) fn account(_: &Environment, _: &SiteName) -> anyhow::Result<String> {
    left_out!()
}

pub fn exported(_: &[Wanted], _: &Environment, _: Tool) -> anyhow::Result<Exported> {
    left_out!()
}

pub async fn errand(
    _: &Utf8Path,
    _: &Environment,
    _: Option<&str>,
    _: (&str, Lineage),
    _: &[String],
) -> anyhow::Result<Said> {
    left_out!()
}

pub async fn dump_now(
    _: &Utf8Path,
    _: &Environment,
    _: Lineage,
    _: Duration,
    _: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<String> {
    left_out!()
}

pub async fn last_dump(_: &Utf8Path, _: &Environment, _: Lineage) -> anyhow::Result<Option<jiff::Timestamp>> {
    left_out!()
}

pub async fn rollout(
    _: &Utf8Path,
    _: &Environment,
    _: Option<&str>,
    _: Lineage,
    _: Option<&str>,
) -> anyhow::Result<Option<serde_json::Value>> {
    left_out!()
}

/// Nobody has one.
pub enum Pods {}

pub fn pods(_: &Utf8Path, _: &Environment, _: Lineage) -> anyhow::Result<Pods> {
    left_out!()
}

impl Pods {
    pub async fn scale(&self) -> anyhow::Result<Scale> {
        match *self {}
    }
}

pub async fn see_to(
    _: &Utf8Path,
    _: Option<&Utf8Path>,
    _: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<serde_json::Value> {
    left_out!()
}

pub async fn adapter(_: &args::Adapter, _: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    left_out!()
}

pub async fn kube_token(_: &args::KubeToken) -> Result<serde_json::Value, Failure> {
    Err(Failure::usage("not_linked", anyhow::anyhow!("provider `{NAME}`: {FEATURE}")))
}

pub(super) async fn outage(
    _: &Utf8Path,
    _: &Environment,
    _: &SiteName,
    _: Lineage,
    _: Outage<'_>,
) -> anyhow::Result<usize> {
    left_out!()
}

pub(super) async fn find_again(_: &TakeBack) -> anyhow::Result<usize> {
    left_out!()
}

pub(super) fn way_to_server(_: &Environment, _: &SiteName) -> anyhow::Result<Way> {
    left_out!()
}
