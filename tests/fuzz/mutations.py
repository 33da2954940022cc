"""What a hostile hand does to a file: values of a wrong kind or size, keys gone, bytes flipped."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# Written into the text afterwards, since no writer makes them
DEEP, DIGITS = "@@DEEP@@", "@@DIGITS@@"
_SPELT = {f'"{DEEP}"': "[" * 200_000 + "]" * 200_000, f'"{DIGITS}"': "9" * 5_000}

VALUES = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**64, 10**12, 10**30, 10**300, 1e12, 1e300,
            -0.0, 0.5, 1e-300, float("inf"), float("-inf"), float("nan"), "", " ", "x", "..", "../../up",
            "/etc/passwd", "a\0b", "\ud800", "x" * 5_000, "1e400", "0x10", "nan", "true", "🙂", "bytes",
            "2024-01-01", "!!python/object/apply:os.system", [], {}, [[]], [[1], [2]], {"a": 1},
            [None] * 300, list(range(300)), {"..": {}}, DEEP, DIGITS,
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)  # fmt: skip


def paths(data: Any, at: tuple = ()) -> list[tuple]:
    """Where every value of a nested structure stands, the whole first."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [at, *(path for key, value in items for path in paths(value, (*at, key)))]


def edited(draw: Any, data: Any) -> Any:
    """A copy with one to three values replaced, removed, renamed or taken from elsewhere in it."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(data)[1:] or [("",)]))
        box = data
        for key in parents:
            box = box[key]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "swap"])):
            case "remove" if box:
                box.pop(last)
            case "add" if isinstance(box, dict):
                box[draw(st.text(max_size=8))] = copy.deepcopy(draw(VALUES))
            case "swap":
                other: Any = data
                for key in draw(st.sampled_from(paths(data))):
                    other = other[key]
                box[last] = copy.deepcopy(other)
            case _:
                near = draw(st.booleans())
                # a copy: the next edit may change it, and the same object is drawn again
                box[last] = copy.deepcopy(draw(_near(box[last]) if near else VALUES))
        if not data:
            break
    return data


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same kind, which get past the first check."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, (int, float)):
        return st.sampled_from(
            [
                0,
                1,
                2,
                3,
                64,
                value + 1,
                value * 2,
                value * 1_000,
                -value,
                value / 2,
                10**7,
                2**40,
                1e18,
            ]
        )
    if isinstance(value, list):
        return st.sampled_from([value * 2, value * 1_000, value[:1], value[::-1]])
    return st.sampled_from(
        ["poisson", "fixed", "mu", "float32", "nano", "bytes", "exact", "online"]
    )


def as_json(data: Any) -> bytes:
    """JSON with what no writer makes: values nested without end, numbers of thousands of digits."""
    text = json.dumps(data)
    for marker, spelt in _SPELT.items():
        text = text.replace(marker, spelt)
    return text.encode()


def broken(draw: Any, data: bytes) -> bytes:
    """Bytes cut off, flipped, removed, repeated or put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        n = draw(st.sampled_from([1, 1, 4, 64, 4096]))
        match draw(st.sampled_from(["cut", "flip", "remove", "repeat", "insert", "overwrite"])):
            case "cut":
                data = data[:at]
            case "flip":
                data = data[:at] + bytes(b ^ 0xFF for b in data[at : at + 1]) + data[at + 1 :]
            case "remove":
                data = data[:at] + data[at + n :]
            case "repeat":
                data = data[:at] + data[at : at + n] * 3 + data[at + n :]
            case "insert":
                data = data[:at] + draw(st.binary(min_size=1, max_size=12)) + data[at:]
            case "overwrite":
                data = (
                    data[:at] + draw(st.sampled_from([b"\xff", b"\0", b"{"])) * n + data[at + n :]
                )
    return data
