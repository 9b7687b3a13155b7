//! Azure's error codes as [`ErrorKind`]s. A body has several: the innermost one with a row decides, then the outer ones, then the HTTP
//! status.
//!
//! Three kinds must never be mixed up: capacity (another zone, size or hour helps), quota (only an operator helps) and throttling (a
//! pause helps). `OperationNotAllowed` means any of them, or that something is busy: its message tells. The sources of rows are public
//! reports, or the documentation of the codes:
//! <https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors>.

use textnlp_cloud::errors::{Row, THROTTLED, Table, by_status, matches};
use textnlp_provider::ErrorKind::{self, Capacity, Conflict, Denied, Exists, Invalid, NotFound, Quota, Unavailable};

/// What the codes of a failure mean: the kind, the code that decided, and what an operator does about it.
pub fn meaning(codes: &[String], status: Option<u16>, message: &str) -> (ErrorKind, String, Option<String>) {
    for code in codes {
        if let Some(Row { kind: Some(kind), hint, .. }) = ERRORS.row(&[None], code, message) {
            return (kind.clone(), code.clone(), hint.map(str::to_owned));
        }
        if let Some((_, kind)) = RULES.iter().find(|(pattern, _)| matches(pattern, code)) {
            return (kind.clone(), code.clone(), None);
        }
    }
    (by_status(status), codes.first().cloned().unwrap_or_default(), None)
}

type Hint = Option<&'static str>;

const fn row(code: &'static str, phrase: &'static str, kind: ErrorKind, hint: Hint) -> Row<(), Hint> {
    Row { service: None, code, phrase, kind: Some(kind), hint }
}

const RAISE: Hint = Some("raise the quota that the message names: portal, Subscriptions > Usage + quotas");
const RAISE_SERVING: Hint = Some("raise the quota that the message names: portal, Quotas > Machine learning");
const PURGE: Hint = Some(
    "a deleted workspace has the name: purge or recover it in the portal, Azure Machine Learning > Recently deleted",
);
const LOGS: Hint = Some(
    "`textnlp-deploy logs` names the command that shows why; a failed deployment may cost until the next `up` or `down`",
);
const WAIT: Hint = Some("a new role takes some minutes to be effective: run the same command again");
const OTHER: Hint = Some("choose another `gpu.size` or another region, or try later");
const POLICY: Hint = Some("a policy of your organization refuses it: ask its administrator for an exemption");
const ROLE: Hint = Some("`textnlp-deploy plan --policy` prints the role that this plan needs");
const REGISTER: Hint =
    Some("`up` registers the resource providers that it needs; that reaches every region after some minutes");
const LOCK: Hint = Some("a lock protects it: remove the lock yourself if the object can go");
const REGION: Hint =
    Some("the subscription cannot create this in the region: choose another one, or ask Azure's support");
const SIGN_IN: Hint = Some(
    "sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID, and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH",
);
const NAME: Hint = Some("the name is taken in all of Azure: give the environment or the site another name");
/// <https://learn.microsoft.com/azure/aks/delete-node-pool>.
const DRAIN: Hint = Some(
    "a disruption budget allows no eviction: add a replica, or delete the pool by `az aks nodepool delete --ignore-pod-disruption-budget true`, \
     which ends its pods at once; then run the command again",
);
const EVICTION: Hint = Some(
    "the disruption budget that the message names allows no eviction: add a replica, or lower its `minAvailable` for the upgrade",
);

static ERRORS: Table<(), Hint> = Table { rows: ROWS, rules: RULES, base: |code| code, common: None };

/// Words that codes are made of.
const RULES: &[(&str, ErrorKind)] = &[
    ("*AllocationFailed*", Capacity),
    ("*AllocationRequest*", Capacity),
    ("*QuotaExceeded*", Quota),
    ("*Quota*", Quota),
    ("*RequestsThrottled*", THROTTLED),
    ("*InUse*", Conflict),
    ("*NotInSucceededState*", Conflict),
];

const ROWS: &[Row<(), Hint>] = &[
    // Busy, quota, throttling or deleting: by the text (learntocloud/networking-lab#8, Azure/azure-workload-identity#417, Azure/AKS#2880,
    // kubernetes/autoscaler#2607, Azure/AKS#1187).
    row("OperationNotAllowed", "quota", Quota, RAISE),
    row("OperationNotAllowed", "Quota", Quota, RAISE),
    row("OperationNotAllowed", "LowPriorityCores", Quota, RAISE),
    row("OperationNotAllowed", "oo many requests", THROTTLED, None),
    row("OperationNotAllowed", "rate limit", THROTTLED, None),
    row("OperationNotAllowed", "in progress", Conflict, None),
    row("OperationNotAllowed", "in-progress", Conflict, None),
    row("OperationNotAllowed", "ending", Conflict, None),
    row("OperationNotAllowed", "pdating", Conflict, None),
    row("OperationNotAllowed", "pgrading", Conflict, None),
    row("OperationNotAllowed", "eleting", Conflict, None),
    row("OperationNotAllowed", "marked for deletion", Conflict, None),
    row("OperationNotAllowed", "", Invalid, None),
    // MicrosoftDocs/azure-docs#34023: the code of a budget's error is its status.
    row("400", "changes made to Budget", Conflict, None),
    // hashicorp/terraform-provider-azurerm#3780, Azure/AKS#4522, hashicorp/terraform-provider-azurerm#28298,
    // hashicorp/terraform-provider-azurerm#22211, Azure/AKS#1913, hashicorp/terraform-provider-azurerm#5025, Azure/ARO-RP#5076,
    // coreos/tectonic-installer#184.
    row("AnotherOperationInProgress", "", Conflict, None),
    row("OperationPreempted", "", Conflict, None),
    row("SetVNetOwnershipFailed", "", Conflict, None),
    row("ReferencedResourceNotProvisioned", "", Conflict, None),
    row("RetryableError", "", Conflict, None),
    row("ServerBusy", "", Conflict, None),
    row("ServerIsBusy", "", Conflict, None),
    row("ServerIsNotReady", "", Conflict, None),
    row("ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity", "", Conflict, None),
    row("CannotDeleteResource", "", Conflict, None),
    row("ScopeLocked", "", Conflict, LOCK),
    row("ResourceGroupBeingDeleted", "", Conflict, None),
    row("ResourceGroupDeletionBlocked", "", Conflict, None),
    row("ResourceGroupDeletionTimeout", "", Conflict, None),
    row("NicReservedForAnotherVm", "", Conflict, None),
    row("PublicIPAddressCannotBeDeleted", "", Conflict, None),
    row("CannotDeleteNatGatewayAssociatedToSubnet", "", Conflict, None),
    row("InUseSubnetCannotBeUpdated", "", Invalid, None),
    row("PreconditionFailed", "", Conflict, None),
    // hashicorp/terraform-provider-azurerm#11417, MicrosoftDocs/azure-docs#103085, Azure/azure-workload-identity#273,
    // Azure/Azure-Verified-Modules#2673: a principal, an assignment or a credential that is not known everywhere yet.
    row("PrincipalNotFound", "", Conflict, None),
    row("LinkedAuthorizationFailed", "", Denied, ROLE),
    // The role of the cluster on its key is not effective yet.
    row("AzureKeyVaultKmsValidateIdentityPermissionCustomerError", "", Conflict, None),
    row("CreateRoleAssignmentError", "", Conflict, ROLE),
    row("CustomPrivateDNSZoneMissingPermissionError", "", Conflict, ROLE),
    row("IdentityNotFound", "", Conflict, None),
    row("FailedIdentityOperation", "", Conflict, None),
    // hashicorp/terraform-provider-azurerm#28694, Azure/azure-cli#8599, Azure/azure-service-operator#4206.
    row("RoleAssignmentExists", "", Exists, None),
    row("RoleAssignmentUpdateNotPermitted", "", Invalid, None),
    row("RoleAssignmentLimitExceeded", "", Quota, None),
    // nforgeio/neonKUBE#1670.
    row("MissingSubscriptionRegistration", "", Conflict, REGISTER),
    row("Subscription Not Registered", "", Conflict, REGISTER),
    row("SubscriptionNotRegistered", "", Conflict, REGISTER),
    // Azure-Samples/azuresandbox#70, jenkins-infra/azure#1416, Azure/AKS#5746, Azure/karpenter-provider-azure#43, Azure/AKS#1444.
    row("SkuNotAvailable", "", Capacity, OTHER),
    row("ZonalAllocationFailed", "", Capacity, OTHER),
    row("AllocationFailed", "", Capacity, OTHER),
    row("OverconstrainedAllocationRequest", "", Capacity, OTHER),
    row("OverconstrainedZonalAllocationRequest", "", Capacity, OTHER),
    row("AvailabilityZoneNotSupported", "", Capacity, OTHER),
    // MicrosoftDocs/azure-docs#62378, kubernetes/autoscaler#2607, giantswarm/azure-operator#163.
    row("ErrCode_InsufficientVCPUQuota", "", Quota, RAISE),
    row("InsufficientVCPUQuota", "", Quota, RAISE),
    row("QuotaExceeded", "", Quota, RAISE),
    row("StaticPublicIPCountLimitReached", "", Quota, RAISE),
    row("PublicIPCountLimitReached", "", Quota, RAISE),
    row("ResourceCountExceedsLimitDueToTemplate", "", Quota, RAISE),
    // MicrosoftDocs/azure-docs#11849, Azure/AKS#1187, Azure/azqr#34, opencost/opencost#787.
    row("TooManyRequests", "", THROTTLED, None),
    row("ResourceReadFailed", "", THROTTLED, None),
    // hashicorp/terraform-provider-azurerm#21306.
    row("LocationIsOfferRestricted", "", Denied, REGION),
    row("ParameterOutOfRange", "should be in: []", Denied, REGION),
    // hashicorp/terraform-provider-azurerm#12972, adamdost-0/linux-update-cds#21, hashicorp/terraform-provider-azurerm#2940,
    // hashicorp/terraform#11485: names that others have, or that live on.
    row("VaultAlreadyExists", "", Exists, NAME),
    row("ConflictError", "deleted", Exists, NAME),
    // Azure/ResourceModules#3397, Azure/mlops-project-template#29, Azure/azureml-examples#1930.
    row("BadRequest", "oft-deleted workspace", Exists, PURGE),
    row("BadRequest", "needs to be unique", Exists, NAME),
    row("UserError", "needs to be unique", Exists, NAME),
    // MicrosoftLearning/mslearn-azure-ml#30, Azure/mlops-v2#124.
    row("InferencingClientCreateDeploymentFailed", "quota", Quota, RAISE_SERVING),
    row("InferencingClientCreateDeploymentFailed", "Quota", Quota, RAISE_SERVING),
    // <https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints>, MicrosoftDocs/azure-docs#121466,
    // MicrosoftDocs/azure-docs#107890, Azure/azureml-examples#3983.
    row("OutOfQuota", "apacity", Capacity, OTHER),
    row("OutOfQuota", "uota", Quota, RAISE_SERVING),
    row("OutOfQuota", "", Invalid, Some("choose a larger `instance_type`: memory or disk does not suffice")),
    row("BadArgument", "permission", Conflict, WAIT),
    row("BadArgument", "authorization", Conflict, WAIT),
    row("BadArgument", "has crashed", Invalid, LOGS),
    row("ResourceNotReady", "", Invalid, LOGS),
    row("OperationCanceled", "", Conflict, None),
    row("StorageAccountAlreadyTaken", "", Exists, NAME),
    row("StorageAccountAlreadyExists", "", Exists, NAME),
    row("AlreadyInUse", "", Exists, NAME),
    row("ServerNameAlreadyExists", "", Exists, NAME),
    row("NameAlreadyExists", "", Exists, NAME),
    // hashicorp/terraform-provider-azurerm#10951, Azure/azure-cli#28499, hashicorp/terraform#11404, Azure/terraform-azurerm-aks#428.
    row("PropertyChangeNotAllowed", "", Invalid, None),
    row(
        "NoRegisteredProviderFound",
        "",
        Invalid,
        Some("this version of the program is too old for Azure: install a newer one"),
    ),
    row("InvalidApiVersionParameter", "", Invalid, None),
    // Azure/AKS#4860.
    row("UnsatisfiablePDB", "", Invalid, EVICTION),
    // Azure/AKS#2090.
    row("PodDrainFailure", "", Invalid, DRAIN),
    row("InsufficientSubnetSize", "", Invalid, Some("set a larger `network.cidr` in another environment")),
    // Azure/azure-cli#7573, Azure/AKS#892.
    row("RequestDisallowedByPolicy", "", Denied, POLICY),
    row("RequestDisallowedByAzure", "", Denied, REGION),
    // Sign-in, permissions and subscriptions (hashicorp/terraform-provider-azurerm#20867).
    row("AuthorizationFailed", "", Denied, ROLE),
    // Those of registries of images: <https://learn.microsoft.com/azure/container-registry/container-registry-troubleshoot-access>.
    row("UNAUTHORIZED", "", Denied, ROLE),
    row(
        "DENIED",
        "",
        Denied,
        Some("let this machine's address through the firewall of the registry, or push the image yourself"),
    ),
    row("AuthenticationFailed", "", Denied, SIGN_IN),
    row("ExpiredAuthenticationToken", "", Denied, SIGN_IN),
    row("InvalidAuthenticationToken", "", Denied, SIGN_IN),
    row("InvalidAuthenticationTokenTenant", "", Denied, SIGN_IN),
    row("SubscriptionNotFound", "", NotFound, None),
    row("ReadOnlyDisabledSubscription", "", Denied, Some("enable the subscription: portal, Subscriptions")),
    // hashicorp/terraform-provider-azurerm#18268: reads of what was just created.
    row("ResourceGroupNotFound", "", NotFound, None),
    row("ResourceNotFound", "", NotFound, None),
    row("ParentResourceNotFound", "", NotFound, None),
    row("NotFound", "", NotFound, None),
    row("InvalidResourceReference", "", Conflict, None),
    row("InternalServerError", "", Unavailable, None),
    row("InternalOperationError", "", Unavailable, None),
    row("ServiceUnavailable", "", Unavailable, None),
    row("GatewayTimeout", "", Unavailable, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(codes: &[&str], status: Option<u16>, message: &str) -> ErrorKind {
        let codes: Vec<String> = codes.iter().map(|code| (*code).to_owned()).collect();
        meaning(&codes, status, message).0
    }

    #[test]
    fn one_code_has_several_meanings() {
        for (message, expected) in [
            (
                "Operation could not be completed as it results in exceeding approved standardDSv5Family Cores quota.",
                Quota,
            ),
            (
                "The server rejected the request because too many requests have been received for this subscription.",
                THROTTLED,
            ),
            ("Operation is not allowed: Another operation (Updating) is in progress", Conflict),
            ("There's an in-progress update managed cluster operation", Conflict),
            ("OS disk cannot be changed", Invalid),
        ] {
            assert_eq!(of(&["OperationNotAllowed"], Some(409), message), expected, "{message}");
        }
    }

    #[test]
    fn capacity_quota_and_throttling_are_told_apart() {
        for (codes, status, expected) in [
            (&["SkuNotAvailable", "InvalidTemplateDeployment"][..], Some(400), Capacity),
            (&["OverconstrainedZonalAllocationRequest"], None, Capacity),
            (&["ErrCode_InsufficientVCPUQuota"], Some(400), Quota),
            (&["SubscriptionRequestsThrottled"], Some(429), THROTTLED),
            (&["ReferencedResourceNotProvisioned", "RetryableError"], Some(429), Conflict),
            (&[], Some(429), THROTTLED),
        ] {
            assert_eq!(of(codes, status, ""), expected, "{codes:?}");
        }
    }

    #[test]
    fn names_and_quotas_of_azure_machine_learning_are_in_its_messages() {
        for (code, message, expected) in [
            ("BadRequest", "Soft-deleted workspace exists. Please purge or recover it.", Exists),
            ("BadRequest", "Endpoint name needs to be unique within a region.", Exists),
            ("InferencingClientCreateDeploymentFailed", "Not enough quota available for Standard_DS3_v2.", Quota),
            ("InferencingClientCreateDeploymentFailed", "The image has no digest.", Invalid),
        ] {
            assert_eq!(of(&[code], Some(400), message), expected, "{message}");
        }
        // Those of operations have no status.
        for (code, message, expected, hint) in [
            ("OutOfQuota", "Not enough cluster CPU quota", Quota, RAISE_SERVING),
            ("OutOfQuota", "There is not enough VM capacity in the region", Capacity, OTHER),
            ("BadArgument", "Endpoint identity does not have pull permission on the registry.", Conflict, WAIT),
            ("BadArgument", "User container has crashed or terminated.", Invalid, LOGS),
            ("ResourceNotReady", "User container has crashed or terminated.", Invalid, LOGS),
        ] {
            let (kind, _, said) = meaning(&[code.to_owned()], None, message);
            assert_eq!((kind, said.as_deref()), (expected, hint), "{message}");
        }
        let (kind, _, hint) = meaning(&["OutOfQuota".to_owned()], None, "Not enough disk space");
        assert!(kind == Invalid && hint.is_some_and(|hint| hint.contains("instance_type")));
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (codes, status, expected) in [
            (&["InUseSubnetCannotBeDeleted"][..], Some(400), Conflict),
            (&["PrincipalNotFound"], Some(400), Conflict),
            (&["RequestDisallowedByPolicy"], Some(403), Denied),
            (&["StorageAccountAlreadyTaken"], Some(409), Exists),
            (&["BadRequest"], Some(400), Invalid),
            (&["PodDrainFailure"], None, Invalid),
            (&["UnheardOf"], Some(400), Invalid),
            (&["UnheardOf"], None, Unavailable),
            (&[], Some(409), Conflict),
        ] {
            assert_eq!(of(codes, status, ""), expected, "{codes:?}");
        }
    }
}
