#!/usr/bin/env python3
"""Writes google.json: the attributes of Terraform's providers `google` and `google-beta`, of the types that an export writes.

usage: google.py WHEEL BETA

WHEEL and BETA are those of the packages `cdktf-cdktf-provider-google` and `-beta`, which are generated from the schemas:
    pip download --no-deps cdktf-cdktf-provider-google==16.12.1 cdktf-cdktf-provider-google-beta==16.12.1
Each attribute is true if it is required, false if not, or an object with the attributes of a block.
"""

import io
import json
import pathlib
import re
import sys
import tarfile
import zipfile

TYPES = """
artifact_registry_repository compute_global_address compute_network compute_router compute_router_nat compute_subnetwork
container_cluster container_node_pool dns_record_set kms_crypto_key kms_crypto_key_iam_member kms_key_ring
monitoring_alert_policy monitoring_dashboard monitoring_notification_channel monitoring_uptime_check_config project_iam_member
project_service redis_instance service_account service_networking_connection sql_database sql_database_instance sql_user
storage_bucket storage_bucket_iam_member
""".split()
# Only `google-beta` has these.
BETA = ["google_project_service_identity"]
# Data sources.
DATA = ["google_storage_project_service_account"]
# What every resource of Terraform has.
META = {"connection", "count", "dependsOn", "forEach", "lifecycle", "provider", "provisioners", "timeouts"}


def assembly(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
        version = name.rsplit("@", 1)[1].removesuffix(".jsii.tgz")
        with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as package:
            return version, json.load(package.extractfile("package/.jsii"))["types"]


def attribute(member):
    """The name in Terraform, which the documentation of a member links to."""
    docs = member.get("docs", {})
    found = re.search(r"#([a-z0-9_]+) [A-Za-z0-9]+#\1\}", docs.get("summary", "") + docs.get("remarks", ""))
    return found.group(1) if found else None


def references(kind):
    """The types that a type mentions."""
    if "fqn" in kind:
        yield kind["fqn"]
    for other in kind.get("union", {}).get("types", []):
        yield from references(other)
    if "collection" in kind:
        yield from references(kind["collection"]["elementtype"])


def attributes(types, fqn, top=True):
    all_members = {}
    for member in types[fqn].get("properties", []):
        name = attribute(member)
        if name is None or (top and member["name"] in META):
            continue
        blocks = [other for other in references(member["type"]) if other.startswith("@cdktf/") and other in types]
        if blocks:
            inner = attributes(types, blocks[0], False)
            if not member.get("optional"):
                inner["*"] = True
            all_members[name] = inner
        else:
            all_members[name] = not member.get("optional", False)
    return dict(sorted(all_members.items()))


def config(types, name):
    words = name.split("_")
    camel = words[0] + "".join(word.capitalize() for word in words[1:])
    pascal = camel[0].upper() + camel[1:]
    found = [fqn for fqn in types if fqn.endswith(f".{camel}.{pascal}Config")]
    assert found, name
    return found[0]


def listed(all_types):
    lines = (f"{json.dumps(name)}: {json.dumps(one, separators=(',', ':'))}" for name, one in sorted(all_types.items()))
    return ",\n".join(lines)


def main():
    version, types = assembly(sys.argv[1])
    _, beta = assembly(sys.argv[2])
    resources = {f"google_{name}": attributes(types, config(types, name)) for name in TYPES}
    resources |= {name: attributes(beta, config(beta, name)) for name in BETA}
    data = {name: attributes(types, config(types, f"data_{name}")) for name in DATA}
    source = json.dumps(f"cdktf-cdktf-provider-google and -beta {version} (PyPI)")
    text = f'{{\n"source": {source},\n"resources": {{\n{listed(resources)}\n}},\n"data": {{\n{listed(data)}\n}}\n}}\n'
    pathlib.Path(__file__).with_name("google.json").write_text(text)


main()
