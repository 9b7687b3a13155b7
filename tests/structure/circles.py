#!/usr/bin/env python3
"""Counts the files of product code that import each other in a circle, and holds the counts against `circles`: a crate must not get
more. `circles.py` checks; `circles.py CRATE` prints the circles of a crate's folder, such as `bundles`.

An import is a `use`, or a path that begins with `crate`, `self` or `super`, outside of tests. It counts for the file that defines what is
imported, whatever re-exports it. That a module declares and re-exports its own children is no import.
"""

import collections
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("circles")
USE = re.compile(r"^\s*(pub(?:\([a-z: ]+\))?\s+)?use\s+([^;]+);", re.M)
PATH = re.compile(r"\b((?:crate|super|self)(?:::\w+)+)")
ITEM = r"\b(?:struct|enum|trait|type|fn|const|static|mod|macro_rules!)\s+{}\b"


def product(text):
    """The text without line comments and without its test module, which is the last item of a file."""
    text = re.sub(r"//[^\n]*", "", text)
    tests = re.search(r"#\[cfg\(test\)\]\s*(?:pub(?:\(crate\))?\s+)?mod\s+\w+\s*\{", text)
    return text[: tests.start()] if tests else text


def leaves(tree, prefix=()):
    """The paths of a `use` tree with the names that they get: `a::{b, c as d}` is (a, b) as b, and (a, c) as d."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, name = tree.partition(" as ")
        parts = prefix + tuple(part.strip() for part in path.split("::") if part.strip())
        parts = parts[:-1] if parts and parts[-1] == "self" else parts
        if parts:
            yield parts, name.strip() or parts[-1]
        return
    head = prefix + tuple(part.strip() for part in tree[:brace].split("::") if part.strip())
    depth, start, body = 0, 0, tree[brace + 1 : tree.rfind("}")] + ","
    for at, c in enumerate(body):
        depth += (c == "{") - (c == "}")
        if c == "," and depth == 0:
            if body[start:at].strip():
                yield from leaves(body[start:at], head)
            start = at + 1


class Crate:
    """The modules of a crate, as tuples of names, and their imports."""

    def __init__(self, source, root):
        self.texts = {}
        for file in source.rglob("*.rs"):
            parts = file.relative_to(source).with_suffix("").parts
            if file == root:
                parts = ()
            elif parts[-1] == "mod":
                parts = parts[:-1]
            elif parts in (("main",), ("lib",)):
                continue
            self.texts[parts] = product(file.read_text())
        self.names, self.globs = collections.defaultdict(dict), collections.defaultdict(list)
        imports = {module: list(self.imports(module)) for module in self.texts}
        for module, found in imports.items():
            for _, path, name in found:
                if name == "*":
                    self.globs[module].append(path[:-1])
                elif name:
                    self.names[module][name] = path
        self.edges = collections.defaultdict(set)
        for module, found in imports.items():
            for public, path, _ in found:
                target = self.definition(path)
                child = public and target is not None and target[: len(module)] == module
                if target is not None and target != module and not child:
                    self.edges[module].add(target)

    def imports(self, module):
        text = self.texts[module]
        for found in USE.finditer(text):
            for path, name in leaves(found[2]):
                path = self.absolute(module, path)
                if path is not None:
                    yield bool(found[1]), path, name
        for found in PATH.finditer(USE.sub("", text)):
            path = self.absolute(module, tuple(found[1].split("::")))
            if path is not None:
                yield False, path, None

    def absolute(self, module, path):
        """The path from the root of the crate, or None for another crate."""
        if path[0] == "crate":
            return path[1:]
        if path[0] not in ("self", "super"):
            return module + path if module + path[:1] in self.texts else None
        while path and path[0] in ("self", "super"):
            module, path = (module[:-1] if path[0] == "super" else module), path[1:]
        return module + path

    def definition(self, path, seen=()):
        """The module that defines what a path names."""
        length = next((length for length in range(len(path), -1, -1) if path[:length] in self.texts), None)
        if length is None:
            return None
        module, rest = path[:length], path[length:]
        if not rest or rest[0] == "*":
            return module
        if rest[0] in self.names[module] and (module, rest[0]) not in seen:
            return self.definition(self.names[module][rest[0]] + rest[1:], seen + ((module, rest[0]),))
        item = ITEM.format(re.escape(rest[0]))
        if not re.search(item, self.texts[module]):
            for other in self.globs[module]:
                if other in self.texts and re.search(item, self.texts[other]):
                    return other
        return module

    def circles(self):
        """Sets of more than one module, each of which reaches all others of its set: Tarjan's algorithm."""
        index, low, stack, found = {}, {}, [], []

        def visit(module):
            index[module] = low[module] = len(index)
            stack.append(module)
            for other in self.edges.get(module, ()):
                if other not in index:
                    visit(other)
                    low[module] = min(low[module], low[other])
                elif other in stack:
                    low[module] = min(low[module], index[other])
            if low[module] == index[module]:
                at = stack.index(module)
                found.append(set(stack[at:]))
                del stack[at:]

        for module in self.texts:
            if module not in index:
                visit(module)
        return [circle for circle in found if len(circle) > 1]


def crates():
    """(folder, Crate) of each package outside of `tests`."""
    for manifest in sorted(ROOT.rglob("Cargo.toml")):
        folder = manifest.parent.relative_to(ROOT)
        source = manifest.parent / "src"
        root = next((source / name for name in ("lib.rs", "main.rs") if (source / name).exists()), None)
        if root and folder.parts[:1] != ("tests",) and "target" not in folder.parts:
            yield str(folder), Crate(source, root)


def main():
    if len(sys.argv) > 1:
        for folder, crate in crates():
            if folder == sys.argv[1].rstrip("/"):
                for circle in crate.circles():
                    for module in sorted(circle):
                        others = ", ".join("::".join(other) or "crate" for other in sorted(crate.edges[module] & circle))
                        print(f"{'::'.join(module) or 'crate'} imports {others}")
                    print()
        return 0
    recorded = dict(line.split() for line in RECORD.read_text().splitlines() if line and not line.startswith("#"))
    found = {folder: sum(map(len, crate.circles())) for folder, crate in crates()}
    found = {folder: count for folder, count in found.items() if count}
    status = 0
    for folder in sorted({*recorded, *found}):
        before, now = int(recorded.get(folder, 0)), found.get(folder, 0)
        if now > before:
            status = 1
            print(f"{folder}: {now} files import each other in circles, {before} are recorded. `{Path(__file__).relative_to(ROOT)} {folder}` "
                  "prints them; move what both files need into a third", file=sys.stderr)
        elif now < before:
            status = 1
            print(f"{folder}: {now} files import each other in circles, {before} are recorded: write {now} into {RECORD.relative_to(ROOT)}",
                  file=sys.stderr)
    print(f"{sum(found.values())} files import each other in circles")
    return status


if __name__ == "__main__":
    sys.exit(main())
