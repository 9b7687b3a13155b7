//! The address of the service, and the object that exposes it to clients.

use textnlp_provider::cluster::{ClusterAccess, IngressKind};
use textnlp_provider::component::Endpoint;

/// The Secret that cert-manager fills for the deployment's ingress. It outlives the ingress.
pub(crate) const FILLED_BY_CERT_MANAGER: &str = "textnlp-ingress-tls";
/// The HTTPS port, which addresses omit.
const HTTPS: u16 = 443;

/// The object that exposes the service. Its host is the domain of the endpoint.
pub(crate) enum Ingress<'a> {
    /// An ingress for ingress-nginx.
    Nginx {
        class: &'a str,
        host: &'a str,
        /// The Secret with the certificate shown to clients.
        tls_secret: &'a str,
        /// The ClusterIssuer of cert-manager that fills it; `None` if the Secret exists already.
        issuer: Option<&'a str>,
    },
    /// An OpenShift route.
    Route { host: &'a str },
    /// An HTTPRoute of the Gateway API.
    Gateway {
        namespace: &'a str,
        name: &'a str,
        /// The listener to attach to; `None` for any that accepts the route.
        section: Option<&'a str>,
        host: &'a str,
    },
}

impl<'a> Ingress<'a> {
    /// The ingress of the settings. Validation rejected incomplete ones; here they count as absent.
    pub(crate) fn of(settings: &'a ClusterAccess, endpoint: &'a Endpoint) -> Option<Self> {
        let (settings, host) = (settings.ingress.as_ref()?, endpoint.domain.as_deref()?);
        Some(match settings.kind {
            IngressKind::Route => Self::Route { host },
            IngressKind::Gateway => {
                let (namespace, name) = settings.gateway.as_deref()?.split_once('/')?;
                Self::Gateway { namespace, name, section: settings.section.as_deref(), host }
            }
            IngressKind::Ingress => Self::Nginx {
                class: settings.class.as_deref()?,
                host,
                tls_secret: settings.tls_secret.as_deref().unwrap_or(FILLED_BY_CERT_MANAGER),
                issuer: settings.issuer.as_deref(),
            },
        })
    }
}

/// The client port of the Gateway, if the service is exposed by one.
pub(crate) fn gateway_port(settings: &ClusterAccess) -> Option<u16> {
    let ingress = settings.ingress.as_ref().filter(|ingress| ingress.kind == IngressKind::Gateway)?;
    Some(ingress.port.unwrap_or(HTTPS))
}

/// The external address of the service. An ingress terminates TLS, usually on the port that URLs omit.
pub(crate) fn address(settings: &ClusterAccess, endpoint: &Endpoint) -> Option<String> {
    if let Some(address) = &settings.address {
        return Some(address.trim_end_matches('/').to_owned());
    }
    let domain = endpoint.domain.as_deref()?;
    if Ingress::of(settings, endpoint).is_none() {
        return Some(format!("https://{domain}:{}", endpoint.port));
    }
    let port = settings.ingress.as_ref().and_then(|ingress| ingress.port).filter(|port| *port != HTTPS);
    Some(format!("https://{domain}{}", port.map_or(String::new(), |port| format!(":{port}"))))
}
