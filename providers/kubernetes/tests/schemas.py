"""Holds a stream of manifests against the schemas of several versions of Kubernetes; a field that a version does not know is a mistake.

    schemas.py FOLDER-OF-SCHEMAS MANIFESTS.json

Kinds that Kubernetes itself does not have are left out and counted.
"""

import json
import pathlib
import sys

import jsonschema

folder, manifests = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
failed = False


def strict(schema):
    """As the API server reads it: nothing unknown, and numbers where a text of digits would do."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items()}
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


for file in sorted(folder.glob("*.json")):
    definitions = strict(json.loads(file.read_text())["definitions"])
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    kinds = {}
    for name, definition in definitions.items():
        for one in definition.get("x-kubernetes-group-version-kind", []):
            version = f"{one['group']}/{one['version']}" if one["group"] else one["version"]
            kinds[version, one["kind"]] = name
    held, others = 0, []
    for manifest in manifests:
        name = kinds.get((manifest["apiVersion"], manifest["kind"]))
        if name is None:
            others.append(manifest["kind"])
            continue
        held += 1
        schema = {"$ref": f"#/definitions/{name}", "definitions": definitions}
        for error in jsonschema.Draft4Validator(schema).iter_errors(manifest):
            failed = True
            print(f"{file.stem}: {manifest['kind']} {manifest['metadata']['name']}: {error.json_path}: {error.message}")
    print(f"{file.stem}: {held} objects held, of other kinds: {' '.join(sorted(others)) or 'none'}")
sys.exit(failed)
