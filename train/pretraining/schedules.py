"""Learning rates as pure functions of the update's number, so that a checkpoint needs no state of theirs."""

import math
from collections.abc import Callable

import torch
from transformers import get_wsd_schedule


def damped_cosine(progress: float, lr_max: float, lr_min: float, cycles: int, damping: float) -> float:
    """The learning rate at `progress` from 0 to 1: system A's schedule (https://arxiv.org/abs/2510.12285).

    A cosine with `cycles` valleys swings between a peak and a valley. Over the run the peak falls from `lr_max` to
    `damping * lr_max`, and the valley from `lr_max / 2` to `lr_min`.
    """
    peak = lr_max * (1 - (1 - damping) * progress)
    valley = lr_max / 2 * (1 - progress) + lr_min * progress
    return (peak + valley) / 2 + (peak - valley) / 2 * math.cos(math.pi * (2 * cycles - 1) * progress)


def build_schedule(
    name: str,
    max_steps: int,
    num_warmup_steps: int,
    num_decay_steps: int,
    decay_type: str,
    warmup_lr_ratio: float,
    min_lr_ratio: float,
    num_cycles: int,
    damping: float,
) -> Callable[[int], float]:
    """`warmup_stable_decay` or `damped_cosine`: update (from 0) -> its learning rate, as a ratio to the peak.

    Both warm up linearly over `num_warmup_steps`, and reach `min_lr_ratio` at `max_steps`. `damped_cosine` warms up from
    `warmup_lr_ratio`; `num_cycles` and `damping` shape it. `warmup_stable_decay`, which is transformers', warms up from
    `min_lr_ratio`; `num_decay_steps` and `decay_type` (linear, cosine, 1-sqrt) shape its end.
    """
    if name == "warmup_stable_decay":
        schedule = get_wsd_schedule(
            torch.optim.SGD([torch.zeros(1)], lr=1.0),  # no optimizer is needed, only the schedule's function
            num_warmup_steps,
            num_decay_steps,
            num_training_steps=max_steps,
            decay_type=decay_type,
            min_lr_ratio=min_lr_ratio,
        )
        return schedule.lr_lambdas[0]

    def ratio(step: int) -> float:
        if step < num_warmup_steps:
            return warmup_lr_ratio + (1 - warmup_lr_ratio) * step / num_warmup_steps
        progress = min((step - num_warmup_steps) / max(max_steps - num_warmup_steps, 1), 1.0)
        return damped_cosine(progress, 1.0, min_lr_ratio, num_cycles, damping)

    return ratio
