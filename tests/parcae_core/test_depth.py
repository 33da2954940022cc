"""Samplers against their declared means, and the draws' independence of everything but (seed, step)."""

import math

import numpy as np
import pytest

from parcae_core.depth import (
    CurriculumDepth,
    FixedDepth,
    PoissonDepth,
    default_backprop_depth,
    depth_from_dict,
    depth_to_dict,
)

SCHEMES = [
    FixedDepth(mean_recurrence=5, mean_backprop_depth=3),
    *(
        PoissonDepth(mean_recurrence=mu, mean_backprop_depth=default_backprop_depth(mu))
        for mu in (1, 2, 4, 8, 20)
    ),
    PoissonDepth(mean_recurrence=8, mean_backprop_depth=8),
    PoissonDepth(mean_recurrence=8, mean_backprop_depth=3, split="additive"),
    PoissonDepth(mean_recurrence=3, mean_backprop_depth=3, split="additive"),
    PoissonDepth(mean_recurrence=6, mean_backprop_depth=3, per="batch"),
    CurriculumDepth(mean_recurrence=8, mean_backprop_depth=3, ramp_steps=1000, n_steps=2000),
    CurriculumDepth(
        mean_recurrence=8, mean_backprop_depth=4, ramp_steps=2000, n_steps=2000, shape="1-sqrt"
    ),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_empirical_means_equal_the_declared_ones(scheme):
    draws = [scheme.sample(64, seed=7, step=s) for s in range(2000)]
    for name, mean in (
        ("no_grad", scheme.mean_no_grad()),
        ("grad", scheme.mean_grad()),
        ("total", scheme.mean()),
    ):
        # one value per step: rows of a per-batch draw are not independent
        found = np.array([getattr(d, name).mean() for d in draws])
        # a curriculum's steps differ in mean, which only widens this error
        error = found.std(ddof=1) / math.sqrt(len(found))
        assert abs(found.mean() - mean) <= 4 * error + 1e-12, name
    assert min(d.total.min() for d in draws) >= 1
    assert max(d.grad.max() for d in draws) <= scheme.mean_backprop_depth


def test_truncation_at_one_raises_the_mean():
    assert PoissonDepth(mean_recurrence=1, mean_backprop_depth=1).mean() == pytest.approx(
        1.36788, abs=1e-5
    )


def test_draws_depend_on_seed_and_step_only():
    scheme = PoissonDepth(mean_recurrence=6, mean_backprop_depth=3)
    a, b = scheme.sample(32, seed=1, step=5), scheme.sample(32, seed=1, step=5)
    assert np.array_equal(a.total, b.total)
    assert not np.array_equal(a.total, scheme.sample(32, seed=1, step=6).total)
    assert not np.array_equal(a.total, scheme.sample(32, seed=2, step=5).total)
    # a smaller batch is a prefix of a larger one
    assert np.array_equal(scheme.sample(8, seed=1, step=5).total, a.total[:8])


def test_schemes_share_their_randomness():
    shallow = PoissonDepth(mean_recurrence=2, mean_backprop_depth=1).sample(500, seed=0, step=0)
    deep = PoissonDepth(mean_recurrence=10, mean_backprop_depth=5).sample(500, seed=0, step=0)
    assert np.all(deep.total >= shallow.total)
    assert np.corrcoef(shallow.total, deep.total)[0, 1] > 0.9


def test_a_batch_draw_has_one_depth():
    scheme = PoissonDepth(mean_recurrence=6, mean_backprop_depth=3, per="batch")
    assert all(np.ptp(scheme.sample(16, seed=0, step=s).total) == 0 for s in range(20))


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_round_trip(scheme):
    assert depth_from_dict(depth_to_dict(scheme)) == scheme


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: PoissonDepth(mean_recurrence=2, mean_backprop_depth=3),
            "mean_backprop_depth is 3",
        ),
        (lambda: FixedDepth(mean_recurrence=0, mean_backprop_depth=1), "mean_recurrence is 0"),
        (lambda: depth_from_dict({"kind": "poison"}), "'poison'"),
        (
            lambda: PoissonDepth(mean_recurrence=2, mean_backprop_depth=1, per="token"),
            "per is 'token'",
        ),
    ],
)
def test_illegal_schemes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_curricula_grow_to_their_target():
    linear = CurriculumDepth(mean_recurrence=9, mean_backprop_depth=3, ramp_steps=60, n_steps=100)
    assert [linear.at(s).mean_recurrence for s in (0, 1, 10, 11, 59, 60, 99)] == [
        3,
        4,
        4,
        5,
        9,
        9,
        9,
    ]
    slow = CurriculumDepth(
        mean_recurrence=9, mean_backprop_depth=3, ramp_steps=60, n_steps=100, shape="1-sqrt"
    )
    assert [slow.at(s).mean_recurrence for s in (0, 30, 45, 60)] == [3, 5, 6, 9]
    assert slow.mean() < linear.mean() < linear.at(99).mean()
    draw = linear.sample(64, seed=0, step=70)
    target = PoissonDepth(mean_recurrence=9, mean_backprop_depth=3).sample(64, seed=0, step=70)
    assert np.array_equal(draw.total, target.total)
