//! Azure.
//!
//! Azure Resource Manager, Microsoft Entra and the metadata service of machines answer on one port: paths tell them
//! apart. Addresses in answers are Azure's own. Requests for blobs, as a proxy passes them on, have the hosts of accounts.

mod azure_cloud;
mod blobs;
mod budgets;
pub mod cloud;
mod compute;
mod container;
mod costs;
mod dns;
pub mod document;
mod identity;
mod kinds;
mod machine_learning;
mod monitoring;
mod network;
mod policies;
mod postgres;
pub mod problem;
mod redis;
mod registry;
mod resources;
mod storage;
mod tokens;
mod traffic;
mod vault;

use std::collections::HashMap;

use crate::{Behaviour, Source};
pub use azure_cloud::{AzureCloud, Options};
pub use cloud::{Closed, Cloud, Conduct, Object, Operation, Principal};
pub use policies::Policy;

/// The namespaces that are simulated, and whether a new subscription has them registered.
pub const NAMESPACES: &[(&str, bool)] = &[
    ("Microsoft.Authorization", true),
    ("Microsoft.Cache", false),
    ("Microsoft.Cdn", false),
    ("Microsoft.Compute", false),
    ("Microsoft.Consumption", false),
    ("Microsoft.ContainerRegistry", false),
    ("Microsoft.ContainerService", false),
    ("Microsoft.CostManagement", true),
    ("Microsoft.DBforPostgreSQL", false),
    ("Microsoft.Insights", false),
    ("Microsoft.KeyVault", false),
    ("Microsoft.MachineLearningServices", false),
    ("Microsoft.ManagedIdentity", false),
    ("Microsoft.Network", false),
    ("Microsoft.PolicyInsights", false),
    ("Microsoft.Resources", true),
    ("Microsoft.Storage", false),
];

/// What all services share, and where it is known from.
const SHARED: &[Behaviour] = &[
    rule("requests and answers have the members, types and values of the libraries' models", Source::Model),
    rule(
        "members of requests that are read-only are ignored",
        Source::Documentation("https://github.com/microsoft/api-guidelines/blob/vNext/azure/Guidelines.md"),
    ),
    rule(
        "operations are announced by Azure-AsyncOperation, Location, both or the resource's state, by type",
        Source::Report("Azure/autorest#1128"),
    ),
    rule("Location may answer 200 with a body that says Failed", Source::Report("Azure/msrestazure-for-python#157")),
    rule("an operation may succeed before its resource does", Source::Report("Azure/azure-sdk-for-net#36798")),
    rule("pending operations have states that few clients know", Source::Report("hashicorp/go-azure-sdk#1135")),
    rule("an operation may end with Success instead of Succeeded", Source::Report("Azure/azure-rest-api-specs#23035")),
    rule(
        "a write whose answer is lost may have taken effect",
        Source::Report("hashicorp/terraform-provider-azurerm#22395"),
    ),
    rule(
        "states of operations may lack the member status",
        Source::Report("hashicorp/terraform-provider-azurerm#22771"),
    ),
    rule("the address of a deletion may be 404 at its end", Source::Report("Azure/azure-cli#15884")),
    rule("a deletion may end with 204", Source::Report("Azure/azure-sdk-for-net#52402")),
    rule("an ended operation keeps its result", Source::Report("kubernetes-sigs/cluster-api-provider-azure#2671")),
    rule(
        "some writes and deletions are done with their answer",
        Source::Report("kubernetes-sigs/cluster-api-provider-azure#3970"),
    ),
    rule("a read of operations has a right of its own", Source::Report("hashicorp/terraform-provider-azurerm#29047")),
    rule(
        "a failed creation leaves the resource in Failed, or takes it away, by type",
        Source::Report("hashicorp/terraform-provider-azurerm#17565"),
    ),
    rule(
        "an ended token is 401 ExpiredAuthenticationToken",
        Source::Report("hashicorp/terraform-provider-azurerm#20867"),
    ),
    rule("an ended assertion is AADSTS700024", Source::Report("Azure/azure-cli#28708")),
    rule(
        "an assertion by a certificate names it by x5t#S256 and is for the token endpoint",
        Source::Documentation("https://learn.microsoft.com/entra/identity-platform/certificate-credentials"),
    ),
    rule(
        "an assertion by another certificate is AADSTS700027, one for another audience AADSTS700023",
        Source::Documentation("https://learn.microsoft.com/entra/identity-platform/reference-error-codes"),
    ),
    rule("too many requests are 429 with Retry-After", Source::Report("Azure/azqr#34")),
    rule("reads may be limited while writes are not", Source::Report("kubernetes/autoscaler#3240")),
    rule("Retry-After may be many minutes", Source::Report("MicrosoftDocs/azure-docs#11849")),
    rule(
        "a version that a type does not have is 400 NoRegisteredProviderFound with those it has",
        Source::Report("Azure/azure-cli#28499"),
    ),
    rule("a version that is no date is 400 InvalidApiVersionParameter", Source::Report("hashicorp/terraform#11404")),
    rule("ids come back in other letter case", Source::Report("Azure/azure-rest-api-specs#24337")),
    rule(
        "a refused action is 403 AuthorizationFailed that names it",
        Source::Documentation("https://learn.microsoft.com/azure/role-based-access-control/troubleshooting"),
    ),
    rule(
        "an action is the type and what the method does, by its name in the list of actions",
        Source::Documentation(
            "https://learn.microsoft.com/azure/role-based-access-control/resource-provider-operations",
        ),
    ),
    rule(
        "a write that refers to something without the right to is 403 LinkedAuthorizationFailed",
        Source::Report("microsoft/planetary-computer-hub#25"),
    ),
    rule(
        "a stale If-Match, and If-None-Match of what is there, are 412",
        Source::Documentation("https://learn.microsoft.com/rest/api/network/virtual-networks/create-or-update"),
    ),
    rule(
        "another location for an existing name is 409 InvalidResourceLocation",
        Source::Documentation(
            "https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-invalid-template",
        ),
    ),
    rule(
        "tags are replaced as a whole",
        Source::Documentation("https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources"),
    ),
    rule(
        "a child of what is not there is 404 ParentResourceNotFound",
        Source::Report("microsoftarchive/Learn-LTI#187"),
    ),
    rule(
        "a disabled subscription refuses writes: 409 ReadOnlyDisabledSubscription",
        Source::Documentation("https://learn.microsoft.com/azure/cost-management-billing/manage/subscription-states"),
    ),
    rule(
        "a wrong secret is AADSTS7000215, an unknown application AADSTS700016",
        Source::Documentation("https://learn.microsoft.com/entra/identity-platform/reference-error-codes"),
    ),
    rule(
        "a machine's metadata service answers with tokens of its identity",
        Source::Documentation(
            "https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token",
        ),
    ),
    rule("a principal may do everything at a scope as soon as any role is granted to it there", Source::Assumed),
    rule("a refusal for which no report has a code is 400 BadRequest", Source::Assumed),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "*", what, source }
}

/// The sources of all behaviours, with how many each has.
#[must_use]
pub fn ledger() -> (Vec<Behaviour>, HashMap<&'static str, usize>) {
    let tables = [
        SHARED,
        resources::LEDGER,
        policies::LEDGER,
        network::LEDGER,
        dns::LEDGER,
        traffic::LEDGER,
        monitoring::LEDGER,
        budgets::LEDGER,
        costs::LEDGER,
        identity::LEDGER,
        container::LEDGER,
        storage::LEDGER,
        blobs::LEDGER,
        registry::LEDGER,
        storage::REGISTRIES,
        postgres::LEDGER,
        redis::LEDGER,
        vault::LEDGER,
        machine_learning::LEDGER,
        compute::LEDGER,
    ];
    let behaviours: Vec<Behaviour> = tables.into_iter().flatten().copied().collect();
    let mut counts = HashMap::new();
    for behaviour in &behaviours {
        *counts.entry(behaviour.source.kind()).or_default() += 1;
    }
    (behaviours, counts)
}

/// The models that the simulated types have.
#[must_use]
pub fn models() -> Vec<&'static str> {
    kinds::models()
}
