//! What hostile clients cost others: `cargo bench -p textnlp-gateway --bench flood`.
//!
//! Each case has a new gateway process, and another client that is measured. It sends 200 requests a second on open
//! connections and opens 20 new ones a second, at fixed times that do not depend on the answers, so that slow answers
//! are not hidden. The backend answers at once, 401 to a wrong key. The attackers are in [`attack`]: silent and idle
//! connections, unfinished uploads, handshake loops and wrong keys, from one address and from twelve.
//!
//! Attacker, gateway, backend and the measured client are processes that share this machine's cores. The attacker runs
//! at nice 19 and its rates are bounded, so that the client waits for the gateway rather than for the attacker; the
//! table has the CPU time of both. Handshake loops have no bound but the attacker's share of the cores: at nice 19 it
//! gets what the others leave, so an attacker with a machine of its own can do more of them.
//!
//! The case without an attacker is repeated at the end: its ratio shows the noise of the machine.
//!
//! Options: `--json` prints one JSON document instead of the table. `--only TEXT` measures the attacks whose name has
//! the text. `--gateway "PROGRAM gateway --config"` measures another program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]
#![allow(missing_docs)]

mod attack;
mod backend;
mod client;
mod measure;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setpriority_process, setrlimit};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use attack::Attack;
use measure::Options;

/// The name in the gateway's certificate.
const HOST: &str = "site.example";
/// A client gives up after this time.
const GIVE_UP: Duration = Duration::from_secs(10);

fn main() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words.first() == Some(&"attack") {
        // A thread inherits it from the one that starts it, so it precedes the runtime.
        setpriority_process(None, 19).unwrap();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match words[..] {
        ["gateway", file] => runtime.block_on(textnlp_gateway::run(file.into())).unwrap(),
        ["backend"] => runtime.block_on(backend::serve()),
        ["attack", name, to, certificate, addresses] => {
            let (to, addresses) = (to.parse().unwrap(), addresses.parse().unwrap());
            runtime.block_on(attack::run(Attack::named(name), to, certificate, addresses));
        }
        _ => runtime.block_on(measure::run(&Options::read(&words))),
    }
}

/// Each handshake is a full one: a hostile client does not make it cheaper for the gateway.
fn tls_config(certificate: &str, protocol: &str) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The connection is reset when it is dropped: none waits for its address and port to be free again.
async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

async fn handshake(from: Ipv4Addr, to: SocketAddr, tls: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    tls.connect(ServerName::try_from(HOST).unwrap(), connect(from, to).await?).await
}
