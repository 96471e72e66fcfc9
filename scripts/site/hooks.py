"""What the site has beside docs/: pages from elsewhere in the tree, files that pages link to, a page of the API's routes.

Links are written for a forge, from file to file. One that crosses the edge of docs/ is turned here into one within the site; one that
leads nowhere is left alone, and mkdocs warns of it. After the build, pages that would fetch anything from elsewhere fail it.
"""

import json
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

# Pages outside docs/, and where they stand in the site.
PAGES = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changes.md",
    "SECURITY.md": "project/security.md",
    "deploy/README.md": "project/deploy.md",
    "seccomp/README.md": "project/seccomp.md",
}
ROUTES = "reference/api.md"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^\s*(```|~~~)")


def on_files(files, config):
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "site.css", abs_src_path=str(ROOT / "scripts/site/site.css")))
    files.append(File.generated(config, ROUTES, content=routes(ROOT / "docs/openapi.json")))
    return files


def on_page_markdown(markdown, page, config, files):
    place = page.file.src_uri
    source = next((path for path, other in PAGES.items() if other == place), f"docs/{place}")

    def link(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if ":" in match[2] or target.startswith(("..", "/")) or (source.startswith("docs/") and target.startswith("docs/")):
            return match[0]
        if (ROOT / target).is_dir():
            target = f"{target}/README.md"
        if not (ROOT / target).is_file():
            return match[0]
        if target.startswith("docs/"):
            there = target.removeprefix("docs/")
        elif target in PAGES:
            there = PAGES[target]
        else:
            there = f"files/{target}"
            if files.get_file_from_path(there) is None:
                files.append(File.generated(config, there, abs_src_path=str(ROOT / target)))
        return f"{match[1]}{posixpath.relpath(there, posixpath.dirname(place))}{match[3] or ''}{match[4]}"

    lines, fenced = [], False
    for line in markdown.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else LINK.sub(link, line))
    return "\n".join(lines)


def routes(path):
    """The page of docs/openapi.json: each operation with what it takes and what it answers."""
    api = json.loads(path.read_text())
    out = [
        "# Routes of the API",
        "Made from [openapi.json](../openapi.json), which has the schemas, too, and from which any generator makes a client"
        " ([how](../start-developer.md#a-client-from-the-description)). [The API](../api.md) explains it;"
        " a server shows the same at `/docs`. Every key and every problem is [explained](../errors.md).",
    ]
    for tag in api["tags"]:
        out += [f"## {tag['name'].capitalize()}", tag.get("description", "") + "."]
        for address, item in api["paths"].items():
            for verb, operation in item.items():
                if verb in ("get", "put", "post", "delete", "head") and tag["name"] in operation.get("tags", []):
                    out += describe(api, verb.upper(), address, operation)
    return "\n\n".join(out) + "\n"


def describe(api, verb, address, operation):
    out = [f"### `{verb} {address}`", sentence(operation["summary"])]
    if operation.get("description"):
        out.append(operation["description"])
    rows = []
    for parameter in operation.get("parameters", []):
        parameter = resolved(api, parameter)
        needed = " (required)" if parameter.get("required") and parameter["in"] != "path" else ""
        rows.append((f"`{parameter['name']}`", f"{parameter['in']}{needed}", parameter.get("description", "")))
    if "requestBody" in operation:
        body = resolved(api, operation["requestBody"])
        types = ", ".join(f"`{kind}`" for kind in body.get("content", {}))
        rows.append(("body", types, body.get("description", "")))
    if rows:
        out.append(table(("takes", "where", ""), rows))
    rows = [
        (f"`{status}`", schemas(answer), answer.get("description", ""))
        for status, answer in sorted((s, resolved(api, a)) for s, a in operation["responses"].items())
    ]
    out.append(table(("answers", "with", ""), rows))
    return out


def schemas(answer):
    """The types of an answer, each with its schema's name where it has one."""
    words = []
    for kind, content in answer.get("content", {}).items():
        if kind == "application/problem+json":
            continue
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        words.append(f"`{kind}`" + (f" {name}" if name else ""))
    return ", ".join(words)


def resolved(api, item):
    while "$ref" in item:
        found = api
        for part in item["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        item = found
    return item


def sentence(text):
    return text if text.endswith(".") else text + "."


def table(head, rows):
    def cell(text):
        return " ".join(text.split()).replace("|", "\\|")

    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])


class Fetched(HTMLParser):
    """What a browser would get from elsewhere to show a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        address = attrs.get("href") if tag == "link" else attrs.get("src")
        if address and address.startswith(("http:", "https:", "//")) and attrs.get("rel") != "canonical":
            self.found.append(address)


def on_post_build(config):
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text())
        if parser.found:
            raise PluginError(f"{page.relative_to(site)} would fetch {', '.join(parser.found)}")
    for sheet in site.rglob("*.css"):
        if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()):
            raise PluginError(f"{sheet.relative_to(site)} would fetch something from elsewhere")
