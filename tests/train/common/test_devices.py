"""What is computed in where nobody says; what Accelerate's environment may not change."""

import pytest
import torch

from zh_modernbert.train.common import devices
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.devices import check_environment


@pytest.mark.parametrize(
    ("gpu", "own", "expected"), [(False, False, "float32"), (True, False, "float32"), (True, True, "bfloat16")]
)
def test_bfloat16_is_for_gpus_that_have_it(monkeypatch, gpu, own, expected):
    """Older ones imitate it, which PyTorch counts unless it is told not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: own or including_emulation)
    assert devices.default_dtype() == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_MIXED_PRECISION": "fp16"},
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_MEGATRON_LM": "true"},
        {"FSDP_VERSION": "1", "ACCELERATE_USE_FSDP": "true"},
        {"PARALLELISM_CONFIG_CP_SIZE": "2", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_what_would_change_a_run_unasked_is_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        check_environment("bf16")
    assert f"{next(iter(variables))} is" in str(error.value)


def test_what_accelerate_launch_sets_by_itself_is_accepted(monkeypatch):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "PARALLELISM_CONFIG_CP_SIZE": "8",  # of a config that is not used
    }.items():
        monkeypatch.setenv(name, value)
    check_environment("bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_environment("bf16")
    with pytest.raises(InputError, match="ACCELERATE_MIXED_PRECISION"):
        check_environment("no")
    monkeypatch.delenv("FSDP_VERSION")
    with pytest.raises(InputError, match="FSDP_VERSION is '1'"):
        check_environment("bf16")
