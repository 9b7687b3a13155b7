"""Holds documents against the official CycloneDX 1.6 schema: python cyclonedx_contract.py FILE…"""
import json
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

validator = JsonStrictValidator(SchemaVersion.V1_6)
bad = 0
for path in sys.argv[1:]:
    text = open(path).read()
    error = validator.validate_str(text)
    if error:
        bad += 1
        print("not valid:", path, str(error)[:2000])
    # What a schema cannot say: references lead somewhere, and nothing is there twice.
    document = json.loads(text)
    refs = [c["bom-ref"] for c in document["components"]] + [document["metadata"]["component"]["bom-ref"]]
    assert len(refs) == len(set(refs)), "a reference twice"
    for dependency in document["dependencies"]:
        assert dependency["ref"] in refs, dependency["ref"]
        assert set(dependency["dependsOn"]) <= set(refs), dependency
    assert len({d["ref"] for d in document["dependencies"]}) == len(document["dependencies"])

# A validator that lets anything pass proves nothing.
assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"name": "a"}]}')
print(f"all {len(sys.argv) - 1} documents are valid" if not bad else f"{bad} are not valid")
sys.exit(1 if bad else 0)
