//! `alert`: sends test alerts, lists active alerts, and delivers queued alerts for supervisors.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_net::client::ProxySettings;
use textnlp_orchestrator::alert::{DeliveredAlert, Sender};
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::metrics::FiringAlert;
use textnlp_service::alerts::{self, ReceiverDestination};
use textnlp_service::metrics;

use super::prelude::*;
use crate::alert_args::{self, Test};
use crate::clouds::alert::{AlertOrder, Outbox, Receiver};
use crate::network;

/// Alerts to one receiver in one run. The supervisor runs the command again for the rest. Counted per receiver, so that
/// one that is down does not delay the others.
const AT_ONCE: usize = 20;

/// Limit of a file with an address in bytes.
const ADDRESS_MAX: u64 = 64 << 10;

/// Runs the subcommand.
pub async fn alert(session: &Session, verb: &alert_args::Alert, console: Console) -> Result<Success, Failure> {
    match verb {
        alert_args::Alert::Test(args) => test(session, args, console).await,
        alert_args::Alert::List => list(session, console).await,
        alert_args::Alert::Send(args) => send(&args.folder).await,
    }
}

/// `alert test`: to the receivers in the current environment file, with the caller's secrets.
async fn test(session: &Session, args: &Test, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = &chosen.scope.name;
    let environment = &chosen.loaded.environment;
    let known = alerts::receivers(&chosen, &args.receiver)?;
    let sender = Sender::new(network::trust(None, Some(environment))?, network::proxies(&environment.network.proxy))?;
    let tried = alerts::deliver(&sender, &alerts::test_message(&chosen), &known).await;
    let mut text = String::new();
    let mut documents = Vec::new();
    for (receiver, sent) in &tried {
        let to = known.get(receiver).and_then(|known| known.as_ref().ok()).map(ToString::to_string);
        let shown = to.as_deref().unwrap_or("nowhere");
        let _ = match sent {
            Ok(DeliveredAlert { refused }) if refused.is_empty() => writeln!(text, "✓ {receiver}: {shown}"),
            Ok(DeliveredAlert { refused }) => {
                writeln!(text, "! {receiver}: {shown}, but some recipients were refused: {}", refused.join("; "))
            }
            Err(why) => writeln!(text, "✗ {receiver}: {shown}: {why}"),
        };
        let refused = sent.as_ref().map(|arrived| arrived.refused.as_slice()).unwrap_or_default();
        documents.push(json!({
            "receiver": receiver, "to": to, "ok": sent.is_ok(), "error": sent.as_ref().err(), "refused": refused,
        }));
    }
    let document = json!({ "environment": name, "receivers": documents });
    let failed = tried.values().filter(|sent| sent.is_err()).count();
    if failed == 0 {
        return Ok(Success::new(text.trim_end(), document));
    }
    let error = anyhow::anyhow!("{}", text.trim_end())
        .context(format!("{failed} of {} did not accept the message", counted(tried.len(), "receiver")));
    Err(Failure::new(Exit::Failed, "alert_not_sent", error)
        .hint(format!("fix `monitoring.receivers`, then: {}", session.again().command("alert test", name)))
        .document(document))
}

/// `alert list`.
async fn list(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = &chosen.scope.name;
    let mut text = String::new();
    let mut sites = Vec::new();
    let folders = std::fs::read_dir(chosen.scope.folder.join("sites")).into_iter().flatten().flatten();
    let mut folders: Vec<Utf8PathBuf> =
        folders.filter_map(|entry| Utf8PathBuf::from_path_buf(entry.path()).ok()).collect();
    folders.sort();
    for folder in folders {
        let outbox = Outbox::of(&folder);
        let site = folder.file_name().unwrap_or_default();
        let Some(order) = outbox.order().with_context(|| format!("read the alert receivers of site {site}"))? else {
            continue;
        };
        let active = outbox.active();
        let waiting =
            outbox.waiting(Timestamp::now()).with_context(|| format!("read the unsent messages of site {site}"))?;
        let receivers: Vec<&str> = order.receivers.keys().map(String::as_str).collect();
        let _ = writeln!(text, "{site}: receivers {}", receivers.join(", "));
        for one in &active {
            let well = if one.well_since.is_some() { " (recovering)" } else { "" };
            let _ = writeln!(text, "  ✗ {} {}: {} — since {:.0}{well}", one.name, one.about, one.says, one.since);
        }
        if active.is_empty() {
            text.push_str("  ✓ no active alerts\n");
        }
        for one in &waiting {
            let _ = writeln!(text, "  … unsent: {} ({:.0})", one.alert, one.alert.at);
        }
        sites.push(json!({ "site": site, "receivers": receivers, "active": active, "waiting": waiting }));
    }
    let environment = &chosen.loaded.environment;
    let in_cluster = environment.sites.iter().any(SiteSettings::is_in_cluster);
    let of_clusters = match in_cluster {
        true => metrics::firing_alerts(&chosen).await,
        false => Ok(BTreeMap::new()),
    };
    let of_clusters = match of_clusters {
        // Those of machines are known without the state.
        Err(failure) if !sites.is_empty() => {
            console.warn(format!("the alerts of the clusters are unknown: {:#}", failure.error));
            BTreeMap::new()
        }
        found => found?,
    };
    for (site, alerts) in of_clusters {
        let _ = writeln!(text, "{site}: alerts of its Prometheus");
        match &alerts {
            Ok(active) if active.is_empty() => text.push_str("  ✓ no active alerts\n"),
            Ok(active) => active.iter().for_each(|one| text.push_str(&firing_text(one))),
            Err(why) => {
                let _ = writeln!(text, "  ? unknown: {why}");
            }
        }
        let (active, unknown) = (alerts.as_ref().ok(), alerts.as_ref().err());
        sites.push(json!({ "site": site, "receivers": null, "active": active, "waiting": null, "unknown": unknown }));
    }
    if sites.is_empty() {
        text = match in_cluster {
            true => format!("{name} is not up, so it has no alerts"),
            false => format!("{name} has no alert receivers: no `monitoring.receivers` were applied"),
        };
    }
    Ok(Success::new(text.trim_end(), json!({ "environment": name, "sites": sites })))
}

/// A firing alert of a cluster.
fn firing_text(one: &FiringAlert) -> String {
    let labels: Vec<String> = one.labels.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let about = if labels.is_empty() { String::new() } else { format!(" of {}", labels.join(", ")) };
    let severity = one.severity.as_ref().map_or(String::new(), |severity| format!(" ({severity})"));
    format!("  ✗ {}{about}{severity} — since {:.0}\n", one.name, one.since)
}

/// `alert send`: delivers the queued alerts of a site. Fails if any remain, so that the supervisor retries later.
async fn send(folder: &Utf8Path) -> Result<Success, Failure> {
    let outbox = Outbox::of(folder);
    let order = outbox.order().context("read the alert receivers")?;
    let Some(order) = order else { return Ok(Success::default()) };
    let Some(_sole) = outbox.sole_sender().context("check for another sender")? else { return Ok(Success::default()) };
    let sender = Sender::new(network::trust_with(order.ca_file.as_ref())?, proxies(&order)?)?;
    let known = receivers(&order);
    let (mut sent, mut problems, mut refused) = (0, BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
    let mut tried: BTreeMap<&String, usize> = BTreeMap::new();
    for mut waiting in outbox.waiting(Timestamp::now()).context("read the unsent messages")? {
        // A receiver that is down gets one attempt per run.
        let mut open: Vec<(&String, &ReceiverDestination)> = known.iter().collect();
        open.retain(|(name, _)| !waiting.arrived.contains(*name) && !problems.contains_key(*name));
        open.retain(|(name, _)| tried.get(name).is_none_or(|tried| *tried < AT_ONCE));
        open.iter().for_each(|(name, _)| *tried.entry(*name).or_default() += 1);
        for (name, result) in alerts::deliver(&sender, &waiting.alert, open).await {
            match result {
                Ok(DeliveredAlert { refused: not_to }) => {
                    sent += 1;
                    if !not_to.is_empty() {
                        refused.insert(name.clone(), not_to);
                    }
                    outbox.arrived(&mut waiting, &name).context("record the delivery")?;
                }
                Err(why) => drop(problems.insert(name, why)),
            }
        }
        if known.keys().all(|name| waiting.arrived.contains(name)) {
            outbox.done(&waiting).context("remove a sent message")?;
        }
    }
    let document = json!({ "sent": sent, "problems": problems, "refused": refused });
    if problems.is_empty() && outbox.is_empty() {
        let mut text = format!("{:.0} {sent} sent", Timestamp::now());
        refused.iter().for_each(|(name, not_to)| text.push_str(&format!("; {name}: {}", not_to.join("; "))));
        return Ok(Success::new(text, document));
    }
    let text: Vec<String> = problems.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    let text = if text.is_empty() { "more messages are unsent".to_owned() } else { text.join("; ") };
    Err(Failure::new(Exit::Failed, "alert_not_sent", anyhow::anyhow!("{text}")).document(document))
}

fn address(receiver: &Receiver) -> Result<String, String> {
    match receiver {
        Receiver::Address { address } => Ok(address.clone()),
        Receiver::File { file } => {
            let mut text = String::new();
            let read = File::open(file).and_then(|opened| opened.take(ADDRESS_MAX).read_to_string(&mut text));
            read.map(|_| text).map_err(|error| format!("read its address in {file}: {error}"))
        }
    }
}

/// The environment's proxies, and for each that it leaves out that of this process's variables.
fn proxies(order: &AlertOrder) -> anyhow::Result<ProxySettings> {
    let mut known = BTreeMap::new();
    for (name, proxy) in &order.proxy {
        known.insert(name.as_str(), address(proxy).map_err(|why| anyhow::anyhow!("{name}: {why}"))?);
    }
    Ok(ProxySettings::from_variables(|name| known.get(name).cloned()).or(ProxySettings::from_env()))
}

fn receivers(order: &AlertOrder) -> BTreeMap<String, ReceiverDestination> {
    let known = |receiver: &Receiver| address(receiver).and_then(|text| alerts::destination(&text));
    order.receivers.iter().map(|(name, receiver)| (name.clone(), known(receiver))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use textnlp_provider::alert::{Alert, AlertState};

    use super::*;

    /// Starts a local webhook that accepts everything. Also returns the count of its requests.
    async fn hook() -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let took = Arc::new(AtomicUsize::new(0));
        let counts = took.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut seen = Vec::new();
                // The last brace ends the body.
                while !seen.ends_with(b"}") && stream.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {}
                counts.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
            }
        });
        (address, took)
    }

    /// A site with these receivers and proxies, and `waiting` alerts.
    fn site(receivers: &[(&str, &str)], proxy: &[(&str, &str)], waiting: usize) -> (tempfile::TempDir, Outbox) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let site = Utf8Path::from_path(dir.path()).unwrap();
        let to = |address: &str| Receiver::Address { address: address.to_owned() };
        let named = |all: &[(&str, &str)]| all.iter().map(|(name, at)| ((*name).to_owned(), to(at))).collect();
        let order = AlertOrder { receivers: named(receivers), proxy: named(proxy), ..AlertOrder::default() };
        std::fs::create_dir(site.join("config")).unwrap();
        std::fs::write(site.join("config/alerts.yaml"), serde_yaml::to_string(&order).unwrap()).unwrap();
        let outbox = Outbox::of(site);
        let now = Timestamp::now();
        for number in 0..waiting {
            let alert = Alert {
                id: format!("id-{number}"),
                environment: "staging".to_owned(),
                site: "here".to_owned(),
                at: now - jiff::SignedDuration::from_secs(number as i64),
                state: AlertState::Raised,
                name: "disk".to_owned(),
                about: String::new(),
                says: String::new(),
            };
            outbox.put(alert).unwrap();
        }
        (dir, outbox)
    }

    #[tokio::test]
    async fn unreachable_alert_receiver_does_not_block_the_others() {
        let (address, took) = hook().await;
        let total = AT_ONCE + 5;
        let (dir, outbox) = site(&[("down", "http://127.0.0.1:1/"), ("up", address.as_str())], &[], total);
        // Each run ends at the receiver that is down, and its alerts all remain in the outbox.
        for expected in [AT_ONCE, total, total] {
            let failed = send(Utf8Path::from_path(dir.path()).unwrap()).await.map(drop).unwrap_err();
            assert!(failed.document["problems"]["down"].is_string(), "{:?}", failed.document);
            assert_eq!(took.load(Ordering::SeqCst), expected);
        }
        assert_eq!(outbox.waiting(Timestamp::now()).unwrap().len(), total);
    }

    #[tokio::test]
    async fn alerts_use_the_proxy_of_the_environment() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}/", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
            String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned()
        });
        let (dir, outbox) = site(&[("team", "https://hooks.invalid/")], &[("HTTPS_PROXY", proxy.as_str())], 1);
        send(Utf8Path::from_path(dir.path()).unwrap()).await.map(drop).unwrap_err();
        assert_eq!(asked.await.unwrap(), "CONNECT hooks.invalid:443 HTTP/1.1");
        assert_eq!(outbox.waiting(Timestamp::now()).unwrap().len(), 1);
    }
}
