//! Terraform with as many `terraform_data` resources and edges, on the same machine in the same run.

use std::fmt;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds, and the most memory of one of its processes in MB. `None`: it did not end within [`PATIENCE`].
#[derive(Debug, Clone)]
pub struct Figures {
    pub plan: Option<f64>,
    pub apply: Option<f64>,
    pub plan_same: Option<f64>,
    pub mb: f64,
}

/// How long one of its commands may take. Larger sizes are left out once one did not end.
const PATIENCE: Duration = Duration::from_secs(400);

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |seconds: Option<f64>| {
            seconds.map_or_else(|| format!("more than {}", PATIENCE.as_secs()), |seconds| format!("{seconds:.2}"))
        };
        write!(f, "{}, {}, {}, {:.0}", text(self.plan), text(self.apply), text(self.plan_same), self.mb)
    }
}

/// `None` where it is not installed, and from 10,000 on, where its apply did not end.
pub fn measure(size: usize) -> Option<Figures> {
    Command::new("terraform").arg("version").stdout(Stdio::null()).status().ok().filter(|status| status.success())?;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.tf"), program(size)).unwrap();
    let run = |arguments: &[&str]| timed(folder.path(), arguments);
    run(&["init", "-no-color"]).0?;
    let (plan, mut mb) = run(&["plan", "-no-color", "-out=plan"]);
    let applied = (size < 10_000).then(|| run(&["apply", "-no-color", "plan"]));
    let same = applied.and_then(|(seconds, _)| seconds).map(|_| run(&["plan", "-no-color"]));
    for (_, more) in applied.iter().chain(&same) {
        mb = f64::max(mb, *more);
    }
    Some(Figures { plan, apply: applied.and_then(|a| a.0), plan_same: same.and_then(|s| s.0), mb })
}

fn program(size: usize) -> String {
    let mut text = String::new();
    for number in 0..size {
        let refers = |back: usize| format!("terraform_data.r{}.id", number.saturating_sub(back));
        let input = if number.is_multiple_of(10) {
            format!("{{ number = {number} }}")
        } else {
            format!("{{ number = {number}, a = {}, b = {}, c = {} }}", refers(1), refers(7), refers(100))
        };
        writeln!(text, "resource \"terraform_data\" \"r{number}\" {{\n  input = {input}\n}}").unwrap();
    }
    text
}

fn timed(folder: &Path, arguments: &[&str]) -> (Option<f64>, f64) {
    let began = Instant::now();
    let mut child = Command::new("terraform")
        .args(arguments)
        .current_dir(folder)
        .env("CHECKPOINT_DISABLE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut mb = 0.0;
    loop {
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", child.id()))
            && let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            mb = line.trim().trim_end_matches(" kB").parse::<f64>().map_or(mb, |kb| f64::max(mb, kb / 1024.0));
        }
        if let Some(status) = child.try_wait().unwrap() {
            return (status.success().then(|| began.elapsed().as_secs_f64()), mb);
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return (None, mb);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
