#!/usr/bin/env python3
"""Writes a price table, `src/tables/prices.csv` of a provider, from public catalogues. It has the machines of `src/tables/machines.rs`
in all regions that a catalogue has. Needs PyYAML.

    prices.py gcp PRICING_YML DATE URL  VMS_CSV DATE URL            > providers/gcp/src/tables/prices.csv
    prices.py azure PRICING_GO DATE URL  LATEST_FOLDER DATE URL     > providers/azure/src/tables/prices.csv

A catalogue is a file, the date on which it had its prices, and its address with the commit:

    PRICING_YML    pricing.yml of Cyclenerd/google-cloud-pricing-cost-calculator: machines with their built-in GPUs and local disks, and
                   persistent disks; its date is the member `generated`
    VMS_CSV        catalogs/v9/gcp/vms.csv of skypilot-org/skypilot-catalog: GPUs that are attached to machines
    PRICING_GO     pkg/providers/pricing/zz_generated.pricing.go of Azure/karpenter-provider-azure: machines; its date is in its comment
                   `generated at`
    LATEST_FOLDER  data/latest of andy-diericks/azure-pricing-radar: machines and disks of some regions. Where it has a machine, its price
                   is taken instead; `last-checked.json` has its date
"""
import csv
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ATTACHED = {"T4": "nvidia-tesla-t4"}
DISKS = ["P6", "P10", "P15"]


def micros(amount):
    return round(float(amount) * 1_000_000)


def machines(provider, pattern):
    return re.findall(pattern, (ROOT / "providers" / provider / "src/tables/machines.rs").read_text())


def print_rows(date, url, rows):
    print(f"source,{date},{url}")
    for key, region, unit, amount in sorted(set(rows)):
        print(f"{key},{region},{unit},{amount}")


def gcp(prices, gpus):
    import yaml

    compute = yaml.load(Path(prices[0]).read_text(), Loader=yaml.CSafeLoader)["compute"]
    rows = []
    for name in machines("gcp", r'name: "([a-z0-9-]+)"'):
        for region, cost in compute["instance"].get(name, {}).get("cost", {}).items():
            if cost.get("hour"):
                rows.append((f"compute/{name}", region, "hour", micros(cost["hour"])))
    for region, cost in compute["storage"]["balanced"]["cost"].items():
        if cost.get("month"):
            rows.append(("compute/pd-balanced", region, "GiB-month", micros(cost["month"])))
    print_rows(*prices[1:], rows)
    rows = []
    with open(gpus[0], newline="") as file:
        for one in csv.DictReader(file):
            if not one["InstanceType"] and one["AcceleratorName"] in ATTACHED and float(one["AcceleratorCount"]) == 1:
                rows.append((f"gpu/{ATTACHED[one['AcceleratorName']]}", one["Region"], "hour", micros(one["Price"])))
    print_rows(*gpus[1:], rows)


def azure(prices, latest):
    names = {name for name in machines("azure", r'"(Standard_[A-Za-z0-9_]+)", \d+, \d+, (?:None|Some)')}
    names |= set(machines("azure", r'machine\(\s*"(Standard_[A-Za-z0-9_]+)"')) | set(machines("azure", r'SYSTEM: &str = "(\w+)"'))
    plain = {re.sub(r"[ _]", "", name): name for name in names}
    newer = []
    for path in sorted(Path(latest[0]).glob("*.json")):
        content = json.loads(path.read_text())
        for one in content.values() if path.name.startswith(("vm-", "storage-")) else []:
            sku, product = one["skuName"], one["productName"]
            name = plain.get("Standard" + re.sub(r"[ _]", "", sku.removeprefix("Standard_")))
            if name and "Windows" not in product and "CloudServices" not in product:
                newer.append((name, one["armRegionName"], "hour", micros(one["retailPrice"])))
            for disk in DISKS:
                if product == "Premium SSD Managed Disks" and one["meterName"] == f"{disk} LRS Disk":
                    newer.append((f"disk/{disk}", one["armRegionName"], "month", micros(one["retailPrice"])))
    has = {(key, region) for key, region, *_ in newer}
    rows, region = [], None
    for line in Path(prices[0]).read_text().splitlines():
        if found := re.search(r'initialOnDemandPrices\["(\w+)"\]', line):
            region = found[1]
        if found := re.fullmatch(r'\s+"(\w+)":\s+([\d.]+),', line):
            if found[1] in names and (found[1], region) not in has:
                rows.append((found[1], region, "hour", micros(found[2])))
    print_rows(*prices[1:], rows)
    print_rows(*latest[1:], newer)


if len(sys.argv) != 8 or sys.argv[1] not in ("gcp", "azure"):
    sys.exit(__doc__)
print("# Written by providers/cloud/prices.py. USD, on demand, Linux. Lines below a source are from it: key, region, unit, millionths.")
{"gcp": gcp, "azure": azure}[sys.argv[1]](sys.argv[2:5], sys.argv[5:8])
