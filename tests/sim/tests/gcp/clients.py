"""Google's Python client against the simulated cloud: each kind is created, read, listed and deleted."""

import os

import googleapiclient.discovery
import googleapiclient.errors
import google.oauth2.credentials

PROJECT = os.environ["GOOGLE_CLOUD_PROJECT"]
REGION = "europe-west4"
PLACE = f"projects/{PROJECT}/locations/{REGION}"
NETWORK = f"projects/{PROJECT}/global/networks/n"
# The library asks Google for tokens of credential files whatever their `token_uri` says.
CREDENTIALS = google.oauth2.credentials.Credentials(token=os.environ["TOKEN"])


def service(name, version, override, credentials=CREDENTIALS):
    # The documents' own paths follow the root of the address.
    address = os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_" + override]
    options = {"api_endpoint": address}
    return googleapiclient.discovery.build(
        name, version, credentials=credentials, client_options=options, static_discovery=True, cache_discovery=False)


compute = service("compute", "v1", "COMPUTE")
container = service("container", "v1", "CONTAINER")
sql = service("sqladmin", "v1", "SQL")
iam = service("iam", "v1", "IAM")
manager = service("cloudresourcemanager", "v1", "CLOUDRESOURCEMANAGER")
usage = service("serviceusage", "v1", "SERVICEUSAGE")
networking = service("servicenetworking", "v1", "SERVICENETWORKING")
registry = service("artifactregistry", "v1", "ARTIFACTREGISTRY")
kms = service("cloudkms", "v1", "CLOUDKMS")
billing = service("cloudbilling", "v1", "CLOUDBILLING")
dns = service("dns", "v1", "DNS")
redis = service("redis", "v1", "REDIS")
run = service("run", "v2", "RUN")
vertex = service("aiplatform", "v1", "AIPLATFORM").projects().locations()
monitoring = service("monitoring", "v3", "MONITORING").projects()
dashboards = service("monitoring", "v1", "MONITORING").projects().dashboards()
# Calls of a user are counted for a project.
budgets = service("billingbudgets", "v1", "BILLINGBUDGETS", CREDENTIALS.with_quota_project(PROJECT)).billingAccounts().budgets()


def retried(request):
    """Runs a request again while the cloud is not ready for it."""
    for _ in range(400):
        try:
            return request.execute()
        except googleapiclient.errors.HttpError as error:
            text = error.content.decode()
            known = ("resourceNotReady", "operationInProgress", "failedPrecondition", "IAM_PERMISSION_DENIED", "NOT_FOUND",
                     "peering operation in progress", "does not exist")
            if not any(one in text for one in known):
                raise
    raise AssertionError("never ready")


def computed(operation):
    name, zone, region = operation["name"], operation.get("zone"), operation.get("region")
    for _ in range(400):
        if zone:
            read = compute.zoneOperations().get(project=PROJECT, zone=zone.split("/")[-1], operation=name).execute()
        elif region:
            read = compute.regionOperations().get(project=PROJECT, region=region.split("/")[-1], operation=name).execute()
        else:
            read = compute.globalOperations().get(project=PROJECT, operation=name).execute()
        if read["status"] == "DONE":
            assert "error" not in read, read
            return
    raise AssertionError("never done")


def contained(operation):
    name = f"{PLACE}/operations/{operation['name']}"
    for _ in range(400):
        read = container.projects().locations().operations().get(name=name).execute()
        if read["status"] == "DONE":
            assert "error" not in read, read
            return
    raise AssertionError("never done")


def stored(operation):
    for _ in range(400):
        read = sql.operations().get(project=PROJECT, operation=operation["name"]).execute()
        if read["status"] == "DONE":
            assert "error" not in read, read
            return
    raise AssertionError("never done")


def long(get, operation):
    for _ in range(400):
        read = get(name=operation["name"]).execute()
        if read.get("done"):
            assert "error" not in read, read
            return read["response"]
    raise AssertionError("never done")


def missing(request):
    try:
        request.execute()
    except googleapiclient.errors.HttpError as error:
        assert error.resp.status in (403, 404), error
        return
    raise AssertionError("it is still there")


# The project, its APIs and its billing account.
assert manager.projects().get(projectId=PROJECT).execute()["lifecycleState"] == "ACTIVE"
account = billing.projects().getBillingInfo(name=f"projects/{PROJECT}").execute()
assert account["billingEnabled"]

# A budget of the billing account.
budget = {"displayName": "b", "amount": {"specifiedAmount": {"units": "900"}}, "thresholdRules": [{"thresholdPercent": 0.8}]}
budget = budgets.create(parent=account["billingAccountName"], body=budget).execute()
rules = [{"thresholdPercent": 0.9, "spendBasis": "FORECASTED_SPEND"}]
changed = budgets.patch(
    name=budget["name"], updateMask="thresholdRules", body={"thresholdRules": rules, "etag": budget["etag"]}).execute()
assert changed["thresholdRules"] == rules and changed["amount"] == budget["amount"], changed
assert budgets.list(parent=account["billingAccountName"]).execute()["budgets"] == [changed]
budgets.delete(name=budget["name"]).execute()

# An alert policy with a channel, which it keeps from being deleted.
channel = {"type": "email", "displayName": "c", "labels": {"email_address": "oncall@example.com"}}
channel = monitoring.notificationChannels().create(name=f"projects/{PROJECT}", body=channel).execute()
threshold = {"filter": 'metric.type="m" AND resource.type="r"', "comparison": "COMPARISON_GT", "thresholdValue": 0.9, "duration": "300s"}
policy = {"displayName": "p", "combiner": "OR", "notificationChannels": [channel["name"]],
          "conditions": [{"displayName": "d", "conditionThreshold": threshold}]}
policy = monitoring.alertPolicies().create(name=f"projects/{PROJECT}", body=policy).execute()
changed = monitoring.alertPolicies().patch(
    name=policy["name"], updateMask="userLabels", body={"userLabels": {"a": "b"}}).execute()
assert changed["userLabels"] == {"a": "b"} and changed["conditions"] == policy["conditions"], changed
assert monitoring.alertPolicies().list(name=f"projects/{PROJECT}").execute()["alertPolicies"] == [changed]
monitoring.alertPolicies().delete(name=policy["name"]).execute()
monitoring.notificationChannels().delete(name=channel["name"]).execute()
missing(monitoring.notificationChannels().get(name=channel["name"]))

# An uptime check.
checks = monitoring.uptimeCheckConfigs()
check = {"displayName": "u", "period": "60s", "timeout": "10s", "httpCheck": {"useSsl": True, "port": 8443, "path": "/health"},
         "monitoredResource": {"type": "uptime_url", "labels": {"host": "text.example.com"}}}
check = checks.create(parent=f"projects/{PROJECT}", body=check).execute()
changed = checks.patch(
    name=check["name"], updateMask="httpCheck", body={"httpCheck": {"useSsl": True, "port": 443}, "period": "60s"}).execute()
assert changed["httpCheck"]["port"] == 443 and changed["monitoredResource"] == check["monitoredResource"], changed
assert checks.get(name=check["name"]).execute() == changed
assert checks.list(parent=f"projects/{PROJECT}").execute()["uptimeCheckConfigs"] == [changed]
checks.delete(name=check["name"]).execute()
missing(checks.get(name=check["name"]))

# A dashboard.
chart = {"dataSets": [{"timeSeriesQuery": {"timeSeriesFilter": {"filter": threshold["filter"]}}}], "thresholds": [{"value": 0.9}]}
tile = {"width": 6, "height": 4, "widget": {"title": "t", "xyChart": chart}}
dashboard = {"displayName": "d", "labels": {"a": "b"}, "mosaicLayout": {"columns": 12, "tiles": [tile]}}
dashboard = dashboards.create(parent=f"projects/{PROJECT}", body=dashboard).execute()
changed = dashboards.patch(name=dashboard["name"], body=dashboard | {"displayName": "e"}).execute()
assert changed["displayName"] == "e" and changed["mosaicLayout"] == dashboard["mosaicLayout"], changed
assert dashboards.list(parent=f"projects/{PROJECT}").execute()["dashboards"] == [changed]
dashboards.delete(name=dashboard["name"]).execute()
missing(dashboards.get(name=dashboard["name"]))
batch = {"serviceIds": ["secretmanager.googleapis.com"]}
long(usage.operations().get, usage.services().batchEnable(parent=f"projects/{PROJECT}", body=batch).execute())
names = [one["config"]["name"] for one in usage.services().list(parent=f"projects/{PROJECT}", filter="state:ENABLED").execute()["services"]]
assert "secretmanager.googleapis.com" in names, names

# The network.
computed(compute.networks().insert(project=PROJECT, body={"name": "n", "autoCreateSubnetworks": False}).execute())
assert [one["name"] for one in compute.networks().list(project=PROJECT).execute()["items"]] == ["n"]
subnet = {"name": "n", "network": NETWORK, "ipCidrRange": "10.0.0.0/20", "secondaryIpRanges": [
    {"rangeName": "pods", "ipCidrRange": "10.16.0.0/14"}, {"rangeName": "services", "ipCidrRange": "10.1.0.0/20"}]}
computed(retried(compute.subnetworks().insert(project=PROJECT, region=REGION, body=subnet)))
read = compute.subnetworks().get(project=PROJECT, region=REGION, subnetwork="n").execute()
patch = {"privateIpGoogleAccess": True, "fingerprint": read["fingerprint"]}
computed(compute.subnetworks().patch(project=PROJECT, region=REGION, subnetwork="n", body=patch).execute())
nat = {"name": "nat", "natIpAllocateOption": "AUTO_ONLY", "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES"}
router = {"name": "r", "network": NETWORK, "nats": [nat]}
computed(retried(compute.routers().insert(project=PROJECT, region=REGION, body=router)))
assert compute.routers().get(project=PROJECT, region=REGION, router="r").execute()["nats"][0]["udpIdleTimeoutSec"] == 30
firewall = {"name": "f", "network": NETWORK, "allowed": [{"IPProtocol": "tcp", "ports": ["443"]}], "sourceRanges": ["10.0.0.0/8"]}
computed(retried(compute.firewalls().insert(project=PROJECT, body=firewall)))
address = {"name": "a", "purpose": "VPC_PEERING", "addressType": "INTERNAL", "prefixLength": 20, "network": NETWORK}
computed(retried(compute.globalAddresses().insert(project=PROJECT, body=address)))
quotas = compute.regions().get(project=PROJECT, region=REGION).execute()["quotas"]
assert any(one["metric"] == "NVIDIA_T4_GPUS" for one in quotas), quotas
assert len(compute.zones().list(project=PROJECT).execute()["items"]) > 20
assert compute.acceleratorTypes().list(project=PROJECT, zone=REGION + "-a").execute()["items"]

# A service account and its grant.
account = iam.projects().serviceAccounts().create(name=f"projects/{PROJECT}", body={"accountId": "nodes-account"}).execute()
retried(iam.projects().serviceAccounts().get(name=account["name"]))


def grant():
    policy = manager.projects().getIamPolicy(resource=PROJECT, body={"options": {"requestedPolicyVersion": 3}}).execute()
    policy["bindings"].append({"role": "roles/container.nodeServiceAccount", "members": ["serviceAccount:" + account["email"]]})
    return manager.projects().setIamPolicy(resource=PROJECT, body={"policy": policy})


retried(grant())

# The registry and the keys.
repositories = registry.projects().locations().repositories()
long(registry.projects().locations().operations().get, repositories.create(parent=PLACE, repositoryId="images", body={"format": "DOCKER"}).execute())
assert repositories.list(parent=PLACE).execute()["repositories"][0]["format"] == "DOCKER"
rings = kms.projects().locations().keyRings()
ring = rings.create(parent=PLACE, keyRingId="ring", body={}).execute()
key = rings.cryptoKeys().create(parent=ring["name"], cryptoKeyId="key", body={"purpose": "ENCRYPT_DECRYPT"}).execute()
assert rings.cryptoKeys().get(name=key["name"]).execute()["primary"]["state"] == "ENABLED"

# The zone and its record.
zone = {"name": "z", "dnsName": "example.com.", "description": "a zone"}
assert dns.managedZones().create(project=PROJECT, body=zone).execute()["nameServers"]
assert [one["name"] for one in dns.managedZones().list(project=PROJECT).execute()["managedZones"]] == ["z"]
record = {"name": "text.example.com.", "type": "A", "ttl": 60, "rrdatas": ["192.0.2.1"]}
change = dns.changes().create(project=PROJECT, managedZone="z", body={"additions": [record]}).execute()
for _ in range(400):
    if dns.changes().get(project=PROJECT, managedZone="z", changeId=change["id"]).execute()["status"] == "done":
        break
else:
    raise AssertionError("never done")
read = dns.resourceRecordSets().list(project=PROJECT, managedZone="z", name="text.example.com.", type="A").execute()
assert read["rrsets"][0]["rrdatas"] == ["192.0.2.1"], read

# The database.
parent = "services/servicenetworking.googleapis.com"
connection = {"network": NETWORK, "reservedPeeringRanges": ["a"]}
long(networking.operations().get, retried(networking.services().connections().create(parent=parent, body=connection)))
instance = {"name": "i", "databaseVersion": "POSTGRES_17", "region": REGION, "settings": {
    "tier": "db-custom-2-7680", "edition": "ENTERPRISE", "ipConfiguration": {"ipv4Enabled": False, "privateNetwork": NETWORK}}}
stored(sql.instances().insert(project=PROJECT, body=instance).execute())
stored(retried(sql.databases().insert(project=PROJECT, instance="i", body={"name": "d"})))
stored(retried(sql.users().insert(project=PROJECT, instance="i", body={"name": "u", "password": "p"})))
assert len(sql.databases().list(project=PROJECT, instance="i").execute()["items"]) == 2
assert sql.instances().get(project=PROJECT, instance="i").execute()["ipAddresses"][0]["type"] == "PRIVATE"

# The Redis.
caches = redis.projects().locations().instances()
cache = {"tier": "BASIC", "memorySizeGb": 1, "authorizedNetwork": NETWORK, "connectMode": "PRIVATE_SERVICE_ACCESS",
         "authEnabled": True, "transitEncryptionMode": "SERVER_AUTHENTICATION"}
long(redis.projects().locations().operations().get, retried(caches.create(parent=PLACE, instanceId="c", body=cache)))
cache = caches.get(name=f"{PLACE}/instances/c").execute()
assert (cache["state"], cache["port"]) == ("READY", 6378) and cache["serverCaCerts"], cache
assert caches.getAuthString(name=cache["name"]).execute()["authString"]
changed = caches.patch(name=cache["name"], updateMask="memorySizeGb", body={"memorySizeGb": 3}).execute()
long(redis.projects().locations().operations().get, changed)
assert [one["memorySizeGb"] for one in caches.list(parent=PLACE).execute()["instances"]] == [3]

# A service of Cloud Run, and who may call it.
services = run.projects().locations().services()
limits = {"cpu": "1", "memory": "512Mi"}
template = {"containers": [{"image": "images.example.com/i:1", "resources": {"limits": limits}}]}
long(run.projects().locations().operations().get, services.create(parent=PLACE, serviceId="s", body={"template": template}).execute())
found = services.get(name=f"{PLACE}/services/s").execute()
assert found["terminalCondition"]["state"] == "CONDITION_SUCCEEDED" and found["uri"], found
bindings = [{"role": "roles/run.invoker", "members": ["serviceAccount:" + account["email"]]}]
policy = services.getIamPolicy(resource=found["name"], options_requestedPolicyVersion=3).execute()
services.setIamPolicy(resource=found["name"], body={"policy": policy | {"bindings": bindings}}).execute()
policy = services.getIamPolicy(resource=found["name"], options_requestedPolicyVersion=3).execute()
assert policy["bindings"] == bindings, policy
services.setIamPolicy(resource=found["name"], body={"policy": policy | {"bindings": []}}).execute()
assert not services.getIamPolicy(resource=found["name"]).execute().get("bindings")
template["containers"][0]["image"] = "images.example.com/i:2"
changed = services.patch(name=found["name"], updateMask="template", body={"template": template}).execute()
long(run.projects().locations().operations().get, changed)
made = services.list(parent=PLACE).execute()["services"]
assert [one["template"]["containers"][0]["image"] for one in made] == ["images.example.com/i:2"], made

# An endpoint with a model.
models, endpoints = vertex.models(), vertex.endpoints()
uploaded = {"displayName": "m", "containerSpec": {"imageUri": "images.example.com/i:1", "predictRoute": "/invocations"}}
made = long(models.operations().get, models.upload(parent=PLACE, body={"modelId": "m", "model": uploaded}).execute())
assert made["model"].endswith("/models/m") and made["modelVersionId"] == "1", made
named = {"displayName": "e", "dedicatedEndpointEnabled": True}
long(endpoints.operations().get, endpoints.create(parent=PLACE, endpointId="e", body=named).execute())
deployed = {"id": "7", "model": f"{PLACE}/models/m", "displayName": "d", "serviceAccount": account["email"], "dedicatedResources": {
    "machineSpec": {"machineType": "e2-standard-4"}, "minReplicaCount": 1, "maxReplicaCount": 2}}
body = {"deployedModel": deployed, "trafficSplit": {"0": 100}}
long(endpoints.operations().get, endpoints.deployModel(endpoint=f"{PLACE}/endpoints/e", body=body).execute())
found = endpoints.list(parent=PLACE).execute()["endpoints"]
assert [(one["trafficSplit"], one["deployedModels"][0]["id"]) for one in found] == [({"7": 100}, "7")], found
assert [one["versionId"] for one in models.list(parent=PLACE).execute()["models"]] == ["1"]

# A health check from regions.
check = {"name": "h", "type": "TCP", "tcpHealthCheck": {"port": 443}, "checkIntervalSec": 30, "timeoutSec": 10,
         "sourceRegions": [REGION, "europe-west1", "us-central1"]}
computed(compute.healthChecks().insert(project=PROJECT, body=check).execute())
assert compute.healthChecks().get(project=PROJECT, healthCheck="h").execute()["healthyThreshold"] == 2
assert [one["name"] for one in compute.healthChecks().list(project=PROJECT).execute()["items"]] == ["h"]
computed(compute.healthChecks().patch(project=PROJECT, healthCheck="h", body={"timeoutSec": 20}).execute())
assert compute.healthChecks().get(project=PROJECT, healthCheck="h").execute()["timeoutSec"] == 20

# The cluster.
clusters = container.projects().locations().clusters()
cluster = {"name": "c", "network": NETWORK, "subnetwork": f"projects/{PROJECT}/regions/{REGION}/subnetworks/n",
           "ipAllocationPolicy": {"clusterSecondaryRangeName": "pods", "servicesSecondaryRangeName": "services"},
           "workloadIdentityConfig": {"workloadPool": PROJECT + ".svc.id.goog"}, "nodePools": [
               {"name": "cpu", "initialNodeCount": 1, "config": {"machineType": "e2-standard-4", "serviceAccount": account["email"]}}]}
contained(retried(clusters.create(parent=PLACE, body={"cluster": cluster})))
pool = {"name": "more", "initialNodeCount": 1, "config": {"machineType": "e2-standard-2"}, "locations": [REGION + "-a"]}
contained(retried(clusters.nodePools().create(parent=f"{PLACE}/clusters/c", body={"nodePool": pool})))
assert [one["name"] for one in clusters.nodePools().list(parent=f"{PLACE}/clusters/c").execute()["nodePools"]] == ["cpu", "more"]
assert clusters.list(parent=f"projects/{PROJECT}/locations/-").execute()["clusters"][0]["endpoint"]

# And back to nothing.
undeploy = endpoints.undeployModel(endpoint=f"{PLACE}/endpoints/e", body={"deployedModelId": "7"})
long(endpoints.operations().get, undeploy.execute())
long(endpoints.operations().get, endpoints.delete(name=f"{PLACE}/endpoints/e").execute())
missing(endpoints.get(name=f"{PLACE}/endpoints/e"))
long(models.operations().get, models.delete(name=f"{PLACE}/models/m").execute())
missing(models.get(name=f"{PLACE}/models/m"))
computed(compute.healthChecks().delete(project=PROJECT, healthCheck="h").execute())
missing(compute.healthChecks().get(project=PROJECT, healthCheck="h"))
long(run.projects().locations().operations().get, services.delete(name=f"{PLACE}/services/s").execute())
missing(services.get(name=f"{PLACE}/services/s"))
long(redis.projects().locations().operations().get, caches.delete(name=cache["name"]).execute())
missing(caches.get(name=cache["name"]))
dns.changes().create(project=PROJECT, managedZone="z", body={"deletions": read["rrsets"]}).execute()
dns.managedZones().delete(project=PROJECT, managedZone="z").execute()
missing(dns.managedZones().get(project=PROJECT, managedZone="z"))
contained(retried(clusters.nodePools().delete(name=f"{PLACE}/clusters/c/nodePools/more")))
contained(retried(clusters.delete(name=f"{PLACE}/clusters/c")))
stored(retried(sql.instances().delete(project=PROJECT, instance="i")))
delete = {"consumerNetwork": NETWORK}
name = parent + "/connections/servicenetworking-googleapis-com"
long(networking.operations().get, retried(networking.services().connections().deleteConnection(name=name, body=delete)))
long(registry.projects().locations().operations().get, repositories.delete(name=f"{PLACE}/repositories/images").execute())
iam.projects().serviceAccounts().delete(name=account["name"]).execute()
missing(iam.projects().serviceAccounts().get(name=account["name"]))
computed(compute.globalAddresses().delete(project=PROJECT, address="a").execute())
computed(compute.firewalls().delete(project=PROJECT, firewall="f").execute())
computed(compute.routers().delete(project=PROJECT, region=REGION, router="r").execute())
computed(compute.subnetworks().delete(project=PROJECT, region=REGION, subnetwork="n").execute())
computed(compute.networks().delete(project=PROJECT, network="n").execute())
missing(compute.networks().get(project=PROJECT, network="n"))
