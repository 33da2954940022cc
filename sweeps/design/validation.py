"""Where a spec file enters: YAML text to checked values, and every problem as one plain sentence.

PyYAML reads `1e18` and `8e-3` as text, so numeric fields take text that is a number. A field's
description is what the message says was needed, so each field has one.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
)

from analysis.errors import nearest
from parcae_core.errors import UserError
from parcae_core.plain import MAX_INT

MAX_SPEC_BYTES = 1 << 20
MAX_TRIALS = 10_000  # of one spec; more is a slip of the pen, and would be planned for hours


class Section(BaseModel):
    """A mapping of a spec: immutable, no unknown keys, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
    _absent: ClassVar[tuple[str, ...]] = ()  # fields that came later

    @model_serializer(mode="wrap")
    def _hashed_as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields at their defaults: specs keep the hash of before they were known."""
        known = type(self).model_fields
        return {
            k: v for k, v in dump(self).items() if k not in self._absent or v != known[k].default
        }


def _to_float(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a yes/no value is not a number")
    if isinstance(value, (int, str)):
        try:
            value = float(value)
        except OverflowError:
            raise ValueError("too large") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _to_int(value: Any) -> Any:
    number = value if type(value) is int else _to_float(value)
    if isinstance(number, (int, float)) and abs(number) > MAX_INT:
        raise ValueError("too large")
    return int(number) if isinstance(number, float) and number == int(number) else number


Number = Annotated[float, BeforeValidator(_to_float)]
Whole = Annotated[int, BeforeValidator(_to_int)]


def overrides_of(config: type, name: str) -> type[Section]:
    """A section whose keys are the fields of a dataclass, all optional; given ones override."""
    hints = get_type_hints(config)
    entries: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        kind = _readable(hints[field.name])
        needed = f"{_in_words(hints[field.name])}, or leave the key out"
        # None marks "not given"; a None that a user writes means the same
        entries[field.name] = (kind | None, Field(default=None, description=needed))
    return create_model(name, __base__=Section, **entries)


def given(section: BaseModel) -> dict[str, Any]:
    """The keys that a section of overrides really sets."""
    return {k: v for k, v in section.model_dump().items() if v is not None}


def _readable(kind: Any) -> Any:
    if kind is int:
        return Whole
    if kind is float:
        return Number
    if get_origin(kind) in (Union, types.UnionType):
        return Union[tuple(_readable(k) for k in get_args(kind))]  # noqa: UP007 (built at run time)
    return kind


def _in_words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in names:
        return names[kind]
    if get_origin(kind) in (Union, types.UnionType):
        return _in_words(next(k for k in get_args(kind) if k is not type(None)))
    return "one of " + ", ".join(str(a) for a in get_args(kind))


_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML's own rule; PyYAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag in _NUMBERS:  # a budget: as its text, which 1e11 is anyway
                key_node.tag = _TEXT
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise UserError(
                    f"line {key_node.start_mark.line + 1}: a key is {key!r}; keys are text"
                )
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except UserError:
            raise
        except (LookupError, ValueError) as error:  # !!bool maybe, !!int "": PyYAML's own slips
            kind = node.tag.rpartition(":")[2]
            raise UserError(
                f"line {node.start_mark.line + 1}: {str(node.value)[:80]!r} is no {kind}"
            ) from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # An alias can nest without end and turns one line into many; no spec needs it
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise UserError(f"line {line}: YAML aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


# Plain values only: dates, sets and bytes would reach hashes and JSON, which have no such thing
_PLAIN = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag in _PLAIN]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in _PLAIN
}


def read_text(path: Path) -> str:
    """The text of a spec file.

    Raises:
        UserError: no such file, not UTF-8, or too long to be a spec.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SPEC_BYTES + 1)  # a device has no end
        text = raw.decode("utf-8")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(
            f"{path}: {reason}; give the path of a spec file (`parcae init NAME` writes one), or the name "
            "of a sweep."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); a spec is YAML text.") from error
    if len(raw) > MAX_SPEC_BYTES:
        raise UserError(f"{path}: more than {MAX_SPEC_BYTES} bytes; a spec is a page of YAML text.")
    return text


def read_mapping(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The top-level mapping of a YAML file.

    Args:
        changes: `key.of.section=value`, made one after the other; a value is YAML.

    Raises:
        UserError: what `read_text` raises, or not YAML, not a mapping, or a change that cannot be made.
    """
    data = parse_mapping(read_text(path), str(path))
    for change in changes:
        _make(change, data)
    return data


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """The top-level mapping of YAML text; `where` is named in messages.

    Raises:
        UserError: if it is not YAML, or not a mapping.
    """
    data = _parsed(text, where)
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise UserError(f"{where}: the file is {found}; a spec is a mapping of keys to values.")
    return data


def _make(change: str, data: dict[str, Any]) -> None:
    key, equals, text = change.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all((*sections, last)):
        raise UserError(f"--set {change}: give key=value, such as optim.lr=1e-2.")
    value, place = _parsed(text, f"--set {change}"), data
    for name in sections:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {change}: {name} is {_shown(place)}, which has no keys to set.")
    place[last] = value


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except UserError as error:
        raise UserError(f"{where}: {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: {line}not readable as YAML ({problem}).") from error


def sentences(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """One sentence per problem: file, key, what was found, what was needed."""
    out, hinted = [], set()
    items = error.errors(include_url=False)
    for item in sorted(items, key=lambda i: i["type"] != "extra_forbidden"):
        loc = item["loc"]
        key, (section, needed) = _dotted(loc), _place(model, loc)
        if item["type"] == "extra_forbidden":
            known = list(section.model_fields) if section else []
            inside = f" in {_dotted(loc[:-1])}" if len(loc) > 1 else ""
            hint = nearest(str(loc[-1]), known)
            hinted |= {k for k in known if repr(k) in hint}
            out.append(
                f"{where}: unknown key {str(loc[-1])!r}{inside}"
                + (hint or f"; the keys are {', '.join(known)}.")
            )
        elif item["type"] == "missing":
            if loc[-1] in hinted:
                continue  # said already: it is there, misspelt
            out.append(f"{where}: {key} is missing; give {needed}.")
        elif item["type"] == "value_error" and section is not None:
            out.append(f"{where}: {key + ': ' if key else ''}{item['ctx']['error']}")
        else:
            subject = _dotted(loc[:-1]) if loc and isinstance(loc[-1], int) else "it"
            out.append(
                f"{where}: {key or 'the spec'} is {_shown(item['input'])}; {subject} must be "
                f"{needed or item['msg']}."
            )
    return list(dict.fromkeys(out))  # a union reports the same problem once per branch


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_BRANCHES = ("int", "float", "str", "bool", "none")


def _dotted(loc: tuple) -> str:
    """A place as a user writes it, without the branches of unions that pydantic names in it."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "[" not in part and part not in _BRANCHES and not part.startswith("literal"):
            text += f".{part}" if text else part
    return text


def _place(model: type[BaseModel], loc: tuple) -> tuple[type[BaseModel] | None, str]:
    """The section at `loc` or nearest above, and the description of the innermost field on the way."""
    section: type[BaseModel] | None = model
    needed = ""
    for part in loc:
        field = section.model_fields.get(part) if section and isinstance(part, str) else None
        if field is not None:
            needed = field.description or needed
            section = _section_in(field.annotation)
    return section, needed


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _section_in(inner)) is not None:
            return found
    return None
