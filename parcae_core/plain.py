"""Plain data from outside: JSON as it is read, and dataclasses built from it, every value checked.

A file may come from anybody. What does not fit is one sentence that names the file and the field.
"""

from __future__ import annotations

import json
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from parcae_core.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
# 64 bits hold every count that means something, and larger ones overflow what is computed from them
MAX_INT = 2**63 - 1


def parse_json(data: bytes | str, where: object) -> Any:
    """The JSON object in a text.

    Raises:
        UserError: not UTF-8, not JSON, nested without end, or no object.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise UserError(
            f"{where}: not read, its values are nested too deep; is it the right file?"
        ) from None
    except ValueError as error:  # UnicodeDecodeError and numbers of thousands of digits as well
        raise UserError(f"{where}: not JSON ({str(error)[:200]}); is the file whole?") from None
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else type(value).__name__
        raise UserError(f"{where}: holds {found}; an object was expected")
    return value


def read_json(path: Path) -> Any:
    """The JSON object in a file.

    Raises:
        UserError: no such file, or see `parse_json`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(data, path)


def build(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass from plain data: every field known, present and of its declared type.

    Args:
        where: the dotted place of the data in its file, for messages.

    Raises:
        ValueError: naming the field; also what the class itself refuses.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {_shown(data)}; an object was expected")
    hints = _hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}
    if unknown := sorted(map(str, data.keys() - known.keys())):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}.{name} is missing")
    return cls(**{k: _checked(hints[k], v, f"{where}.{k}") for k, v in data.items()})


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(kind: Any, value: Any, where: str) -> Any:
    """The value, as its type wants it."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        rest = [k for k in inner if k is not type(None)]
        if len(rest) == 1:
            return _checked(rest[0], value, where)
        if any(_fits(k, value) for k in rest):
            return value
    elif origin is Literal:
        if any(value == known and type(value) is type(known) for known in inner):
            return value
        needed = ", ".join(map(str, inner))
        raise ValueError(f"{where} is {_shown(value)}; it must be one of {needed}")
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        kinds = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return origin(_checked(k, v, f"{where}[{i}]") for i, (k, v) in pairs)
    elif origin is dict and isinstance(value, dict):
        key, item = inner
        return {
            _checked(key, k, f"a key of {where}"): _checked(item, v, f"{where}.{k}")
            for k, v in value.items()
        }
    elif isinstance(kind, type) and is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where)
    elif _fits(kind, value):
        return float(value) if kind is float else value
    raise ValueError(f"{where} is {_shown(value)}; {_in_words(kind)} was expected")


def _fits(kind: Any, value: Any) -> bool:
    if kind is int:
        return type(value) is int and abs(value) <= MAX_INT
    if kind is float:
        return _fits(int, value) or (type(value) is float and math.isfinite(value))
    return isinstance(kind, type) and type(value) is kind


def _in_words(kind: Any) -> str:
    words = {int: "a whole number of at most 64 bits", float: "a finite number", str: "text"}
    return words.get(kind, str(getattr(kind, "__name__", kind)))


def is_plain_name(name: Any) -> bool:
    """Whether a name from outside stays in the folder that it is joined to."""
    bad = ("", ".", "..")
    return isinstance(name, str) and name not in bad and not set(name) & set("/\\\0")


def _shown(value: Any) -> str:
    """A value from outside, short enough for a message; a number may have thousands of digits."""
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (dict, list)):
        return {dict: "an object", list: "a list"}[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
