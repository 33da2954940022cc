"""Plain data from outside: every value is of its declared type, or a sentence says where it is not."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from parcae_core.config import ModelConfig
from parcae_core.depth import CurriculumDepth, PoissonDepth
from parcae_core.errors import UserError
from parcae_core.plain import build, parse_json, read_json
from parcae_core.presets import preset


@dataclass(frozen=True, kw_only=True)
class Inner:
    n: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    n: int
    share: float = 0.5
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    loops: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 1.0)
    inner: Inner = Inner(n=1)
    by_name: dict[str, Inner] = field(default_factory=dict)
    flag: bool = False
    anything: Any = None


def test_what_fits_is_built_with_its_parts():
    data = {
        "n": 3, "share": 2, "name": None, "kind": "b", "loops": [1, 2], "pair": [4, 5], "flag": True,
        "inner": {"n": 7}, "by_name": {"x": {"n": 8}}, "anything": [{}],
    }  # fmt: skip
    built = build(Outer, data)
    assert built == Outer(
        n=3, share=2.0, kind="b", loops=(1, 2), pair=(4, 5.0), flag=True, inner=Inner(n=7),
        by_name={"x": Inner(n=8)}, anything=[{}],
    )  # fmt: skip
    assert isinstance(built.share, float)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "Outer is a list; an object was expected"),
        ({}, "Outer.n is missing"),
        ({"n": 1, "m": 2}, "Outer has the unknown key 'm'"),
        ({"n": True}, "Outer.n is True; a whole number"),
        ({"n": 1.0}, "Outer.n is 1.0; a whole number"),
        ({"n": "1"}, "Outer.n is '1'; a whole number"),
        ({"n": 10**400}, "Outer.n is a number of 1329 bits; a whole number of at most 64 bits"),
        ({"n": 1, "share": float("nan")}, "Outer.share is nan; a finite number"),
        ({"n": 1, "share": "x"}, "Outer.share is 'x'; a finite number"),
        ({"n": 1, "name": 5}, "Outer.name is 5; text was expected"),
        ({"n": 1, "kind": "c"}, "Outer.kind is 'c'; it must be one of a, b"),
        ({"n": 1, "kind": []}, "Outer.kind is a list; it must be one of a, b"),
        ({"n": 1, "loops": [1, "x"]}, r"Outer.loops\[1\] is 'x'"),
        ({"n": 1, "pair": [1]}, "Outer.pair is a list"),
        ({"n": 1, "inner": {"n": None}}, "Outer.inner.n is None"),
        ({"n": 1, "by_name": {"x": 3}}, "Outer.by_name.x is 3; an object"),
        ({"n": 1, "flag": 1}, "Outer.flag is 1; bool"),
    ],
)
def test_what_does_not_fit_is_named(data, problem):
    with pytest.raises(ValueError, match=problem):
        build(Outer, data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"9" * 5_000, "not JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deep"),
        (b"[]", "holds a list; an object was expected"),
        (b"3", "holds int; an object"),
    ],
)
def test_json_that_is_none_names_the_file(tmp_path, data, problem):
    with pytest.raises(UserError, match=f"here: .*{problem}"):
        parse_json(data, "here")
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=problem):
        read_json(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 1 << 40}, {"n_core": 10**9}, {"vocab_size": 10**12}, {"context": 10**10},
        {"rope_base": 0.0}, {"rope_base": float("inf")}, {"norm_eps": -1.0}, {"d_state": -4},
        {"value_gate_width": 0}, {"core_d_ff": 0},
    ],
)  # fmt: skip
def test_shapes_that_would_be_laid_out_for_ever_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        preset("nano").replace(**change)
    assert isinstance(preset("nano"), ModelConfig)


def test_depths_that_would_be_tables_without_end_are_refused():
    with pytest.raises(ValueError, match="mean_recurrence is 1001"):
        PoissonDepth(mean_recurrence=1_001, mean_backprop_depth=1)


def test_a_curriculum_of_many_steps_is_averaged_at_once():
    """By bisection; the same as step by step, which a short one shows."""
    for shape in ("linear", "1-sqrt"):
        short = CurriculumDepth(
            mean_recurrence=100, mean_backprop_depth=3, ramp_steps=37, n_steps=41, shape=shape
        )
        by_step = sum(short.at(i).mean() for i in range(41)) / 41
        assert short.mean() == pytest.approx(by_step, rel=1e-12)
    long = CurriculumDepth(
        mean_recurrence=1_000, mean_backprop_depth=1, ramp_steps=10**8, n_steps=10**8
    )
    assert long.mean() == pytest.approx(501, rel=1e-3)  # half of the way, a loop at a time
