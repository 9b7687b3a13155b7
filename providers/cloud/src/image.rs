//! Images that are sent to repositories while the driver polls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result, Secret, error_chain};
use tokio::task::JoinHandle;

use crate::resource::State;

/// Where an image is pushed to.
#[derive(Debug, Clone)]
pub struct ImageTarget {
    /// The URL of the registry.
    pub registry: String,
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The image that it must be: `sha256:…`.
    pub digest: String,
}

/// Makes the image of the servers and pushes it.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Pushes the image under the tag, and verifies its digest in the registry. It may be repeated. `report` gets the bytes
    /// that are sent and those of all.
    ///
    /// # Errors
    /// There is no such image here, or the registry does not take it.
    async fn push(&self, target: &ImageTarget, report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()>;
}

/// The images that are being sent by this process.
#[derive(Default)]
pub struct Images {
    source: Option<Arc<dyn ImageSource>>,
    pushes: Mutex<BTreeMap<String, Push>>,
}

struct Push {
    task: JoinHandle<Result<()>>,
    /// Bytes that were sent, and those of all.
    sent: Arc<Mutex<(u64, u64)>>,
}

impl Images {
    /// Without a source nothing can be pushed.
    pub fn of(source: Option<Arc<dyn ImageSource>>) -> Self {
        Self { source, pushes: Mutex::default() }
    }

    fn pushes(&self) -> MutexGuard<'_, BTreeMap<String, Push>> {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a push, unless it is going on already: its id.
    ///
    /// # Errors
    /// This program makes no images.
    pub fn push(&self, target: ImageTarget) -> Result<String> {
        let id = format!("{}@{}", target.repository, target.digest);
        let Some(source) = self.source.clone() else {
            let error = Error::new(ErrorKind::Invalid, "push", id);
            return Err(error.because("this program makes no images"));
        };
        let sent = Arc::new(Mutex::new((0, 0)));
        let reported = sent.clone();
        self.pushes().entry(id.clone()).or_insert_with(|| {
            let task = tokio::spawn(async move {
                let report = move |done, total| {
                    *reported.lock().unwrap_or_else(PoisonError::into_inner) = (done, total);
                };
                source.push(&target, &report).await
            });
            Push { task, sent }
        });
        Ok(id)
    }

    /// The state of a push. One of another process is not known here and counts as ended: the next read decides.
    ///
    /// # Errors
    /// The push failed.
    pub fn state(&self, id: &str) -> Result<State> {
        let mut pushes = self.pushes();
        let Some(push) = pushes.get(id) else { return Ok(State::Ready) };
        if !push.task.is_finished() {
            let (done, total) = *push.sent.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(State::Pending(format!("being sent: {} of {} MB", done / 1_000_000, total / 1_000_000)));
        }
        let Some(push) = pushes.remove(id) else { return Ok(State::Ready) };
        match futures::FutureExt::now_or_never(push.task) {
            Some(Ok(Ok(()))) | None => Ok(State::Ready),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(ended)) => {
                let error = Error::new(ErrorKind::Unavailable, "push", id);
                Err(error.because(error_chain(&ended)))
            }
        }
    }
}

/// What to do where `up` pushes no image.
pub const PUSH_IT: &str = "push the image that `textnlp-deploy bundle create` packs, and write `sites[].cluster.image: REPOSITORY:TAG@sha256:…`";

/// `TAG@sha256:…` of `REPOSITORY:TAG@sha256:…`. The tag of an image that another environment released is not known: digits of the
/// digest replace it.
pub fn tag_and_digest(image: &str) -> String {
    let (tagged, digest) = image.split_once('@').unwrap_or((image, ""));
    let digits: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
    let tag = tagged.rsplit_once(':').map_or(digits.as_str(), |(_, tag)| tag);
    format!("{tag}@{digest}")
}

/// The first of the wanted images that a repository lacks: its tag with what is before it, and its digest.
pub fn lacking<'w>(seen: &[String], wanted: &'w Value) -> Option<(&'w str, &'w str)> {
    let mut wanted = wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
    wanted.find(|image| !has_image(seen, image))?.split_once('@')
}

/// Whether an image, `TAG@sha256:…`, is among these, whatever its tag is.
pub fn has_image(images: &[String], image: &str) -> bool {
    let digest = |image: &str| image.split_once('@').map(|(_, digest)| digest.to_owned());
    images.iter().any(|one| digest(one) == digest(image))
}

/// Whether a repository that has some images has all of the wanted ones: the value of a field with each.
pub fn has_images(seen: &Value, wanted: &Value) -> bool {
    let texts = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap_or_default();
    texts(wanted).iter().all(|image| has_image(&texts(seen), image))
}
