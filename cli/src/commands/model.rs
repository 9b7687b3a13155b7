//! `model`: the catalogue, the cache, the properties of a model, and whether it fits this machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::Context as _;
use camino::Utf8Path;
use textnlp_files::Replace;
use textnlp_inference::family::Served;
use textnlp_models::{
    BucketSource, Catalogue, Error, Event, FetchOptions, Fit, Memory, Model as Fetched, Quality, Source, Store,
    Summary, Verdict, Want, WeightFormat, fit, inspect,
};
use textnlp_server::speed::{self, Fastest, Matrix, Speed, SpeedResult};
use textnlp_service::models::{self, failed};
use textnlp_service::output;

use super::prelude::*;
use crate::args::{Model, ModelBench};
use crate::clouds;

/// `model …`.
pub async fn model(session: &Session, command: &Model, console: Console) -> Result<Success, Failure> {
    match command {
        Model::List => list(session),
        Model::Pull { source, offline } => pull(session, source, *offline, console).await,
        Model::Push { source, bucket, overwrite } => {
            push(session, source, bucket.as_deref(), *overwrite, console).await
        }
        Model::Inspect { source } => {
            let summary = look(session, source, WeightFormat::AsIs).await?;
            Ok(Success::new(
                summary_text(source, &summary),
                json!({ "source": source, "model": summary, "executors": executors(&summary) }),
            ))
        }
        Model::Fit { source, quantize, context, memory, text } => {
            let want = Want { quantize: quantize.unwrap_or(WeightFormat::AsIs), context: context.map(u64::from) };
            let text = text.as_ref().map(|file| session.here.join(file));
            fits(session, source, want, memory.map(|memory| memory.0), text.as_deref(), console).await
        }
        Model::Bench(args) => bench(session, args, console).await,
    }
}

fn list(session: &Session) -> Result<Success, Failure> {
    let store = Store::existing(session.model_cache()?).map_err(failed)?;
    let cached = store.map_or(Ok(Vec::new()), |store| store.list()).map_err(failed)?;
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

fn show(progress: &Progress, event: Event) {
    match event {
        Event::File { name, done, total } => {
            let of = total.map_or(String::new(), |t| format!(" of {}", size(t)));
            progress.doing(&format!("{name}: {}{of}", size(done)));
        }
        Event::Waiting { for_what, seconds } => progress.line(format!("  waiting {seconds} s for {for_what}")),
        Event::Retrying { attempt, why } => progress.line(format!("  attempt {attempt}: {why}")),
        Event::Verifying { name } => progress.doing(&format!("verifying {name}")),
        Event::Resolving { what } => progress.doing(&format!("requesting {what}")),
        Event::Installed { .. } => {}
    }
}

/// The options of a transfer from or to a source.
async fn options(source: &Source) -> Result<FetchOptions, Failure> {
    let mut options = FetchOptions::from_env();
    if let Source::Bucket(bucket) = source {
        options.variables = clouds::bucket_variables(bucket.scheme(), options.variables).await?;
    }
    Ok(options)
}

/// Fetches a model that can be served, and says whether it was in the cache.
async fn fetched(
    session: &Session,
    source: &Source,
    offline: bool,
    progress: &Progress,
) -> Result<(Fetched, bool), Failure> {
    let store = Store::open(session.model_cache()?).map_err(failed)?;
    let from_cache = store.find(source).map_err(failed)?.is_some();
    let mut options = options(source).await?;
    options.offline |= offline;
    let model = store.fetch(source, &options, &|event| show(progress, event)).await;
    let model = model.map_err(failed)?;
    if let Err(error) = inspect(&model.dir) {
        let hint = "it stays in the cache, and no environment can serve it: choose another source";
        return Err(failed(error).hint(hint));
    }
    Ok((model, from_cache))
}

/// A bucket that a model is put into, and the site that it belongs to.
struct Target {
    site: Option<String>,
    bucket: BucketSource,
    options: FetchOptions,
}

/// The bucket that is named, or those of the environment's sites.
async fn targets(session: &Session, bucket: Option<&str>, console: Console) -> Result<Vec<Target>, Failure> {
    let parsed = |text: &str| match text.parse().map_err(|e| failed(Error::Source(e)))? {
        Source::Bucket(to) if to.is_folder() => Ok(to),
        _ => {
            let error = anyhow::anyhow!("`{text}` is not a folder of a bucket");
            let hint = "write `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`";
            Err(Failure::usage("no_bucket", error).hint(hint))
        }
    };
    if let Some(text) = bucket {
        let bucket = parsed(text)?;
        let options = options(&Source::Bucket(bucket.clone())).await?;
        return Ok(vec![Target { site: None, bucket, options }]);
    }
    let chosen = session.load(console)?;
    let mut found = Vec::new();
    for (site, of_site) in clouds::model_buckets(&chosen.loaded.environment).await? {
        let bucket = parsed(&of_site.address)?;
        let mut options = options(&Source::Bucket(bucket.clone())).await?;
        options.variables = options.variables.with(of_site.variables);
        found.push(Target { site: Some(site.to_string()), bucket, options });
    }
    if found.is_empty() {
        let error = anyhow::anyhow!("no site of {} has a bucket", chosen.scope.name);
        let hint = "sites of clouds have one; or name a bucket: `textnlp-deploy model push SOURCE s3://BUCKET/PATH`";
        return Err(Failure::usage("no_bucket", error).hint(hint));
    }
    Ok(found)
}

async fn push(
    session: &Session,
    source: &str,
    bucket: Option<&str>,
    overwrite: bool,
    console: Console,
) -> Result<Success, Failure> {
    let source: Source = source.parse().map_err(|e| failed(Error::Source(e)))?;
    // Before a download of many gigabytes.
    let targets = targets(session, bucket, console).await?;
    let progress = Progress::new(console);
    let found = fetched(session, &source, false, &progress).await;
    if found.is_err() {
        progress.finish();
    }
    let (model, _) = found?;
    let mut text = format!("{source}: {}", size(model.manifest.bytes));
    let (mut written, mut document) = (String::new(), Vec::new());
    for target in &targets {
        let told = |event| show(&progress, event);
        let pushed = textnlp_models::push(&model, &target.bucket, overwrite, &target.options, &told).await;
        progress.finish();
        let pushed = pushed.map_err(failed)?;
        let how = match pushed.sent {
            0 => "was there".to_owned(),
            sent => format!("{} sent", size(sent)),
        };
        let site = target.site.as_ref().map_or(String::new(), |site| format!("{site}: "));
        let _ = write!(text, "\n  {site}{}  {how}", pushed.source);
        // Each site knows its own.
        let own = pushed.source.strip_prefix(&target.bucket.to_string()).map(|folder| format!("bucket:{folder}"));
        written = own.filter(|_| target.site.is_some()).unwrap_or_else(|| pushed.source.clone());
        let mut one = json!(pushed);
        one["site"] = json!(target.site);
        document.push(one);
    }
    let digest = model.manifest.digest;
    let _ = write!(
        text,
        "\nWrite it into an environment:\n  models:\n    - {{ name: NAME, source: \"{written}\", digest: \"{digest}\" }}"
    );
    Ok(Success::new(text, json!({ "pushed": document, "source": written, "digest": digest })))
}

async fn pull(session: &Session, source: &str, offline: bool, console: Console) -> Result<Success, Failure> {
    let source: Source = source.parse().map_err(|e| failed(Error::Source(e)))?;
    let progress = Progress::new(console);
    let found = fetched(session, &source, offline, &progress).await;
    progress.finish();
    let (model, from_cache) = found?;
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

async fn look(session: &Session, source: &str, held: WeightFormat) -> Result<Summary, Failure> {
    models::look(source, held, &session.here, || session.model_cache(), &session.again()).await
}

async fn fits(
    session: &Session,
    source: &str,
    want: Want,
    given: Option<u64>,
    text: Option<&Utf8Path>,
    console: Console,
) -> Result<Success, Failure> {
    let summary = look(session, source, want.quantize).await?;
    let memory = given.map_or_else(Memory::here, |bytes| Memory {
        total: bytes,
        available: bytes,
        bound_by: "--memory".to_owned(),
    });
    let found = fit(&summary, &want, &memory);
    let mut said = fit_text(source, &summary, &found, &memory);
    // As the server does.
    if let Some(typed) = want.context.filter(|typed| *typed > summary.context) {
        let _ = write!(said, "\nThe model has a context of {} tokens: {typed} are cut to that", summary.context);
    }
    let measured = match text {
        Some(file) => Some(predictions(session, source, &summary, &want, file, console).await?),
        None => None,
    };
    if let Some(measured) = &measured {
        let _ = write!(said, "\n{}", quality_text(measured, want.quantize));
    }
    let success = Success::new(
        said,
        json!({
            "source": source,
            "fit": found,
            "context": want.context.map_or(summary.context, |typed| typed.min(summary.context)),
            "memory": memory,
            "sequences": found.sequences,
            "quantization_error": summary.quantization_error,
            "quality": measured,
        }),
    );
    Ok(if found.verdict == Verdict::DoesNotFit { success.exit(Exit::Failed) } else { success })
}

fn fit_text(source: &str, summary: &Summary, fit: &Fit, memory: &Memory) -> String {
    let verdict = match fit.verdict {
        Verdict::Fits => "fits",
        Verdict::Tight => "fits, tightly",
        Verdict::DoesNotFit => "does not fit",
    };
    let mut text = format!(
        "{source} {verdict}: needs {}, available {} of {} ({})\n  weights   {}\n  context   {} for {} full sequences at once\n  program   {}",
        size(fit.needed),
        size(fit.there),
        size(memory.total),
        memory.bound_by,
        size(fit.weights),
        size(fit.kv),
        fit.sequences,
        size(fit.overhead)
    );
    if let Some(error) = summary.quantization_error {
        let _ = write!(text, "\n  error     {:.2} % of the weights, by quantization", 100.0 * error);
    }
    if let Some(hint) = &fit.hint {
        let _ = write!(text, "\n{hint}");
    }
    text
}

/// The most measurements of one run: each takes seconds, and those of large models minutes.
const MOST_MEASUREMENTS: usize = 1000;

/// The speed of models with their weights in a format.
async fn bench(session: &Session, args: &ModelBench, console: Console) -> Result<Success, Failure> {
    // More threads than cores wait for one another, many of them for minutes.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads as usize;
    if threads > cores {
        let may_use = counted(cores, "CPU core");
        let error = anyhow::anyhow!("this process may use {may_use}, and {threads} compute threads need as many");
        return Err(Failure::usage("too_many_threads", error).hint(format!("set --threads to {cores} or less")));
    }
    let format = args.quantize.unwrap_or(WeightFormat::AsIs);
    let matrix = Matrix { prompt_tokens: ascending(&args.prompt_tokens), sequences: ascending(&args.sequences) };
    let count = args.sources.len() * matrix.prompt_tokens.len().max(1) * matrix.sequences.len();
    if count > MOST_MEASUREMENTS {
        let error = anyhow::anyhow!("{count} measurements are more than {MOST_MEASUREMENTS}");
        return Err(Failure::usage("too_many_measurements", error).hint("name fewer models, prompts or sequences"));
    }
    let (mut chosen, mut problems) = (Vec::new(), Vec::new());
    for source in &args.sources {
        let summary = look(session, source, format).await?;
        let generated = if summary.embeddings { 0 } else { speed::GENERATED };
        if let Some(longest) = matrix.prompt_tokens.last().filter(|most| (**most + generated) as u64 > summary.context)
        {
            let context = summary.context;
            let with = if generated > 0 { format!(" and {generated} generated ones") } else { String::new() };
            problems.push(format!(
                "{source} has a context of {context} tokens, and {longest} of a prompt{with} do not fit"
            ));
        }
        chosen.push((source.as_str(), summary));
    }
    if !problems.is_empty() {
        let error = anyhow::anyhow!(problems.join("\n"));
        return Err(Failure::usage("context_too_short", error).hint("choose shorter prompts with --prompt-tokens"));
    }
    let (mut measured, mut failure) = (Vec::new(), None);
    for (source, summary) in chosen {
        let progress = Progress::new(console);
        let report = |what: &str| progress.doing(&format!("{source}, {what}"));
        let read = |path: &Utf8Path| {
            let measure = |executor| speed::measure(path, format, executor, threads, &matrix, &report);
            Ok(speed::executors(path)
                .and_then(|executors| executors.into_iter().map(measure).collect::<Result<Vec<_>, _>>()))
        };
        let speeds = models::read(source, &session.here, || session.model_cache(), read).await;
        progress.finish();
        let speeds = match speeds {
            Ok(Some(speeds)) => {
                speeds.map_err(|why| Failure::new(Exit::Failed, "model", anyhow::anyhow!("{source}: {why}")))
            }
            Ok(None) => Err(models::not_in_cache(source, &session.again())),
            Err(failure) => Err(failure),
        };
        match speeds {
            Ok(speeds) => measured.push((source, summary, speeds)),
            Err(first) if measured.is_empty() => return Err(first),
            Err(later) => {
                failure = Some(later);
                break;
            }
        }
    }
    let mut speeds = Vec::new();
    for (source, speed) in measured.iter().flat_map(|(source, _, speeds)| speeds.iter().map(move |one| (source, one))) {
        let mut document = json!(speed);
        document["source"] = json!(source);
        speeds.push(document);
    }
    let fastest = measured.iter().filter_map(|(source, _, speeds)| {
        let mut document = json!(speed::fastest(speeds)?);
        document["source"] = json!(source);
        Some(document)
    });
    let fastest: Vec<Value> = fastest.collect();
    let csv = args.csv.as_ref().map(|file| session.here.join(file));
    let document = json!({
        "source": args.sources.first().filter(|_| args.sources.len() == 1),
        "quantize": format, "threads": threads, "streams": matrix.sequences.last(), "speeds": speeds,
        "fastest": fastest, "csv": csv,
    });
    let used = if threads == 0 { cores } else { threads };
    let csv = csv.as_deref().map(|file| (file, bench_csv(&measured, format, used)));
    bench_outcome(&measured, failure, (document, csv), console)
}

/// The results as text, document and CSV. They took hours: they are not lost with a later model that failed, or with the
/// file.
fn bench_outcome(
    measured: &[(&str, Summary, Vec<Speed>)],
    failure: Option<Failure>,
    (document, csv): (Value, Option<(&Utf8Path, String)>),
    console: Console,
) -> Result<Success, Failure> {
    let mut text: Vec<String> =
        measured.iter().map(|(source, summary, speeds)| bench_text(source, summary, speeds)).collect();
    let mut written = Ok(());
    if let Some((file, lines)) = csv {
        written = output::write(file, Replace::umask(), lines.as_bytes());
        if written.is_ok() {
            text.push(format!("wrote {file}"));
        }
    }
    let text = text.join("\n");
    match failure.map_or(written, Err) {
        Ok(()) => Ok(Success::new(text, document)),
        Err(failure) => {
            console.stream(&format!("{text}\n"));
            Err(failure.document(document))
        }
    }
}

fn ascending(values: &[u32]) -> Vec<usize> {
    let sorted: BTreeSet<usize> = values.iter().map(|value| *value as usize).collect();
    sorted.into_iter().collect()
}

/// Every result in a line, by RFC 4180.
fn bench_csv(measured: &[(&str, Summary, Vec<Speed>)], format: WeightFormat, threads: usize) -> String {
    let mut text = "model,weight_format,threads,executor,sequences,prompt_tokens,generated_tokens,load_seconds,\
                    weights_bytes,prompt_tokens_per_second,generated_tokens_per_second\r\n"
        .to_owned();
    for (source, _, speeds) in measured {
        let model = csv_field(source);
        for (speed, result) in speeds.iter().flat_map(|speed| speed.results.iter().map(move |result| (speed, result))) {
            let Speed { executor, load_seconds, weights, .. } = speed;
            let SpeedResult { prompt_tokens, sequences, generated_tokens, prefill, decode } = result;
            let decode = decode.map_or_else(String::new, |decode| format!("{decode:.3}"));
            let _ = write!(
                text,
                "{model},{format},{threads},{executor},{sequences},{prompt_tokens},{generated_tokens},{load_seconds:.3},\
                 {weights},{prefill:.3},{decode}\r\n"
            );
        }
    }
    text
}

/// A field in quotes where it needs them.
fn csv_field(text: &str) -> String {
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn bench_text(source: &str, summary: &Summary, measured: &[Speed]) -> String {
    let mut text = format!(
        "{source} on this machine, in tokens per second\n  {:<10} {:>6} {:>7} {:>10} {:>10}  {}",
        "EXECUTOR", "TEXTS", "TOKENS", "PROMPT", "GENERATED", "WEIGHTS"
    );
    for speed in measured {
        for (row, result) in speed.results.iter().enumerate() {
            let decode = result.decode.map_or_else(|| "none".to_owned(), |decode| format!("{decode:.1}"));
            let _ = write!(
                text,
                "\n  {:<10} {:>6} {:>7} {:>10.1} {decode:>10}",
                speed.executor, result.sequences, result.prompt_tokens, result.prefill
            );
            if row == 0 {
                let _ = write!(text, "  {}, loaded in {:.1} s", size(speed.weights), speed.load_seconds);
            }
        }
    }
    if measured.is_empty() {
        let _ = write!(text, "\nIt is served by {}", executors_text(summary));
    }
    if let Some(Fastest { executor, next, times, is_default }) = speed::fastest(measured) {
        let what = match is_default {
            true => "servers choose it where the entry of the model in `models` has no `executor`".to_owned(),
            false => format!("write `executor: {executor}` in the entry of the model in `models`"),
        };
        let _ = write!(
            text,
            "\n`{executor}` takes the least time for all of these, {times:.2} times faster than `{next}`: {what}"
        );
    }
    text
}

/// The most bytes of a text that are read: more than are compared.
const MOST_TEXT: u64 = 1 << 20;

/// What a format changes in predictions for a text. The model is loaded twice.
async fn predictions(
    session: &Session,
    source: &str,
    summary: &Summary,
    want: &Want,
    file: &Utf8Path,
    console: Console,
) -> Result<Quality, Failure> {
    if executors(summary).first() != Some(&"own") || summary.embeddings {
        let error =
            anyhow::anyhow!("predictions are measured with the own kernels, which do not generate text with {source}");
        return Err(Failure::usage("not_measured", error).hint("leave out `--text`"));
    }
    let here = Memory::here();
    let needed = |quantize| fit(summary, &Want { quantize, context: Some(1) }, &here).weights;
    let both = needed(WeightFormat::AsIs) + needed(want.quantize);
    if both > here.available {
        let error = anyhow::anyhow!(
            "the model is loaded twice, which takes {}, and {} are free ({})",
            size(both),
            size(here.available),
            here.bound_by
        );
        return Err(Failure::new(Exit::Failed, "no_memory", error).hint("measure it on a machine with more memory"));
    }
    let text = text_of(file).map_err(|error| Failure::usage("text", error))?;
    let progress = Progress::new(console);
    let shown = |done: f64| progress.doing(&format!("predicting the text: {:.0} %", 100.0 * done));
    let read = |path: &Utf8Path| textnlp_models::quality(path, want.quantize, &text, &shown);
    let found = models::read(source, &session.here, || session.model_cache(), read).await;
    progress.finish();
    found?.ok_or_else(|| models::not_in_cache(source, &session.again()))
}

/// The beginning of a text, at most [`MOST_TEXT`].
fn text_of(file: &Utf8Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(|| format!("open {file}"))?;
    opened.take(MOST_TEXT).read_to_end(&mut bytes).with_context(|| format!("read {file}"))?;
    if let Err(error) = std::str::from_utf8(&bytes) {
        // The last character may be cut off.
        anyhow::ensure!(error.error_len().is_none(), "{file} is not UTF-8 after byte {}", error.valid_up_to());
        bytes.truncate(error.valid_up_to());
    }
    Ok(String::from_utf8(bytes)?)
}

fn quality_text(found: &Quality, format: WeightFormat) -> String {
    format!(
        "  text      perplexity {:.3} as stored, {:.3} as {format}, for {} tokens\n  best      the same for {:.1} % of the tokens; divergence {:.4} nats",
        found.perplexity_stored,
        found.perplexity,
        found.tokens,
        100.0 * found.same_best,
        found.divergence
    )
}

/// The executors that serve a model, the preferred first.
fn executors(s: &Summary) -> Vec<&'static str> {
    if s.embeddings {
        return vec!["own"];
    }
    let Some(served) = Served::of(&s.family) else { return Vec::new() };
    [("own", served.own), ("candle", served.candle)]
        .into_iter()
        .filter(|(_, serves)| *serves)
        .map(|(name, _)| name)
        .collect()
}

/// The same for people.
fn executors_text(s: &Summary) -> &'static str {
    match executors(s)[..] {
        [] => "none: models of this family and format are not served",
        ["candle"] if cfg!(feature = "candle") => "candle",
        ["candle"] => {
            "candle, which is not part of this build; build it with `cargo build --release --features candle`"
        }
        [_, _] if cfg!(feature = "candle") => "own kernels; candle with `executor: candle`",
        _ => "own kernels",
    }
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
    if s.embeddings {
        let _ = writeln!(text, "  makes      embeddings; it generates no text");
    } else {
        let _ = writeln!(text, "  executor   {}", executors_text(s));
        let chat = match s.chat_template {
            Some(true) => "has a template",
            Some(false) => "no template",
            None => &format!("unknown until it is downloaded: textnlp-deploy model pull {source}"),
        };
        let _ = writeln!(text, "  chat       {chat}");
    }
    let _ = writeln!(text, "  license    {}", s.license.as_deref().unwrap_or("not specified"));
    if let Some(digest) = &s.digest {
        let _ = writeln!(text, "  digest     {digest}");
    }
    for (name, bytes) in &s.files {
        let _ = writeln!(text, "  file       {name}  {}", size(*bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Output;

    fn measured(source: &str) -> (&str, Summary, Vec<Speed>) {
        let result = |sequences, decode| SpeedResult {
            prompt_tokens: 128,
            sequences,
            generated_tokens: 32,
            prefill: 2000.0,
            decode,
        };
        let speed = Speed {
            executor: "own",
            load_seconds: 0.25,
            prefill: 2000.0,
            decode: Some(100.5),
            decode_streams: Some(400.0),
            weights: 1000,
            results: vec![result(1, Some(100.5)), result(8, None)],
        };
        (source, Catalogue::embedded().get("gpt2").unwrap().summary(), vec![speed])
    }

    #[test]
    fn results_are_kept_if_a_later_model_or_the_file_fails() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (measured, file) = ([measured("gpt2")], folder.join("results.csv"));
        let outcome = |failure: Option<Failure>, file: &Utf8Path| {
            let csv = Some((file, bench_csv(&measured, WeightFormat::AsIs, 2)));
            bench_outcome(&measured, failure, (json!({ "speeds": [1] }), csv), Console::new(Output::Json, true))
        };
        let later = Failure::new(Exit::Failed, "model", anyhow::anyhow!("large: it needs more memory"));
        let failed = outcome(Some(later), &file).unwrap_err();
        assert_eq!((failed.exit, failed.error.to_string().as_str()), (Exit::Failed, "large: it needs more memory"));
        assert_eq!(failed.document["speeds"], json!([1]));
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
        let unwritten = outcome(None, folder).unwrap_err();
        assert_eq!(unwritten.document["speeds"], json!([1]));
        let done = outcome(None, &file).unwrap();
        assert!(done.text.contains("loaded in") && done.text.contains("wrote "), "{}", done.text);
    }

    #[test]
    fn faster_executor_is_named_with_the_line_to_write() {
        let (source, summary, speeds) = measured("gpt2");
        assert!(!bench_text(source, &summary, &speeds).contains("least time"), "one executor is not compared");
        let at = |executor, times: f64| {
            let mut speed = speeds[0].clone();
            speed.executor = executor;
            for result in &mut speed.results {
                (result.prefill, result.decode) = (times * 2000.0, Some(times * 100.0));
            }
            speed
        };
        let text = bench_text(source, &summary, &[at("own", 1.0), at("candle", 1.5)]);
        let expected =
            "`candle` takes the least time for all of these, 1.50 times faster than `own`: write `executor: candle` in";
        assert!(text.contains(expected), "{text}");
        let text = bench_text(source, &summary, &[at("own", 2.0), at("candle", 1.0)]);
        assert!(text.contains("2.00 times faster than `candle`: servers choose it where"), "{text}");
    }

    #[test]
    fn results_are_written_as_csv() {
        let measured = [measured("gpt2"), measured("a \"b\", c")];
        let text = bench_csv(&measured, WeightFormat::Q8_0, 2);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
        assert_eq!(lines[1], "gpt2,q8_0,2,own,1,128,32,0.250,1000,2000.000,100.500");
        assert_eq!(lines[2], "gpt2,q8_0,2,own,8,128,32,0.250,1000,2000.000,");
        assert!(lines[3].starts_with("\"a \"\"b\"\", c\",q8_0,"), "{text}");
    }
}
