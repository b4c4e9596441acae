"""Frozen dataclasses from YAML or plain values and back, with types and ranges checked.

A wrong value is an InputError: one sentence that names its key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml

from dti_pipeline.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers, as part of a type: ``Annotated[float, Range(0, 1, "[)")]`` is 0 <= x < 1."""

    low: float
    high: float = math.inf
    ends: str = "[]"  # a round bracket leaves its end out

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.ends[0] == "(" else value >= self.low
        return above and (value < self.high if self.ends[1] == ")" else value <= self.high)

    def __str__(self) -> str:
        """The end of a sentence that begins with "must be"."""
        if self.high < math.inf:
            return f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        if self.ends[0] == "(":
            return f"above {self.low:g}" if self.low > -math.inf else ""
        return f"at least {self.low:g}" if self.low else "0 or more"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, ends="(]")]
NonNegativeFloat = Annotated[float, Range(0)]
Finite = Annotated[float, Range(-math.inf, ends="(]")]
Share = Annotated[float, Range(0, 1)]


#: Metadata of a field, None by default, that a manifest leaves out while it is None: it is then as before the field.
OPTIONAL = {"optional": True}
#: Metadata of a field that says how an output is made and not what it is: no manifest has it.
MANNER = {"manner": True}


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200


def shown(value: object) -> str:
    """A value for a message, cut: YAML can say in a line what has no end when it is written out."""
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of too many digits"


def require(ok: bool, key: str, rule: str, value: object) -> None:
    """Raise InputError, which names the key, where a rule is broken."""
    if not ok:
        raise InputError(f"params key `{key}` must be {rule}, not {shown(value)}")


def from_plain(kind: type[T], raw: Any, key: str = "") -> T:
    """Build a dataclass from plain values; InputError names the first wrong key.

    A class may say in ``REMOVED`` which fields it no longer has: name -> the rest of a sentence that says what to do.
    """
    require(isinstance(raw, Mapping), key, "a mapping", raw)
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [f.name for f in dataclasses.fields(kind)]
    values = {}
    prefix = f"{key}." if key else ""
    for name, value in raw.items():
        full = f"{prefix}{name}"
        refuse_removed(kind, name, full)
        if name not in known:
            raise InputError(f"unknown params key `{full}`{nearest(str(name), known)}")
        values[name] = _convert(hints[name], value, full)
    for f in dataclasses.fields(kind):
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise InputError(f"params key `{prefix}{f.name}` is missing")
    return kind(**values)


def refuse_removed(kind: type, name: str, key: str) -> None:
    """Raise InputError for a field that a class says it no longer has."""
    removed: Mapping[str, str] = getattr(kind, "REMOVED", {})
    if name in removed:
        raise InputError(f"params key `{key}` was removed: {removed[name]}")


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
    if origin is Annotated:
        converted = _convert(args[0], value, key)
        require(not isinstance(converted, float) or math.isfinite(converted), key, "a finite number", value)
        for bounds in args[1:]:
            require(converted in bounds, key, str(bounds), value)
        return converted
    if origin is dict:
        require(isinstance(value, Mapping), key, "a mapping", value)
        return {str(name): _convert(args[1], one, f"{key}.{name}") for name, one in value.items()}
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            near = nearest(str(value), [str(a) for a in args])
            raise InputError(f"params key `{key}` must be one of {', '.join(map(str, args))}, not {shown(value)}{near}")
        return value
    if origin in (types.UnionType, typing.Union):
        for arm in args:
            with contextlib.suppress(InputError):
                return _convert(arm, value, key)
        raise InputError(f"params key `{key}` must be {describe(hint)}, not {shown(value)}")
    if origin is tuple:
        items = [args[0]] * len(value) if isinstance(value, (list, tuple)) and args[1:] == (...,) else list(args)
        fits = isinstance(value, (list, tuple)) and len(items) == len(value)
        require(fits, key, f"a list ({describe(hint)})", value)
        return tuple(_convert(item, v, f"{key}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    if hint is float:  # also of text: YAML reads 1e-3 as text. True and false are no numbers
        try:
            return float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"params key `{key}` must be a number, not {shown(value)}") from None
    require(isinstance(value, hint) and not (hint is int and isinstance(value, bool)), key, describe(hint), value)
    require(hint is not int or abs(value) < 1 << 63, key, "a whole number of 64 bits", value)
    return value


def describe(hint: Any) -> str:
    """A type in words: "a whole number from 1 or 'all'"."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        rule = str(args[1])
        return f"{describe(args[0])} {rule.replace('at least', 'from').replace('0 or more', 'from 0')}".rstrip()
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"list of {describe(args[0])}"
    return str(hint)


def part_of(whole: Any, base: type) -> dict[str, Any]:
    """The fields that a dataclass has from one of its bases, by name, as they are."""
    return {f.name: getattr(whole, f.name) for f in dataclasses.fields(base)}


def to_plain(value: Any, *, whole: bool = True) -> Any:
    """A section or a report as dicts, lists and scalars. Not ``whole``: without optional fields that are None, and
    without those of a manner."""
    plain = partial(to_plain, whole=whole)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: (getattr(value, f.name), f.metadata) for f in dataclasses.fields(value)}
        shown = [name for name, (v, about) in fields.items() if whole or not _left_out(v, about)]
        return {name: plain(fields[name][0]) for name in shown}
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def _left_out(value: Any, about: Mapping[Any, Any]) -> bool:
    return about == MANNER or (value is None and about == OPTIONAL)


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping's keys are distinct, as the standard has them; the library keeps the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:  # keys of a merged anchor may be set again: they are not here yet
                raise yaml.MarkedYAMLError(problem=f"the key `{key.value}` stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def flow(value: Any) -> str:
    """A value as YAML writes it in one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.strip()[1:-1]


def parse_yaml(text: str, source: str) -> Any:
    """The content of ``text``; InputError opens with ``source`` (a file, say) and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{line} is not YAML: {getattr(error, 'problem', error)}") from error
    except RecursionError:
        raise InputError(f"{source} is nested too deep") from None
    except Exception as error:  # what the library says of a value that its tag or form does not allow
        raise InputError(f"{source} has a value that cannot be read: {error}") from error
