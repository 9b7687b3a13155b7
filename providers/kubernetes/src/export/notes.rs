//! The instructions of an export: the Secrets it lacks, the commands that create them, and the command that applies it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use textnlp_provider::component::CACHE_SECRET;
use textnlp_provider::{Controller, Delivery};

use super::{FIRST_KEY, SiteObjects};
use crate::lower::PULL_FILE;

/// The comment at the head of the stream.
pub(super) fn yaml(site: &SiteObjects, environment: &str) -> String {
    let mut text = head(site, environment);
    let namespace = &site.namespace;
    text += "It contains no secrets. Create these first:\n\n";
    text += &indented(&created(site));
    text += "\nEach file has the name of its key:\n\n";
    text += &indented(&making(site));
    text += &given(site);
    let _ = write!(
        text,
        "\nThen, and after each change:\n\n  {}\n  kubectl apply --server-side -f FILE\n\nA changed Secret does not restart the pods: \
         after the two commands, run kubectl -n {namespace} rollout restart deployment/textnlp-api\n",
        jobs_go(namespace)
    );
    text
}

/// The commands that create the namespace and the Secrets from files.
fn created(site: &SiteObjects) -> String {
    let (mut text, namespace) = (String::new(), &site.namespace);
    if site.own_namespace {
        let _ = writeln!(text, "kubectl create namespace {namespace}");
    }
    for secret in &site.secrets {
        let kind = if secret.kind == "Opaque" { String::new() } else { format!(" --type {}", secret.kind) };
        let files: String = secret.keys.iter().map(|key| format!(" --from-file={key}")).collect();
        let _ = writeln!(text, "kubectl -n {namespace} create secret generic {}{kind}{files}", secret.name);
    }
    text
}

/// The README of a folder that a controller applies from a Git repository, once it has the objects of a file.
pub(super) fn gitops(site: &SiteObjects, environment: &str, delivery: &Delivery, file: &str) -> String {
    let (namespace, source) = (&site.namespace, delivery.source());
    let (title, restart) = match delivery.controller() {
        Controller::ArgoCd { .. } => ("Argo CD", ""),
        // Flux reverts what kubectl changes under another name.
        Controller::Flux { .. } => ("Flux", " --field-manager=flux-client-side-apply"),
    };
    let path = if source.path.is_empty() { "." } else { source.path.as_str() };
    format!(
        "# textnlp, for {title}\n\n{}It contains no secrets. Create them in the cluster first, from files in a folder outside the repository:\n\n\
         ```sh\n{}{}```\n\n\
         {}Commit this folder at path `{path}` of {}, revision `{}`. Then:\n\n```sh\nkubectl apply -f {file}\n```\n\n\
         To change the site, change the environment, export again and commit. Objects with data and the namespace are never removed by {title}. \
         A changed Secret does not restart the pods:\n\n```sh\nkubectl -n {namespace} rollout restart{restart} deployment/textnlp-api\n```\n",
        head(site, environment),
        making(site),
        created(site),
        given(site),
        source.repository,
        source.revision,
    )
}

/// The README of the Kustomize base.
pub(super) fn kustomize(site: &SiteObjects, environment: &str) -> String {
    format!(
        "# textnlp, as Kustomize\n\n{}It contains no secrets. Create these files in `secrets/`, which keeps them out of the repository:\n\n```sh\ncd secrets\n{}```\n\n\
{}Then, and after each change:\n\n```sh\n{}\nkubectl apply --server-side -k .\n```\n\nThe jobs run again; completed work is not repeated. \
         Put changes for one environment into an overlay on this base. A changed file in `secrets/` restarts the pods.\n",
        head(site, environment),
        making(site),
        given(site),
        jobs_go(&site.namespace),
    )
}

/// The README of the chart.
pub(super) fn helm(site: &SiteObjects, environment: &str) -> String {
    let mut sets = String::new();
    for key in site.secrets.iter().flat_map(|secret| &secret.keys) {
        let _ = write!(sets, " \\\n  --set-file secrets.{}={key}", super::helm::value_name(key));
    }
    format!(
        "# textnlp, as a Helm chart\n\n{}{given}It contains no secrets. Create these files, each named after its key, in a folder outside the chart:\n\n\
         ```sh\n{}```\n\nThen, from that folder:\n\n```sh\n{made}\
         helm upgrade --install textnlp PATH/TO/THIS/CHART --namespace {namespace}{sets}\n```\n\n\
         If the Secrets exist already, set `--set secrets.existing=true`. `values.yaml` lists the values; to change anything else, change the environment and export again.\n",
        head(site, environment),
        making(site),
        given = given(site),
        made = if site.own_namespace { namespace_made(&site.namespace) } else { String::new() },
        namespace = site.namespace,
    )
}

/// Jobs are immutable, so they are deleted before the next apply.
fn jobs_go(namespace: &str) -> String {
    format!("kubectl -n {namespace} delete jobs -l app.kubernetes.io/part-of=textnlp --ignore-not-found")
}

fn namespace_made(namespace: &str) -> String {
    format!(
        "kubectl create namespace {namespace} && kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=restricted\n"
    )
}

/// The external Secrets, and the config maps with their certificate authority.
fn given(site: &SiteObjects) -> String {
    let mut text = String::new();
    if !site.given.is_empty() {
        let all = site.given.join(", ");
        let _ = write!(
            text,
            "\nThe namespace must have these Secrets, which are created and renewed externally: {all}.\n\n"
        );
    }
    for (name, keys) in &site.maps {
        let files: String = keys.iter().map(|key| format!(" --from-file={key}")).collect();
        let _ = write!(
            text,
            "\nThe Gateway verifies the pods with the authority that signed tls.crt, which is in none of these files. Create its config map, and again when the authority changes:\n\n    \
             kubectl -n {} create configmap {name}{files}\n\n",
            site.namespace
        );
    }
    text
}

pub(super) fn commented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{}", format!("# {line}").trim_end());
        all
    })
}

/// Where the objects are from, and what the cluster must have for their kinds.
fn head(site: &SiteObjects, environment: &str) -> String {
    let required: BTreeSet<&str> = site.items.iter().filter_map(|item| item.row.brought_by).collect();
    let required = match required.is_empty() {
        true => String::new(),
        false => format!(
            "Install these in the cluster first, which provide kinds of the objects: {}.\n\n",
            required.into_iter().collect::<Vec<_>>().join("; ")
        ),
    };
    format!(
        "Written by `textnlp-deploy export` from environment {environment}. `textnlp-deploy up` does not manage objects that you apply from here: use only one of both in a namespace.\n\n{required}"
    )
}

/// The commands that create the Secrets, and what else is required.
fn making(site: &SiteObjects) -> String {
    let mut text = String::new();
    let keys = || site.secrets.iter().flat_map(|secret| secret.keys.iter().map(move |key| (secret, key.as_str())));
    for (secret, key) in keys() {
        match key {
            "jwt-key.pem" => text += "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out jwt-key.pem\n",
            "database-url" => {
                text += "printf %s 'postgres://USER:PASSWORD@HOST:5432/textnlp?sslmode=verify-full' > database-url\n"
            }
            CACHE_SECRET => text += "printf %s 'rediss://:PASSWORD@HOST:6379/0' > cache-url\n",
            PULL_FILE => {
                text += "printf %s '{\"auths\":{\"REGISTRY\":{\"username\":\"USER\",\"password\":\"PASSWORD\"}}}' > .dockerconfigjson\n";
            }
            "tls.crt" => {
                text += "# tls.crt and tls.key: a certificate for the name that clients use, with its chain, and its key (cert-manager, your authority)\n"
            }
            super::FIRST_KEY_ID => {
                text += "id=$(openssl rand -hex 8); printf 'tnlp_%s_%s' \"$id\" \"$(openssl rand -hex 32)\" > api-key   # for clients; keep it secret\n\
                         printf %s \"$id\" > first-key-id; sha256sum < api-key | cut -d' ' -f1 | tr -d '\\n' > first-key-sha256\n";
            }
            // CloudNativePG gives this role the password, and the service signs in as it.
            "username" => text += "printf %s textnlp > username\n",
            "password" => {
                text += "openssl rand -hex 24 | tr -d '\\n' > database-password; cp database-password password\n"
            }
            "database-password" if keys().any(|(_, key)| key == "password") => {}
            "tls.key" | super::FIRST_KEY_DIGEST => {}
            other if secret.name != FIRST_KEY => {
                let _ = writeln!(text, "# {other}: the value that the environment has under this name");
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        text.insert_str(0, "umask 077   # these files are secret: delete them when the Secrets exist, keep api-key\n");
    }
    text
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "  {line}");
        all
    })
}
