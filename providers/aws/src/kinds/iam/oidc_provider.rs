//! OIDC identity providers, whose tokens roles can trust:
//! <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            only(Permission::on(PUT, "iam:AddClientIDToOpenIDConnectProvider"), PROVIDERS),
            only(Permission::on(CREATE, "iam:CreateOpenIDConnectProvider"), PROVIDERS),
            only(Permission::on(DELETE, "iam:DeleteOpenIDConnectProvider"), PROVIDERS),
            only(Permission::read("iam:GetOpenIDConnectProvider"), PROVIDERS),
            only(Permission::read("iam:ListOpenIDConnectProviderTags"), PROVIDERS),
            Permission::read("iam:ListOpenIDConnectProviders"),
            only(Permission::on(PUT, "iam:RemoveClientIDFromOpenIDConnectProvider"), PROVIDERS),
            only(Permission::on(PUT, "iam:TagOpenIDConnectProvider"), PROVIDERS),
            only(Permission::on(PUT, "iam:UntagOpenIDConnectProvider"), PROVIDERS),
        ],
        terraform: &[("aws_iam_openid_connect_provider", "arn")],
        ..kind("aws.oidc-provider", "an issuer of tokens that roles trust", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Provider>::kind(),
    refused: &[],
}];

/// Providers have the name of their issuer, which EKS assigns.
const PROVIDERS: &str = "arn:{$partition}:iam::{$account}:oidc-provider/oidc.eks.{$region}.{$dns_suffix}/id/*";

/// An OIDC provider. Its id is its URL without `https://`, with which its ARN ends. Outputs: `arn`, `issuer`.
struct Provider;

/// The attributes of an OIDC provider.
///
/// It has no thumbprint: IAM reads that of the issuer by itself, and does not use it for issuers with a certificate of a public
/// authority, such as those of EKS.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The URL of the issuer: `https://oidc.eks.eu-west-1.amazonaws.com/id/…`.
    url: String,
    /// The audiences of its tokens: `sts.amazonaws.com`.
    audiences: BTreeSet<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Provider {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["audiences"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let arn = arn(api, id);
        let call = api.iam.get_open_id_connect_provider().open_id_connect_provider_arn(&arn).send();
        let Some(answer) = api.find(SERVICE, id, call).await? else { return Ok(None) };
        let host = answer.url.unwrap_or_else(|| host(id).to_owned());
        let audiences = answer.client_id_list.unwrap_or_default().into_iter().collect();
        let spec = Spec { url: format!("https://{host}"), audiences, tags: Tags::new() };
        let seen = ObservedObject::new(&host, spec, super::tags(answer.tags));
        Ok(Some(seen.output("arn", Some(arn)).output("issuer", Some(host.clone()))))
    }

    /// One call for all providers of the account, one for the tags of each, and one for each that passes the filter.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let answer =
            api.call(SERVICE, "list", "OIDC providers", api.iam.list_open_id_connect_providers().send()).await?;
        let mut all = Vec::new();
        for arn in answer.open_id_connect_provider_list.unwrap_or_default().into_iter().filter_map(|entry| entry.arn) {
            let call = api.iam.list_open_id_connect_provider_tags().open_id_connect_provider_arn(&arn).send();
            let Some(tags) = api.find(SERVICE, &arn, call).await? else { continue };
            if filter.matches(&super::tags(Some(tags.tags))) {
                all.extend(Self::read(api, &arn).await?);
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(host(&spec.url).to_owned())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .iam
            .create_open_id_connect_provider()
            .url(&spec.url)
            .set_client_id_list(Some(spec.audiences.iter().cloned().collect()))
            .set_tags(Some(super::listed(&make.tags)))
            .send();
        api.call(SERVICE, "create", format!("OIDC provider {}", spec.url), call).await?;
        Ok(host(&spec.url).to_owned())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let arn = arn(api, &seen.id);
        if let Some(new) = spec.audiences.difference(&seen.spec.audiences).next() {
            let call = api.iam.add_client_id_to_open_id_connect_provider().open_id_connect_provider_arn(arn);
            return api.call(SERVICE, "add an audience to", &seen.id, call.client_id(new).send()).await.map(drop);
        }
        let Some(gone) = seen.spec.audiences.difference(&spec.audiences).next() else { return Ok(()) };
        let call = api.iam.remove_client_id_from_open_id_connect_provider().open_id_connect_provider_arn(arn);
        api.call(SERVICE, "remove an audience from", &seen.id, call.client_id(gone).send()).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = arn(api, &seen.id);
        if set.is_empty() {
            let call = api.iam.untag_open_id_connect_provider().open_id_connect_provider_arn(arn);
            let call = call.set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.iam.tag_open_id_connect_provider().open_id_connect_provider_arn(arn);
        let call = call.set_tags(Some(super::listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.iam.delete_open_id_connect_provider().open_id_connect_provider_arn(arn(api, &seen.id)).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// The URL without its scheme, of a URL, an ARN or itself.
fn host(of: &str) -> &str {
    let of = of.split_once(":oidc-provider/").map_or(of, |(_, host)| host);
    of.strip_prefix("https://").unwrap_or(of)
}

fn arn(api: &Api, id: &str) -> String {
    let partition = api.identity.arn.split(':').nth(1).unwrap_or("aws");
    format!("arn:{partition}:iam::{}:oidc-provider/{}", api.identity.account, host(id))
}
