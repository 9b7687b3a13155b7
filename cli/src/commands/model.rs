//! `model`: the catalogue, the cache, the properties of a model, and whether it fits this machine.

use std::fmt::Write as _;

use anyhow::Context;
use camino::Utf8Path;
use serde_json::json;
use textnlp_models::{
    Catalogue, DEFAULT_SEQUENCES, Error, Event, FetchOptions, Fit, Memory, Source, Store, Summary, Verdict, Want,
    WeightFormat, fit, inspect,
};

use crate::args::Model;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success, size};
use crate::rerun_flags::quoted;
use crate::session::Session;

/// `model …`.
pub async fn model(session: &Session, command: &Model, console: Console) -> Result<Success, Failure> {
    match command {
        Model::List => list(session),
        Model::Pull { source, offline } => pull(session, source, *offline, console).await,
        Model::Inspect { source } => {
            let summary = look(session, source).await?;
            Ok(Success::new(summary_text(source, &summary), json!({ "source": source, "model": summary })))
        }
        Model::Fit { source, quantize, context } => {
            fits(session, source, quantize.unwrap_or(WeightFormat::AsIs), *context).await
        }
    }
}

fn list(session: &Session) -> Result<Success, Failure> {
    let cached = match Store::open(session.model_cache()?).and_then(|store| store.list()) {
        Ok(cached) => cached,
        Err(error) => return Err(failed(error)),
    };
    let mut text = format!("{:<26} {:>8} {:>8} {:<22} {}\n", "NAME", "WEIGHTS", "CONTEXT", "LICENSE", "PURPOSE");
    for entry in Catalogue::embedded().entries() {
        let weights = format!("{:.0} M", entry.parameters as f64 / 1e6);
        let _ = writeln!(
            text,
            "{:<26} {weights:>8} {:>8} {:<22} {}",
            entry.name, entry.context, entry.license, entry.about
        );
    }
    let _ = write!(text, "\nCached ({}):", session.model_cache()?);
    if cached.is_empty() {
        let _ = write!(text, " none; fetch one with `{}`", session.again().bare("model pull NAME"));
    }
    for stored in &cached {
        let _ =
            write!(text, "\n  {}  {}  {}", stored.manifest.source, size(stored.manifest.bytes), stored.manifest.digest);
    }
    let catalogue: Vec<_> = Catalogue::embedded().entries().collect();
    let cached: Vec<_> = cached.iter().map(|s| &s.manifest).collect();
    Ok(Success::new(text, json!({ "catalogue": catalogue, "cached": cached })))
}

async fn pull(session: &Session, source: &str, offline: bool, console: Console) -> Result<Success, Failure> {
    let source: Source = source.parse().map_err(|e| failed(Error::Source(e)))?;
    let store = Store::open(session.model_cache()?).map_err(failed)?;
    let from_cache = store.find(&source).map_err(failed)?.is_some();
    let mut options = FetchOptions::from_env();
    options.offline |= offline;
    let progress = Progress::new(console);
    let model = store
        .fetch(&source, &options, &|event| match event {
            Event::File { name, done, total } => {
                let of = total.map_or(String::new(), |t| format!(" of {}", size(t)));
                progress.doing(&format!("{name}: {}{of}", size(done)));
            }
            Event::Waiting { for_what, seconds } => progress.line(format!("  waiting {seconds} s for {for_what}")),
            Event::Retrying { attempt, why } => progress.line(format!("  attempt {attempt}: {why}")),
            Event::Verifying { name } => progress.doing(&format!("verifying {name}")),
            Event::Resolving { what } => progress.doing(&format!("requesting {what}")),
            Event::Installed { .. } => {}
        })
        .await;
    progress.finish();
    let model = model.map_err(failed)?;
    let how = if from_cache { "was in the cache" } else { "fetched and verified" };
    let manifest = &model.manifest;
    let text = format!(
        "{}: {how}, {} in {} files\n  {}\n  {}",
        source,
        size(manifest.bytes),
        manifest.files.len(),
        manifest.digest,
        model.dir
    );
    Ok(Success::new(text, json!({ "model": manifest, "path": model.dir, "from_cache": from_cache })))
}

/// Inspects a folder. Other sources are looked up in the cache, then among the embedded models, then in the catalogue.
async fn look(session: &Session, source: &str) -> Result<Summary, Failure> {
    let folder = session.here.join(source);
    if folder.is_dir() {
        return inspect(&folder).map_err(failed_in_folder);
    }
    let parsed: Source = source.parse().map_err(|e| failed(Error::Source(e)))?;
    if let Source::File(path) = &parsed {
        return inspect(path).map_err(failed_in_folder);
    }
    let store = Store::open(session.model_cache()?).map_err(failed)?;
    if let Some(model) = store.find(&parsed).map_err(failed)? {
        return inspect(&model.dir).map_err(failed);
    }
    if parsed.resolve().map_err(|e| failed(Error::Source(e)))? == Source::Bundled {
        return carried().await;
    }
    if let Some(entry) = Catalogue::embedded().get(source) {
        return Ok(entry.summary());
    }
    Err(Failure::usage("not_in_cache", anyhow::anyhow!("{source} is not in the cache"))
        .hint(session.again().bare(&format!("model pull {}", quoted(source)))))
}

/// The embedded model, unpacked into a temporary folder.
async fn carried() -> Result<Summary, Failure> {
    let folder = tempfile::tempdir().context("create a folder to unpack the bundled model into")?;
    let folder = Utf8Path::from_path(folder.path()).context("the temporary folder's path is not UTF-8")?;
    let store = Store::open(folder).map_err(failed)?;
    let model = store.fetch(&Source::Bundled, &FetchOptions::from_env(), &|_| ()).await.map_err(failed)?;
    inspect(&model.dir).map_err(failed)
}

async fn fits(
    session: &Session,
    source: &str,
    quantize: WeightFormat,
    context: Option<u32>,
) -> Result<Success, Failure> {
    let summary = look(session, source).await?;
    let want = Want { quantize, context: context.map(u64::from), sequences: DEFAULT_SEQUENCES };
    let memory = Memory::here();
    let found = fit(&summary, &want, &memory);
    let success = Success::new(
        fit_text(source, &found, &memory),
        json!({ "source": source, "fit": found, "memory": memory, "sequences": DEFAULT_SEQUENCES }),
    );
    Ok(if found.verdict == Verdict::DoesNotFit { success.exit(Exit::Failed) } else { success })
}

fn fit_text(source: &str, fit: &Fit, memory: &Memory) -> String {
    let verdict = match fit.verdict {
        Verdict::Fits => "fits",
        Verdict::Tight => "fits, tightly",
        Verdict::DoesNotFit => "does not fit",
    };
    let mut text = format!(
        "{source} {verdict}: needs {}, available {} of {} ({})\n  weights   {}\n  context   {} for {DEFAULT_SEQUENCES} sequences at once\n  program   {}",
        size(fit.needed),
        size(fit.there),
        size(memory.total),
        memory.bound_by,
        size(fit.weights),
        size(fit.kv),
        size(fit.overhead)
    );
    if let Some(hint) = &fit.hint {
        let _ = write!(text, "\n{hint}");
    }
    text
}

fn summary_text(source: &str, s: &Summary) -> String {
    let mut text = format!(
        "{source}\n  family     {} ({:?})\n  weights    {:.2} M, {} ({})\n",
        s.family,
        s.format,
        s.parameters as f64 / 1e6,
        s.dtype,
        size(s.weights_bytes)
    );
    let _ = writeln!(
        text,
        "  shape      {} layers × {}, {} heads ({} for keys) of {}",
        s.layers, s.width, s.heads, s.kv_heads, s.head_dim
    );
    let _ = writeln!(text, "  context    {} tokens, {} known", s.context, s.vocab);
    let _ = writeln!(text, "  chat       {}", if s.chat_template { "has a template" } else { "no template" });
    let _ = writeln!(text, "  license    {}", s.license.as_deref().unwrap_or("not specified"));
    if let Some(digest) = &s.digest {
        let _ = writeln!(text, "  digest     {digest}");
    }
    for (name, bytes) in &s.files {
        let _ = writeln!(text, "  file       {name}  {}", size(*bytes));
    }
    text
}

/// A model in a user-provided folder must be fixed there.
fn failed_in_folder(error: Error) -> Failure {
    let hint = error.hint_for_folder();
    let mut failure = failed(error);
    failure.hint = hint;
    failure
}

/// Converts an error about models.
pub fn failed(error: Error) -> Failure {
    let hint = error.hint();
    let exit = if matches!(error, Error::Source(_) | Error::NotFound { .. }) { Exit::Usage } else { Exit::Failed };
    let mut failure = Failure::new(exit, "model", error);
    failure.hint = hint;
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[tokio::test]
    async fn bundled_model_is_found_under_each_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_str().unwrap();
        let cli = crate::args::Cli::try_parse_from(["textnlp-deploy", "model", "list", "--state-dir", state]).unwrap();
        let session = Session::new(cli.global).unwrap();
        let tiny = look(&session, "bundled").await.unwrap();
        assert!(tiny.digest.is_some() && !tiny.files.is_empty() && tiny.parameters > 1_000_000, "{tiny:?}");
        for name in ["bundled:textnlp-tiny", "textnlp-tiny"] {
            let found = look(&session, name).await.unwrap();
            assert_eq!((found.digest, found.parameters), (tiny.digest, tiny.parameters), "{name}");
        }
        let wrong = look(&session, "bundled:gpt2").await.unwrap_err();
        assert!(format!("{:#}", wrong.error).contains("contains only the model `textnlp-tiny`"), "{:#}", wrong.error);
    }
}
