"""The import graph, read from the sources: ``python -m tests.imports`` writes it into CONTRIBUTING.md.

An import counts wherever it stands, also inside a function, under ``TYPE_CHECKING``, or as a string that names a module
(``"dti_pipeline.events.ingest:ingest"``): what is imported late is needed all the same.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dti_pipeline", "experiments", "benchmarks", "tests")
#: Modules that a package has for others to read: its section of the configuration, the type of its report.
CONTRACTS = {"settings": "config", "report": "reports"}
DOCUMENT = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- made by `python -m tests.imports` -->\n", "<!-- end of imports -->\n"
Graph = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name; a package's name stands for its ``__init__.py``."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def graph(root: Path = ROOT) -> Graph:
    """Each module with the modules of this repository that it imports.

    ``from package import name`` counts as the submodule of that name where there is one, else as the package itself.
    """
    known = modules(root)
    found: Graph = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        named = _named(ast.parse(path.read_text(encoding="utf-8")), package)
        found[name] = {module for dotted in named if (module := _module(dotted, known)) and module != name}
    return found


def _named(tree: ast.Module, package: str) -> set[str]:
    """The dotted names that a module imports, or names in a string as ``module`` or ``module:attribute``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(\w+(?:\.\w+)+)(?::\w+)?$", node.value))
    return found


def _module(dotted: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name leads to; None outside this repository."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def circles(imports: Graph) -> list[list[str]]:
    """Groups of modules that all reach one another, each sorted; empty where no import leads back."""
    reach = {name: _reach(name, imports) for name in imports}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in imports}
    return [list(group) for group in sorted(groups) if group]


def _reach(start: str, imports: Graph) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


def room(module: str) -> str:
    """Where a module belongs: a package of dti_pipeline, a module at its top, or another package of this repository."""
    top, *rest = module.split(".")
    if top != "dti_pipeline" or not rest:
        return top
    if rest == ["definitions"]:
        return "defs"  # Dagster's entry point, beside its package since Dagster looks for it there
    if rest[-1] in CONTRACTS:
        return CONTRACTS[rest[-1]]
    return "/".join(rest[:2] if rest[0] == "modeling" else rest[:1])


def rooms(imports: Graph) -> Graph:
    """Each room with the rooms that its modules import; without the tests and the packages' own ``__init__.py``."""
    found: Graph = defaultdict(set)
    for name, others in imports.items():
        found[room(name)] |= {room(other) for other in others} - {room(name)}
    outside = {"tests", "dti_pipeline", "modeling"}
    return {name: others - outside for name, others in found.items() if name not in outside}


def table(imported: Graph) -> str:
    """A Markdown table of the rooms, the highest first, with what each imports. There must be no circle."""
    assert not circles(imported), circles(imported)

    def height(name: str) -> int:
        return 1 + max(map(height, imported[name]), default=0)

    order = sorted(imported, key=lambda name: (-height(name), name))
    lines = [f"| `{name}` | {', '.join(sorted(imported[name], key=order.index))} |" for name in order]
    return "\n".join(["| | imports |", "|---|---|", *lines, ""])


def rewritten(document: str) -> str:
    """The document with the table of today between its two markers."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}{table(rooms(graph()))}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
