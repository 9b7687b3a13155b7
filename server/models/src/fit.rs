//! Does a model fit into this machine: memory needed against memory there.

use camino::Utf8Path;
use serde::Serialize;

use crate::error::human;
use crate::inspect::Summary;
use crate::weight_format::WeightFormat;

/// How the model is going to be used.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The number format of weights in memory.
    pub quantize: WeightFormat,
    /// Tokens of one sequence; the model's own context if `None`.
    pub context: Option<u64>,
}

/// The memory of this machine, or of the part of it that we may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// Free, or free on demand.
    pub available: u64,
    /// What sets the bound: `machine`, or the control group's path.
    pub bound_by: String,
}

/// Whether a model fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Bytes in all.
    pub needed: u64,
    /// Of it, weights.
    pub weights: u64,
    /// Of it, keys and values.
    pub kv: u64,
    /// Sequences of the full context for which there are keys and values. Shorter ones need less.
    #[serde(skip)]
    pub sequences: u64,
    /// Of it, the program, its buffers and tables.
    pub overhead: u64,
    /// Bytes available.
    pub there: u64,
    /// The answer.
    pub verdict: Verdict,
    /// What would make it fit.
    pub hint: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// With a fifth to spare.
    Fits,
    /// Without.
    Tight,
    /// No.
    DoesNotFit,
}

/// The program without a model, and what does not grow with the model.
const BASE: u64 = 96 << 20;

/// Threads that are counted: the answer must be the same on every machine, and each adds little.
const THREADS: usize = 16;

/// Bytes of a tokenizer's tables for each of its tokens.
const TABLE: u64 = 400;

/// What the model needs when used like this, against what is there.
pub fn fit(summary: &Summary, want: &Want, there: &Memory) -> Fit {
    let mut found = needs(summary, want, there.available);
    if found.verdict != Verdict::Fits {
        found.hint = remedy(summary, want, there, found.verdict);
    }
    found
}

fn needs(summary: &Summary, want: &Want, there: u64) -> Fit {
    let footprints = &summary.footprints;
    let footprint = match want.quantize {
        WeightFormat::AsIs => &footprints.as_is,
        WeightFormat::F32 => &footprints.f32,
        WeightFormat::F16 => &footprints.f16,
        WeightFormat::Q8_0 => &footprints.q8_0,
        WeightFormat::Q4_0 => &footprints.q4_0,
    };
    let context = want.context.unwrap_or(summary.context).clamp(1, summary.context.max(1));
    let footprint = footprint.clone().with_context(usize::try_from(context).ok());
    let program = BASE.saturating_add(summary.vocab.saturating_mul(TABLE));
    // The server holds fewer keys and values where memory is short.
    let within = there.checked_sub(program).and_then(|bytes| footprint.positions_within(bytes, THREADS));
    let usual = footprint.usual_positions();
    let positions = within.unwrap_or(usual);
    let (weights, kv) = (footprint.weights, footprint.kv(positions));
    let overhead = program.saturating_add(footprint.workspace(THREADS));
    let needed = weights.saturating_add(kv).saturating_add(overhead);
    let verdict = match within {
        Some(positions) if positions == usual && needed.saturating_add(needed / 5) <= there => Verdict::Fits,
        Some(_) => Verdict::Tight,
        None => Verdict::DoesNotFit,
    };
    let sequences = (positions as u64 / context).max(1);
    Fit { needed, weights, kv, sequences, overhead, there, verdict, hint: None }
}

/// The smallest change that helps: fewer bytes a weight, then a shorter context. Four bits cost quality: they come last.
fn remedy(summary: &Summary, want: &Want, there: &Memory, verdict: Verdict) -> Option<String> {
    let better = |want: &Want| {
        let other = needs(summary, want, there.available);
        matches!((other.verdict, verdict), (Verdict::Fits, _) | (Verdict::Tight, Verdict::DoesNotFit))
            .then_some(other.needed)
    };
    let context = want.context.unwrap_or(summary.context).min(summary.context);
    for formats in [&[WeightFormat::F16, WeightFormat::Q8_0][..], &[WeightFormat::Q4_0]] {
        for &quantize in formats {
            let change = Want { quantize, ..*want };
            if needs(summary, &change, 0).weights < needs(summary, want, 0).weights
                && let Some(needed) = better(&change)
            {
                return Some(format!("`quantize: {quantize}` needs {}", human(needed)));
            }
        }
        let mut context = context;
        while context > 512 {
            context /= 2;
            for &quantize in [&want.quantize].into_iter().chain(formats.last()) {
                let change = Want { quantize, context: Some(context) };
                if let Some(needed) = better(&change) {
                    return Some(format!("`quantize: {quantize}` with `context: {context}` needs {}", human(needed)));
                }
            }
        }
    }
    (verdict == Verdict::DoesNotFit).then(|| "use a smaller model, or a machine with more memory".to_owned())
}

impl Memory {
    /// Of this process: the machine's, or less where a control group allows less.
    pub fn here() -> Memory {
        Memory::read(Utf8Path::new("/"))
    }

    /// The same, with `/proc` and `/sys` below `root`.
    fn read(root: &Utf8Path) -> Memory {
        let text = |path: &str| std::fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap_or_default();
        let meminfo = text("/proc/meminfo");
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let mut memory =
            Memory { total: field("MemTotal"), available: field("MemAvailable"), bound_by: "machine".to_owned() };

        let groups = text("/proc/self/cgroup");
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
            let (base, most, used) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
                list if list.split(',').any(|c| c == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
                }
                _ => continue,
            };
            // Every group above ours bounds us too. In a container the path may not exist below our mount; the root does.
            let mut path = path.trim_end_matches('/');
            loop {
                let number = |file: &str| text(&format!("{base}{path}/{file}")).trim().parse::<u64>().ok();
                if let (Some(most), Some(used)) = (number(most), number(used)) {
                    // Cached file pages count as used but are given up on demand.
                    let stat = text(&format!("{base}{path}/memory.stat"));
                    let cached = stat.lines().find_map(|line| {
                        line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("total_inactive_file "))
                    });
                    let cached = cached.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
                    let available = most.saturating_sub(used.saturating_sub(cached));
                    if most < memory.total {
                        memory.total = most;
                        memory.bound_by = format!("control group {}", if path.is_empty() { "/" } else { path });
                    }
                    memory.available = memory.available.min(available);
                }
                match path.rfind('/') {
                    Some(slash) => path = &path[..slash],
                    None => break,
                }
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    const GIB: u64 = 1 << 30;

    fn memory(available: u64) -> Memory {
        Memory { total: available, available, bound_by: "machine".to_owned() }
    }

    fn check(model: &str, quantize: WeightFormat, available: u64) -> Fit {
        let summary = Catalogue::embedded().get(model).unwrap().summary();
        fit(&summary, &Want { quantize, context: None }, &memory(available))
    }

    #[test]
    fn every_catalogue_model_fits_its_documented_minimum_memory() {
        for entry in Catalogue::embedded().entries() {
            let promised = (entry.minimum_memory_gb * 1e9) as u64;
            let found = check(&entry.name, WeightFormat::F16, promised);
            assert_ne!(found.verdict, Verdict::DoesNotFit, "{} needs {} of {promised}", entry.name, found.needed);
        }
    }

    #[test]
    fn model_that_does_not_fit_comes_with_a_suggestion() {
        let found = check("gpt2-xl", WeightFormat::F32, 4 * GIB);
        assert_eq!(found.verdict, Verdict::DoesNotFit);
        assert!(found.hint.as_deref().is_some_and(|hint| hint.starts_with("`quantize: f16`")), "{found:?}");
        let found = check("smollm2-1.7b-instruct", WeightFormat::Q8_0, 3 * GIB);
        assert!(found.hint.as_deref().is_some_and(|hint| hint.contains("`context: ")), "{found:?}");
        let found = check("gpt2-xl", WeightFormat::F32, GIB);
        assert!(found.hint.as_deref().is_some_and(|hint| hint.starts_with("use a smaller model")), "{found:?}");
        assert_eq!(check("gpt2", WeightFormat::Q8_0, 2 * GIB).hint, None);
        let found = check("gpt2-xl", WeightFormat::Q8_0, GIB + GIB / 2);
        assert!(found.hint.as_deref().is_some_and(|hint| hint.starts_with("`quantize: q4_0`")), "{found:?}");
    }

    #[test]
    fn keys_and_values_of_the_usual_number_of_positions_are_counted() {
        let found = check("gpt2", WeightFormat::Q8_0, GIB);
        assert_eq!(found.weights, 124_439_808 / 32 * 34 * 51 / 50);
        // 512 MiB of blocks of 32 positions.
        let block = 2 * 12 * 768 * 32 * 2;
        assert_eq!(found.kv, (512 << 20) / block * block);
        assert_eq!(found.sequences, found.kv / block / 32);
        assert_eq!(check("textnlp-tiny", WeightFormat::F32, GIB).sequences, 32);
    }

    #[test]
    fn memory_limits_of_the_cgroup_and_its_parents_apply() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n");
        assert_eq!(Memory::read(root).available, 8 * GIB);
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("sys/fs/cgroup/a/b/memory.current", "5\n");
        write("sys/fs/cgroup/a/memory.max", &format!("{}\n", 4 * GIB));
        write("sys/fs/cgroup/a/memory.current", &format!("{}\n", 3 * GIB));
        write("sys/fs/cgroup/a/memory.stat", &format!("anon 5\ninactive_file {}\n", 2 * GIB));
        let found = Memory::read(root);
        assert_eq!((found.total, found.available), (4 * GIB, 3 * GIB));
        assert_eq!(found.bound_by, "control group /a");
    }
}
