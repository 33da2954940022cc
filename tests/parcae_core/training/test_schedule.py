"""Every planned step makes an update, and the rate falls to zero just after the last."""

import pytest

from parcae_core.training.schedule import (
    constant_steps,
    learning_rate_scale,
    weight_decay_scale,
)


def scales(n_steps, **settings):
    return [learning_rate_scale(s, n_steps=n_steps, **settings) for s in range(n_steps)]


def test_constant_then_linear_to_zero_over_the_last_half():
    assert scales(10) == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 5, 2000])
def test_no_step_has_a_rate_of_zero_or_above_the_base(n_steps, share, warmup):
    found = scales(n_steps, warmup_steps=warmup, cooldown_share=share)
    assert len(found) == n_steps
    assert all(0 < s <= 1 for s in found)


def test_warm_up_rises_to_the_base_rate_at_its_last_step():
    assert scales(8, warmup_steps=4, cooldown_share=0.25) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5]


def test_without_a_cool_down_the_rate_stays():
    assert scales(5, cooldown_share=0.0) == [1.0] * 5


def test_the_decay_starts_whole_and_falls_by_equal_steps():
    found = [weight_decay_scale(s, n_steps=4) for s in range(4)]
    assert found == [1.0, 0.75, 0.5, 0.25]


def test_the_decay_can_wait_for_the_cool_down():
    found = [weight_decay_scale(s, n_steps=5, cooldown_share=0.6) for s in range(5)]
    assert found == pytest.approx([1, 1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 10, 100, 997])
def test_the_rate_is_constant_for_exactly_the_constant_steps(n_steps, share):
    found = scales(n_steps, cooldown_share=share)
    constant = constant_steps(n_steps, share)
    assert found[:constant] == [1.0] * constant
    # a rounded share may make the first step of the cool-down whole, never one of a trunk's less
    assert all(s < 1 for s in found[constant + 1 :])


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step is {step}; a run of 4 steps has 0 to 3"):
        learning_rate_scale(step, n_steps=4)
