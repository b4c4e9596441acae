"""MkDocs hooks: long documents as one page a heading, generated reference pages, and links that hold on the site.

The documents in docs/ are written to be read in the repository too; what differs on the site is made here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

from dti_pipeline import cli, explain
from dti_pipeline.config import Config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Documents that become a page a heading, and files of the repository's root that become pages.
CUT = ("results.md", "llm.md", "benchmark.md")
ROOT_FILES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
PAGES_OF_ROOT = ROOT_FILES | {"README.md": "index.md"}
LINK = re.compile(r"\]\((?!\w+://|#|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
slug = slugify(case="lower")


@cache
def parts(document: str) -> dict[str, tuple[str, str]]:
    """The pages that a document is cut into: address to title and text."""
    found = {}
    for section in _sections((DOCS / document).read_text(encoding="utf-8"))[1:]:
        title, _, text = section.partition("\n")
        found[f"{Path(document).stem}/{slug(title, '-')}.md"] = title, f"# {title}\n{_raised(text)}"
    return found


def _sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.MULTILINE)


def _raised(text: str) -> str:
    return re.sub(r"^##(#+ )", r"#\1", text, flags=re.MULTILINE)


@cache
def home_of(document: str) -> dict[str, str]:
    """The page that has each anchor of a cut document."""
    anchors = {}
    for page, (_, text) in parts(document).items():
        for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE):
            anchors[f"#{slug(re.sub(r'[`*]', '', heading), '-')}"] = page
    return anchors


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of cut documents, and the how-to pages, into the navigation."""
    config.nav = [_entry(one) for one in config.nav or []]
    return config


def _entry(entry: Any) -> Any:
    if isinstance(entry, dict):
        ((title, inside),) = entry.items()
        if inside in CUT:
            return {title: [inside, *({name: page} for page, (name, _) in parts(inside).items())]}
        if title == "How to":
            return {title: [*inside, *(f"howto/{path.name}" for path in howtos())]}
        return {title: [_entry(one) for one in inside] if isinstance(inside, list) else inside}
    return entry


def howtos() -> list[Path]:
    """The how-to pages in the order of their index."""
    names = re.findall(r"\]\(howto/([\w-]+\.md)", (DOCS / "operations.md").read_text(encoding="utf-8"))
    return [DOCS / "howto" / name for name in dict.fromkeys(names)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file holds."""
    made = {page: text for document in CUT for page, (_, text) in parts(document).items()}
    made |= {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_FILES.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Cut documents keep their opening and a list of their pages; links lead to pages of the site, or are words."""
    here = page.file.src_uri
    origin = next((document for document in CUT if here in parts(document)), here)
    origin = next((f"../{name}" for name, made in ROOT_FILES.items() if made == here), origin)
    if here in CUT:
        listed = "\n".join(f"- [{title}]({part})" for part, (title, _) in parts(here).items())
        markdown = f"{_sections(markdown)[0]}\n\n{listed}\n"

    def target(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)) if path else origin
        if whole.startswith("../"):
            inside = whole.removeprefix("../")
            if inside.startswith("docs/"):
                whole = inside.removeprefix("docs/")
            elif inside in PAGES_OF_ROOT:
                whole = PAGES_OF_ROOT[inside]
            else:
                return f"](# '{inside}')"
        if whole in CUT and anchor:
            whole = home_of(whole).get(anchor, whole)
        return f"]({posixpath.relpath(whole, posixpath.dirname(here) or '.')}{anchor})"

    own = re.compile(r"\]\((#[^)\s]*)\)")
    if origin in CUT and here != origin:
        markdown = own.sub(lambda match: f"]({origin}{match[1]})", markdown)
    markdown += GENERATED.get(here, str)()
    return _words(LINK.sub(target, markdown))


def _words(markdown: str) -> str:
    """Links to files that are no pages, as the words and the file's name."""

    def written(match: re.Match[str]) -> str:
        words, path = match[1], match[2]
        return words if path in words or path.rstrip("/") in words else f"{words} (`{path}`)"

    return re.sub(r"\[([^\]]*)\]\(# '([^']*)'\)", written, markdown)


def parameters() -> str:
    """Every key of params.yaml with its type, default and meaning, as ``dti config --explain`` has them."""
    lines = [""]
    for entry in explain.explained(Config(), ""):
        if not entry.type:
            lines += [
                "",
                f"## {entry.key}",
                "",
                entry.documentation,
                "",
                "| key | type | default | meaning |",
                "|---|---|---|---|",
            ]
        elif "." not in entry.key:
            lines += [f"`{entry.key}`: {entry.documentation}; default `{entry.default}`.", ""]
        else:
            cells = f"`{entry.key}`", entry.type, f"`{entry.default}`", entry.documentation
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its options, as ``--help`` has them."""
    lines = [""]
    group: Any = typer.main.get_command(cli.app)
    for name, command in sorted(group.commands.items()):
        lines += [f"## dti {name}", "", command.help or "", "", "| | |", "|---|---|", *_options(command), ""]
    return "\n".join(lines)


def _options(command: Any) -> Iterator[str]:
    for one in command.params:
        names = ", ".join(one.opts) if one.param_type_name == "option" else one.name.upper()
        yield f"| `{names}` | {(getattr(one, 'help', None) or '').replace('|', chr(92) + '|')} |"


#: Pages whose end is made here.
GENERATED = {"reference/parameters.md": parameters, "reference/commands.md": commands}
