"""The files of a home, written where there are none, and git and DVC begun in it: ``dti init``."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.homes.propose import Setting
from dti_pipeline.plain import flow

#: Sections behind those of the log and its recipe.
REST: Mapping[str, tuple[Any, str]] = {
    "evaluation.split": ("test", ""),
    "comparison.margin": (0.01, "AUC that a paradigm may lose against sliding_window and still be promoted."),
    "backtest.paradigms": ([], "Those that `dvc repro backtest` and Dagster train a model a day for."),
}
HEAD = """\
# Proposed by `dti init` for this log, with its reasons: yours to change. `dti config --explain KEY` explains a key; a
# key left out has its default; any key can be set for one command with `--set section.key=value`.
"""
WIDTH = 110
GIT, DVC = f"  {'git':<30} ", f"  {'DVC':<30} "
#: Sections of params.yaml in their order.
ORDER = (
    "paradigms", "events", "split", "validation", "tokens", "packing", "model", "training", "evaluation", "comparison",
    "backtest", "tracking",
)  # fmt: skip


def params(settings: Sequence[Setting], experiment: str) -> str:
    """A params.yaml with the settings, each reason as a comment above its key."""
    rest = [Setting(key, value, why) for key, (value, why) in REST.items()]
    every = [*settings, *rest, Setting("tracking.experiment", experiment)]
    every.sort(key=lambda one: ORDER.index(one.key.partition(".")[0]))
    lines = [HEAD.rstrip("\n")]
    open_parents: tuple[str, ...] = ()
    for one in every:
        *above, leaf = one.key.split(".")
        parents = tuple(above)
        pairs = zip(parents, open_parents, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not shared:
            lines.append("")
        lines += [f"{'  ' * depth}{parents[depth]}:" for depth in range(shared, len(parents))]
        open_parents, indent = parents, "  " * len(parents)
        lines += [f"{indent}# {line}" for line in textwrap.wrap(one.why, WIDTH - len(indent))]
        lines.append(f"{indent}{leaf}: {flow(one.value)}")
    return "\n".join(lines) + "\n"


def files(name: str, params_yaml: str, dvc_yaml: str) -> dict[str, str]:
    """The text of each file of a home, by its path in it."""
    return {
        "params.yaml": params_yaml,
        "dvc.yaml": dvc_yaml,
        "dagster.yaml": text("dagster.yaml"),
        "dg.toml": text("dg.toml"),
        "orchestration/definitions.py": text("definitions.txt"),
        "orchestration/defs/__init__.py": "",  # a folder that `dg dev` looks for
        ".gitignore": text("gitignore"),
        "README.md": text("README.md").replace("{name}", name),
    }


def text(name: str) -> str:
    """One of the files that the package has for homes."""
    return resources.files("dti_pipeline.homes").joinpath("files", name).read_text(encoding="utf-8")


def write(home: Path, texts: Mapping[str, str]) -> Iterator[str]:
    """Write each file that is not there; yields a line for each."""
    home.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        if (home / name).exists():
            yield f"  {name:<30} stays as it is"
        else:
            artifacts.write_text(home / name, content)
            yield f"  {name:<30} written"


def begin_records(home: Path) -> Iterator[str]:
    """Begin git and DVC in a home, where the programs are there and it has none yet; yields a line for each."""
    git, dvc = shutil.which("git"), program("dvc")
    top = _output(git, "rev-parse", "--show-toplevel", cwd=home) if git else None
    if git is None:
        yield f"{GIT}is not here: versions of params.yaml are not kept"
    elif top is None:
        yield f"{GIT}{_begun(home, git, 'init', '--quiet')}"
        top = str(home)
    else:
        yield f"{GIT}is there: {top}"
    if dvc is None:
        yield f"{DVC}is not here: install it in an environment of its own, then `dti init` again"
    elif (home / ".dvc" / "config").exists():
        yield f"{DVC}is there"
    else:
        options = ["--no-scm"] if top is None else [] if Path(top) == home.resolve() else ["--subdir"]
        artifacts.write_text(home / ".dvcignore", text("dvcignore"))
        done = _begun(home, dvc, "init", "--quiet", *options)
        if done == "begun":
            keep = "[core]\n    analytics = false\n    check_update = false\n" + (
                "    no_scm = true\n" if top is None else ""
            )
            artifacts.write_text(home / ".dvc" / "config", keep)
            artifacts.write_text(home / ".dvc" / "plots" / "by_paradigm.json", text("plots/by_paradigm.json"))
        yield f"{DVC}{done}"


def program(name: str) -> str | None:
    """A program beside this Python, or on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _begun(home: Path, *command: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    return "begun" if not done.returncode else f"could not be begun: {(done.stderr or done.stdout).strip()[-300:]}"


def _output(*command: str, cwd: Path) -> str | None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()
