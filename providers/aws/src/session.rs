//! The session of a role that is assumed: with an external id, with a code of an MFA device, and again when it has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex as Locked, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use textnlp_provider::{Error, ErrorKind, Result, Secret, error_chain};
use tokio::sync::Mutex;

use crate::api::{identify, sent};

/// A role, and how it is assumed:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AssumedRole {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy expects of callers from other accounts.
    pub external_id: Option<String>,
    /// The ARN or the serial number of the caller's MFA device.
    pub mfa_serial: Option<String>,
    /// How long its sessions last; an hour if unset.
    pub duration: Option<Duration>,
}

/// Asks the operator for the present code of an MFA device. It blocks.
pub type AskCode = fn(serial: &str) -> Result<Secret>;

/// A session is renewed this long before it ends: a call may take a while.
const BEFORE_END: Duration = Duration::from_secs(60);
/// How the names of sessions start, which CloudTrail shows.
const NAME: &str = "textnlp-deploy";
const SERVICE: &str = "sts";

/// A role's session, which all clients of this process share: a code of an MFA device is accepted once.
pub(crate) struct Session {
    role: AssumedRole,
    /// With the credentials that it is assumed with.
    config: SdkConfig,
    ask: Option<AskCode>,
    credentials: Mutex<Option<Credentials>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.role).finish()
    }
}

impl Session {
    /// The session of this process, or a new one. `config` has the credentials that the role is assumed with, and `from` says where
    /// they are from.
    pub(crate) fn shared(role: &AssumedRole, config: &SdkConfig, from: String, ask: Option<AskCode>) -> Arc<Self> {
        static SESSIONS: Locked<BTreeMap<(AssumedRole, String), Arc<Session>>> = Locked::new(BTreeMap::new());
        let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.entry((role.clone(), from)).or_insert_with(|| {
            Arc::new(Self { role: role.clone(), config: config.clone(), ask, credentials: Mutex::default() })
        });
        session.clone()
    }

    /// Its credentials; it is assumed if there are none that last.
    pub(crate) async fn credentials(&self) -> Result<Credentials> {
        let mut credentials = self.credentials.lock().await;
        let lasts = |one: &Credentials| one.expiry().is_none_or(|ends| ends > SystemTime::now() + BEFORE_END);
        if let Some(found) = credentials.as_ref().filter(|one| lasts(one)) {
            return Ok(found.clone());
        }
        if let (Some(_), Some(serial)) = (credentials.as_ref(), &self.role.mfa_serial) {
            let error = self.error(ErrorKind::Denied, format!("the session with a code of {serial} has ended"));
            return Err(error.hint("run the same command again: it goes on where it stopped. `account.session_duration` sets how long a session lasts"));
        }
        let assumed = self.assume().await?;
        *credentials = Some(assumed.clone());
        Ok(assumed)
    }

    /// Takes note that AWS does not accept these credentials any more: whether the next call gets new ones. A code is asked for once.
    pub(crate) async fn ended(&self) -> bool {
        let is_renewed = self.role.mfa_serial.is_none();
        if is_renewed {
            *self.credentials.lock().await = None;
        }
        is_renewed
    }

    async fn assume(&self) -> Result<Credentials> {
        let AssumedRole { arn, external_id, mfa_serial, duration } = &self.role;
        let caller = identify(&self.config).await?;
        let mut call = aws_sdk_sts::Client::new(&self.config)
            .assume_role()
            .role_arn(arn)
            .role_session_name(name_of(&caller.arn))
            .set_external_id(external_id.clone());
        call = call.set_duration_seconds(duration.and_then(|one| i32::try_from(one.as_secs()).ok()));
        if let Some(serial) = mfa_serial {
            call = call.serial_number(serial).token_code(self.code(serial).await?);
        }
        let answer = sent(SERVICE, "assume", arn, &caller, call.send()).await.map_err(|error| self.hinted(error))?;
        let found =
            answer.credentials.ok_or_else(|| self.error(ErrorKind::Unavailable, "STS answered without credentials"))?;
        let ends = SystemTime::try_from(found.expiration).ok();
        Ok(Credentials::new(found.access_key_id, found.secret_access_key, Some(found.session_token), ends, NAME))
    }

    async fn code(&self, serial: &str) -> Result<String> {
        let Some(ask) = self.ask else {
            return Err(
                self.error(ErrorKind::Denied, format!("a code of {serial} is needed, and no operator can be asked"))
            );
        };
        let of = serial.to_owned();
        let asked = tokio::task::spawn_blocking(move || ask(&of)).await;
        let code = asked.unwrap_or_else(|error| Err(self.error(ErrorKind::Unavailable, error_chain(&error))))?;
        let code = code.expose_text().map(str::trim).unwrap_or_default();
        if code.len() != 6 || !code.bytes().all(|byte| byte.is_ascii_digit()) {
            let error = self.error(ErrorKind::Denied, "a code of an MFA device has six digits");
            return Err(error.hint("run the command again with the code that the device shows"));
        }
        Ok(code.to_owned())
    }

    fn error(&self, kind: ErrorKind, why: impl Into<String>) -> Error {
        Error::new(kind, "assume", self.role.arn.clone()).because(why.into())
    }

    fn hinted(&self, error: Error) -> Error {
        let AssumedRole { external_id, mfa_serial, duration, .. } = &self.role;
        let text = error_chain(&error);
        let hint = if text.contains("MultiFactorAuthentication failed") {
            "use a code once, while the device shows it, and check `account.mfa_serial`"
        } else if text.contains("DurationSeconds") && duration.is_some() {
            "set `account.session_duration` to at most the maximum session duration of the role; an hour if your identity is a role itself"
        } else {
            match (external_id, mfa_serial) {
                (None, None) => {
                    "the role's trust policy must name your identity. If it asks for an external id or for MFA, set `account.external_id` or `account.mfa_serial`"
                }
                (None, _) => {
                    "the role's trust policy must name your identity. If it asks for an external id, set `account.external_id`"
                }
                (_, None) => {
                    "the role's trust policy must name your identity and the external id. If it asks for MFA, set `account.mfa_serial`"
                }
                _ => "the role's trust policy must name your identity and the external id",
            }
        };
        if error.kind == ErrorKind::Unavailable { error } else { error.hint(hint) }
    }
}

/// The name of a session: that of the identity that assumes the role, in the characters that STS accepts, at most 64.
fn name_of(caller: &str) -> String {
    let name = caller.rsplit(['/', ':']).next().unwrap_or_default();
    let is_accepted = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    let name: String = name.chars().filter(is_accepted).collect();
    let session = if name.is_empty() { NAME.to_owned() } else { format!("{NAME}-{name}") };
    session.chars().take(64).collect()
}

impl ProvideCredentials for Session {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.credentials().await.map_err(|error| CredentialsError::provider_error(error_chain(&error)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_is_named_after_its_operator() {
        for (caller, expected) in [
            ("arn:aws:iam::123456789012:user/team/ada", "textnlp-deploy-ada"),
            ("arn:aws:sts::123456789012:assumed-role/admin/ada@example.com", "textnlp-deploy-ada@example.com"),
            ("arn:aws:iam::123456789012:root", "textnlp-deploy-root"),
        ] {
            assert_eq!(name_of(caller), expected);
        }
        assert_eq!(name_of(&format!("arn:aws:iam::1:user/{}", "a".repeat(64))).len(), 64);
    }
}
