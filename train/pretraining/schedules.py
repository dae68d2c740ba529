"""What changes over a run, as pure functions of the update's number, so that a checkpoint needs no state of theirs.

`settings` are those of train/pretrain.py.
"""

import math
from collections.abc import Callable

import torch
from transformers import get_wsd_schedule

from zh_modernbert.train.rows.masking import MlmSchedule


def damped_cosine(progress: float, lr_max: float, lr_min: float, cycles: int, damping: float) -> float:
    """The learning rate at `progress` from 0 to 1: system A's schedule (https://arxiv.org/abs/2510.12285).

    A cosine with `cycles` valleys swings between a peak and a valley. Over the run the peak falls from `lr_max` to
    `damping * lr_max`, and the valley from `lr_max / 2` to `lr_min`.
    """
    peak = lr_max * (1 - (1 - damping) * progress)
    valley = lr_max / 2 * (1 - progress) + lr_min * progress
    return (peak + valley) / 2 + (peak - valley) / 2 * math.cos(math.pi * (2 * cycles - 1) * progress)


def build_schedule(settings) -> Callable[[int], float]:
    """`warmup_stable_decay` or `damped_cosine`: update (from 0) -> its learning rate, as a ratio to the peak.

    Both warm up linearly over `num_warmup_steps`, and reach `min_lr_ratio` at `max_steps`. `damped_cosine` warms up from
    `warmup_lr_ratio`; `num_cycles` and `damping` shape it. `warmup_stable_decay`, which is transformers', warms up from
    `min_lr_ratio`; `num_decay_steps` and `decay_type` (linear, cosine, 1-sqrt) shape its end.
    """
    s = settings
    if s.schedule == "warmup_stable_decay":
        schedule = get_wsd_schedule(
            torch.optim.SGD([torch.zeros(1)], lr=1.0),  # no optimizer is needed, only the schedule's function
            s.num_warmup_steps,
            s.num_decay_steps,
            num_training_steps=s.max_steps,
            decay_type=s.decay_type,
            min_lr_ratio=s.min_lr_ratio,
        )
        return schedule.lr_lambdas[0]

    def ratio(step: int) -> float:
        if step < s.num_warmup_steps:
            return s.warmup_lr_ratio + (1 - s.warmup_lr_ratio) * step / s.num_warmup_steps
        progress = min((step - s.num_warmup_steps) / max(s.max_steps - s.num_warmup_steps, 1), 1.0)
        return damped_cosine(progress, 1.0, s.min_lr_ratio, s.num_cycles, s.damping)

    return ratio


def mlm_schedule_of(settings) -> MlmSchedule:
    return MlmSchedule(settings.mlm_probability, settings.num_warmup_steps, settings.max_steps)
