//! The image of this program, for registries that `up` pushes it to.

use camino::Utf8Path;
use textnlp_bundle::oci::image::{Recipe, assemble};
use textnlp_bundle::oci::{Error, Image};

/// The platform of the machines that clouds run pods on.
const PLATFORM: &str = "amd64";
/// How many digits of the digest are in the tag: a tag of an immutable repository has one image for ever.
const DIGITS: usize = 12;

/// Why there is no image of this program.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read, or it is not a static program.
    #[error(transparent)]
    Image(#[from] Error),
    /// It is for other machines.
    #[error("this program is for {0}, and pods run on amd64")]
    Platform(String),
}

/// The image of a static program. The same program and version give the same bytes on any machine.
///
/// # Errors
/// The program is not static, or not for the machines of pods.
pub fn server_image(program: &Utf8Path, version: &str) -> Result<Image, ImageError> {
    let recipe = Recipe {
        program: program.to_owned(),
        name: "textnlp".to_owned(),
        version: version.to_owned(),
        epoch: 0,
        revision: None,
        source: None,
        models: Vec::new(),
    };
    let image = assemble(&recipe)?;
    match image.platform.architecture.as_str() {
        PLATFORM => Ok(image),
        other => Err(ImageError::Platform(other.to_owned())),
    }
}

/// `VERSION-DIGITS@sha256:…`: the tag under which an image of [`server_image`] is pushed, and its digest.
pub fn image_reference(image: &Image, version: &str) -> String {
    let digest = image.manifest.digest;
    format!("{version}-{}@{digest}", &digest.hex()[..DIGITS])
}
