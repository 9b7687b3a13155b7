"""Azure's Python libraries against the simulated cloud: each type is created, read, listed and deleted.

Budgets are not here: no library of `tests/python/azure.in` has them (azure-mgmt-consumption does). `budgets.rs` sends their requests.
"""

import os
import time
import uuid

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.transport import RequestsTransport
from azure.mgmt.applicationinsights.v2023_06_01 import ApplicationInsightsManagementClient
from azure.mgmt.authorization import AuthorizationManagementClient
from azure.mgmt.containerregistry import ContainerRegistryManagementClient
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.dns import DnsManagementClient
from azure.mgmt.keyvault import KeyVaultManagementClient
from azure.mgmt.monitor import MonitorManagementClient
from azure.mgmt.msi import ManagedServiceIdentityClient
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.postgresqlflexibleservers import PostgreSQLManagementClient
from azure.mgmt.privatedns import PrivateDnsManagementClient
from azure.mgmt.redisenterprise import RedisEnterpriseManagementClient
from azure.mgmt.resource.locks import ManagementLockClient
from azure.mgmt.resource.resources import ResourceManagementClient
from azure.mgmt.resource.subscriptions import SubscriptionClient
from azure.mgmt.storage import StorageManagementClient
from azure.mgmt.trafficmanager import TrafficManagerManagementClient

SUBSCRIPTION, TENANT = os.environ["AZURE_SUBSCRIPTION_ID"], os.environ["AZURE_TENANT_ID"]
ENDPOINT = os.environ["TEXTNLP_AZURE_ENDPOINT"]
REGION, GROUP = "westeurope", "textnlp"


class Credential:
    def get_token(self, *scopes, **_):
        return AccessToken(os.environ["TOKEN"], int(time.time()) + 3000)


class Elsewhere(RequestsTransport):
    """Sends what is meant for Azure to the simulated cloud, whose time moves with each request."""

    def send(self, request, **kwargs):
        meant = request.url
        request.url = meant.replace("https://management.azure.com", ENDPOINT)
        try:
            return super().send(request, **kwargs)
        finally:
            # Polls go to the address of the first request.
            request.url = meant

    def sleep(self, duration):
        pass


def client(kind, *args, **more):
    return kind(Credential(), *args, transport=Elsewhere(), polling_interval=0, **more)


resources = client(ResourceManagementClient, SUBSCRIPTION, api_version="2021-04-01")
locks = client(ManagementLockClient, SUBSCRIPTION)
subscriptions = client(SubscriptionClient)
network = client(NetworkManagementClient, SUBSCRIPTION)
zones = client(PrivateDnsManagementClient, SUBSCRIPTION)
dns = client(DnsManagementClient, SUBSCRIPTION)
identities = client(ManagedServiceIdentityClient, SUBSCRIPTION)
roles = client(AuthorizationManagementClient, SUBSCRIPTION, api_version="2022-04-01")
clusters = client(ContainerServiceClient, SUBSCRIPTION)
storage = client(StorageManagementClient, SUBSCRIPTION)
registries = client(ContainerRegistryManagementClient, SUBSCRIPTION)
databases = client(PostgreSQLManagementClient, SUBSCRIPTION)
vaults = client(KeyVaultManagementClient, SUBSCRIPTION)
workbooks = client(ApplicationInsightsManagementClient, SUBSCRIPTION).workbooks
monitor = client(MonitorManagementClient, SUBSCRIPTION)
caches = client(RedisEnterpriseManagementClient, SUBSCRIPTION)
traffic = client(TrafficManagerManagementClient, SUBSCRIPTION)

NOT_YET = ("PrincipalNotFound", "AnotherOperationInProgress", "OperationNotAllowed", "RetryableError", "ResourceNotFound",
           "ResourceGroupNotFound", "ParentResourceNotFound", "MissingSubscriptionRegistration", "InUseSubnetCannotBeDeleted",
           "CreateRoleAssignmentError", "CustomKubeletIdentityMissingPermissionError", "SetVNetOwnershipFailed", "ServerBusy",
           "ServerIsNotReady", "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity", "Conflict",
           "CannotDeleteResource")


def retried(call):
    """Runs a call again while the cloud is not ready for it."""
    for _ in range(600):
        try:
            result = call()
            return result.result() if hasattr(result, "result") else result
        except HttpResponseError as error:
            if getattr(error.error, "code", None) not in NOT_YET:
                raise
    raise AssertionError("never ready")


def settled(get):
    """Reads a resource until several reads in a row find it ready."""
    good, found = 0, None
    for _ in range(600):
        try:
            found = get()
            state = getattr(found, "provisioning_state", None)
            good = good + 1 if state in (None, "Succeeded") else 0
        except ResourceNotFoundError:
            good = 0
        if good == 5:
            return found
    raise AssertionError("never there")


def missing(get):
    for _ in range(40):
        try:
            get()
        except ResourceNotFoundError:
            return
    raise AssertionError("it is still there")


def listed(list_all, name):
    for _ in range(200):
        if any(one.name == name for one in list_all()):
            return
    raise AssertionError(f"{name} is in no list")


# The subscription and its namespaces.
assert subscriptions.subscriptions.get(SUBSCRIPTION).state == "Enabled"
assert any(one.name == REGION for one in subscriptions.subscriptions.list_locations(SUBSCRIPTION))
for name in ("ContainerRegistry", "ContainerService", "DBforPostgreSQL", "KeyVault", "ManagedIdentity", "Network", "Storage"):
    resources.providers.register("Microsoft." + name)
for name in ("ContainerService", "Network", "Storage"):
    while resources.providers.get("Microsoft." + name).registration_state != "Registered":
        pass
assert list(locks.management_locks.list_at_subscription_level()) == []

# The group.
tags = {"textnlp-lineage": "l"}
resources.resource_groups.create_or_update(GROUP, {"location": REGION, "tags": tags})
settled(lambda: resources.resource_groups.get(GROUP))
listed(lambda: resources.resource_groups.list(filter="tagName eq 'textnlp-lineage' and tagValue eq 'l'"), GROUP)

# The network.
address = {"location": REGION, "sku": {"name": "Standard"}, "public_ip_allocation_method": "Static", "zones": ["1", "2", "3"]}
retried(lambda: network.public_ip_addresses.begin_create_or_update(GROUP, "out", address))
address = settled(lambda: network.public_ip_addresses.get(GROUP, "out"))
nat = {"location": REGION, "sku": {"name": "Standard"}, "public_ip_addresses": [{"id": address.id}], "idle_timeout_in_minutes": 10}
retried(lambda: network.nat_gateways.begin_create_or_update(GROUP, "out", nat))
nat = settled(lambda: network.nat_gateways.get(GROUP, "out"))
retried(lambda: network.virtual_networks.begin_create_or_update(
    GROUP, "n", {"location": REGION, "tags": tags, "address_space": {"address_prefixes": ["10.20.0.0/16"]}}))
virtual = settled(lambda: network.virtual_networks.get(GROUP, "n"))
retried(lambda: network.subnets.begin_create_or_update(
    GROUP, "n", "nodes", {"address_prefix": "10.20.0.0/20", "nat_gateway": {"id": nat.id}}))
nodes = settled(lambda: network.subnets.get(GROUP, "n", "nodes"))
delegation = {"name": "d", "service_name": "Microsoft.DBforPostgreSQL/flexibleServers"}
retried(lambda: network.subnets.begin_create_or_update(
    GROUP, "n", "database", {"address_prefix": "10.20.16.0/24", "delegations": [delegation]}))
delegated = settled(lambda: network.subnets.get(GROUP, "n", "database"))
assert [one.name for one in network.virtual_networks.get(GROUP, "n").subnets] == ["database", "nodes"]
there = {"location": "northeurope", "address_space": {"address_prefixes": ["10.30.0.0/16"]}}
retried(lambda: network.virtual_networks.begin_create_or_update(GROUP, "m", there))
there = settled(lambda: network.virtual_networks.get(GROUP, "m"))
for one, other in (("n", there), ("m", virtual)):
    retried(lambda: network.virtual_network_peerings.begin_create_or_update(
        GROUP, one, "peer", {"remote_virtual_network": {"id": other.id}}))
    settled(lambda: network.virtual_network_peerings.get(GROUP, one, "peer"))
listed(lambda: network.virtual_network_peerings.list(GROUP, "n"), "peer")
assert network.virtual_network_peerings.get(GROUP, "n", "peer").peering_state == "Connected"
ZONE = "x.private.postgres.database.azure.com"
retried(lambda: zones.private_zones.begin_create_or_update(GROUP, ZONE, {"location": "global"}))
zone = settled(lambda: zones.private_zones.get(GROUP, ZONE))
retried(lambda: zones.virtual_network_links.begin_create_or_update(
    GROUP, ZONE, "n", {"location": "global", "virtual_network": {"id": virtual.id}, "registration_enabled": False}))
settled(lambda: zones.virtual_network_links.get(GROUP, ZONE, "n"))

# A public zone and its record.
retried(lambda: dns.zones.create_or_update(GROUP, "example.com", {"location": "global"}))
assert settled(lambda: dns.zones.get(GROUP, "example.com")).name_servers
record = {"ttl": 60, "a_records": [{"ipv4_address": "192.0.2.1"}], "metadata": tags}
retried(lambda: dns.record_sets.create_or_update(GROUP, "example.com", "text", "A", record, if_none_match="*"))
record = settled(lambda: dns.record_sets.get(GROUP, "example.com", "text", "A"))
assert (record.fqdn, record.metadata) == ("text.example.com.", tags), record
record.ttl = 30
dns.record_sets.create_or_update(GROUP, "example.com", "text", "A", record, if_match=record.etag)
assert settled(lambda: dns.record_sets.get(GROUP, "example.com", "text", "A")).ttl == 30
listed(lambda: dns.record_sets.list_by_type(GROUP, "example.com", "A"), "text")
listed(lambda: dns.zones.list_by_resource_group(GROUP), "example.com")

# Identities and their roles.
made = {}
for name in ("cluster", "kubelet", "server"):
    retried(lambda: identities.user_assigned_identities.create_or_update(GROUP, name, {"location": REGION}))
    made[name] = settled(lambda: identities.user_assigned_identities.get(GROUP, name))
listed(lambda: identities.user_assigned_identities.list_by_resource_group(GROUP), "kubelet")


def grant(scope, role, principal):
    definition = next(iter(roles.role_definitions.list("/subscriptions/" + SUBSCRIPTION, filter=f"roleName eq '{role}'")))
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, scope + role + principal))
    body = {"role_definition_id": definition.id, "principal_id": principal, "principal_type": "ServicePrincipal"}
    retried(lambda: roles.role_assignments.create(scope, name, body))
    return scope, name


granted = [
    grant(virtual.id, "Network Contributor", made["cluster"].principal_id),
    grant(made["kubelet"].id, "Managed Identity Operator", made["cluster"].principal_id),
]
for scope, name in granted:
    settled(lambda: roles.role_assignments.get(scope, name))

# The vault and its key, the account and its container, the registry.
retried(lambda: vaults.vaults.begin_create_or_update(GROUP, "textnlp-kv", {"location": REGION, "properties": {
    "tenant_id": TENANT, "sku": {"family": "A", "name": "standard"}, "enable_rbac_authorization": True,
    "soft_delete_retention_in_days": 7}}))
settled(lambda: vaults.vaults.get(GROUP, "textnlp-kv"))
retried(lambda: vaults.keys.create_if_not_exist(GROUP, "textnlp-kv", "key", {"properties": {"kty": "RSA"}}))
assert retried(lambda: vaults.keys.get(GROUP, "textnlp-kv", "key")).key_size == 2048
assert storage.storage_accounts.check_name_availability({"name": "textnlpmodels"}).name_available
retried(lambda: storage.storage_accounts.begin_create(GROUP, "textnlpmodels", {
    "location": REGION, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2", "allow_shared_key_access": False,
    "minimum_tls_version": "TLS1_2", "allow_blob_public_access": False}))
models = settled(lambda: storage.storage_accounts.get_properties(GROUP, "textnlpmodels"))
assert not storage.storage_accounts.check_name_availability({"name": "textnlpmodels"}).name_available
retried(lambda: storage.blob_services.set_service_properties(GROUP, "textnlpmodels", {"is_versioning_enabled": True}))
retried(lambda: storage.blob_containers.create(GROUP, "textnlpmodels", "models", {}))
listed(lambda: storage.blob_containers.list(GROUP, "textnlpmodels"), "models")
retried(lambda: registries.registries.begin_create(GROUP, "textnlpimages", {"location": REGION, "sku": {"name": "Standard"}}))
assert settled(lambda: registries.registries.get(GROUP, "textnlpimages")).login_server == "textnlpimages.azurecr.io"

# Copies of blobs in another account: a policy of the destination, and the same of the source.
retried(lambda: storage.storage_accounts.begin_create(GROUP, "textnlpcopies", {
    "location": "northeurope", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2", "allow_cross_tenant_replication": False}))
copies = settled(lambda: storage.storage_accounts.get_properties(GROUP, "textnlpcopies"))
blobs = {"is_versioning_enabled": True, "change_feed": {"enabled": True}}
for name in ("textnlpmodels", "textnlpcopies"):
    retried(lambda: storage.blob_services.set_service_properties(GROUP, name, blobs))
retried(lambda: storage.blob_containers.create(GROUP, "textnlpcopies", "models", {}))
policy = {"source_account": models.id, "destination_account": copies.id,
          "rules": [{"source_container": "models", "destination_container": "models"}]}
policy = retried(lambda: storage.object_replication_policies.create_or_update(GROUP, "textnlpcopies", "default", policy))
assert policy.rules[0].rule_id, policy
retried(lambda: storage.object_replication_policies.create_or_update(GROUP, "textnlpmodels", policy.name, policy))
for name in ("textnlpcopies", "textnlpmodels"):
    settled(lambda: storage.object_replication_policies.get(GROUP, name, policy.name))
    listed(lambda: storage.object_replication_policies.list(GROUP, name), policy.name)
policy.rules[0].filters = {"prefix_match": ["texts/"]}
retried(lambda: storage.object_replication_policies.create_or_update(GROUP, "textnlpcopies", policy.name, policy))
policy = settled(lambda: storage.object_replication_policies.get(GROUP, "textnlpcopies", policy.name))
assert policy.rules[0].filters.prefix_match == ["texts/"], policy

# A lifecycle rule of an account.
cold = {"base_blob": {"tier_to_cold": {"days_after_modification_greater_than": 90}}}
rule = {"name": "textnlp", "enabled": True, "type": "Lifecycle",
        "definition": {"filters": {"blob_types": ["blockBlob"], "prefix_match": ["models/"]}, "actions": cold}}
lifecycle = (GROUP, "textnlpmodels", "default")
retried(lambda: storage.management_policies.create_or_update(*lifecycle, {"policy": {"rules": [rule]}}))
found = settled(lambda: storage.management_policies.get(*lifecycle)).policy.rules[0]
assert found.definition.actions.base_blob.tier_to_cold.days_after_modification_greater_than == 90, found
cold["base_blob"]["tier_to_cold"]["days_after_modification_greater_than"] = 30
retried(lambda: storage.management_policies.create_or_update(*lifecycle, {"policy": {"rules": [rule]}}))
found = settled(lambda: storage.management_policies.get(*lifecycle)).policy.rules[0]
assert found.definition.actions.base_blob.tier_to_cold.days_after_modification_greater_than == 30, found

# The database.
server = {"location": REGION, "sku": {"name": "Standard_D2ds_v5", "tier": "GeneralPurpose"}, "version": "16",
          "administrator_login": "textnlp", "administrator_login_password": "hunter2", "create_mode": "Create",
          "storage": {"storage_size_gb": 64}, "network": {
              "delegated_subnet_resource_id": delegated.id, "private_dns_zone_arm_resource_id": zone.id}}
retried(lambda: databases.servers.begin_create(GROUP, "textnlp-db", server))
assert settled(lambda: databases.servers.get(GROUP, "textnlp-db")).state == "Ready"
retried(lambda: databases.databases.begin_create(GROUP, "textnlp-db", "texts", {}))
settled(lambda: databases.databases.get(GROUP, "textnlp-db", "texts"))

# A Redis with its database, and a private endpoint with the zone of its name.
redis = {"location": REGION, "tags": tags, "sku": {"name": "Balanced_B0"}, "high_availability": "Disabled",
         "minimum_tls_version": "1.2", "public_network_access": "Disabled"}
resources.providers.register("Microsoft.Cache")
retried(lambda: caches.redis_enterprise.begin_create(GROUP, "textnlp-redis", redis))
redis = settled(lambda: caches.redis_enterprise.get(GROUP, "textnlp-redis"))
listed(lambda: caches.redis_enterprise.list_by_resource_group(GROUP), "textnlp-redis")
retried(lambda: caches.redis_enterprise.begin_update(GROUP, "textnlp-redis", {"sku": {"name": "Balanced_B1"}}))
assert settled(lambda: caches.redis_enterprise.get(GROUP, "textnlp-redis")).sku.name == "Balanced_B1"
database = {"access_keys_authentication": "Enabled", "clustering_policy": "EnterpriseCluster", "eviction_policy": "NoEviction"}
retried(lambda: caches.databases.begin_create(GROUP, "textnlp-redis", "default", database))
assert settled(lambda: caches.databases.get(GROUP, "textnlp-redis", "default")).port == 10000
listed(lambda: caches.databases.list_by_cluster(GROUP, "textnlp-redis"), "default")
retried(lambda: caches.databases.begin_update(GROUP, "textnlp-redis", "default", {"eviction_policy": "AllKeysLRU"}))
assert settled(lambda: caches.databases.get(GROUP, "textnlp-redis", "default")).eviction_policy == "AllKeysLRU"
before = caches.databases.list_keys(GROUP, "textnlp-redis", "default")
retried(lambda: caches.databases.begin_regenerate_key(GROUP, "textnlp-redis", "default", {"key_type": "Primary"}))
after = caches.databases.list_keys(GROUP, "textnlp-redis", "default")
assert before.primary_key != after.primary_key and before.secondary_key == after.secondary_key
CACHES = "privatelink.redis.azure.net"
retried(lambda: zones.private_zones.begin_create_or_update(GROUP, CACHES, {"location": "global"}))
cache_zone = settled(lambda: zones.private_zones.get(GROUP, CACHES))
connection = {"name": "redis", "private_link_service_id": redis.id, "group_ids": ["redisEnterprise"]}
endpoint = {"location": REGION, "subnet": {"id": nodes.id}, "private_link_service_connections": [connection]}
retried(lambda: network.private_endpoints.begin_create_or_update(GROUP, "redis", endpoint))
endpoint = settled(lambda: network.private_endpoints.get(GROUP, "redis"))
state = endpoint.private_link_service_connections[0].private_link_service_connection_state
assert state.status == "Approved", state
listed(lambda: network.private_endpoints.list(GROUP), "redis")
endpoint.tags = tags
retried(lambda: network.private_endpoints.begin_create_or_update(GROUP, "redis", endpoint))
assert settled(lambda: network.private_endpoints.get(GROUP, "redis")).tags == tags
names = {"private_dns_zone_configs": [{"name": "redis", "private_dns_zone_id": cache_zone.id}]}
retried(lambda: network.private_dns_zone_groups.begin_create_or_update(GROUP, "redis", "default", names))
names = settled(lambda: network.private_dns_zone_groups.get(GROUP, "redis", "default"))
listed(lambda: network.private_dns_zone_groups.list("redis", GROUP), "default")
names.private_dns_zone_configs[0].name = "names"
retried(lambda: network.private_dns_zone_groups.begin_create_or_update(GROUP, "redis", "default", names))
names = settled(lambda: network.private_dns_zone_groups.get(GROUP, "redis", "default"))
assert names.private_dns_zone_configs[0].name == "names", names

# The cluster.
cluster = {
    "location": REGION, "tags": tags, "dns_prefix": "textnlp",
    "identity": {"type": "UserAssigned", "user_assigned_identities": {made["cluster"].id: {}}},
    "identity_profile": {"kubeletidentity": {"resource_id": made["kubelet"].id}},
    "oidc_issuer_profile": {"enabled": True}, "disable_local_accounts": True,
    "aad_profile": {"managed": True, "enable_azure_rbac": True},
    "network_profile": {"network_plugin": "azure", "network_plugin_mode": "overlay", "outbound_type": "userAssignedNATGateway"},
    "agent_pool_profiles": [{"name": "system", "mode": "System", "count": 1, "vm_size": "Standard_D2s_v5",
                             "vnet_subnet_id": nodes.id}]}
retried(lambda: clusters.managed_clusters.begin_create_or_update(GROUP, "c", cluster))
found = settled(lambda: clusters.managed_clusters.get(GROUP, "c"))
assert found.oidc_issuer_profile.issuer_url.startswith("https://westeurope.oic."), found
offered = clusters.managed_clusters.list_kubernetes_versions(REGION).as_dict()["values"]
assert any(one["version"] == "1.33" for one in offered), offered
pool = {"mode": "User", "count": 1, "vm_size": "Standard_D4s_v5", "vnet_subnet_id": nodes.id}
retried(lambda: clusters.agent_pools.begin_create_or_update(GROUP, "c", "cpu", pool))
pool = settled(lambda: clusters.agent_pools.get(GROUP, "c", "cpu"))
listed(lambda: clusters.agent_pools.list(GROUP, "c"), "cpu")
pool.count = 2
retried(lambda: clusters.agent_pools.begin_create_or_update(GROUP, "c", "cpu", pool))
assert settled(lambda: clusters.agent_pools.get(GROUP, "c", "cpu")).count == 2
windows, name = clusters.maintenance_configurations, "aksManagedAutoUpgradeSchedule"
window = {"maintenance_window": {"schedule": {"weekly": {"interval_weeks": 1, "day_of_week": "Sunday"}}, "duration_hours": 4,
                                 "start_time": "22:30"}}
retried(lambda: windows.create_or_update(GROUP, "c", name, window))
assert settled(lambda: windows.get(GROUP, "c", name)).maintenance_window.utc_offset == "+00:00"
listed(lambda: windows.list_by_managed_cluster(GROUP, "c"), name)
config = retried(lambda: clusters.managed_clusters.list_cluster_user_credentials(GROUP, "c")).kubeconfigs[0].value
assert b"kubelogin" in bytes(config), config
credential = {"issuer": found.oidc_issuer_profile.issuer_url, "subject": "system:serviceaccount:a:b",
              "audiences": ["api://AzureADTokenExchange"]}
retried(lambda: identities.federated_identity_credentials.create_or_update(GROUP, "server", "server", credential))
settled(lambda: identities.federated_identity_credentials.get(GROUP, "server", "server"))

# A profile of Traffic Manager with an endpoint.
monitored = {"protocol": "TCP", "port": 443, "interval_in_seconds": 30, "timeout_in_seconds": 10, "tolerated_number_of_failures": 3}
profile = {"location": "global", "tags": tags, "traffic_routing_method": "Weighted", "monitor_config": monitored,
           "dns_config": {"relative_name": "textnlp", "ttl": 30}}
retried(lambda: traffic.profiles.create_or_update(GROUP, "textnlp", profile))
profile = settled(lambda: traffic.profiles.get(GROUP, "textnlp"))
assert profile.dns_config.fqdn == "textnlp.trafficmanager.net", profile
listed(lambda: traffic.profiles.list_by_resource_group(GROUP), "textnlp")
external = (GROUP, "textnlp", "ExternalEndpoints", "main")
retried(lambda: traffic.endpoints.create_or_update(*external, {"target": "192.0.2.1", "weight": 50}))
site = settled(lambda: traffic.endpoints.get(*external))
assert (site.weight, site.priority) == (50, 1), site
traffic.endpoints.update(*external, {"weight": 100})
assert settled(lambda: traffic.endpoints.get(*external)).weight == 100
traffic.profiles.update(GROUP, "textnlp", {"tags": tags | {"a": "b"}})
profile = settled(lambda: traffic.profiles.get(GROUP, "textnlp"))
assert profile.tags == tags | {"a": "b"} and [one.name for one in profile.endpoints] == ["main"], profile

# An action group, and a metric alert that it gets.
resources.providers.register("Microsoft.Insights")
mailbox = {"name": "oncall", "email_address": "oncall@example.com", "use_common_alert_schema": True}
mailboxes = {"location": "Global", "group_short_name": "textnlp", "enabled": True, "email_receivers": [mailbox]}
retried(lambda: monitor.action_groups.create_or_update(GROUP, "oncall", mailboxes))
mailboxes = settled(lambda: monitor.action_groups.get(GROUP, "oncall"))
listed(lambda: monitor.action_groups.list_by_resource_group(GROUP), "oncall")
monitor.action_groups.update(GROUP, "oncall", {"enabled": False})
changed = settled(lambda: monitor.action_groups.get(GROUP, "oncall"))
assert (changed.enabled, changed.email_receivers) == (False, mailboxes.email_receivers), changed
criterion = {"name": "one", "metric_name": "cpu_percent", "operator": "GreaterThan", "threshold": 90, "time_aggregation": "Average",
             "criterion_type": "StaticThresholdCriterion", "skip_metric_validation": True}
criteria = {"odata_type": "Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria", "all_of": [criterion]}
alert = {"location": "global", "severity": 2, "enabled": True, "scopes": [found.id], "evaluation_frequency": "PT5M",
         "window_size": "PT15M", "criteria": criteria, "actions": [{"action_group_id": mailboxes.id}]}
retried(lambda: monitor.metric_alerts.create_or_update(GROUP, "nodes", alert))
alert = settled(lambda: monitor.metric_alerts.get(GROUP, "nodes"))
assert alert.criteria.all_of[0].threshold == 90, alert
listed(lambda: monitor.metric_alerts.list_by_resource_group(GROUP), "nodes")
monitor.metric_alerts.update(GROUP, "nodes", {"enabled": False})
assert settled(lambda: monitor.metric_alerts.get(GROUP, "nodes")).enabled is False

# A workbook.
book, content = str(uuid.uuid4()), '{"version":"Notebook/1.0","items":[]}'
workbook = {"location": REGION, "kind": "shared", "display_name": "w", "category": "workbook", "serialized_data": content}
retried(lambda: workbooks.create_or_update(GROUP, book, workbook))
assert settled(lambda: workbooks.get(GROUP, book)).serialized_data is None
assert workbooks.get(GROUP, book, can_fetch_content=True).serialized_data == content
listed(lambda: workbooks.list_by_resource_group(GROUP, category="workbook"), book)

# And back to nothing.
monitor.metric_alerts.delete(GROUP, "nodes")
missing(lambda: monitor.metric_alerts.get(GROUP, "nodes"))
monitor.action_groups.delete(GROUP, "oncall")
missing(lambda: monitor.action_groups.get(GROUP, "oncall"))
traffic.endpoints.delete(*external)
missing(lambda: traffic.endpoints.get(*external))
traffic.profiles.delete(GROUP, "textnlp")
missing(lambda: traffic.profiles.get(GROUP, "textnlp"))
retried(lambda: network.private_dns_zone_groups.begin_delete(GROUP, "redis", "default"))
missing(lambda: network.private_dns_zone_groups.get(GROUP, "redis", "default"))
retried(lambda: network.private_endpoints.begin_delete(GROUP, "redis"))
missing(lambda: network.private_endpoints.get(GROUP, "redis"))
retried(lambda: caches.databases.begin_delete(GROUP, "textnlp-redis", "default"))
missing(lambda: caches.databases.get(GROUP, "textnlp-redis", "default"))
retried(lambda: caches.redis_enterprise.begin_delete(GROUP, "textnlp-redis"))
missing(lambda: caches.redis_enterprise.get(GROUP, "textnlp-redis"))
workbooks.delete(GROUP, book)
missing(lambda: workbooks.get(GROUP, book))
dns.record_sets.delete(GROUP, "example.com", "text", "A")
missing(lambda: dns.record_sets.get(GROUP, "example.com", "text", "A"))
dns.zones.begin_delete(GROUP, "example.com").result()
windows.delete(GROUP, "c", name)
missing(lambda: windows.get(GROUP, "c", name))
retried(lambda: clusters.agent_pools.begin_delete(GROUP, "c", "cpu"))
retried(lambda: clusters.managed_clusters.begin_delete(GROUP, "c"))
missing(lambda: clusters.managed_clusters.get(GROUP, "c"))
retried(lambda: databases.servers.begin_delete(GROUP, "textnlp-db"))
missing(lambda: databases.servers.get(GROUP, "textnlp-db"))
retried(lambda: registries.registries.begin_delete(GROUP, "textnlpimages"))
storage.management_policies.delete(*lifecycle)
missing(lambda: storage.management_policies.get(*lifecycle))
for name in ("textnlpmodels", "textnlpcopies"):
    storage.object_replication_policies.delete(GROUP, name, policy.name)
    missing(lambda: storage.object_replication_policies.get(GROUP, name, policy.name))
    storage.storage_accounts.delete(GROUP, name)
vaults.vaults.delete(GROUP, "textnlp-kv")
assert [one.name for one in vaults.vaults.list_deleted()] == ["textnlp-kv"]
vaults.vaults.begin_purge_deleted("textnlp-kv", REGION).result()
assert list(vaults.vaults.list_deleted()) == []
for scope, name in granted:
    roles.role_assignments.delete(scope, name)
retried(lambda: identities.federated_identity_credentials.delete(GROUP, "server", "server"))
for name in made:
    identities.user_assigned_identities.delete(GROUP, name)
retried(lambda: zones.virtual_network_links.begin_delete(GROUP, ZONE, "n"))
for name in (ZONE, CACHES):
    retried(lambda: zones.private_zones.begin_delete(GROUP, name))
for name in ("n", "m"):
    retried(lambda: network.virtual_network_peerings.begin_delete(GROUP, name, "peer"))
retried(lambda: network.virtual_networks.begin_delete(GROUP, "m"))
for name in ("database", "nodes"):
    retried(lambda: network.subnets.begin_delete(GROUP, "n", name))
retried(lambda: network.virtual_networks.begin_delete(GROUP, "n"))
retried(lambda: network.nat_gateways.begin_delete(GROUP, "out"))
retried(lambda: network.public_ip_addresses.begin_delete(GROUP, "out"))
resources.resource_groups.begin_delete(GROUP).result()
missing(lambda: resources.resource_groups.get(GROUP))
