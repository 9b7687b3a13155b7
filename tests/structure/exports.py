#!/usr/bin/env python3
"""Checks that exports declare what the code of a kind on AWS sends at creation whatever its spec says, such as
`.publicly_accessible(false)`: a cloud would choose another value. The fields of specs are checked by the tests of `textnlp-aws`.

A constant is an argument of a builder in `create` or in `impl Spec`. A property of its name must be in the form of the kind, in
`providers/aws/src/declare/forms.rs`, or in `LEFT` with a reason. Its value, and constants in other functions, are not compared.
"""

import re
import sys
from pathlib import Path

AWS = Path(__file__).resolve().parents[2] / "providers/aws/src"
# Ends the forms: functions that several of them call follow.
END = "/// What autoscaling changes of an endpoint."
CODE = re.compile(r"^    async fn create\(.*?^    }$|^impl Spec \{.*?^}$", re.M | re.S)
CONSTANT = re.compile(r"\.(?:set_)?([a-z0-9_]+)\(\s*(?:true|false|[A-Z]\w+::[A-Z]\w+|ENGINE)\s*\)")
KIND = re.compile(r'kind\(\s*"(aws\.[a-z0-9-]+)"')
# The file of a kind and a method of its builder, and why no form has it.
LEFT = {}


def squeezed(name):
    return name.replace("_", "").lower()


def constants(code):
    """The methods that get a constant in the creation of an object."""
    code = re.sub(r"//[^\n]*", "", code)
    return {name for part in CODE.findall(code) for name in CONSTANT.findall(part)}


def lacking(code, form):
    words = {squeezed(word) for word in re.findall(r"[A-Za-z0-9]+", form)}
    return sorted(name for name in constants(code) if squeezed(name) not in words)


def main():
    forms = (AWS / "declare/forms.rs").read_text()
    forms, shared = forms.split(END, 1)
    found = {}
    for path in sorted((AWS / "kinds").rglob("*.rs")):
        code = path.read_text()
        # The rows of some services are beside their kinds.
        rows = code if KIND.search(code) else (path.parent / "mod.rs").read_text()
        kinds = KIND.findall(rows)
        of_kinds = [form for form in forms.split('kind: "') if form.split('"')[0] in kinds]
        for name in lacking(code, "".join(of_kinds) + shared):
            found.setdefault((path.relative_to(AWS).as_posix(), name), kinds)
    made_up = "    async fn create() {\n        call.made_up(false).send()\n    }\n"
    assert lacking(made_up, "") == ["made_up"], "the check finds nothing"
    new = {place: kinds for place, kinds in found.items() if place not in LEFT}
    for (path, name), kinds in sorted(new.items()):
        of = ", ".join(kinds) or "a kind"
        print(f"providers/aws/src/{path}: `{name}` is in no form of {of}: declare it, or add it to LEFT")
    for path, name in sorted(set(LEFT) - set(found)):
        print(f"tests/structure/exports.py: LEFT has `{name}` of {path}, which is declared")
        new[path, name] = []
    print(f"{len(new)} constants of creations are not exported")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
