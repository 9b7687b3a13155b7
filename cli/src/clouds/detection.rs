//! Detects providers on this machine for `provider: auto`: from variables, files and firmware. Makes no network
//! requests.

use std::collections::BTreeMap;
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use textnlp_orchestrator::environment::{DetectionInputs, ProviderEvidence};

/// Limit of a kubeconfig in bytes. Larger files are ignored.
const MOST_BYTES: u64 = 1 << 20;

/// One sign of a provider.
enum Sign {
    /// A variable that is set and not empty. Its value is never shown.
    Variable(&'static str),
    /// A file below the home folder.
    Home(&'static str),
    /// A firmware value: a file of `/sys/class/dmi/id` and the prefix of its content.
    Firmware(&'static str, &'static str),
}

use Sign::{Firmware, Home, Variable};

/// Credentials first, then the machine itself. A region alone is no sign, because tools for object stores need one too.
const SIGNS: &[(&str, &[Sign])] = &[
    (
        "aws",
        &[
            Variable("AWS_ACCESS_KEY_ID"),
            Variable("AWS_PROFILE"),
            Variable("AWS_WEB_IDENTITY_TOKEN_FILE"),
            Variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
            Variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            Home(".aws/credentials"),
            Home(".aws/config"),
            Firmware("sys_vendor", "Amazon EC2"),
        ],
    ),
    (
        "gcp",
        &[
            Variable("GOOGLE_APPLICATION_CREDENTIALS"),
            Home(".config/gcloud/application_default_credentials.json"),
            Home(".config/gcloud/credentials.db"),
            Firmware("product_name", "Google Compute Engine"),
        ],
    ),
    (
        "azure",
        &[
            Variable("AZURE_CLIENT_ID"),
            Variable("AZURE_SUBSCRIPTION_ID"),
            Variable("AZURE_TENANT_ID"),
            Home(".azure/azureProfile.json"),
            // The asset tag of every virtual machine in Azure. Other machines have the same vendor.
            Firmware("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
        ],
    ),
];

/// The inputs of the detection, so that tests can set them.
pub struct SystemView {
    /// The variables of this process.
    pub variables: BTreeMap<String, String>,
    /// The folder used as `/`.
    pub root: Utf8PathBuf,
}

impl SystemView {
    /// This machine.
    pub fn here() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Self { variables, root: "/".into() }
    }

    /// All providers detected: the kubeconfig's first, then the clouds.
    pub fn surroundings(&self) -> DetectionInputs {
        let mut evidence: Vec<ProviderEvidence> = self
            .kubeconfig()
            .map(|seen| ProviderEvidence { provider: "kubernetes".to_owned(), seen })
            .into_iter()
            .collect();
        for (provider, signs) in SIGNS {
            let seen = signs.iter().filter_map(|sign| self.seen(sign));
            evidence.extend(seen.map(|seen| ProviderEvidence { provider: (*provider).to_owned(), seen }));
        }
        DetectionInputs { evidence, fallback: "onprem".to_owned() }
    }

    /// The region that a provider's own tools would use, as far as variables and files say: of AWS, its variables and the profile
    /// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html>); of Google Cloud, those of gcloud
    /// (<https://cloud.google.com/sdk/docs/configurations>) and Terraform; of Azure, the defaults of its CLI
    /// (<https://learn.microsoft.com/cli/azure/azure-cli-configuration>).
    pub fn region(&self, provider: &str) -> Option<String> {
        let (variables, file, section, key): (&[&str], _, _, _) = match provider {
            "aws" => {
                let file = self.variable("AWS_CONFIG_FILE").map(str::to_owned);
                let file = file.or_else(|| Some(format!("{}/.aws/config", self.variable("HOME")?)));
                let section = self.variable("AWS_PROFILE").unwrap_or("default");
                (&["AWS_REGION", "AWS_DEFAULT_REGION"], file, section, "region")
            }
            "gcp" => (&["CLOUDSDK_COMPUTE_REGION", "GOOGLE_REGION"], self.gcloud_configuration(), "compute", "region"),
            "azure" => {
                let folder = self.variable("AZURE_CONFIG_DIR").map(str::to_owned);
                let folder = folder.or_else(|| Some(format!("{}/.azure", self.variable("HOME")?)));
                let file = folder.map(|folder| format!("{folder}/config"));
                (&["AZURE_DEFAULTS_LOCATION"], file, "defaults", "location")
            }
            _ => return None,
        };
        let variable = variables.iter().find_map(|name| self.variable(name));
        variable.map(str::to_owned).or_else(|| in_section(&self.read(Utf8Path::new(&file?))?, section, key))
    }

    /// The file of gcloud's active configuration.
    fn gcloud_configuration(&self) -> Option<String> {
        let folder = match self.variable("CLOUDSDK_CONFIG") {
            Some(folder) => folder.to_owned(),
            None => format!("{}/.config/gcloud", self.variable("HOME")?),
        };
        let active = self.variable("CLOUDSDK_ACTIVE_CONFIG_NAME").map(str::to_owned);
        let active = active.or_else(|| self.read(&Utf8Path::new(&folder).join("active_config")));
        let active = active.as_deref().map(str::trim).filter(|name| !name.is_empty() && !name.contains('/'));
        Some(format!("{folder}/configurations/config_{}", active.unwrap_or("default")))
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn file(&self, path: &Utf8Path) -> Utf8PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn seen(&self, sign: &Sign) -> Option<String> {
        match sign {
            Variable(name) => self.variable(name).map(|_| format!("{name} is set")),
            Home(path) => {
                let file = self.file(&Utf8Path::new(self.variable("HOME")?).join(path));
                file.is_file().then(|| format!("~/{path} exists"))
            }
            Firmware(file, text) => {
                let said = self.read(&Utf8Path::new("/sys/class/dmi/id").join(file))?;
                said.trim_start().starts_with(text).then(|| format!("the firmware says `{text}` ({file})"))
            }
        }
    }

    fn read(&self, path: &Utf8Path) -> Option<String> {
        let mut text = String::new();
        std::fs::File::open(self.file(path)).ok()?.take(MOST_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// The current context, if it refers to a cluster. Files are merged as kubectl does: the first definition wins.
    fn kubeconfig(&self) -> Option<String> {
        let (said, files): (_, Vec<Utf8PathBuf>) = match self.variable("KUBECONFIG") {
            Some(list) => ("KUBECONFIG", list.split(':').filter(|path| !path.is_empty()).map(Into::into).collect()),
            None => ("~/.kube/config", vec![Utf8Path::new(self.variable("HOME")?).join(".kube/config")]),
        };
        let read: Vec<Kubeconfig> =
            files.iter().filter_map(|file| serde_yaml::from_str(&self.read(file)?).ok()).collect();
        let current = read.iter().find_map(|one| one.current_context.as_deref().filter(|name| !name.is_empty()))?;
        let context = read.iter().flat_map(|one| &one.contexts).find(|context| context.name == current)?;
        let cluster = &context.context.cluster;
        let leads = read.iter().flat_map(|one| &one.clusters).any(|known| known.name == *cluster);
        leads.then(|| format!("{said} has the current context `{current}`"))
    }
}

/// The members of a kubeconfig that select a cluster.
#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(rename = "current-context")]
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<Named>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The value of a key in a section of a configuration file of AWS, gcloud or the Azure CLI.
fn in_section(text: &str, name: &str, wanted: &str) -> Option<String> {
    let mut is_in = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let section = section.trim().strip_prefix("profile ").unwrap_or(section).trim();
            is_in = section == name;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_in)
            && key.trim() == wanted
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "current-context: lab\ncontexts: [{ name: lab, context: { cluster: c, user: u } }]\nclusters: [{ name: c, cluster: { server: https://h } }]\n";

    /// The providers detected with these variables and files.
    fn seen(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut all = BTreeMap::from([("HOME".to_owned(), "/home/ada".to_owned())]);
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let found = SystemView { variables: all, root }.surroundings();
        assert_eq!(found.fallback, "onprem");
        found.evidence.into_iter().map(|one| format!("{}: {}", one.provider, one.seen)).collect()
    }

    #[test]
    fn no_provider_is_detected_on_a_bare_machine() {
        assert_eq!(seen(&[], &[]), Vec::<String>::new());
        assert_eq!(seen(&[("AWS_PROFILE", ""), ("AWS_REGION", "eu-west-1")], &[]), Vec::<String>::new());
    }

    #[test]
    fn kubeconfig_counts_only_with_a_usable_current_context() {
        let home = "/home/ada/.kube/config";
        assert_eq!(seen(&[], &[(home, CONFIG)]), ["kubernetes: ~/.kube/config has the current context `lab`"]);
        let two = [("KUBECONFIG", "/a:/b")];
        let split: Vec<_> = CONFIG.split_inclusive('\n').collect();
        let parts = [("/a", split[0].to_owned()), ("/b", split[1..].concat())];
        let parts = parts.each_ref().map(|(path, text)| (*path, text.as_str()));
        assert_eq!(seen(&two, &parts), ["kubernetes: KUBECONFIG has the current context `lab`"]);
        for useless in [
            CONFIG.replace("current-context: lab", "current-context: \"\""),
            CONFIG.replace("name: lab", "name: other"),
            CONFIG.replace("{ name: c,", "{ name: other,"),
            "not: [yaml".to_owned(),
        ] {
            assert_eq!(seen(&[], &[(home, useless.as_str())]), Vec::<String>::new(), "{useless}");
        }
        // The variable replaces the file in the home folder.
        assert_eq!(seen(&[("KUBECONFIG", "/missing")], &[(home, CONFIG)]), Vec::<String>::new());
    }

    #[test]
    fn clouds_are_detected_from_credentials_and_firmware_without_values() {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "AKIAHUNTER2"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/hunter2.json"),
            ("AZURE_CLIENT_ID", "hunter2"),
        ];
        let found = seen(&variables, &[]);
        expect_named(&found, &["aws: AWS_ACCESS_KEY_ID is set", "gcp: GOOGLE_", "azure: AZURE_CLIENT_ID"]);
        assert!(!found.concat().to_lowercase().contains("hunter2"), "{found:?}");
        let files = [
            ("/home/ada/.aws/credentials", "[default]\n"),
            ("/home/ada/.config/gcloud/application_default_credentials.json", "{}"),
            ("/home/ada/.azure/azureProfile.json", "{}"),
        ];
        expect_named(&seen(&[], &files), &["aws: ~/.aws/credentials", "gcp: ~/.config/gcloud/", "azure: ~/.azure/"]);
        let machine = |file: &str, text: &str| seen(&[], &[(format!("/sys/class/dmi/id/{file}").as_str(), text)]);
        expect_named(&machine("sys_vendor", "Amazon EC2\n"), &["aws: the firmware says"]);
        expect_named(&machine("product_name", "Google Compute Engine\n"), &["gcp: the firmware says"]);
        expect_named(
            &machine("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n"),
            &["azure: the firmware says"],
        );
        assert_eq!(machine("sys_vendor", "Microsoft Corporation\n"), Vec::<String>::new());
    }

    fn expect_named(found: &[String], begins: &[&str]) {
        let all = found.len() == begins.len() && found.iter().zip(begins).all(|(one, begin)| one.starts_with(begin));
        assert!(all, "{found:?} where {begins:?} was expected");
    }

    #[test]
    fn region_of_aws_is_that_of_its_own_tools() {
        let text = "[default]\nregion = eu-central-1\n[profile ops]\noutput = json\nregion=us-west-2\n";
        assert_eq!(in_section(text, "default", "region").as_deref(), Some("eu-central-1"));
        assert_eq!(in_section(text, "ops", "region").as_deref(), Some("us-west-2"));
        assert_eq!(in_section(text, "other", "region"), None);
    }

    #[test]
    fn region_of_azure_is_the_default_location_of_its_cli() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        std::fs::create_dir_all(root.join("home/ada/.azure")).unwrap();
        std::fs::write(
            root.join("home/ada/.azure/config"),
            "[core]\nlocation = x\n[defaults]\nlocation = northeurope\n",
        )
        .unwrap();
        let region = |more: &[(&str, &str)]| {
            let variables = [&[("HOME", "/home/ada")], more].concat();
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            SystemView { variables, root: root.clone() }.region("azure")
        };
        assert_eq!(region(&[]).as_deref(), Some("northeurope"));
        assert_eq!(region(&[("AZURE_DEFAULTS_LOCATION", "westeurope")]).as_deref(), Some("westeurope"));
    }

    #[test]
    fn region_of_google_cloud_is_that_of_the_active_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        let put = |path: &str, text: &str| {
            let path = root.join("home/ada/.config/gcloud").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let region = |more: &[(&str, &str)]| {
            let variables = [&[("HOME", "/home/ada")], more].concat();
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            SystemView { variables, root: root.clone() }.region("gcp")
        };
        assert_eq!(region(&[]), None);
        put("configurations/config_default", "[core]\nproject = p\n[compute]\nregion = europe-west4\n");
        put("configurations/config_ops", "[compute]\nregion = us-central1\n");
        assert_eq!(region(&[]).as_deref(), Some("europe-west4"));
        assert_eq!(region(&[("CLOUDSDK_COMPUTE_REGION", "asia-east1")]).as_deref(), Some("asia-east1"));
        put("active_config", "ops\n");
        assert_eq!(region(&[]).as_deref(), Some("us-central1"));
    }
}
