"""What is computed in where nobody says."""

import pytest
import torch

from zh_modernbert.train.common import devices


@pytest.mark.parametrize(
    ("gpu", "own", "expected"), [(False, False, "float32"), (True, False, "float32"), (True, True, "bfloat16")]
)
def test_bfloat16_is_for_gpus_that_have_it(monkeypatch, gpu, own, expected):
    """Older ones imitate it, which PyTorch counts unless it is told not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: own or including_emulation)
    assert devices.default_dtype() == expected
