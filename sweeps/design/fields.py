"""The fields of a spec as a JSON schema, and as rows of type, default and meaning read from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from analysis.errors import nearest
from parcae_core.errors import UserError
from parcae_core.trial import OptimConfig
from sweeps.design.meanings import meaning
from sweeps.design.spec import DESIGNS, SweepSpec

Schema = dict[str, Any]
_REF = "#/$defs/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One key of a section."""

    name: str
    kind: str
    default: str  # "required" where there is none
    meaning: str


def schema(design: str | None = None) -> Schema:
    """JSON schema (draft 2020-12) of one design's spec, or of any.

    Raises:
        UserError: if there is no such design.
    """
    if design is not None and design not in DESIGNS:
        raise UserError(
            f"spec: no design {design!r} among {', '.join(DESIGNS)}{nearest(design, list(DESIGNS)) or '.'}"
        )
    model: Any = SweepSpec if design is None else DESIGNS[design]
    found = TypeAdapter(model).json_schema()
    parts = found.get("$defs", {})
    if design is not None:
        parts = parts | {DESIGNS[design].__name__: found}
    for name, part in parts.items():
        for key, field in part.get("properties", {}).items():
            field.pop("title", None)
            field["description"] = _description(meaning(name, key), field)
    # what the checks before pydantic's take besides
    corpus = parts["DataSection"]["properties"]["corpus"]
    corpus["anyOf"] = [{"type": corpus.pop("type"), "minLength": corpus.pop("minLength")}]
    corpus["anyOf"].append({"type": "object", "required": ["name"]})
    rates = parts["OptimOverrides"]["properties"]
    said = f"{meaning('OptimOverrides', 'lr')} Give a number above 0."
    parts["OptimOverrides"]["properties"] = {"lr": {"type": "number", "description": said}} | rates
    for known in fields(OptimConfig):
        rates[known.name]["default"] = known.default
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found


def _description(what_for: str, field: Schema) -> str:
    """What a field is for, and what must be given where its type does not say it."""
    needed = field.get("description", "").rstrip(".")
    if what_for and (
        "$ref" in field or "const" in field or ("enum" in field and "(" not in needed)
    ):
        return what_for
    return f"{what_for} Give {needed}.".strip()


def sections(design: str | None = None) -> dict[str, tuple[str, list[Field]]]:
    """Section -> (what it is, its fields): first the keys of the designs, then of the mappings in them."""
    whole = schema(design)
    parts: dict[str, Schema] = whole["$defs"]
    tops = {d: DESIGNS[d].__name__ for d in ([design] if design else DESIGNS)}
    out: dict[str, tuple[str, list[Field]]] = {}
    for label, name in tops.items():
        out[f"design: {label}"] = _section(name, whole if design else parts[name])
    for name, part in parts.items():
        if name not in tops.values():
            key = _in_words(name)
            doc, known = _section(name, part)
            out[key] = meaning("", key) or doc, known
    return out


def _section(name: str, part: Schema) -> tuple[str, list[Field]]:
    required = set(part.get("required", ()))
    doc = " ".join(part.get("description", "").split("Source:")[0].split())
    return doc, [
        Field(
            name=key,
            kind=_kind(field),
            default="required" if key in required else _default(name, field),
            meaning=field["description"],
        )
        for key, field in part["properties"].items()
    ]


def _in_words(name: str) -> str:
    """DataSection -> data, as the key is called."""
    return name.removesuffix("Section").removesuffix("Overrides").lower()


def _default(section: str, field: Schema) -> str:
    value = field.get("default")
    if value is None:
        return "the preset's" if section == "ModelOverrides" else "none"
    if isinstance(value, dict):
        return "its own"
    return value if isinstance(value, str) else json.dumps(value)


def _kind(field: Schema) -> str:
    """A type in words."""
    if "$ref" in field:
        return f"{_in_words(field['$ref'].removeprefix(_REF))} mapping"
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    if several := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_kind(f) for f in several if f.get("type") != "null")
    match field.get("type"):
        case "array":
            kind = _kind(field["items"])
            return f"list of {kind}{'s' * kind.endswith('number')}"
        case "object":
            inner = field.get("additionalProperties")
            return f"mapping to {_kind(inner)}" if isinstance(inner, dict) else "mapping"
        case "integer":
            return "whole number"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case kind:
            return str(kind or "anything")
