"""Learning rates at points worked out by hand."""

import math
from dataclasses import replace

import pytest

from zh_modernbert.train.pretrain import Settings
from zh_modernbert.train.pretraining.schedules import build_schedule, damped_cosine

# lr_max 8, lr_min 1, one valley, damping 0.5. In the middle the cosine is 0: the mean of the peak, 8 * 0.75 = 6, and of the
# valley, (4 + 1) / 2 = 2.5. At p = 1/3 the cosine is 1/2: peak 8 * 5/6, valley 4 * 2/3 + 1/3 = 3.
BY_HAND = [(0.0, 8.0), (1 / 3, 3 / 4 * 20 / 3 + 1 / 4 * 3), (0.5, 4.25), (1.0, 1.0)]


@pytest.mark.parametrize(("progress", "expected"), BY_HAND)
def test_damped_cosine_by_hand(progress, expected):
    assert damped_cosine(progress, lr_max=8.0, lr_min=1.0, cycles=1, damping=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("cycles", [1, 2, 3, 5])
def test_damped_cosine_swings_between_peak_and_valley(cycles):
    """At p = k / (2 cycles - 1) it is at the falling peak for even k, in the valley for odd k; so it ends at lr_min."""
    for k in range(2 * cycles):
        progress = k / (2 * cycles - 1)
        peak, valley = 8 * (1 - 0.25 * progress), 4 * (1 - progress) + progress
        expected = valley if k % 2 else peak
        assert damped_cosine(progress, 8.0, 1.0, cycles, 0.75) == pytest.approx(expected)
    assert damped_cosine(1.0, 8.0, 1.0, cycles, 0.75) == pytest.approx(1.0)


def schedule(name="damped_cosine", **changes):
    settings = Settings(
        data_dir="",
        output_dir="",
        schedule=name,
        max_steps=100,
        num_warmup_steps=10,
        num_decay_steps=20,
        decay_type="linear",
        min_lr_ratio=0.1,
    )
    return build_schedule(replace(settings, **changes))


@pytest.mark.parametrize("start", [0.0, 0.0625])
def test_damped_cosine_warms_up_to_its_peak(start):
    """System A warms up from 5e-5 to 8e-4, 1/16 of it; the main phase begins where the warm-up ends."""
    ratio = schedule(warmup_lr_ratio=start)
    assert ratio(0) == pytest.approx(start)
    assert ratio(5) == pytest.approx((start + 1) / 2)
    assert ratio(10) == pytest.approx(1.0)
    assert ratio(55) == pytest.approx(((1 - 0.25) + (0.5 + 0.1) / 2) / 2)  # the middle of the main phase
    assert ratio(100) == ratio(1000) == pytest.approx(0.1)
    assert max(ratio(step) for step in range(101)) == ratio(10)


def test_damped_cosine_without_warmup_starts_at_the_peak():
    assert schedule(num_warmup_steps=0)(0) == 1.0
    assert schedule(num_warmup_steps=100)(100) == 1.0  # all warm-up: no division by zero


# Of the way from 1 to 0.1 that is left a quarter, a half and three quarters into the decay.
WSD = {
    "linear": (0.75, 0.5, 0.25),
    "cosine": tuple((1 + math.cos(math.pi * p)) / 2 for p in (0.25, 0.5, 0.75)),
    "1-sqrt": tuple(1 - p**0.5 for p in (0.25, 0.5, 0.75)),
}


@pytest.mark.parametrize("decay_type", WSD)
def test_warmup_stable_decay(decay_type):
    ratio = schedule("warmup_stable_decay", decay_type=decay_type)
    assert ratio(0) == pytest.approx(0.1)
    assert ratio(5) == pytest.approx(0.55)
    assert [ratio(step) for step in (10, 45, 79, 80)] == [1.0] * 4
    for step, left in zip((85, 90, 95), WSD[decay_type], strict=True):
        assert ratio(step) == pytest.approx(0.1 + 0.9 * left)
    assert ratio(100) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["damped_cosine", "warmup_stable_decay"])
@pytest.mark.parametrize("decay_type", WSD)
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.3])
@pytest.mark.parametrize("num_cycles", [1, 3])
def test_rates_stay_between_the_floor_and_the_peak(name, decay_type, min_lr_ratio, num_cycles):
    ratio = schedule(
        name, decay_type=decay_type, min_lr_ratio=min_lr_ratio, num_cycles=num_cycles, warmup_lr_ratio=min_lr_ratio, damping=0.5
    )
    rates = [ratio(step) for step in range(101)]
    assert all(min_lr_ratio - 1e-9 <= rate <= 1 + 1e-9 for rate in rates)
    assert all(rate >= 0 for rate in rates)
    assert max(rates) == pytest.approx(1.0)
