//! Container images. A tag can name another image later, so production uses digests.

use super::Lowering;

/// An image of PostgreSQL for CloudNativePG.
struct PostgresImage {
    major: u32,
    tag: &'static str,
    digest: &'static str,
}

const POSTGRES: &str = "ghcr.io/cloudnative-pg/postgresql";

/// The images of CloudNativePG without extensions on Debian 13, from its signed catalog of 2026-08-17:
/// <https://github.com/cloudnative-pg/artifacts/blob/ce5057c5f37ca1727ebb4f18681094d10124d59b/image-catalogs/catalog-minimal-trixie.yaml>.
const POSTGRES_IMAGES: [PostgresImage; 4] = [
    PostgresImage {
        major: 15,
        tag: "15.19-202608170814-minimal-trixie",
        digest: "67b23fdf6dbf3d5bc5dc42cdbc5d292375582b1fe378c1dc69eb51c6fbc57730",
    },
    PostgresImage {
        major: 16,
        tag: "16.15-202608170814-minimal-trixie",
        digest: "e3041d59a94c072fa2fd4436b82ecdf34afc9d38c8cf2b836b009b09a1744c63",
    },
    PostgresImage {
        major: 17,
        tag: "17.11-202608170816-minimal-trixie",
        digest: "445ead3fd811466950a002b682a97c2a4907078b46fae8796b6637a763266a07",
    },
    PostgresImage {
        major: 18,
        tag: "18.6-202608170814-minimal-trixie",
        digest: "eb7979e4bd7fccaec0369b550b9649eec1f014de04621fac6e653244e75cca46",
    },
];

/// NVIDIA's device plugin, which offers GPUs to pods:
/// <https://github.com/NVIDIA/k8s-device-plugin/blob/v0.20.0/deployments/static/nvidia-device-plugin.yml>. The digest is that of the tag's
/// index at nvcr.io of 2026-09-11.
pub(super) const DEVICE_PLUGIN: &str =
    "nvcr.io/nvidia/k8s-device-plugin:v0.20.0@sha256:a61ba9fd8efb82f3a79f877f7580e02c1e8e7593f62473644bc9c79e315c3312";

/// The image of a major version of PostgreSQL; `None` for one that CloudNativePG's catalog does not have.
pub(super) fn postgres_image(version: u32) -> Option<String> {
    let known = POSTGRES_IMAGES.iter().find(|image| image.major == version)?;
    Some(format!("{POSTGRES}:{}@sha256:{}", known.tag, known.digest))
}

/// Whether an image is pinned to its content.
pub(crate) fn is_pinned(image: &str) -> bool {
    let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|b| b"0123456789abcdef".contains(&b)))
}

impl Lowering<'_> {
    /// Refuses an image by tag in production.
    pub(super) fn pinned(&mut self, field: &str, image: &str) {
        if self.cluster.pinned && !is_pinned(image) {
            let name = image.split('@').next().unwrap_or_default();
            let cause =
                format!("from phase pilot on, an image needs its digest: `{image}` can name another image later");
            let fix = format!(
                "write `{name}@sha256:…`; `docker buildx imagetools inspect {name}` and `crane digest {name}` print the digest"
            );
            self.problem(field, cause, fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_images_are_pinned_and_of_their_version() {
        for image in &POSTGRES_IMAGES {
            assert!(image.tag.starts_with(&format!("{}.", image.major)), "{}", image.tag);
            assert!(postgres_image(image.major).is_some_and(|image| is_pinned(&image)), "{}", image.tag);
        }
        assert_eq!(postgres_image(14), None);
    }

    #[test]
    fn pinned_image_has_a_whole_digest() {
        let digest = "ab".repeat(32);
        assert!(
            is_pinned(&format!("r.example/t:1@sha256:{digest}")) && is_pinned(&format!("r.example/t@sha256:{digest}"))
        );
        for image in ["r.example/t:1", "r.example/t", "r.example/t@sha256:00", "r.example/t@sha256:", "sha256:00"] {
            assert!(!is_pinned(image), "{image}");
        }
        assert!(!is_pinned(&format!("r.example/t@sha256:{}", "AB".repeat(32))));
    }
}
