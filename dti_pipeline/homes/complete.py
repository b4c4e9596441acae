"""The keys that DVC wants to find in params.yaml, and a params.yaml with the defaults of those that it lacks.

``dti`` gives a key that is left out its default. DVC reads params.yaml itself, and refuses one without a key that
dvc.yaml names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

import yaml

from dti_pipeline import config
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.plain import flow, parse_yaml

FILE = "dvc.yaml"
#: Above sections that are written: an empty one has its defaults, as one that is left out has.
COMMENT = "# DVC wants each of these to be here; an empty section has all its defaults."


def left_out(paths: Paths) -> list[str]:
    """Keys and sections that a home's dvc.yaml names and its params.yaml lacks, in the order of :class:`Config`; none
    where there is no dvc.yaml that can be read."""
    try:
        named = _named(config.read_text(paths.home / FILE))
    except (OSError, InputError):
        return []
    text = config.read_text(paths.params) if paths.params.is_file() else ""
    there = parse_yaml(text, str(paths.params)) or {}
    return [key for key in _known("", config.to_plain(Config())) if key in named and not _has(there, key)]


def completed(paths: Paths, keys: Sequence[str]) -> str:
    """The text of params.yaml with these keys at their defaults: a section as an empty one. All else stays as it is,
    comments and order too. Raises InputError where a form of YAML does not let a key be added."""
    text = config.read_text(paths.params) if paths.params.is_file() else ""
    meant = config.from_plain(Config, parse_yaml(text, str(paths.params)) or {})
    try:
        text = reduce(_with, keys, text)
        found = parse_yaml(text, str(paths.params))
        whole = config.from_plain(Config, found) == meant and all(_has(found, key) for key in keys)
    except (InputError, yaml.YAMLError):
        whole = False
    if not whole:
        raise InputError(f"{paths.params} has a form that cannot be added to: write {', '.join(keys)} into it yourself")
    return text


def _named(dvc_yaml: str) -> set[str]:
    """Keys of params.yaml that a dvc.yaml names, as parameters of a stage or between ``${`` and ``}``."""
    found = set(re.findall(r"\$\{\s*([\w.]+)\s*\}", dvc_yaml))
    content = parse_yaml(dvc_yaml, FILE)
    stages = content.get("stages") if isinstance(content, dict) else None
    for stage in stages.values() if isinstance(stages, dict) else ():
        params = stage.get("params") if isinstance(stage, dict) else None
        found |= {key for key in params or () if isinstance(key, str)}
    return found


def _known(parent: str, section: dict[str, Any]) -> list[str]:
    """Dotted keys of all sections and keys, a section before its keys."""
    found = []
    for name, value in section.items():
        found.append(parent + name)
        found += _known(f"{parent}{name}.", value) if isinstance(value, dict) else ()
    return found


def _has(there: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(there, dict) or name not in there:
            return False
        there = there[name]
    return True


def _with(text: str, key: str) -> str:
    """The text with a key at its default, in the innermost of its sections that is there."""
    names = key.split(".")
    value: Any = reduce(lambda section, name: section[name], names, config.to_plain(Config()))
    value = {} if isinstance(value, dict) else value
    section = yaml.compose(text, yaml.SafeLoader)
    if section is None:
        begin = f"{text.rstrip()}\n\n" if text.strip() else ""
        return f"{begin}{COMMENT}\n{_line(names, value)}\n"
    while inner := _value(section, names[0]):
        section, names = inner, names[1:]
    if not isinstance(section, yaml.MappingNode):
        raise InputError("no section")
    if section.flow_style:
        last = section.value[-1][1].end_mark.index if section.value else section.start_mark.index + 1
        return f"{text[:last]}{', ' if section.value else ''}{_line(names, value)}{text[last:]}"
    indent = " " * section.value[0][0].start_mark.column
    place, line_end = _behind(section, text), "\r\n" if "\r\n" in text else "\n"
    comment = f"{line_end}{COMMENT}{line_end}" if len(key.split(".")) == len(names) and COMMENT not in text else ""
    before = text[:place].rstrip("\r\n")
    return f"{before}{line_end}{comment}{indent}{_line(names, value)}{text[len(before) :] or line_end}"


def _line(names: Sequence[str], value: Any) -> str:
    """``a: {b: 3}`` of a.b and 3."""
    first, *rest = names
    return f"{first}: {flow(reduce(lambda inner, name: {name: inner}, reversed(rest), value))}"


def _value(section: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(section, yaml.MappingNode):
        return None
    return next((value for key, value in section.value if key.value == name), None)


def _behind(node: yaml.Node, text: str) -> int:
    """Index in the text of the end of a node's last line."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    mark = node.end_mark
    found = mark.index if mark.column == 0 else text.find("\n", mark.index)
    return len(text) if found < 0 else found
