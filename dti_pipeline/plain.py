"""Frozen dataclasses from plain values and back: whatever is wrong with a value is one sentence that names its key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dti_pipeline.errors import InputError


def from_plain(kind: type, raw: Any, key: str = "") -> Any:
    """Build a section from plain values; InputError names the first wrong key."""
    if not isinstance(raw, Mapping):
        raise InputError(f"params key `{key}` must be a mapping, not {raw!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for name, value in raw.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in known:
            raise InputError(f"unknown params key `{full}`{nearest(str(name), known)}")
        values[name] = _convert(hints[name], value, full)
    for f in dataclasses.fields(kind):
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise InputError(f"params key `{key}.{f.name}` is missing" if key else f"params key `{f.name}` is missing")
    return kind(**values)


def nearest(name: str, known: Sequence[str]) -> str:
    """``: did you mean `x`?`` where a known name is near, else nothing: the end of an error's sentence."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean `{near[0]}`?" if near else ""


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, key)
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"params key `{key}` must be a mapping, not {value!r}")
        return {str(name): _convert(args[1], one, f"{key}.{name}") for name, one in value.items()}
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            near = nearest(str(value), [str(a) for a in args])
            raise InputError(f"params key `{key}` must be one of {', '.join(map(str, args))}, not {value!r}{near}")
        return value
    if origin in (types.UnionType, typing.Union):
        for arm in args:
            if arm is type(None) and value is None:
                return None
        for arm in (a for a in args if a is not type(None)):
            try:
                return _convert(arm, value, key)
            except InputError:
                continue
        raise InputError(f"params key `{key}` must be {_describe(hint)}, not {value!r}")
    if origin is tuple:
        items = [args[0]] * len(value) if isinstance(value, (list, tuple)) and args[1:] == (...,) else list(args)
        if not isinstance(value, (list, tuple)) or len(items) != len(value):
            raise InputError(f"params key `{key}` must be a list ({_describe(hint)}), not {value!r}")
        return tuple(_convert(item, v, f"{key}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"params key `{key}` must be {_describe(hint)}, not {value!r}")


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"list of {_describe(args[0])}"
    return str(hint)


def to_plain(value: Any) -> Any:
    """A section or a report as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value
