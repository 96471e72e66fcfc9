#!/usr/bin/env python3
"""What is in the program: a CycloneDX document, and the licences of others that its binary is given away under.

    scripts/sbom.py [--fetch] DIR        writes DIR/jobcell.cdx.json and DIR/THIRD-PARTY

Asks cargo (offline, with Cargo.lock as it stands) and reads the sources that it has fetched; --fetch has it fetch them first. What is listed is what the
program has on the platform that this runs on. Needs Python's own library alone. The same lock file,
toolchain and SOURCE_DATE_EPOCH give the same bytes; without that variable the time is that of the last commit, or none.
"""

import json
import os
import re
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LICENCE_FILES = re.compile(r"(?i)^(un)?licen[cs]e|^copying|^notice|^copyright")
# C libraries that are compiled into the binary: crate, file that says the version, how it says it, name, purl, licence (none: that of the
# crate, which states both).
BUNDLED = [
    ("libsqlite3-sys", "sqlite3/sqlite3.h", r'#define SQLITE_VERSION\s+"([^"]+)"', "sqlite", "pkg:generic/sqlite@{}", "blessing"),
    ("zstd-sys", "zstd/lib/zstd.h", r"#define ZSTD_VERSION_(?:MAJOR|MINOR|RELEASE)\s+(\d+)", "zstd", "pkg:github/facebook/zstd@v{}", "BSD-3-Clause OR GPL-2.0-only"),
    ("aws-lc-sys", "aws-lc/include/openssl/base.h", r'#define AWSLC_VERSION_NUMBER_STRING "([^"]+)"', "aws-lc", "pkg:github/aws/aws-lc@v{}", None),
]
# For packages that name a licence and bring no text of it.
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH
THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def platform():
    return re.search(r"^host: (\S+)$", run("rustc", "-vV"), re.MULTILINE)[1]


def tree(edges, target):
    """Names and versions that are reached over these edges, with the features that the binary is built with."""
    order = ["cargo", "tree", "--locked", "--offline", "--target", target, "--edges", edges, "--prefix", "none", "--format", "{p}"]
    return {tuple(line.split(" ")[:2]) for line in run(*order).splitlines() if line}


def when():
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        try:
            epoch = run("git", "log", "-1", "--format=%ct").strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    return datetime.fromtimestamp(int(epoch), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def expression(licence):
    # Until 2019 a slash was the word for "or".
    return re.sub(r"\s*/\s*", " OR ", licence or "NOASSERTION")


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version'].replace('+', '%2B')}"


def component(package, checksums, linked):
    at = (package["name"], package["version"])
    found = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        # What only makes the binary, as build scripts and procedural macros do, is not in it.
        "scope": "required" if at in linked else "excluded",
        "licenses": [{"expression": expression(package["license"])}],
        "purl": purl(package),
    }
    if at in checksums:
        found["hashes"] = [{"alg": "SHA-256", "content": checksums[at]}]
    if package.get("description"):
        found["description"] = " ".join(package["description"].split())
    if (package.get("repository") or "").startswith("http"):
        found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return found


def bundled(packages):
    """The C libraries, each with the crate that brings it."""
    for crate, file, pattern, name, address, licence in BUNDLED:
        for package in packages:
            if package["name"] != crate:
                continue
            said = re.findall(pattern, (Path(package["manifest_path"]).parent / file).read_text(errors="replace"))
            if not said:
                sys.exit(f"sbom.py: {crate}/{file} does not say its version any more; mend BUNDLED")
            version = ".".join(said)
            address = address.format(version)
            yield purl(package), {
                "type": "library", "bom-ref": address, "name": name, "version": version, "scope": "required",
                "licenses": [{"expression": expression(licence or package["license"])}],
                "purl": address,
            }


def document(root, packages, linked, checksums, edges):
    components = [component(package, checksums, linked) for package in packages]
    for brought_by, part in bundled(packages):
        components.append(part)
        edges[brought_by] = sorted([*edges.get(brought_by, []), part["bom-ref"]])
        edges[part["bom-ref"]] = []
    rustc = run("rustc", "--version").split()[1]
    std = f"pkg:generic/rust-std@{rustc}"
    components.append({"type": "library", "bom-ref": std, "name": "rust-std", "version": rustc, "scope": "required",
                       "licenses": [{"expression": "MIT OR Apache-2.0"}], "purl": std})
    edges[purl(root)] = sorted([*edges[purl(root)], std])
    edges[std] = []
    components.sort(key=lambda one: one["bom-ref"])
    main = {key: value for key, value in component(root, {}, linked).items() if key != "scope"} | {"type": "application"}
    time = when()
    content = {
        "metadata": ({"timestamp": time} if time else {}) | {
            "tools": {"components": [{"type": "application", "name": "scripts/sbom.py", "version": root["version"]}]},
            "component": main,
        },
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": edges[ref]} for ref in sorted(edges)],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.5",
            "serialNumber": f"urn:uuid:{number}", "version": 1} | content


def texts(package):
    """The licence files of a package's source, and of the C library in it."""
    folder = Path(package["manifest_path"]).parent
    inner = [folder / Path(file).parts[0] for crate, file, *_ in BUNDLED if crate == package["name"]]
    for place in [folder, *inner]:
        for file in sorted(place.iterdir()):
            if file.is_file() and LICENCE_FILES.match(file.name) and file.suffix in ("", ".md", ".txt", ".MIT", ".APACHE"):
                text = "\n".join(line.rstrip() for line in file.read_text(errors="replace").strip().splitlines())
                if text:
                    yield text


def attributions(packages, linked):
    """One section for each text, with all packages that it is the licence of."""
    owners = {}
    without = []
    inside = [package for package in packages if (package["name"], package["version"]) in linked]
    for package in inside:
        found = list(dict.fromkeys(texts(package)))
        if not found:
            without.append(package)
        for text in found:
            # Texts that differ in their line breaks alone are one.
            owners.setdefault(" ".join(text.split()), (text, []))[1].append(f"{package['name']} {package['version']}")
    lines = ["Licences of what is linked into the jobcell binary besides jobcell itself, which is under Apache-2.0.", "",
             "Package, version and licence, as each package states it; the texts follow. The Rust standard library (MIT OR Apache-2.0,",
             "https://www.rust-lang.org) and the SQLite library (public domain, https://sqlite.org) are linked in as well.", ""]
    lines += [f"  {package['name']} {package['version']}: {expression(package['license'])}" for package in inside]
    for text, names in sorted(owners.values(), key=lambda item: item[1]):
        lines += ["", "=" * 80, "", *names, "", text]
    if without:
        lines += ["", "=" * 80, "", "These state a licence and bring no text of it; where the licence offers a choice, MIT is taken, else Apache-2.0:", ""]
        for package in without:
            authors = ", ".join(package["authors"]) or f"the authors of {package['name']}"
            lines.append(f"  {package['name']} {package['version']}: {expression(package['license'])}; Copyright (c) {authors}; {package['repository'] or ''}".rstrip("; "))
        lines += ["", "MIT:", "", MIT, "", "Apache-2.0:", "", (ROOT / "LICENSE").read_text().strip()]
    return "\n".join(lines) + "\n"


def main():
    match sys.argv[1:]:
        case ["--fetch", place]:
            run("cargo", "fetch", "--locked", "--target", platform())
        case [place] if not place.startswith("-"):
            pass
        case _:
            sys.exit("usage: scripts/sbom.py [--fetch] DIR")
    out, target = Path(place), platform()
    meta = json.loads(run("cargo", "metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", target))
    used = {(name, version.removeprefix("v")) for name, version in tree("no-dev", target)}
    linked = {(name, version.removeprefix("v")) for name, version in tree("normal,no-proc-macro", target)}
    by_id = {package["id"]: package for package in meta["packages"]}
    root = by_id[meta["resolve"]["root"]]
    packages = [package for package in meta["packages"] if (package["name"], package["version"]) in used and package is not root]
    packages.sort(key=lambda package: (package["name"], package["version"]))
    locked = re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"', (ROOT / "Cargo.lock").read_text())
    checksums = {(name, version): checksum for name, version, checksum in locked}
    chosen = {package["id"] for package in packages} | {root["id"]}
    edges = {}
    for node in meta["resolve"]["nodes"]:
        if node["id"] in chosen:
            needs = {dep["pkg"] for dep in node["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])}
            edges[purl(by_id[node["id"]])] = sorted({purl(by_id[need]) for need in needs & chosen})
    out.mkdir(parents=True, exist_ok=True)
    bom = document(root, packages, linked, checksums, edges)
    (out / "jobcell.cdx.json").write_text(json.dumps(bom, indent=1, ensure_ascii=False) + "\n")
    (out / "THIRD-PARTY").write_text(attributions(packages, linked))


main()
