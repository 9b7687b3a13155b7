//! AKS with Entra: the API server takes tokens that Entra made for its application. Whose they are is found as kubelogin and Azure's libraries
//! find it: <https://learn.microsoft.com/azure/developer/go/sdk/authentication/credential-chains>.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde_json::Value;
use textnlp_provider::{Error, Result, Secret, Sort, finished, told};
use tokio::process::Command;

use super::rest::{Rest, bearer, guarded};
use super::{AzureSignIn, Token, Variables, checked, read_file, shown, text, trimmed};

/// Where Entra is, but for clouds of a country.
const AUTHORITY: &str = "https://login.microsoftonline.com/";
/// The metadata service of a machine.
const METADATA: &str = "http://169.254.169.254";
/// The program is Python, and takes its time to start.
const PROGRAM: Duration = Duration::from_secs(15);
const ACTION: (&str, &str) = ("sign in to", "azure");
const HINT: &str = "sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET";

/// The ways to an identity, in the order in which they are looked at; the first whose variable is there is taken, and no other.
const WAYS: &[(&str, Way)] = &[
    ("AZURE_FEDERATED_TOKEN_FILE", Way::Federated),
    ("AZURE_CLIENT_SECRET", Way::Secret),
    ("AZURE_CLIENT_CERTIFICATE_PATH", Way::Certificate),
    ("IDENTITY_ENDPOINT", Way::Service),
];

#[derive(Clone, Copy)]
enum Way {
    /// A pod's token, or another one that Entra was told to trust.
    Federated,
    /// An application's password.
    Secret,
    /// An application's certificate.
    Certificate,
    /// The identity that a service of Azure gives to what it runs.
    Service,
}

pub(super) async fn token(ask: &AzureSignIn, variables: &Variables) -> Result<Token> {
    let server = checked("--server-id", &ask.server_id, &[])?;
    // What was typed counts before what was set, and nothing that was typed is passed over.
    let who = match ask.client_id.as_deref().or(variables.get("AZURE_CLIENT_ID")) {
        Some(client) => Some(checked("the client id", client, &[])?),
        None => None,
    };
    let tenant = match ask.tenant.as_deref().or(variables.get("AZURE_TENANT_ID")) {
        Some(tenant) => Some(checked("the tenant", tenant, &['.'])?),
        None => None,
    };
    let found = WAYS.iter().find_map(|(name, way)| Some((*name, variables.get(name)?, *way)));
    match found {
        Some((_, file, Way::Federated)) => {
            let proof = trimmed(&read_file(file)?);
            let kind = ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
            of_application(server, (who, tenant), variables, &[kind, ("client_assertion", text(&proof))], &proof).await
        }
        Some((_, secret, Way::Secret)) => {
            let secret = Secret::new(secret);
            of_application(server, (who, tenant), variables, &[("client_secret", text(&secret))], &secret).await
        }
        Some((name, _, Way::Certificate)) => {
            let error = Error::new(Sort::Invalid, ACTION.0, ACTION.1)
                .because(format!("{name}: certificates are not known here"));
            Err(error.hint("use a federated token, a client secret or a managed identity"))
        }
        Some((_, endpoint, Way::Service)) => of_service(server, who, endpoint, variables).await,
        // A machine has an identity of its own tenant, and nobody can ask for another.
        None if ask.tenant.is_some() && who.is_none() => match program(variables) {
            Some(program) => of_person(&program, server, tenant).await.map_err(|error| error.hint(HINT)),
            None => Err(Error::new(Sort::Denied, ACTION.0, ACTION.1)
                .because("a tenant is named, nobody who signs in there, and there is no `az`")
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
    proof: &[(&str, &str)],
    secret: &Secret,
) -> Result<Token> {
    let lacks = |flag: &str, name: &str| {
        let error =
            Error::new(Sort::Invalid, ACTION.0, ACTION.1).because(format!("neither {flag} nor {name} is there"));
        error.hint(format!("set {name}, or type {flag}"))
    };
    let who = who.ok_or_else(|| lacks("--client-id", "AZURE_CLIENT_ID"))?;
    let tenant = tenant.ok_or_else(|| lacks("--tenant", "AZURE_TENANT_ID"))?;
    let authority = variables.get("AZURE_AUTHORITY_HOST").unwrap_or(AUTHORITY).trim_end_matches('/');
    let url = guarded("AZURE_AUTHORITY_HOST", &format!("{authority}/{tenant}/oauth2/v2.0/token"))?;
    let scope = format!("{server}/.default");
    let mut fields = vec![("grant_type", "client_credentials"), ("client_id", who), ("scope", &scope)];
    fields.extend(proof);
    let rest = Rest::far()?;
    bearer(ACTION, &rest.ask(ACTION, rest.form(url, &fields), &[secret]).await?)
}

/// <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>
async fn of_service(server: &str, who: Option<&str>, endpoint: &str, variables: &Variables) -> Result<Token> {
    let Some(header) = variables.get("IDENTITY_HEADER").map(Secret::new) else {
        let error = Error::new(Sort::Invalid, ACTION.0, ACTION.1)
            .because("IDENTITY_ENDPOINT is there, and IDENTITY_HEADER is not");
        return Err(error.hint("machines of Azure Arc are not known here: use a client secret"));
    };
    let wrong = |_| Error::new(Sort::Invalid, "use", "IDENTITY_ENDPOINT").because("it is no address");
    let url = Url::parse(endpoint).map_err(wrong)?;
    let rest = Rest::nearby()?;
    let request = rest.get(asking(url, "2019-08-01", server, who)).header("x-identity-header", text(&header));
    bearer(ACTION, &rest.ask(ACTION, request, &[&header]).await?)
}

/// The identity of the machine, else whoever signed in with `az`: both are there, or are not, without anybody saying so.
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
    let person = match (who, program(variables)) {
        // Somebody was named: whoever else is signed in is not whom was asked for.
        (Some(_), _) => return Err(machine.hint(HINT)),
        (None, None) => "there is no `az`".to_owned(),
        (None, Some(program)) => match of_person(&program, server, tenant).await {
            Ok(token) => return Ok(token),
            Err(error) => told(&error),
        },
    };
    Err(Error::new(Sort::Denied, ACTION.0, ACTION.1).because(format!("{}; {person}", told(&machine))).hint(HINT))
}

/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#get-a-token-using-http>
async fn of_machine(server: &str, who: Option<&str>, variables: &Variables) -> Result<Token> {
    let host = variables.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or(METADATA).trim_end_matches('/');
    let action = ("ask the metadata service", host);
    let wrong = |_| Error::new(Sort::Invalid, "use", "AZURE_POD_IDENTITY_AUTHORITY_HOST").because("it is no address");
    let url = Url::parse(&format!("{host}/metadata/identity/oauth2/token")).map_err(wrong)?;
    let rest = Rest::nearby()?;
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
    let failed = |why: String| Error::new(Sort::Denied, action.0, action.1).because(why);
    let ended = finished(command, PROGRAM).await.map_err(|error| Error::io(action.0, action.1, error))?;
    let Some((status, printed, said)) = ended else { return Err(failed(format!("it did not end within {PROGRAM:?}"))) };
    let printed = Secret::new(printed);
    if !status.success() {
        return Err(failed(format!("{status}: {}", shown(&String::from_utf8_lossy(&said), &[]))));
    }
    let answer: Value = serde_json::from_slice(printed.expose()).unwrap_or_default();
    // `expiresOn` is a time of this machine's zone; older versions have nothing else, and the server says when it is over.
    let ends = answer["expires_on"].as_i64().and_then(|moment| Timestamp::from_second(moment).ok());
    Token::new(action, Secret::new(answer["accessToken"].as_str().unwrap_or_default()), ends, Timestamp::now())
}
