//! What an operator does in each phase, in order.

use super::{OperatorCommand, Step};

const fn step(command: &'static str, expect: &'static str) -> Step {
    Step { command: OperatorCommand(command), expect }
}

const PREFLIGHT: Step = step("preflight --env ENV", "exit status 0: nothing is missing that `up` needs");
const AUDIT: Step = step("security audit --env ENV --full", "`0 failed`");
const SESSIONS: Step = step("load --env ENV --sessions 10000 --seconds 60", "exit status 0: all sessions stayed open");
const GROWTH: Step =
    step("load --env ENV --users 200 --seconds 120", "pods were added; the time until all of them were ready");
const GATE: Step = step("gate --env ENV", "exit status 0: the gate is open");
const GATE_AFTER_PROBES: Step =
    step("gate --env ENV", "exit status 0: the gate is open; within an hour after the last probe");

pub(super) const DEVELOPMENT: &[Step] = &[
    PREFLIGHT,
    step("plan --env ENV", "what `up` creates; nothing changes"),
    step("up --env ENV --yes", "a first text; exit status 0: the gate is open"),
    step("generate \"Mira walked to the harbour\" --env ENV --seed 7", "a text, and the same one each time"),
    step("load --env ENV --users 4 --seconds 10", "exit status 0: at most 1 % of the requests failed"),
    step("status --env ENV", "`ready`"),
];

pub(super) const STAGING: &[Step] = &[
    step("env check ENV", "exit status 0, after you set `tls.names`"),
    PREFLIGHT,
    step("up --env ENV --yes", "exit status 0: the gate is open, after a load test"),
    AUDIT,
    step("load --env ENV --rate 50 --seconds 60", "exit status 0: the rate was sustained; the path of an HTML report"),
    step("key create \"first client\" --env ENV --expires-days 90", "the key, which is shown once"),
    step("release checklist --env ENV --production pilot", "the steps of the release that are not done"),
];

pub(super) const PILOT: &[Step] = &[
    step(
        "env check ENV",
        "exit status 0, after you set `sites[0].cluster.image`, `traffic.domain`, `prerequisites.people` and `monitoring.receivers`",
    ),
    step("promote --from staging --to ENV", "the lock and the evidence of the release are written"),
    PREFLIGHT,
    step("alert test --env ENV", "each receiver accepted the message"),
    step("up --env ENV --yes", "exit status 3: the gate waits for the next three commands"),
    step("db failover --env ENV", "`0 lost`: requests fail meanwhile, acknowledged writes stay"),
    step("backup create --env ENV", "the backup is verified"),
    step("probe --env ENV --for 24h", "on another machine; exit status 0, with the share of time that was available"),
    GATE_AFTER_PROBES,
];

pub(super) const SCALE_UP: &[Step] = &[
    step(
        "env check ENV",
        "exit status 0, after you set those of pilot, `sites[0].cluster.ingress` and `scaling.adapter`",
    ),
    step("promote --from pilot --to ENV", "the lock and the evidence of the release are written"),
    PREFLIGHT,
    step("up --env ENV --yes", "exit status 3: the gate waits for the two load tests"),
    SESSIONS,
    GROWTH,
    AUDIT,
    step(
        "compliance report --env ENV --framework gdpr",
        "exit status 0: each measured control is met; also for `hipaa` and `soc2`",
    ),
    GATE,
];

pub(super) const ENTERPRISE: &[Step] = &[
    step(
        "env check ENV",
        "exit status 0, after you set those of scale-up, `server.security.oidc`, `gates.sign_on_client` and a model with a `tenant`",
    ),
    step("promote --from scale-up --to ENV", "the lock and the evidence of the release are written"),
    step("up --env ENV --yes", "exit status 3 until there are insights"),
    step("key create \"first client\" --tenant acme --env ENV", "the key of that tenant, which is shown once"),
    step("generate \"Mira walked to the harbour\" --env ENV", "a text; its usage is analyzed"),
    step("analytics run --env ENV", "exit status 0: the insights of this hour are written"),
    step("analytics list --env ENV", "a `summary` of the service"),
    GATE,
];

pub(super) const MULTI_REGION: &[Step] = &[
    step("env check ENV", "exit status 0; for three clouds extend `multi-region-clouds`"),
    PREFLIGHT,
    step("up --env ENV --yes", "exit status 3: the gate waits for a drill"),
    step("dr status --env ENV", "exit status 0: each site is in sync"),
    step("dr drill --env ENV", "exit status 0: within `dr.rto` and `dr.rpo`, `acknowledged writes lost` 0"),
    step("dr history --env ENV", "the drill with its result"),
    step("dr report --env ENV --open-path", "the path of the signed HTML report"),
    GATE,
];

pub(super) const AIR_GAPPED: &[Step] = &[
    step("bundle keygen --out release", "`release.key` signs; bring `release.pub` by a separate channel"),
    step("bundle create --env ENV --out textnlp-1.tar --sign-key release.key", "the bundle, and its install command"),
    step("bundle scan textnlp-1.tar --out scan", "exit status 0: no critical finding; `scan/scan.html`"),
    step(
        "bundle verify textnlp-1.tar --trust release.pub",
        "on the isolated machine from here on: `verified: every byte is unchanged`",
    ),
    step(
        "bundle install textnlp-1.tar --trust release.pub --root /opt/textnlp --preflight",
        "`preflight passed`; nothing is installed",
    ),
    step(
        "bundle install textnlp-1.tar --trust release.pub --root /opt/textnlp --yes",
        "a first text; exit status 0: the gate is open",
    ),
    step("backup create --env ENV", "in `/opt/textnlp`: an encrypted backup; keep it and its key elsewhere"),
    step(
        "bundle update create --from textnlp-1.tar --to textnlp-2.tar --out step.tar --sign-key release.key",
        "on the connected machine, with a newer bundle: a file with what differs",
    ),
    step(
        "bundle update apply step.tar --root /opt/textnlp --yes",
        "on the isolated machine; exit status 0: the gate is open",
    ),
];

pub(super) const OPTIMIZED: &[Step] = &[
    step("baseline record --env enterprise", "speed and monthly cost before the optimization"),
    step(
        "env check ENV",
        "exit status 0, after you set those of scale-up, `models[].quantize`, `gpu` and an image with CUDA",
    ),
    step("promote --from enterprise --to ENV", "the lock, the evidence and the baseline of the release are written"),
    step("plan --env ENV --costs", "the monthly cost, with the source of each price"),
    step("up --env ENV --yes", "exit status 3: the gate waits for the next four commands"),
    step("baseline compare --env ENV", "at least 2 times the speed, at least 30 % less cost"),
    SESSIONS,
    GROWTH,
    step("probe --env ENV --for 7d", "on another machine; exit status 0, with the share of time that was available"),
    GATE_AFTER_PROBES,
];
