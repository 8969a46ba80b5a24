#!/usr/bin/env python3
"""Checks links, offline. Prints each broken link; exit code 1 if there is one.

In all Markdown files of the repository: relative links and their anchors, and paths in backquotes that begin with `crates/`,
`docs/` or `scripts/`. In all files: the names of chapters, `docs/NAME.md`. Every chapter must be in docs/SUMMARY.md, and a
chapter must link to nothing outside of docs/. With a directory as argument, the directory of the built book: each link and
anchor of its pages, and that no page loads anything from the network.
"""
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
found = []


def wrong(where, what):
    found.append(f"{where.relative_to(ROOT)}: {what}")


def prose(text):
    """Returns the text without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def anchors(path):
    """Returns the anchors that GitHub and mdBook give to headings."""
    seen = {}
    for heading in re.findall(r"^#+ +(.*?) *$", prose(path.read_text()), flags=re.M):
        plain = re.sub(r"\]\([^)]*\)", "]", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        yield slug if count == 0 else f"{slug}-{count}"


def markdown(path):
    text = prose(path.read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        named = re.fullmatch(r"((?:crates|docs|scripts)/[\w./-]+)", code)
        if named and not (ROOT / named[1].rstrip("/")).exists():
            wrong(path, f"there is no {named[1]}")
    is_chapter = path.is_relative_to(ROOT / "docs")
    for target in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / unquote(name)).resolve() if name else path
        if not file.exists():
            wrong(path, f"{target} leads nowhere")
        elif is_chapter and not file.is_relative_to(ROOT / "docs"):
            wrong(path, f"{target} is outside of the book")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            wrong(path, f"{target}: there is no such heading")


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.path, self.ids, self.links = path, set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                if re.match(r"[a-z]+:|//", value):
                    if tag != "a" and not value.startswith("data:"):
                        wrong(self.path, f"loads {value}")
                else:
                    self.links.append(value)


def book(folder):
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        # The error page is served for any address, so its links are relative to the root.
        for link in [] if path.name == "404.html" else page.links:
            name, _, anchor = link.partition("#")
            file = (path.parent / unquote(name)).resolve() if name else path
            if not file.exists():
                wrong(path, f"{link} leads nowhere")
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids:
                wrong(path, f"{link}: there is no such anchor")
    for style in folder.rglob("*.css"):
        for url in re.findall(r"(?:@import|url\()\s*[\"']?(https?:[^\"')]*)", style.read_text()):
            wrong(style, f"loads {url}")
    print(f"{len(pages)} pages of the book: links checked")


def main():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    texts = [path for path in files if path.suffix == ".md"]
    for path in texts:
        markdown(path)
    for path in files:
        if path.suffix in (".rs", ".md", ".sh", ".toml", ".txt"):
            for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|txt|svg)\b", path.read_text()):
                if not (ROOT / name).exists():
                    wrong(path, f"there is no {name}")
    summary = ROOT / "docs" / "SUMMARY.md"
    chapters = {(summary.parent / name).resolve() for name in re.findall(r"\]\(([^)]+\.md)\)", summary.read_text())}
    for path in texts:
        if path.is_relative_to(summary.parent) and path != summary and path not in chapters:
            wrong(path, "is not in docs/SUMMARY.md")
    print(f"{len(texts)} Markdown files: links checked")
    if sys.argv[1:]:
        book((ROOT / sys.argv[1]).resolve())
    if found:
        sys.exit("\n".join(found))


main()
