//! The image of this program, pushed to the registry of a cloud.

use async_trait::async_trait;
use camino::Utf8PathBuf;
use textnlp_bundle::oci::registry::{Credentials, Options, Secret as Password};
use textnlp_bundle::oci::{self, Reference};
use textnlp_cloud::{ImageSource, ImageTarget};
use textnlp_models::{Event, FetchOptions};
use textnlp_orchestrator::release::server_image;
use textnlp_provider::{Error, ErrorKind, Result, error_chain};

/// The image of this program.
pub(super) struct OwnImage {
    /// This program.
    program: Utf8PathBuf,
    /// Proxies and certificate authorities of the caller, whose identity the registry's password has.
    network: FetchOptions,
}

impl OwnImage {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { program: Utf8PathBuf::try_from(std::env::current_exe()?)?, network: FetchOptions::from_env() })
    }
}

#[async_trait]
impl ImageSource for OwnImage {
    async fn push(&self, target: &ImageTarget, report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        let ImageTarget { registry, user, password, repository, tag, digest } = target;
        let subject = format!("{repository}:{tag}");
        let failed = |kind, why: String| Error::new(kind, "push", subject.clone()).because(why);
        let program = self.program.clone();
        let made = tokio::task::spawn_blocking(move || server_image(&program, env!("CARGO_PKG_VERSION"))).await;
        let image = made.map_err(|error| failed(ErrorKind::Unavailable, error_chain(&error)))?;
        let image = image.map_err(|error| failed(ErrorKind::Invalid, error_chain(&error)))?;
        if image.manifest.digest.to_string() != *digest {
            let why =
                format!("the release needs the image {digest}, and that of this program is {}", image.manifest.digest);
            let hint = "run `up` with the program of that release, or lock this one: `textnlp-deploy release set`";
            return Err(failed(ErrorKind::Invalid, why).hint(hint));
        }
        let password =
            password.expose_text().ok_or_else(|| failed(ErrorKind::Invalid, "the password is no text".to_owned()))?;
        let host = registry.split_once("://").map_or(registry.as_str(), |(_, host)| host).trim_end_matches('/');
        let reference =
            Reference { host: host.to_owned(), repository: repository.clone(), tag: Some(tag.clone()), digest: None };
        let options = Options {
            proxy: self.network.proxy.clone(),
            ca_file: self.network.ca_file.clone(),
            credentials: Some(Credentials { user: user.clone(), password: Password::new(password) }),
            limits: self.network.limits.clone(),
            ..Options::default()
        };
        let total = image.size();
        let before = std::sync::Mutex::new((String::new(), 0, 0));
        let progress = |event| {
            if let Event::File { name, done, .. } = event {
                let mut state = before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if state.0 != name {
                    *state = (name, state.1 + state.2, 0);
                }
                state.2 = done;
                report(state.1 + state.2, total);
            }
        };
        oci::push(&image, &reference, &options, &progress).await.map_err(|error| {
            let kind = match &error {
                oci::Error::Denied { .. } => ErrorKind::Denied,
                oci::Error::Network { .. } | oci::Error::Throttled { .. } => ErrorKind::Unavailable,
                _ => ErrorKind::Invalid,
            };
            let hint = error.hint();
            failed(kind, error_chain(&error)).hint(hint)
        })
    }
}
