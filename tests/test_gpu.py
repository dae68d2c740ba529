"""What of the model is for GPUs, as far as it can be tried without one: the rotary kernel, one graph a layer, slow paths."""

import importlib.util
from functools import partial

import pytest
import torch
from accelerate import dispatch_model
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from tiny import HEADS, assert_close, build, make_documents, pack, pad
from zh_modernbert import modeling_zh_modernbert as modeling

HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """A GPU; or Triton's interpreter, which runs a kernel on CPU."""
    if not HAS_TRITON or (request.param == "cuda" and not torch.cuda.is_available()):
        pytest.skip("needs Triton, and for the second case a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", str(int(request.param == "cpu")))
    modeling.rotary_kernel.cache_clear()
    modeling.rotary_kernel_runs.cache_clear()
    yield torch.device(request.param)
    modeling.rotary_kernel.cache_clear()
    modeling.rotary_kernel_runs.cache_clear()


def rotation(tokens: int, size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    angles = 100 * torch.rand(tokens, 1, 1, size // 2, device=device)
    return angles.cos().repeat(1, 1, 1, 2), torch.cat((-angles.sin(), angles.sin()), -1)


@pytest.mark.parametrize(("heads", "size"), [(3, 10), (12, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_rotary_kernel_computes_the_same(device, dtype, heads, size):
    """Of a part of a joint projection, and of a gradient in another order; up to the rounding, which the interpreter cuts."""
    qkv = torch.randn(7, 3, heads, size, device=device, dtype=dtype)
    rotary, direction = rotation(7, size, device), torch.randn(7, heads, 2, size, device=device, dtype=dtype).transpose(1, 2)
    found = []
    for function, *given in ((modeling.FusedRotary.apply, *rotary, 1.0), (modeling.rotate, *rotary)):
        states = qkv.clone().requires_grad_()
        output = function(states.split((2, 1), dim=1)[0], *given)
        output.backward(direction)
        assert output.dtype == states.grad.dtype == dtype
        found.append((output.detach(), states.grad))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for ours, plain in zip(*found, strict=True):
        assert_close(ours, plain, tolerance)


def test_the_rotary_kernel_is_taken_where_it_runs(device):
    assert modeling.rotary_kernel_runs(device)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (
            RuntimeError("Failed to find C compiler.\nPlease specify via CC"),
            "RuntimeError: Failed to find C compiler. Please spec",
        ),
        (lambda states, *given: states, "it is wrong by 4"),
        (lambda states, *given: states * float("nan"), "it is wrong by nan"),
    ],
    ids=["raises", "wrong", "nan"],
)
def test_a_kernel_that_does_not_run_is_left_out(monkeypatch, result, why):
    def apply(*given):
        if isinstance(result, Exception):
            raise result
        return result(*given)

    warned = []
    monkeypatch.setattr(modeling, "triton", object())
    monkeypatch.setattr(modeling.FusedRotary, "apply", apply)
    monkeypatch.setattr(modeling.logger, "warning_once", warned.append)
    modeling.rotary_kernel_runs.cache_clear()
    assert [modeling.rotary_kernel_runs(torch.device("cpu")) for _ in range(2)] == [False, False]
    modeling.rotary_kernel_runs.cache_clear()
    (text,) = warned
    assert why in text


@pytest.mark.skipif(modeling.varlen_attn is None, reason="needs PyTorch 2.11")
def test_a_compiled_layer_is_one_graph(monkeypatch):
    """Forward and backward, with PyTorch's varlen kernel, on a device without values. No later batch compiles anything."""
    monkeypatch.setattr(modeling, "_varlen_attention_runs", lambda query, dropout: True)
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(sum("varlen" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph)

    model = build(modeling.ZhModernBertModel, num_hidden_layers=1).train().to("meta", torch.bfloat16)
    (layer,) = model.layers
    layer.mlp.recompute = True
    layer.compile(dynamic=True, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    for lengths in ([30, 5, 9], [64, 3], [7, 9, 11, 13]):
        batch = pack(make_documents(lengths))
        model(batch["input_ids"].to("meta"), cu_seqlens=batch["cu_seqlens"]).last_hidden_state.sum().backward()
        assert graphs == [1, 1]
    torch.compiler.reset()


def test_the_age_of_a_gpu_breaks_no_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    torch.compiler.reset()

    @partial(torch.compile, backend="eager", fullgraph=True)
    def plus_one(tensor, device):
        return tensor + 1 if modeling._is_ampere_or_newer(device) else tensor

    assert plus_one(torch.zeros(1), torch.device("cuda:0")) == 1
    torch.compiler.reset()


def test_a_slow_path_on_a_gpu_is_named(monkeypatch):
    class OnGpu(torch.Tensor):
        """On CPU, and says that it is not."""

        is_cuda = True

    warned = []
    monkeypatch.setattr(modeling.logger, "warning_once", warned.append)
    model = build(num_hidden_layers=1)
    layout = modeling.SequenceLayout.from_packed(torch.tensor([0, 3, 8]), 8)
    states = [torch.randn(8, 2, 16) for _ in range(3)]
    expected, _ = modeling.sdpa_attention(model.model.layers[0].attn, *states, layout, None, 0.0)
    assert warned == []
    query, *rest = states
    found, _ = modeling.sdpa_attention(model.model.layers[0].attn, query.as_subclass(OnGpu), *rest, layout, None, 0.0)
    assert_close(found.as_subclass(torch.Tensor), expected)
    (text,) = warned
    assert "needs half precision (here: torch.float32), no attention_dropout (0.0), a head size of 8, 16 ... 256 (16)" in text


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("head", [head for head in HEADS if head != "MultipleChoice"])
@pytest.mark.parametrize("how", [pad, pack])
def test_layers_on_two_gpus_compute_the_same(head, how):
    batch = how(make_documents((30, 9, 1)))
    whole, parts = build(HEADS[head]), build(HEADS[head])
    second = ("model.layers.2", "model.layers.3", "model.final_norm")
    places = {name: int(name in second) for name in (*(f"model.layers.{layer}" for layer in range(4)), *second)}
    parts = dispatch_model(parts, {"model.embeddings": 0, "decoder": 0, "head": 1, "classifier": 1} | places)
    found, expected = parts(**batch), whole(**batch)
    for name, tensor in expected.items():
        assert_close(found[name].cpu(), tensor)
