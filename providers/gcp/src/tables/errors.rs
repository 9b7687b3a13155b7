//! Google's error codes as [`ErrorKind`]s. A body has several: the legacy reason, the reason of `ErrorInfo` and the canonical status.
//! The first one with a row decides, then the canonical status, then the HTTP status.
//!
//! Three kinds must never be mixed up: capacity (another zone, size or hour helps), quota (only an operator helps) and throttling (a
//! pause helps). The sources of rows are public reports, such as `skypilot-org/skypilot#831`.

use textnlp_cloud::errors::{Row, THROTTLED, Table, by_status};
use textnlp_provider::ErrorKind::{self, Capacity, Conflict, Denied, Exists, Invalid, NotFound, Quota, Unavailable};

use crate::service::Service;

/// What the codes of a failure mean: the kind, the code that decided, and what an operator does about it.
pub fn meaning(
    service: Service,
    codes: &[String],
    status: Option<u16>,
    message: &str,
) -> (ErrorKind, String, Option<String>) {
    let hinted = |code: &str, kind: ErrorKind, hint: Option<&str>| (kind, code.to_owned(), hint.map(str::to_owned));
    for code in codes {
        let row = ERRORS.row(&[Some(service), None], (ERRORS.base)(code), message);
        if let Some(Row { kind: Some(kind), hint, .. }) = row {
            return hinted(code, kind.clone(), *hint);
        }
        if let Some((_, kind)) = RULES.iter().find(|(pattern, _)| textnlp_cloud::errors::matches(pattern, code)) {
            return hinted(code, kind.clone(), None);
        }
    }
    for code in codes {
        if let Some((_, kind)) = CANONICAL.iter().find(|(name, _)| name == code) {
            // A number of requests is exceeded for a while; another amount is exceeded until it is raised.
            let kind = if code == "RESOURCE_EXHAUSTED" && status.is_none() { Quota } else { kind.clone() };
            return hinted(code, kind, None);
        }
    }
    let code = codes.first().cloned().unwrap_or_default();
    (by_status(status), code, None)
}

type Hint = Option<&'static str>;

const fn row(
    service: Option<Service>,
    code: &'static str,
    phrase: &'static str,
    kind: ErrorKind,
    hint: Hint,
) -> Row<Service, Hint> {
    Row { service, code, phrase, kind: Some(kind), hint }
}

const ENABLE: Hint =
    Some("`up` enables the services that it needs; a service that was just enabled is usable some minutes later");
const RAISE: Hint = Some("raise the quota that the message names: console, IAM & Admin > Quotas");
const OTHER: Hint = Some("choose another `gpu.size` or another region, or try later");
const OTHER_MACHINE: Hint = Some("choose another `sites[].instance_type` or `gpu.size`, or try later");
const POLICY: Hint =
    Some("a constraint of your organization refuses it: ask the organization policy administrator for an exception");
const SIGN_IN: Hint = Some(
    "sign in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a credential file",
);
const BILLING: Hint =
    Some("link a billing account to the project: `gcloud billing projects link PROJECT --billing-account ACCOUNT`");
const ROLE: Hint = Some("`textnlp-deploy plan --policy` prints the role that this plan needs");
const RECORD: Hint = Some("another client made a record of this name: remove it, or choose another `traffic.domain`");
const BUDGET: Hint = Some(
    "either `budget` is not in the currency of the billing account (`gcloud billing accounts describe ACCOUNT`), or a notification channel of it is gone: then run `up` again",
);
const REVISION: Hint = Some(
    "the log of the revision has the reason: `textnlp-deploy logs` prints the command that shows it; an older revision answers as before",
);
const MODEL_SERVER: Hint = Some(
    "the log of the containers has the reason: `textnlp-deploy logs` prints the command that shows it; a model that was deployed before answers as before",
);
const CHECKS: Hint = Some(
    "delete an uptime check of the project (`gcloud monitoring uptime list-configs`), or raise their quota: console, IAM & Admin > Quotas",
);
const LARGER: Hint =
    Some("set a larger `network.cidr` in another environment; if the network is an existing one, add a range to it");

/// Codes without what differs: the detailed variant of a stock-out has another end (skypilot-org/skypilot#831).
fn base(code: &str) -> &str {
    code.strip_suffix("_WITH_DETAILS").unwrap_or(code)
}

static ERRORS: Table<Service, Hint> = Table { rows: ROWS, rules: RULES, base, common: Some(Service::Compute) };

const RULES: &[(&str, ErrorKind)] = &[
    ("*STOCKOUT*", Capacity),
    ("*POOL_EXHAUSTED*", Capacity),
    ("*QUOTA_EXCEEDED*", Quota),
    ("*RATE_LIMIT*", THROTTLED),
];

/// <https://cloud.google.com/apis/design/errors#handling_errors>
const CANONICAL: &[(&str, ErrorKind)] = &[
    ("ABORTED", Conflict),
    ("ALREADY_EXISTS", Exists),
    ("CANCELLED", Conflict),
    ("DATA_LOSS", Unavailable),
    ("DEADLINE_EXCEEDED", Unavailable),
    ("FAILED_PRECONDITION", Invalid),
    ("INTERNAL", Unavailable),
    ("INVALID_ARGUMENT", Invalid),
    ("NOT_FOUND", NotFound),
    ("OUT_OF_RANGE", Invalid),
    ("PERMISSION_DENIED", Denied),
    ("RESOURCE_EXHAUSTED", THROTTLED),
    ("UNAUTHENTICATED", Denied),
    ("UNAVAILABLE", Unavailable),
    ("UNIMPLEMENTED", Invalid),
    ("UNKNOWN", Unavailable),
];

const ROWS: &[Row<Service, Hint>] = &[
    // googleapis/google-auth-library-python#604, terraform-google-modules/terraform-google-memorystore#107: a role on a key that was just
    // granted is refused for minutes.
    row(None, "PERMISSION_DENIED", "useToEncrypt", Conflict, None),
    row(None, "PERMISSION_DENIED", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "IAM_PERMISSION_DENIED", "useToEncrypt", Conflict, None),
    row(None, "IAM_PERMISSION_DENIED", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "forbidden", "useToEncrypt", Conflict, None),
    row(None, "forbidden", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "FAILED_PRECONDITION", "useToEncrypt", Conflict, None),
    row(None, "FAILED_PRECONDITION", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "failedPrecondition", "useToEncrypt", Conflict, None),
    row(None, "failedPrecondition", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "INVALID_ARGUMENT", "useToEncrypt", Conflict, None),
    row(None, "INVALID_ARGUMENT", "Permission denied on Cloud KMS key", Conflict, None),
    row(None, "badRequest", "useToEncrypt", Conflict, None),
    row(None, "badRequest", "Permission denied on Cloud KMS key", Conflict, None),
    // GKE refuses an amount above a quota as a missing permission (kubeflow/kubeflow#842).
    row(Some(Service::Container), "forbidden", "quota to satisfy", Quota, RAISE),
    row(Some(Service::Container), "PERMISSION_DENIED", "quota to satisfy", Quota, RAISE),
    row(Some(Service::Container), "RESOURCE_EXHAUSTED", "quota to satisfy", Quota, RAISE),
    // hashicorp/terraform-provider-google#17245, transparency-dev/tesseract#413: a revision that does not become ready, as its operation
    // tells.
    row(Some(Service::Run), "INTERNAL", "cannot serve traffic", Invalid, REVISION),
    row(Some(Service::Run), "FAILED_PRECONDITION", "cannot serve traffic", Invalid, REVISION),
    row(Some(Service::Run), "REVISION_FAILED", "", Invalid, REVISION),
    // googleapis/python-aiplatform#4559: a model that does not become ready, as its operation tells.
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "odel server", Invalid, MODEL_SERVER),
    row(Some(Service::AiPlatform), "failedPrecondition", "odel server", Invalid, MODEL_SERVER),
    row(Some(Service::AiPlatform), "DEADLINE_EXCEEDED", "odel server", Invalid, MODEL_SERVER),
    // googleapis/python-aiplatform#2807: a model is shown as deployed for a while after it was undeployed.
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "deployed or being deployed", Conflict, None),
    row(Some(Service::AiPlatform), "failedPrecondition", "deployed or being deployed", Conflict, None),
    // The words with which endpoints are refused to `terraform destroy`: one has a model, or gets one.
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "DeployedModel(s)", Conflict, None),
    row(Some(Service::AiPlatform), "failedPrecondition", "DeployedModel(s)", Conflict, None),
    // The agent of a new project (<https://cloud.google.com/vertex-ai/docs/general/access-control#service-agents>) is not there yet, or
    // has no role yet.
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "ervice agents are being provisioned", Conflict, None),
    row(Some(Service::AiPlatform), "failedPrecondition", "ervice agents are being provisioned", Conflict, None),
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "permission to access Artifact Registry", Conflict, None),
    row(Some(Service::AiPlatform), "failedPrecondition", "permission to access Artifact Registry", Conflict, None),
    // GoogleCloudPlatform/stable-diffusion-on-gcp#12: a 429 that is no rate.
    row(Some(Service::AiPlatform), "rateLimitExceeded", "exceed quota limits", Quota, RAISE),
    row(Some(Service::AiPlatform), "RESOURCE_EXHAUSTED", "exceed quota limits", Quota, RAISE),
    // GoogleCloudPlatform/PerfKitBenchmarker, perfkitbenchmarker/providers/gcp/vertex_ai.py.
    row(Some(Service::AiPlatform), "UNAVAILABLE", "Machine type temporarily unavailable", Capacity, OTHER_MACHINE),
    row(
        Some(Service::AiPlatform),
        "RESOURCE_EXHAUSTED",
        "Machine type temporarily unavailable",
        Capacity,
        OTHER_MACHINE,
    ),
    row(Some(Service::AiPlatform), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::AiPlatform), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::AiPlatform), "NOT_FOUND", "ervice account", Conflict, None),
    // hashicorp/terraform-provider-google#8214, hashicorp/terraform-provider-google#16883.
    row(None, "accessNotConfigured", "", Conflict, ENABLE),
    row(None, "SERVICE_DISABLED", "", Conflict, ENABLE),
    // kubernetes/k8s.io#2729, kubecost/kubecost#1841, exmergo/dex#320.
    row(Some(Service::BigQuery), "accessDenied", "", Denied, None),
    row(Some(Service::BigQuery), "invalidQuery", "", Invalid, None),
    row(Some(Service::BigQuery), "bytesBilledLimitExceeded", "", Invalid, None),
    // hashicorp/terraform-provider-google#9375, hashicorp/terraform-provider-google#22588: the message names no member.
    row(Some(Service::BillingBudgets), "INVALID_ARGUMENT", "", Invalid, BUDGET),
    // hashicorp/terraform-provider-google#10337: the policy that uses the channel is not changed or deleted yet.
    row(Some(Service::Monitoring), "failedPrecondition", "still being referenced", Conflict, None),
    row(Some(Service::Monitoring), "badRequest", "still being referenced", Conflict, None),
    row(Some(Service::Monitoring), "FAILED_PRECONDITION", "still being referenced", Conflict, None),
    row(Some(Service::Monitoring), "INVALID_ARGUMENT", "still being referenced", Conflict, None),
    // 2i2c-org/infrastructure#7054: a 429 that is no rate.
    row(Some(Service::Monitoring), "rateLimitExceeded", "too many configs", Quota, CHECKS),
    row(Some(Service::Monitoring), "RESOURCE_EXHAUSTED", "too many configs", Quota, CHECKS),
    // hashicorp/terraform-provider-google#11102, GoogleCloudPlatform/cloud-foundation-fabric#3739: a metric without a value yet, in newer
    // and older words.
    row(Some(Service::Monitoring), "notFound", "Cannot find metric", Conflict, None),
    row(Some(Service::Monitoring), "NOT_FOUND", "Cannot find metric", Conflict, None),
    row(Some(Service::Monitoring), "notFound", "provided filter is unknown", Conflict, None),
    row(Some(Service::Monitoring), "NOT_FOUND", "provided filter is unknown", Conflict, None),
    // hashicorp/terraform-provider-google#14691.
    row(Some(Service::ServiceUsage), "failedPrecondition", "in progress", Conflict, None),
    row(Some(Service::ServiceUsage), "FAILED_PRECONDITION", "in progress", Conflict, None),
    row(Some(Service::ServiceUsage), "INTERNAL", "160009", Conflict, None),
    // hashicorp/terraform-provider-google#15572, GoogleCloudPlatform/magic-modules#4441,
    // terraform-google-modules/terraform-google-kubernetes-engine#916: an account, an agent or an identity pool that is not visible yet.
    row(Some(Service::Iam), "badRequest", "ervice account", Conflict, None),
    row(Some(Service::Iam), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::Iam), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::ResourceManager), "badRequest", "ervice account", Conflict, None),
    row(Some(Service::ResourceManager), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::ResourceManager), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::CloudKms), "badRequest", "ervice account", Conflict, None),
    row(Some(Service::CloudKms), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::CloudKms), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::ArtifactRegistry), "badRequest", "ervice account", Conflict, None),
    row(Some(Service::ArtifactRegistry), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::ArtifactRegistry), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::Run), "INVALID_ARGUMENT", "ervice account", Conflict, None),
    row(Some(Service::Run), "FAILED_PRECONDITION", "ervice account", Conflict, None),
    row(Some(Service::Run), "NOT_FOUND", "ervice account", Conflict, None),
    row(Some(Service::Iam), "badRequest", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::Iam), "INVALID_ARGUMENT", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::Iam), "FAILED_PRECONDITION", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ResourceManager), "badRequest", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ResourceManager), "INVALID_ARGUMENT", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ResourceManager), "FAILED_PRECONDITION", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::CloudKms), "badRequest", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::CloudKms), "INVALID_ARGUMENT", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::CloudKms), "FAILED_PRECONDITION", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ArtifactRegistry), "badRequest", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ArtifactRegistry), "INVALID_ARGUMENT", "dentity Pool does not exist", Conflict, None),
    row(Some(Service::ArtifactRegistry), "FAILED_PRECONDITION", "dentity Pool does not exist", Conflict, None),
    // hashicorp/terraform-provider-google#12512, hashicorp/terraform-provider-google#10786.
    row(None, "aborted", "", Conflict, None),
    // gardener/gardener-extension-provider-gcp#415: the same reason as that of a stale fingerprint
    // (hashicorp/terraform-provider-google#1469).
    row(None, "conditionNotMet", "Constraint constraints/", Denied, POLICY),
    row(None, "conditionNotMet", "", Conflict, None),
    // 2i2c-org/infrastructure#489: inside of an operation.
    row(None, "CONDITION_NOT_MET", "", Denied, POLICY),
    // GoogleCloudPlatform/genai-for-marketing#153.
    row(None, "FAILED_PRECONDITION", "permitted customer", Denied, POLICY),
    row(None, "INVALID_ARGUMENT", "permitted customer", Denied, POLICY),
    // skypilot-org/skypilot#831, cloudpilot-ai/karpenter-provider-gcp#169.
    row(None, "ZONE_RESOURCE_POOL_EXHAUSTED", "", Capacity, OTHER),
    row(None, "resource_availability", "", Capacity, OTHER),
    // hashicorp/terraform-provider-google#6287.
    row(None, "GCE_STOCKOUT", "", Capacity, OTHER),
    row(None, "GCE_QUOTA_EXCEEDED", "", Quota, RAISE),
    // gcloudrig/gcloudrig#44, skypilot-org/skypilot#2126.
    row(None, "QUOTA_EXCEEDED", "", Quota, RAISE),
    row(None, "quotaExceeded", "", Quota, RAISE),
    // hashicorp/terraform-provider-google#8360, hashicorp/terraform-provider-google#3782.
    row(None, "rateLimitExceeded", "", THROTTLED, None),
    row(None, "userRateLimitExceeded", "", THROTTLED, None),
    row(None, "RATE_LIMIT_EXCEEDED", "", THROTTLED, None),
    // terraform-google-modules/terraform-google-network#365.
    row(None, "resourceNotReady", "", Conflict, None),
    row(None, "RESOURCE_NOT_READY", "", Conflict, None),
    // elastic/cloud-on-k8s#2615.
    row(None, "IP_SPACE_EXHAUSTED", "", Invalid, LARGER),
    // hashicorp/terraform-provider-google#9812, DefangLabs/pulumi-defang#476, murphye/cheap-gke-cluster#2,
    // hashicorp/terraform-provider-google#4543.
    row(None, "resourceInUseByAnotherResource", "", Conflict, None),
    row(None, "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "", Conflict, None),
    // hashicorp/terraform-provider-google#16275, hashicorp/terraform-provider-google#3294.
    row(Some(Service::ServiceNetworking), "FAILED_PRECONDITION", "still using", Conflict, None),
    // kubernetes-sigs/boskos#251.
    row(None, "badRequest", "peering operation in progress", Conflict, None),
    row(None, "invalid", "peering operation in progress", Conflict, None),
    // hashicorp/terraform-provider-google#3650, hashicorp/terraform-provider-google#1643, kubeflow/kubeflow#2392.
    row(None, "CLUSTER_ALREADY_HAS_OPERATION", "", Conflict, None),
    row(Some(Service::Container), "failedPrecondition", "peration", Conflict, None),
    row(Some(Service::Container), "FAILED_PRECONDITION", "peration", Conflict, None),
    row(Some(Service::Container), "failedPrecondition", "currently", Conflict, None),
    row(Some(Service::Container), "FAILED_PRECONDITION", "currently", Conflict, None),
    row(Some(Service::Container), "FAILED_PRECONDITION", "being created", Conflict, None),
    row(Some(Service::Container), "failedPrecondition", "being created", Conflict, None),
    // hashicorp/terraform-provider-google#15579: a 429 that is no rate.
    row(None, "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED", "", Conflict, None),
    row(Some(Service::Container), "RESOURCE_EXHAUSTED", "concurrent operations", Conflict, None),
    row(Some(Service::Container), "rateLimitExceeded", "concurrent operations", Conflict, None),
    // hashicorp/terraform-provider-google#6066, hashicorp/terraform-provider-google#4370, hashicorp/terraform-provider-google#25246.
    row(Some(Service::Sql), "instanceAlreadyExists", "", Exists, None),
    row(Some(Service::Sql), "invalidState", "", Conflict, None),
    row(Some(Service::Sql), "operationInProgress", "", Conflict, None),
    row(Some(Service::Sql), "staleData", "", Conflict, None),
    row(Some(Service::Sql), "errorReplicationMasterInvalidOperation", "", Conflict, None),
    // sassoftware/viya4-iac-gcp#194: inside of an operation, without a code of its own.
    row(Some(Service::Sql), "INTERNAL_ERROR", "free blocks", Invalid, LARGER),
    row(Some(Service::Sql), "INTERNAL_ERROR", "", Unavailable, None),
    // hashicorp/terraform-provider-google#9112, kubernetes-sigs/external-dns#3885.
    row(Some(Service::Dns), "alreadyExists", "", Exists, RECORD),
    row(Some(Service::Dns), "cnameResourceRecordSetConflict", "", Exists, RECORD),
    // hashicorp/terraform-provider-google#1214, hashicorp/terraform-provider-google#27365.
    row(None, "alreadyExists", "", Exists, None),
    row(None, "RESOURCE_ALREADY_EXISTS", "", Exists, None),
    row(Some(Service::CloudKms), "FAILED_PRECONDITION", "PENDING_GENERATION", Conflict, None),
    row(Some(Service::CloudKms), "failedPrecondition", "PENDING_GENERATION", Conflict, None),
    // GoogleCloudPlatform/mlops-with-vertex-ai#26.
    row(Some(Service::Storage), "conflict", "", Exists, None),
    row(Some(Service::Storage), "FAILED_PRECONDITION", "not empty", Conflict, None),
    // Sign-in and permissions: <https://cloud.google.com/apis/design/errors>.
    row(None, "authError", "", Denied, SIGN_IN),
    row(None, "UNAUTHENTICATED", "", Denied, SIGN_IN),
    row(None, "ACCESS_TOKEN_EXPIRED", "", Denied, SIGN_IN),
    row(None, "IAM_PERMISSION_DENIED", "", Denied, ROLE),
    row(None, "insufficientPermissions", "", Denied, ROLE),
    row(None, "forbidden", "", Denied, ROLE),
    row(None, "PERMISSIONS_ERROR", "", Denied, ROLE),
    // <https://cloud.google.com/billing/docs/how-to/modify-project>
    row(None, "BILLING_DISABLED", "", Denied, BILLING),
    row(None, "billingNotEnabled", "", Denied, BILLING),
    row(None, "UREQ_PROJECT_BILLING_NOT_FOUND", "", Denied, BILLING),
    // Compute Engine, inside of operations.
    row(None, "RESOURCE_NOT_FOUND", "", NotFound, None),
    row(None, "RESOURCE_OPERATION_RATE_EXCEEDED", "", THROTTLED, None),
    row(None, "notFound", "", NotFound, None),
    row(None, "backendError", "", Unavailable, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(service: Service, codes: &[&str], status: Option<u16>, message: &str) -> ErrorKind {
        let codes: Vec<String> = codes.iter().map(|code| (*code).to_owned()).collect();
        meaning(service, &codes, status, message).0
    }

    #[test]
    fn capacity_quota_and_throttling_are_told_apart() {
        for (service, codes, status, message, expected) in [
            (Service::Compute, &["ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"][..], None, "", Capacity),
            (Service::Compute, &["ZONE_RESOURCE_POOL_EXHAUSTED"], None, "", Capacity),
            (Service::Compute, &["VM_MIN_COUNT_NOT_REACHED", "QUOTA_EXCEEDED"], None, "", Quota),
            (Service::Compute, &["rateLimitExceeded"], Some(403), "Quota exceeded for quota group", THROTTLED),
            (Service::Container, &["RATE_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"], Some(429), "", THROTTLED),
            (
                Service::Container,
                &["RESOURCE_EXHAUSTED"],
                Some(429),
                "hits the concurrent operations quota 5",
                Conflict,
            ),
            (Service::Container, &["RESOURCE_EXHAUSTED"], None, "", Quota),
            (
                Service::Monitoring,
                &["rateLimitExceeded", "RESOURCE_EXHAUSTED"],
                Some(429),
                "Error creating uptime check config: too many configs in project",
                Quota,
            ),
            (Service::Monitoring, &["rateLimitExceeded", "RESOURCE_EXHAUSTED"], Some(429), "Quota exceeded", THROTTLED),
            (
                Service::Container,
                &["forbidden"],
                Some(403),
                "Insufficient regional quota to satisfy request: resource \"CPUS\"",
                Quota,
            ),
        ] {
            assert_eq!(of(service, codes, status, message), expected, "{codes:?}");
        }
    }

    #[test]
    fn deployments_of_vertex_ai_fail_for_their_reasons() {
        for (code, status, message, expected) in [
            ("FAILED_PRECONDITION", None, "Model server never became ready.", Invalid),
            ("FAILED_PRECONDITION", Some(400), "The Model is deployed or being deployed at the following", Conflict),
            ("FAILED_PRECONDITION", Some(400), "Endpoint has deployed or being-deployed DeployedModel(s): 7", Conflict),
            ("FAILED_PRECONDITION", Some(400), "Service agents are being provisioned. Try again later.", Conflict),
            (
                "FAILED_PRECONDITION",
                Some(400),
                "Vertex AI Service Agent a@b does not have permission to access Artifact Registry repository r.",
                Conflict,
            ),
            ("RESOURCE_EXHAUSTED", Some(429), "The following quota metrics exceed quota limits: a/b", Quota),
            ("RESOURCE_EXHAUSTED", Some(429), "Quota exceeded for aiplatform.googleapis.com/requests", THROTTLED),
            ("UNAVAILABLE", None, "Machine type temporarily unavailable, please deploy with a different one", Capacity),
        ] {
            assert_eq!(of(Service::AiPlatform, &[code], status, message), expected, "{message}");
        }
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (service, codes, status, message, expected) in [
            (Service::Compute, &["accessNotConfigured"][..], Some(403), "", Conflict),
            (
                Service::Compute,
                &["conditionNotMet"],
                Some(412),
                "Constraint constraints/compute.vmExternalIpAccess violated",
                Denied,
            ),
            (Service::Compute, &["conditionNotMet"], Some(412), "Invalid fingerprint", Conflict),
            (Service::Iam, &["badRequest"], Some(400), "Service account a@p does not exist.", Conflict),
            (Service::Run, &["INVALID_ARGUMENT"], Some(400), "Service account a@p does not exist.", Conflict),
            (
                Service::Run,
                &["FAILED_PRECONDITION"],
                None,
                "Revision 'a-1' is not ready and cannot serve traffic.",
                Invalid,
            ),
            (Service::Iam, &["badRequest"], Some(400), "Invalid role", Invalid),
            (Service::Container, &["INVALID_ARGUMENT"], Some(400), "Location \"x\" does not exist.", Invalid),
            (
                Service::Container,
                &["FAILED_PRECONDITION"],
                Some(400),
                "Cluster is running incompatible operation o",
                Conflict,
            ),
            (Service::Container, &["FAILED_PRECONDITION"], Some(400), "something else", Invalid),
            (Service::Sql, &["operationInProgress"], Some(403), "", Conflict),
            (
                Service::Container,
                &["PERMISSION_DENIED"],
                Some(403),
                "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource 'k'",
                Conflict,
            ),
            (Service::Container, &["PERMISSION_DENIED"], Some(403), "Permission 'x' denied on resource 'k'", Denied),
            (Service::ResourceManager, &["aborted"], Some(409), "", Conflict),
            (
                Service::Monitoring,
                &["NOT_FOUND"],
                Some(404),
                "The metric referenced by the provided filter is unknown.",
                Conflict,
            ),
            (Service::Compute, &["surprise"], Some(503), "", Unavailable),
            (Service::Compute, &[], Some(404), "", NotFound),
            (Service::Storage, &["ALREADY_EXISTS"], Some(400), "", Exists),
        ] {
            assert_eq!(of(service, codes, status, message), expected, "{codes:?} {message}");
        }
    }
}
