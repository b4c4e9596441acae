"""``dti config``: the configuration in force, and the meaning of its keys, read from the sections' own source."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dti_pipeline import errors
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.plain import describe, nearest, refuse_removed, to_plain


@dataclass(frozen=True)
class Entry:
    """A key of params.yaml, or a section: its value is a mapping and its type empty."""

    key: str  # dotted
    type: str  # in words, with its range
    default: Any
    value: Any  # in force
    documentation: str


def masked(config: Config) -> Config:
    """The configuration without the credentials that ``tracking.uri`` may hold."""
    if config.tracking.uri is None:
        return config
    uri = errors.masked(config.tracking.uri)
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=uri))


def in_force(config: Config, changed: bool = False) -> str:
    """The configuration as YAML, the default beside each value that differs; ``changed``: only what differs."""
    lines = []
    for entry in explained(config, ""):
        same = entry.value == entry.default
        if not (changed and same):
            *parents, name = entry.key.split(".")
            value = f" {_yaml(entry.value)}" + ("" if same else f"  # default {_yaml(entry.default)}")
            lines.append(f"{'  ' * len(parents)}{name}:{value if entry.type else ''}\n")
    return "".join(lines)


def _yaml(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**9)
    return text.strip()[1:-1]


def explained(config: Config, key: str) -> list[Entry]:
    """The entry of a key; of a section also those of its keys; of "" all. InputError names the nearest one."""
    entries = list(_entries(masked(config), Config()))
    found = [entry for entry in entries if not key or f"{entry.key}.".startswith(f"{key}.")]
    if not found:
        section, _, name = key.rpartition(".")
        refuse_removed(type(getattr(config, section, None)), name, key)
        raise InputError(f"unknown params key `{key}`{nearest(key, [entry.key for entry in entries])}")
    return found


def text(entries: list[Entry]) -> str:
    """Entries for a reader: key and value, type and default, documentation."""
    blocks = []
    for entry in entries:
        lines = textwrap.wrap(entry.documentation, 96)
        if entry.type:
            lines = [f"{entry.type}; default {_yaml(entry.default)}", *lines]
        title = f"{entry.key}: {_yaml(entry.value)}" if entry.type else f"{entry.key}:"
        blocks.append("\n".join([title, *(f"    {line}" for line in lines)]))
    return "\n\n".join(blocks)


def _entries(section: Any, defaults: Any, parent: str = "") -> Iterator[Entry]:
    kind = type(section)
    hints, comments = typing.get_type_hints(kind, include_extras=True), documentation(kind)
    for name, hint in ((f.name, hints[f.name]) for f in dataclasses.fields(kind)):
        value, default = getattr(section, name), getattr(defaults, name)
        if dataclasses.is_dataclass(hint):
            about = " ".join(filter(None, [inspect.getdoc(hint), comments[name]]))
            yield Entry(parent + name, "", to_plain(default), to_plain(value), about)
            yield from _entries(value, default, f"{parent}{name}.")
        else:
            yield Entry(parent + name, describe(hint), to_plain(default), to_plain(value), comments[name])


def documentation(kind: type) -> dict[str, str]:
    """The comments of a dataclass's fields: whole lines above a field, then what stands behind it. One line a field."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# "))
            continue
        if field := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            found[field[1]] = " ".join(filter(None, [*above, field[2]]))
        above = []
    return found
