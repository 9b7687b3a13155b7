//! A sandbox with an environment of three sites on ports of its own.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use camino::Utf8Path;
use rustix::process::Signal;
use serde_json::Value;
use textnlp_tests::metrics::{queried, scraped};
use textnlp_tests::ports::Ports;
use textnlp_tests::small::Small;
use textnlp_tests::{Said, Sandbox, eventually, http, said, signal};

pub(crate) const NAME: &str = "regions";

pub(crate) struct Regions {
    sandbox: Sandbox,
    /// The metrics ports of the sites and of the global endpoint.
    metrics_ports: [u16; 4],
    _ports: Ports,
    mounted: Vec<Small>,
}

impl Deref for Regions {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Regions {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, "", "")
    }

    /// With more settings of `traffic`, and more sections.
    pub(crate) fn with(name: &str, traffic: &str, more: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let held = Ports::ask(7);
        let ports = held.numbers();
        let site = |name: &str, role: &str, n: usize| {
            let (port, metrics) = (ports[2 * n], ports[2 * n + 1]);
            format!(
                "  - {{ name: {name}, role: {role}, provider: onprem, runtime: process, region: local, port: {port}, metrics_port: {metrics} }}\n"
            )
        };
        // Root names the user of an environment with production users.
        let user = if rustix::process::geteuid().is_root() { "prerequisites: { user: root }\n" } else { "" };
        let text = format!(
            "extends: multi-region\nenvironment: {NAME}\nsites:\n{}{}{}traffic: {{ port: {}, metrics_port: {}{traffic} }}\nbackup: {{ enabled: false }}\n{user}{more}",
            site("primary", "primary", 0),
            site("secondary", "secondary", 1),
            site("tertiary", "standby", 2),
            sandbox.port,
            ports[6],
        );
        std::fs::create_dir_all(sandbox.folder().join("environments")).unwrap();
        std::fs::write(sandbox.folder().join(format!("environments/{NAME}.yaml")), text).unwrap();
        let metrics_ports = [ports[1], ports[3], ports[5], ports[6]];
        Self { sandbox, metrics_ports, _ports: held, mounted: Vec::new() }
    }

    pub(crate) fn up(name: &str) -> Self {
        // No story of this model is so bad; that it is measured is what counts.
        let text =
            "Once upon a time there was a little fox who lived near the river, and every day she went to the boats. "
                .repeat(6);
        let quality = format!("quality: {{ text: \"{text}\", max_perplexity: 5000 }}");
        let model = "name: textnlp-tiny, source: bundled, role: default, quantize: q8_0, context: 1024, preload: true";
        let more =
            format!("gates: {{ model_load_time: 60s, server_memory: 4GB }}\nmodels: [{{ {model}, {quality} }}]\n");
        let regions = Self::with(name, "", &more);
        regions.run(&["up", "--yes", "--no-gate"]).expect(0);
        regions.until_in_sync();
        regions
    }

    /// Each metric below these headings of the dashboard is in a scrape.
    pub(crate) fn dashboard_is_scraped(&self, headings: &[&str]) {
        let made = self.json(&["metrics", "dashboard"], 0);
        let (mut found, mut queries, mut is_below) = (Vec::new(), String::new(), false);
        for panel in made["dashboard"]["panels"].as_array().unwrap() {
            if panel["type"] == "row" {
                let title = panel["title"].as_str().unwrap();
                is_below = headings.contains(&title);
                found.extend(is_below.then_some(title));
            } else if is_below {
                queries.push_str(&panel["targets"].to_string());
            }
        }
        assert_eq!(found, headings, "{made}");
        let wanted = queried(&queries);
        eventually("every metric of the dashboard is scraped", || {
            let mut told = BTreeSet::from(["up".to_owned()]);
            for port in self.metrics_ports {
                told.extend(scraped(&http::get(port, "/metrics").ok()?.text()));
            }
            wanted.is_subset(&told).then_some(())
        });
    }

    pub(crate) fn until_in_sync(&self) {
        eventually("every site is in sync", || {
            let status = self.json_any(&["dr", "status"]);
            status["sites"].as_array()?.iter().all(|site| site["in_sync"] == true).then_some(())
        });
    }

    /// The site that took the role of the lost home site. The secondary asks earlier, but on a busy machine the tertiary
    /// may be first.
    pub(crate) fn until_taken_over(&self) -> &'static str {
        eventually("another site takes over", || {
            let status = self.json_any(&["dr", "status"]);
            ["secondary", "tertiary"].into_iter().find(|site| status["primary"] == *site)
        })
    }

    /// How often a site could not reach the primary and counted limits by itself.
    pub(crate) fn spells_apart(&self) -> usize {
        self.said_by_agents("limits are counted apart")
    }

    /// How often that ended.
    pub(crate) fn spells_ended(&self) -> usize {
        self.said_by_agents("the primary grants leases again")
    }

    fn said_by_agents(&self, message: &str) -> usize {
        let logs = ["primary", "secondary", "tertiary"]
            .map(|site| self.state(NAME).join("sites").join(site).join("log/watch.log"));
        let logs = logs.iter().map(|log| std::fs::read_to_string(log).expect("every site has a site agent"));
        logs.map(|log| log.matches(message).count()).sum()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        self.sandbox.run(&self.with_env(args))
    }

    /// The same where a variable says something.
    pub(crate) fn run_where(&self, variable: &str, value: &str, args: &[&str]) -> Said {
        said(self.sandbox.command(&self.with_env(args)).env(variable, value).output().unwrap())
    }

    /// Without the environment's name.
    pub(crate) fn plain(&self, args: &[&str]) -> Said {
        self.sandbox.run(args)
    }

    pub(crate) fn start(&self, args: &[&str]) -> std::process::Child {
        self.sandbox.start(&self.with_env(args))
    }

    fn with_env<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--env", NAME]].concat()
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str], exit: i32) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect(exit).json()
    }

    /// Whatever the exit status is.
    pub(crate) fn json_any(&self, args: &[&str]) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).json()
    }

    /// How a client with this key is answered, who comes back as long as a 503 asks for it: servers find the way to a database that has
    /// moved within a second, and whether one of them has is not told to others.
    pub(crate) fn answers(&self, key: &str) -> u16 {
        for _ in 0..20 {
            match self.answers_at_once(key) {
                503 => std::thread::sleep(Duration::from_millis(500)),
                status => return status,
            }
        }
        503
    }

    fn answers_at_once(&self, key: &str) -> u16 {
        let authority = self.state(NAME).join("sites/witness/certs/ca.pem");
        let bearer = format!("Authorization: Bearer {key}");
        let url = format!("https://127.0.0.1:{}/v1/generate", self.port);
        let body = r#"{"prompt":"Mira","max_tokens":4}"#;
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "--cacert", authority.as_str()])
            .args(["-H", &bearer, "-H", "Content-Type: application/json", "-d", body, &url])
            .output()
            .expect("curl is installed by tests/run");
        String::from_utf8_lossy(&output.stdout).parse().unwrap_or(0)
    }

    /// What is written down as done to a site.
    pub(crate) fn faults(&self) -> Vec<String> {
        let folder = self.state(NAME).join("sites/witness/faults");
        let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_owned()).filter(|name| name.ends_with(".json")).collect()
    }

    /// Its supervisor first.
    pub(crate) fn kill_site(&self, site: &str) {
        let of_site = format!("sites/{site}");
        for supervisors in [true, false] {
            for (pid, line) in self.processes_now() {
                if line.contains(&of_site) && line.contains("supervise") == supervisors {
                    self.kill(pid);
                }
            }
        }
    }

    /// Gives a site's data a filesystem of its own, what is outside of its folder too; only root can. Nothing of it may run.
    pub(crate) fn mount_data(&mut self, site: &str) -> bool {
        let data = self.state(NAME).join("sites").join(site).join("data");
        std::fs::create_dir_all(&data).unwrap();
        let database = data.join("postgres").read_link_utf8().ok();
        // A PostgreSQL keeps parts of its log, each of 16 MB.
        let places = [(Some(data), 64), (database, 512)];
        places.into_iter().all(|(place, megabytes)| place.is_none_or(|place| self.mount_over(&place, megabytes)))
    }

    fn mount_over(&mut self, folder: &Utf8Path, megabytes: u32) -> bool {
        let kept = self.sandbox.folder().join("kept");
        let run = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
        };
        assert!(run("cp", &["-a", folder.as_str(), kept.as_str()]));
        let options = format!("size={megabytes}m,mode=0700");
        let small = Small::mount(folder, &options);
        let is_mounted = small.is_some();
        if is_mounted {
            self.mounted.extend(small);
            assert!(run("cp", &["-a", &format!("{kept}/."), folder.as_str()]));
        }
        std::fs::remove_dir_all(&kept).unwrap();
        is_mounted
    }

    /// Takes the filesystems away again, with what is on them.
    pub(crate) fn unmount(&mut self) {
        self.mounted.clear();
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        // What lies outside of the sandbox, which goes by itself.
        let sites = self.state(NAME).join("sites");
        let sites = sites.read_dir_utf8().into_iter().flatten().flatten();
        let databases: Vec<_> =
            sites.filter_map(|site| site.path().join("data/postgres").read_link_utf8().ok()).collect();
        for (pid, _) in self.processes_now() {
            signal(pid, Signal::KILL);
        }
        self.unmount();
        for folder in databases {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
