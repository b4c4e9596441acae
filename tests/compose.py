"""docker/compose.yaml as Compose reads it, for tests that have no Docker: variables filled in, commands as words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.project import ROOT

FILE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / ".env.example"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<rule>:-|:\?)(?P<rest>[^}]*))?\}")


class Unset(Exception):
    """A variable that must be set is not; the message is the file's own."""


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced."""
    filled: dict[str, Any] = _filled(yaml.safe_load(FILE.read_text()), variables)
    return filled


def example() -> dict[str, str]:
    """What docker/.env.example sets, comments left out."""
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def secrets() -> dict[str, str]:
    """A value for everything that the example leaves empty."""
    return {name: f"{name.lower().replace('_', '')}0" for name, value in example().items() if not value}


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return VARIABLE.sub(lambda found: _value(found, variables), node) if isinstance(node, str) else node


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    value = variables.get(found["name"], "")
    if not value and found["rule"] == ":?":
        raise Unset(f"{found['name']}: {found['rest']}")
    return value or (found["rest"] or "")
