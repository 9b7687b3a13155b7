//! Tokens for AKS with Entra ID: access tokens for the API server's application. The identity is found as kubelogin and
//! the Azure SDKs find it: <https://learn.microsoft.com/azure/developer/go/sdk/authentication/credential-chains>.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result, Secret, error_chain, finished};
use tokio::process::Command;

use super::certificate::{ASSERTION_TYPE, CERTIFICATE_PATH, ClientCertificate};
use super::rest::{Rest, bearer, guarded};
use super::{AzureSignIn, Token, Variables, checked, read_file, shown, text, trimmed};

/// The authority host of the public cloud; national clouds have their own.
const AUTHORITY: &str = "https://login.microsoftonline.com/";
/// The instance metadata service.
const METADATA: &str = "http://169.254.169.254";
/// The timeout of the Azure CLI, which is slow to start.
const PROGRAM: Duration = Duration::from_secs(15);
const ACTION: (&str, &str) = ("sign in to", "azure");
const HINT: &str = "sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID, and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH";

/// The identity sources by variable, in order. The first one whose variable is set is used, and no other.
const WAYS: &[(&str, CredentialSource)] = &[
    ("AZURE_FEDERATED_TOKEN_FILE", CredentialSource::Federated),
    ("AZURE_CLIENT_SECRET", CredentialSource::Secret),
    (CERTIFICATE_PATH, CredentialSource::Certificate),
    ("IDENTITY_ENDPOINT", CredentialSource::Service),
];

#[derive(Clone, Copy)]
enum CredentialSource {
    /// The token of a pod, or of another federated identity.
    Federated,
    /// A client secret.
    Secret,
    /// A client certificate.
    Certificate,
    /// The managed identity of an Azure service.
    Service,
}

/// What proves that an application asks.
enum Proof {
    Secret(Secret),
    Assertion(Secret),
    Certificate(ClientCertificate),
}

pub(super) async fn token(ask: &AzureSignIn, variables: &Variables) -> Result<Token> {
    let server = checked("--server-id", &ask.server_id, &[])?;
    // Options take precedence over variables, and an invalid option is an error.
    let who = match ask.client_id.as_deref().or(variables.get("AZURE_CLIENT_ID")) {
        Some(client) => Some(checked("the client id", client, &[])?),
        None => None,
    };
    let tenant = match ask.tenant.as_deref().or(variables.get("AZURE_TENANT_ID")) {
        Some(tenant) => Some(checked("the tenant", tenant, &['.'])?),
        None => None,
    };
    let found = WAYS.iter().find_map(|(name, source)| Some((*name, variables.get(name)?, *source)));
    match found {
        Some((_, file, CredentialSource::Federated)) => {
            of_application(server, (who, tenant), variables, Proof::Assertion(trimmed(&read_file(file)?))).await
        }
        Some((_, secret, CredentialSource::Secret)) => {
            of_application(server, (who, tenant), variables, Proof::Secret(Secret::new(secret))).await
        }
        Some((_, file, CredentialSource::Certificate)) => {
            let certificate = ClientCertificate::read(file)?;
            of_application(server, (who, tenant), variables, Proof::Certificate(certificate)).await
        }
        Some((_, endpoint, CredentialSource::Service)) => of_service(server, who, endpoint, variables).await,
        // A machine's identity belongs to its own tenant; another tenant cannot be requested for it.
        None if ask.tenant.is_some() && who.is_none() => match program(variables) {
            Some(program) => of_person(&program, server, tenant).await.map_err(|error| error.hint(HINT)),
            None => Err(Error::new(ErrorKind::Denied, ACTION.0, ACTION.1)
                .because("a tenant is set without credentials, and `az` is not installed")
                .hint(HINT)),
        },
        None => of_surroundings(server, who, tenant, variables).await,
    }
}

/// <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>
async fn of_application(
    server: &str,
    (who, tenant): (Option<&str>, Option<&str>),
    variables: &Variables,
    proof: Proof,
) -> Result<Token> {
    let lacks = |flag: &str, name: &str| {
        let error =
            Error::new(ErrorKind::Invalid, ACTION.0, ACTION.1).because(format!("neither {flag} nor {name} is set"));
        error.hint(format!("set {name}, or pass {flag}"))
    };
    let who = who.ok_or_else(|| lacks("--client-id", "AZURE_CLIENT_ID"))?;
    let tenant = tenant.ok_or_else(|| lacks("--tenant", "AZURE_TENANT_ID"))?;
    let authority = variables.get("AZURE_AUTHORITY_HOST").unwrap_or(AUTHORITY).trim_end_matches('/');
    let url = guarded("AZURE_AUTHORITY_HOST", &format!("{authority}/{tenant}/oauth2/v2.0/token"))?;
    let scope = format!("{server}/.default");
    let mut fields = vec![("grant_type", "client_credentials"), ("client_id", who), ("scope", &scope)];
    let (kind, name, secret) = match proof {
        Proof::Secret(secret) => (None, "client_secret", secret),
        Proof::Assertion(assertion) => (Some(ASSERTION_TYPE), "client_assertion", assertion),
        Proof::Certificate(certificate) => {
            (Some(ASSERTION_TYPE), "client_assertion", certificate.assertion(who, url.as_str())?)
        }
    };
    fields.extend(kind);
    fields.push((name, text(&secret)));
    let rest = Rest::far(variables)?;
    bearer(ACTION, &rest.ask(ACTION, rest.form(url, &fields), &[&secret]).await?)
}

/// <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>
async fn of_service(server: &str, who: Option<&str>, endpoint: &str, variables: &Variables) -> Result<Token> {
    let Some(header) = variables.get("IDENTITY_HEADER").map(Secret::new) else {
        let error = Error::new(ErrorKind::Invalid, ACTION.0, ACTION.1)
            .because("IDENTITY_ENDPOINT is set, and IDENTITY_HEADER is not");
        return Err(error.hint("Azure Arc machines are not supported: use a client secret"));
    };
    let wrong = |_| Error::new(ErrorKind::Invalid, "use", "IDENTITY_ENDPOINT").because("it is not an address");
    let url = Url::parse(endpoint).map_err(wrong)?;
    let rest = Rest::nearby(variables)?;
    let request = rest.get(asking(url, "2019-08-01", server, who)).header("x-identity-header", text(&header));
    bearer(ACTION, &rest.ask(ACTION, request, &[&header]).await?)
}

/// The machine's managed identity, else the user of `az login`. No setting announces either, so both are tried.
async fn of_surroundings(
    server: &str,
    who: Option<&str>,
    tenant: Option<&str>,
    variables: &Variables,
) -> Result<Token> {
    let machine = match of_machine(server, who, variables).await {
        Ok(token) => return Ok(token),
        Err(error) => error,
    };
    let cli_error = match (who, program(variables)) {
        // An identity was requested explicitly, so another signed-in user must not replace it.
        (Some(_), _) => return Err(machine.hint(HINT)),
        (None, None) => "`az` is not installed".to_owned(),
        (None, Some(program)) => match of_person(&program, server, tenant).await {
            Ok(token) => return Ok(token),
            Err(error) => error_chain(&error),
        },
    };
    Err(Error::new(ErrorKind::Denied, ACTION.0, ACTION.1)
        .because(format!("{}; {cli_error}", error_chain(&machine)))
        .hint(HINT))
}

/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#get-a-token-using-http>
async fn of_machine(server: &str, who: Option<&str>, variables: &Variables) -> Result<Token> {
    let host = variables.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or(METADATA).trim_end_matches('/');
    let action = ("ask the metadata service", host);
    let wrong =
        |_| Error::new(ErrorKind::Invalid, "use", "AZURE_POD_IDENTITY_AUTHORITY_HOST").because("it is not an address");
    let url = Url::parse(&format!("{host}/metadata/identity/oauth2/token")).map_err(wrong)?;
    let rest = Rest::nearby(variables)?;
    let request = rest.get(asking(url, "2018-02-01", server, who)).header("metadata", "true");
    bearer(action, &rest.ask(action, request, &[]).await?)
}

fn asking(mut url: Url, version: &str, server: &str, who: Option<&str>) -> Url {
    url.query_pairs_mut().append_pair("api-version", version).append_pair("resource", server);
    if let Some(who) = who {
        url.query_pairs_mut().append_pair("client_id", who);
    }
    url
}

fn program(variables: &Variables) -> Option<std::path::PathBuf> {
    let folders = std::env::split_paths(variables.get("PATH")?);
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join("az")).find(|file| file.is_file())
}

/// <https://learn.microsoft.com/cli/azure/account#az-account-get-access-token>
async fn of_person(program: &Path, server: &str, tenant: Option<&str>) -> Result<Token> {
    let action = ("run", "az account get-access-token");
    let mut command = Command::new(program);
    command.args(["account", "get-access-token", "--output", "json", "--resource", server]);
    if let Some(tenant) = tenant {
        command.args(["--tenant", tenant]);
    }
    let failed = |why: String| Error::new(ErrorKind::Denied, action.0, action.1).because(why);
    let ended = finished(command, PROGRAM).await.map_err(|error| Error::io(action.0, action.1, error))?;
    let Some((status, printed, errors)) = ended else {
        return Err(failed(format!("it did not end within {PROGRAM:?}")));
    };
    let printed = Secret::new(printed);
    if !status.success() {
        return Err(failed(format!("{status}: {}", shown(&String::from_utf8_lossy(&errors), &[]))));
    }
    let answer: Value = serde_json::from_slice(printed.expose()).unwrap_or_default();
    // `expiresOn` is in local time, and older versions have no other field. The API server enforces the expiry.
    let ends = answer["expires_on"].as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
    Token::new(action, Secret::new(answer["accessToken"].as_str().unwrap_or_default()), ends, Timestamp::now())
}
