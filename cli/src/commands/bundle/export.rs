//! `bundle export`: writes the content in the layout of other tools.

use textnlp_bundle::legacy;
use textnlp_bundle::oci::Platform;

use super::{authentic, open, trusted};
use crate::bundle_args::{Export, Layout};
use crate::commands::prelude::*;

/// `bundle export --layout legacy`.
pub fn export(args: &Export, console: Console) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let bundle = open(&args.bundle)?;
    authentic(&bundle, &trust, console)?;
    let Layout::Legacy = args.layout;
    let platform = textnlp_service::bundle::platform();
    let options = legacy::Options {
        version: bundle.manifest().version.clone(),
        epoch: bundle.manifest().epoch,
        platform: Platform::linux(platform.rsplit('/').next().unwrap_or_default()),
        archive: true,
    };
    let made = tokio::task::block_in_place(|| legacy::export(&bundle, &args.out, &options)).map_err(|error| {
        let hint = error.hint();
        Failure::new(Exit::Failed, "export", error).hint(hint)
    })?;
    let (images, models) = (counted(made.images.len(), "image"), counted(made.models.len(), "model"));
    let mut text = format!("{}: {images}, {models}", made.folder);
    if let Some(archive) = &made.archive {
        text.push_str(&format!(
            "\n{archive}: the same in one file\nOn the target machine: tar -xzf {} && cd offline_bundle && ./install.sh",
            archive.file_name().unwrap_or_default()
        ));
    }
    Ok(Success::new(
        text,
        json!({ "folder": made.folder, "archive": made.archive, "images": made.images, "models": made.models }),
    ))
}
