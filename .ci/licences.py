"""Holds the dependencies against deny.toml: licences, banned crates, sources.

Does the part of cargo-deny that this project relies on, for machines that don't have it.
"""

import json
import re
import subprocess
import sys
import tomllib

COMMAND = ["cargo", "metadata", "--format-version", "1", "--locked",
           "--filter-platform", "x86_64-unknown-linux-gnu"]


def satisfied(expression, allowed):
    """Whether an SPDX expression can be met by licences of `allowed`."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            # An exception only adds rights.
            del tokens[:2]
        return token in allowed

    return either() and not tokens


def faults(metadata, rules):
    allowed = set(rules["licenses"]["allow"])
    banned = {entry["crate"] for entry in rules["bans"]["deny"]}
    ours = set(metadata["workspace_members"])
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            yield f"{name}: banned by deny.toml"
        licence = package["license"]
        if not licence or not satisfied(licence, allowed):
            yield f"{name}: licence {licence!r} is not among those that deny.toml allows"
        source = package["source"] or ""
        if package["id"] not in ours and not source.startswith("registry+"):
            yield f"{name}: comes from {source or 'a path'}, not from a registry"
        for dependency in package["dependencies"] if package["id"] in ours else []:
            if dependency["req"] == "*":
                yield f"{dependency['name']}: no version is asked for"


def main():
    with open("deny.toml", "rb") as file:
        rules = tomllib.load(file)
    output = subprocess.run(COMMAND, check=True, capture_output=True).stdout
    metadata = json.loads(output)
    found = list(faults(metadata, rules))
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{len(metadata['packages'])} packages: licences, bans and sources are in order")


assert satisfied("(MIT OR GPL-3.0) AND ISC", {"MIT", "ISC"})
assert not satisfied("MIT AND GPL-3.0", {"MIT"})
assert satisfied("Apache-2.0 WITH LLVM-exception OR GPL-2.0", {"Apache-2.0"})
main()
