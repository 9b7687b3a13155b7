//! Credentials for the clusters of clouds, for programs that read a kubeconfig.

use serde_json::Value;
use textnlp_provider::{Error, ErrorKind};
use textnlp_token::{AwsSignIn, AzureSignIn, SignIn, Variables, Version, token};

use crate::args::KubeToken;
use crate::report::{Exit, Failure};

/// Creates an ExecCredential in the version that `KUBERNETES_EXEC_INFO` requests.
pub async fn kube_token(args: &KubeToken) -> Result<Value, Failure> {
    let sign_in = match args.clone() {
        KubeToken::Aws { cluster, region, profile, role_arn } => {
            SignIn::Aws(AwsSignIn { cluster, region, profile, role_arn })
        }
        KubeToken::Gcp => SignIn::Gcp,
        KubeToken::Azure { server_id, tenant, client_id } => {
            SignIn::Azure(AzureSignIn { server_id, tenant, client_id })
        }
    };
    let info = std::env::var_os("KUBERNETES_EXEC_INFO");
    let version = Version::asked(info.map(|info| info.to_string_lossy().into_owned()).as_deref()).map_err(failure)?;
    let token = token(&sign_in, &Variables::of_this_process()).await.map_err(failure)?;
    Ok(version.answer(&token))
}

fn failure(mut error: Error) -> Failure {
    let (exit, code) = match error.kind {
        ErrorKind::Invalid => (Exit::Usage, "invalid_sign_in"),
        _ => (Exit::Failed, "not_signed_in"),
    };
    let hint = error.hint.take();
    let failure = Failure::new(exit, code, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
