//! `bundle serve`: a read-only image registry and model mirror, served from the bundle file.

use std::collections::BTreeSet;
use std::sync::Arc;

use textnlp_bundle::manifest::ItemKind;
use textnlp_server::config::Address;
use textnlp_server::mirror::{Mirror, Options};
use textnlp_service::bundle::site;

use super::{authentic, open, trusted};
use crate::bundle_args::Serve;
use crate::commands::prelude::*;
use crate::signals;

/// Serves until a signal arrives.
pub async fn serve(args: &Serve, console: Console) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let bundle = open(&args.bundle)?;
    let authenticity = authentic(&bundle, &trust, console)?;
    let of_images = bundle.manifest().items.iter().filter(|item| item.kind == ItemKind::Image);
    // An image for several platforms is listed once.
    let images: BTreeSet<String> = of_images
        .map(|i| i.version.as_ref().map_or_else(|| i.name.clone(), |tag| format!("{}:{tag}", i.name)))
        .collect();
    let models = site::names(&bundle.manifest().items, ItemKind::Model);
    let options = Options { listen: Address::Tcp(args.listen.to_string()), ..Options::default() };
    let stop = signals::stop(console);
    let mirror = Mirror::start(Arc::new(bundle), options).await.map_err(|error| {
        Failure::new(Exit::Failed, "serve", error)
            .hint("choose another address with --listen; port 0 selects a free port")
    })?;
    let address = match mirror.address() {
        Address::Tcp(address) => address.clone(),
        Address::Unix(path) => format!("unix:{path}"),
    };
    console.say(format!("Serving {} on http://{address}, read-only, until Ctrl-C", args.bundle));
    for image in &images {
        console.say(format!("  skopeo copy --src-tls-verify=false docker://{address}/{image} …"));
    }
    for model in &models {
        console.say(format!("  HF_ENDPOINT=http://{address} textnlp-deploy model pull hf:bundle/{model}"));
    }
    console.event(&json!({ "event": "serving", "address": address, "images": images, "models": models }));
    stop.cancelled().await;
    mirror.stop().await;
    Ok(Success::new(
        "stopped".to_owned(),
        json!({ "address": address, "images": images, "models": models, "authenticity": authenticity }),
    ))
}
