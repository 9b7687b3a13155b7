"""Prints the models of Azure's management libraries as JSON: the members, types and constraints of each class that the wanted ones reach.

The wanted classes are lines of standard input, such as `network.models VirtualNetwork`.
"""

import enum
import importlib
import json
import re
import sys

found = {}


def members(module, cls):
    rules = getattr(cls, "_validation", {})
    types = dict(re.findall(r":vartype (\w+):\s+([^:]+)", cls.__doc__ or ""))
    for attribute, row in cls._attribute_map.items():
        member = {"type": row["type"], **{k: v for k, v in rules.get(attribute, {}).items() if k != "constant"}}
        last = re.split(r"[\s.]+", types.get(attribute, "").strip())[-1]
        values = getattr(module, last, None)
        if isinstance(values, type) and issubclass(values, enum.Enum):
            member["values"] = [value.value for value in values]
        yield row["key"].replace("\\.", "\0"), member


def visit(path, name):
    key = f"{path} {name}"
    module = importlib.import_module("azure.mgmt." + path)
    cls = getattr(module, name, None)
    if key in found or not hasattr(cls, "_attribute_map"):
        return
    found[key] = dict(members(module, cls))
    for member in found[key].values():
        visit(path, member["type"].strip("[]{}"))
    for subtypes in getattr(cls, "_subtype_map", {}).values():
        for subtype in subtypes.values():
            visit(path, subtype)


for line in sys.stdin:
    visit(*line.split())
json.dump(found, sys.stdout)
