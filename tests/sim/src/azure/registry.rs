//! The registries of images themselves, each with a host of its own; what Resource Manager knows of them is in `storage`.

use serde_json::{Value, json};

use super::cloud::{Cloud, text};
use crate::aws::protocol::{Reply, Request};
use crate::oci::{self, Grant};
use crate::{Behaviour, Source};

/// The most bytes of a request.
const MAX_BODY: usize = 20 << 20;
/// The user whose password is a refresh token.
const USER: &str = "00000000-0000-0000-0000-000000000000";

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a token of Microsoft Entra is exchanged for a refresh token of the registry, and that for access tokens of scopes",
        Source::Documentation("https://azure.github.io/acr/AAD-OAuth.html"),
    ),
    rule(
        "the registry refers to its token service, which takes a refresh token as the password of a user of zeros",
        Source::Documentation(
            "https://learn.microsoft.com/azure/container-registry/container-registry-authentication#az-acr-login-with---expose-token",
        ),
    ),
    rule(
        "a scope that the identity has no role for is left out of the token: the request is 401",
        Source::Report("Azure/acr#676"),
    ),
    rule("to list tags needs metadata/read, to pull pull/read, to push push/write", Source::Report("Azure/acr#600")),
    rule("a blob of 29 MB is refused in one request: 413", Source::Report("goharbor/harbor#23015")),
    rule(
        "a list of tags is 404 before the first push to the repository",
        Source::Documentation("https://learn.microsoft.com/rest/api/containerregistry/tag/get-list"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.ContainerRegistry", what, source }
}

/// Whether a path is one of registries.
pub(crate) fn is_its(path: &str) -> bool {
    ["/v2/", "/acr/v1/"].iter().any(|start| path.starts_with(start))
        || ["/oauth2/exchange", "/oauth2/token"].contains(&path)
}

/// The id of the registry with a host.
pub(crate) fn id_of(cloud: &Cloud, host: &str) -> Option<String> {
    let is_it = |body: &Value| text(body, "/properties/loginServer").eq_ignore_ascii_case(host);
    let shown = cloud.objects.values().filter(|one| one.ghost_until.is_none());
    shown.into_iter().find(|one| !host.is_empty() && is_it(&one.body)).map(|one| one.id.clone())
}

/// Answers a request of a registry. `user` tells who a token of Microsoft Entra for registries stands for.
pub(crate) fn answer(cloud: &mut Cloud, request: &Request, user: impl Fn(&str) -> Option<String>) -> Reply {
    let mut fields: Vec<(String, String)> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    if request.method == "GET" {
        fields.clone_from(&request.query);
    }
    let field = |name: &str| fields.iter().find(|(one, _)| one == name).map_or("", |(_, value)| value);
    let unauthorized = || oci::refused(401, "UNAUTHORIZED");
    match request.path.as_str() {
        "/oauth2/exchange" => {
            let registry = field("service").to_owned();
            let user = user(field("access_token")).filter(|_| field("grant_type") == "access_token");
            let (Some(user), Some(_)) = (user, id_of(cloud, &registry)) else { return unauthorized() };
            let token = cloud.random.hex(40);
            cloud.registry.give(&token, Grant { user, registry, scopes: Vec::new() });
            oci::token("refresh_token", &token)
        }
        "/oauth2/token" => {
            let of_user = oci::basic(request).filter(|(name, _)| name == USER).map(|(_, password)| password);
            let refresh = of_user.unwrap_or_else(|| field("refresh_token").to_owned());
            let grant = cloud.registry.grant(&refresh).filter(|grant| grant.registry == field("service")).cloned();
            let Some(grant) = grant else { return unauthorized() };
            let Some(id) = id_of(cloud, &grant.registry) else { return unauthorized() };
            let wanted = oci::scopes(&fields);
            let scopes = wanted.iter().filter_map(|scope| allowed(cloud, &grant.user, &id, scope)).collect();
            let token = cloud.random.hex(40);
            cloud.registry.give(&token, Grant { scopes, ..grant });
            oci::token("access_token", &token)
        }
        path => match path.strip_prefix("/acr/v1/").and_then(|rest| rest.strip_suffix("/_tags")) {
            Some(name) => tags(cloud, request, name),
            None => image(cloud, request),
        },
    }
}

/// What a scope allows an identity.
fn allowed(cloud: &mut Cloud, user: &str, id: &str, scope: &str) -> Option<String> {
    let (what, actions) = scope.rsplit_once(':')?;
    let may = |cloud: &mut Cloud, action: &&str| {
        let action = match *action {
            "pull" => "pull/read",
            "push" => "push/write",
            "metadata_read" => "metadata/read",
            _ => return false,
        };
        let has_role = user == cloud.operator || cloud.has_role(user, id, &[]);
        has_role && cloud.authorize(user, &format!("Microsoft.ContainerRegistry/registries/{action}"))
    };
    let actions: Vec<&str> = actions.split(',').filter(|action| may(cloud, action)).collect();
    (!actions.is_empty()).then(|| format!("{what}:{}", actions.join(",")))
}

fn tags(cloud: &Cloud, request: &Request, name: &str) -> Reply {
    let Some(grant) = cloud.registry.granted(request, name, "metadata_read") else {
        return oci::refused(401, "UNAUTHORIZED");
    };
    let Some(found) = cloud.registry.repositories.get(&format!("{}/{name}", grant.registry)) else {
        return oci::refused(404, "NAME_UNKNOWN");
    };
    let tag = |(tag, digest): (&String, &String)| json!({ "name": tag, "digest": digest, "signed": false });
    let tags: Vec<Value> = found.images.iter().map(tag).collect();
    let body = json!({ "registry": grant.registry, "imageName": name, "tags": tags }).to_string();
    Reply { status: 200, headers: vec![("content-type".to_owned(), "application/json".to_owned())], body: body.into() }
}

/// Pulls and pushes. Without a token, one registry of the subscription is taken for that of the request, whose host is not known.
fn image(cloud: &mut Cloud, request: &Request) -> Reply {
    let asked = match oci::asked(&request.method, &request.path) {
        Some(Ok(asked)) => asked,
        Some(Err(refused)) => return refused,
        None => return oci::refused(404, "NAME_UNKNOWN"),
    };
    if request.body.len() > MAX_BODY {
        return oci::refused(413, "SIZE_INVALID");
    }
    let (name, action) = (asked.repository, asked.does.action());
    let Some(grant) = cloud.registry.granted(request, name, action) else {
        let here = request.header("host").unwrap_or_default();
        let hosts = cloud.objects.values().map(|one| text(&one.body, "/properties/loginServer"));
        let service = hosts.into_iter().find(|host| !host.is_empty()).unwrap_or_default();
        let scope = if action == "push" { "pull,push" } else { "pull" };
        return oci::challenged(&format!(
            "Bearer realm=\"http://{here}/oauth2/token\",service=\"{service}\",scope=\"repository:{name}:{scope}\""
        ));
    };
    let key = format!("{}/{name}", grant.registry);
    cloud.registry.repositories.entry(key).or_default().answer(asked, request, false)
}
