//! `generate`, `chat`, `embed`, `tokenize`, `validate`, `health`: requests to the running environment.

use std::io::{BufRead, IsTerminal, Read};

use anyhow::Context;

use super::prelude::*;
use crate::args::{Chat, Embed, Generate, SamplingArgs, Tokenize, Validate};
use textnlp_service::client::{Client, completed};
use textnlp_service::running;

/// Limit of standard input in bytes, the same as the server's.
const MAX_STDIN_BYTES: u64 = 10_000_000;

/// `generate "…"`.
pub async fn generate(session: &Session, args: Generate, console: Console) -> Result<Success, Failure> {
    let client = connect(session, &args.sampling).await?;
    let prompt = text_or_stdin(args.prompt)?;
    let mut body = sampling(&args.sampling);
    body["prompt"] = json!(prompt);
    if client.is_invoked() {
        let answer = completed(&client, &body).await?;
        return Ok(Success::new(answer["text"].as_str().unwrap_or_default().to_owned(), answer));
    }
    if args.no_stream || !console.is_text() {
        let answer = client.post("/v1/generate", &body).await?;
        let text = answer["text"].as_str().unwrap_or_default().to_owned();
        return Ok(Success::new(text, answer));
    }
    stream(&client, "/v1/stream", &body, console, |event| event["text"].as_str().map(str::to_owned)).await?;
    console.stream("\n");
    Ok(Success::default())
}

/// `chat`: reads a line, prints the answer, and keeps the conversation.
pub async fn chat(session: &Session, args: Chat, console: Console) -> Result<Success, Failure> {
    let client = connect(session, &args.sampling).await?;
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    let typed = std::io::stdin().is_terminal();
    if typed {
        console.say("Type a message; an empty line or Ctrl-D ends the conversation.");
    }
    let mut turns = 0;
    loop {
        if typed {
            console.stream("> ");
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().take(MAX_STDIN_BYTES).read_line(&mut line).context("read a message")?;
        if read == 0 || (typed && line.trim().is_empty()) {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line.trim() }));
        let mut body = sampling(&args.sampling);
        body["messages"] = json!(messages);
        let answer = if client.is_invoked() {
            let answer = client.post("/v1/chat/completions", &body).await?;
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
            console.stream(&text);
            text
        } else {
            body["stream"] = json!(true);
            stream(&client, "/v1/chat/completions", &body, console, |e| {
                e["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
            })
            .await?
        };
        console.stream("\n");
        messages.push(json!({ "role": "assistant", "content": answer }));
        turns += 1;
    }
    Ok(Success::new("", json!({ "messages": messages, "turns": turns })))
}

/// `embed TEXT…`: the vectors, one a line.
pub async fn embed(session: &Session, args: Embed) -> Result<Success, Failure> {
    let target = session.target_or(&args.server).await?;
    let client = Client::new(target)?;
    let texts: Vec<String> = args.texts.into_iter().map(text_or_stdin).collect::<Result<_, _>>()?;
    let mut body = json!({ "input": texts, "truncate": args.truncate });
    let optional = [
        ("model", args.model.map(Value::from)),
        ("dimensions", args.dimensions.map(Value::from)),
        ("prompt_name", args.prompt_name.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    let answer = client.post("/v1/embeddings", &body).await?;
    let vectors = answer["data"].as_array().into_iter().flatten();
    let lines: Vec<String> = vectors.map(|one| one["embedding"].to_string()).collect();
    Ok(Success::new(lines.join("\n"), answer))
}

/// `tokenize TEXT`.
pub async fn tokenize(session: &Session, args: Tokenize) -> Result<Success, Failure> {
    let client = Client::new(session.target().await?)?;
    let mut body = json!({ "text": text_or_stdin(args.text)? });
    if let Some(model) = args.model {
        body["model"] = json!(model);
    }
    let answer = client.post("/v1/tokenize", &body).await?;
    let pieces = answer["pieces"].as_array().cloned().unwrap_or_default();
    let ids = answer["tokens"].as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    for (i, id) in ids.iter().enumerate() {
        let piece = pieces.get(i).and_then(Value::as_str).unwrap_or_default();
        text.push_str(&format!("{id:>8}  {piece}\n"));
    }
    text.push_str(&counted(ids.len(), "token"));
    Ok(Success::new(text, answer))
}

/// `validate --reference … --candidate …`.
pub async fn validate(session: &Session, args: Validate) -> Result<Success, Failure> {
    let client = Client::new(session.target().await?)?;
    let answer =
        client.post("/v1/validate", &json!({ "reference": args.reference, "candidate": args.candidate })).await?;
    Ok(Success::new(scores(&answer), answer))
}

/// The scores as a table. BLEU is from 0 to 100 and ROUGE from 0 to 1, as in their papers.
fn scores(answer: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let mut text = String::new();
    if let Some(bleu) = answer.get("bleu") {
        let precisions: Vec<String> =
            bleu["precisions"].as_array().into_iter().flatten().map(|p| format!("{:.1}", number(p))).collect();
        text.push_str(&format!(
            "BLEU      {:>6.2} of 100   by length of match {}; brevity {:.3}; {} words against {}\n",
            number(&bleu["score"]),
            precisions.join(" / "),
            number(&bleu["brevity_penalty"]),
            bleu["candidate_length"],
            bleu["reference_length"]
        ));
    }
    for (metric, name) in [("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")] {
        let Some(rouge) = answer.get(metric) else { continue };
        text.push_str(&format!(
            "{name}   {:>6.3} of 1     precision {:.3}, recall {:.3}\n",
            number(&rouge["fmeasure"]),
            number(&rouge["precision"]),
            number(&rouge["recall"])
        ));
    }
    text
}

/// `health`.
pub async fn health(session: &Session) -> Result<Success, Failure> {
    let client = Client::new(session.target().await?)?;
    let (health, ready) = if client.is_invoked() {
        // An answer is the only thing that it shows.
        completed(&client, &json!({ "prompt": "a", "max_tokens": 1 })).await?;
        (json!({ "status": "ok" }), json!({ "status": "ready" }))
    } else {
        (client.get("/health").await?, client.get("/ready").await?)
    };
    let document = json!({ "health": health, "ready": ready });
    // What answers is not what the last `up` or `down` was to leave behind.
    let (scope, _) = session.running_scope()?;
    if let Some(failure) = running::unfinished(&scope, &running::state(&scope).await?).await? {
        return Err(failure.document(document));
    }
    let text = format!(
        "{}  {}  region {}  {}",
        health["status"].as_str().unwrap_or("?"),
        ready["status"].as_str().unwrap_or("?"),
        health["region"].as_str().unwrap_or("?"),
        session.target().await?.address
    );
    Ok(Success::new(text, document))
}

/// Prints a streamed text piece by piece. Returns the whole text.
async fn stream(
    client: &Client,
    path: &str,
    body: &Value,
    console: Console,
    piece: impl Fn(&Value) -> Option<String>,
) -> Result<String, Failure> {
    let mut whole = String::new();
    client
        .stream(path, body, |event| {
            if let Some(text) = piece(&event) {
                console.stream(&text);
                whole.push_str(&text);
            }
        })
        .await?;
    Ok(whole)
}

/// A client of the environment's service, or of the one that the flags name.
async fn connect(session: &Session, sampling: &SamplingArgs) -> Result<Client, Failure> {
    Ok(Client::new(session.target_or(&sampling.server).await?)?)
}

/// The members of a request that [`SamplingArgs`] sets. The server chooses the others.
fn sampling(args: &SamplingArgs) -> Value {
    let mut body = json!({ "max_tokens": args.max_tokens, "temperature": args.temperature });
    if let Some(model) = &args.model {
        body["model"] = json!(model);
    }
    if let Some(top_p) = args.top_p {
        body["top_p"] = json!(top_p);
    }
    if let Some(seed) = args.seed {
        body["seed"] = json!(seed);
    }
    if !args.stop.is_empty() {
        body["stop"] = json!(args.stop);
    }
    body
}

fn text_or_stdin(text: String) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text);
    }
    let mut read = Vec::new();
    std::io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_end(&mut read).context("read standard input")?;
    if read.len() as u64 > MAX_STDIN_BYTES {
        let error = anyhow::anyhow!("standard input is longer than {MAX_STDIN_BYTES} bytes");
        return Err(Failure::usage("input_too_long", error));
    }
    String::from_utf8(read)
        .map_err(|e| Failure::usage("input_not_utf8", anyhow::Error::new(e).context("standard input is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn seed_has_the_range_of_the_api() {
        let seed = |typed: &str| {
            let cli = Cli::try_parse_from(["textnlp-deploy", "generate", "Once", "--seed", typed]).ok()?;
            let Command::Generate(args) = cli.command else { return None };
            Some(sampling(&args.sampling)["seed"].clone())
        };
        assert_eq!(seed("-1"), Some(json!(-1)));
        assert_eq!(seed("-9223372036854775808"), Some(json!(i64::MIN)));
        assert_eq!(seed("9223372036854775807"), Some(json!(i64::MAX)));
        assert_eq!(seed("9223372036854775808"), None);
    }

    #[test]
    fn scores_are_printed_as_readable_lines() {
        let rouge = json!({ "precision": 0.5, "recall": 1.0, "fmeasure": 2.0 / 3.0 });
        let answer = json!({
            "object": "validation",
            "bleu": {
                "score": 100.00000000000004, "precisions": [100.0, 50.0], "brevity_penalty": 1.0,
                "candidate_length": 4, "reference_length": 3,
            },
            "rouge1": rouge, "rougeL": rouge,
        });
        let expect = "BLEU      100.00 of 100   by length of match 100.0 / 50.0; brevity 1.000; 4 words against 3\n\
                      ROUGE-1    0.667 of 1     precision 0.500, recall 1.000\n\
                      ROUGE-L    0.667 of 1     precision 0.500, recall 1.000\n";
        assert_eq!(scores(&answer), expect);
    }
}
