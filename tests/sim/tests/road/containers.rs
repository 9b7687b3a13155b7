//! Servers that a simulated cloud runs as containers: each is the real program, with a folder and a port of this machine in place of the
//! container's own.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use textnlp_tests::ports::Ports;
use textnlp_tests::{Sandbox, eventually, http, program};

/// The variables of a container.
pub(crate) type Variables = BTreeMap<String, String>;

/// Running servers; they end with the test.
pub(crate) struct Containers {
    folder: camino::Utf8PathBuf,
    /// What the names of the variables with files begin with.
    prefix: &'static str,
    /// The path that answers 200 when a server is ready.
    ready: &'static str,
    running: Mutex<Vec<(Variables, Ports, Child)>>,
}

impl Drop for Containers {
    fn drop(&mut self) {
        for (_, _, server) in self.running.get_mut().unwrap() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
}

impl Containers {
    pub(crate) fn new(sandbox: &Sandbox, prefix: &'static str, ready: &'static str) -> Arc<Self> {
        Arc::new(Self { folder: sandbox.folder().to_owned(), prefix, ready, running: Mutex::default() })
    }

    /// How many servers were started.
    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap().len()
    }

    /// The answer of the container's server, which is started by its first request.
    pub(crate) fn answer(&self, container: &Variables, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut running = self.running.lock().unwrap();
        let known = running.iter().find(|(variables, ..)| variables == container);
        let port = match known {
            Some((_, ports, _)) => ports.numbers()[0],
            None => {
                let ports = Ports::ask(1);
                let port = ports.numbers()[0];
                let server = self.start(container, port, running.len());
                running.push((container.clone(), ports, server));
                let is_ready = || http::get(port, self.ready).ok().filter(|ready| ready.status == 200);
                eventually("the container is ready", is_ready);
                port
            }
        };
        let answer = http::ask(port, method, path, &[], body).unwrap();
        (answer.status, answer.body)
    }

    /// What the cloud does with the image.
    fn start(&self, container: &Variables, port: u16, number: usize) -> Child {
        let folder = self.folder.join(format!("container-{number}"));
        let joined = |name: &str| {
            let pieces = (0..).map_while(|number| container.get(&format!("{name}_{number}")));
            let text: String = pieces.map(String::as_str).collect();
            text.replace("0.0.0.0:8080", &format!("127.0.0.1:{port}")).replace("/tmp/textnlp", folder.as_str())
        };
        let variables = ["SERVER", "MODELS"].map(|file| format!("{}_{file}", self.prefix));
        std::process::Command::new(program())
            .arg("serve")
            .env_clear()
            .envs(variables.map(|name| (format!("{name}_0"), joined(&name))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}
