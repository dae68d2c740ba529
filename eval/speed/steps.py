"""Speed of a forward, or of a forward and a backward, beside a peer's on the same texts."""

import time
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from zh_modernbert.eval.speed.correctness import relative_difference
from zh_modernbert.eval.speed.measuring import compiled_graphs, peak_memory, synchronize, take_turns
from zh_modernbert.eval.speed.peers import PEERS, Peer, build_ours, build_peer, pack_encoder
from zh_modernbert.eval.speed.runtimes import RUNTIME_DTYPES, Served, serve
from zh_modernbert.eval.speed.workloads import Workload
from zh_modernbert.train.common.cli import InputError

WARM_UPS = {"cpu": 1, "cuda": 3}


class Contestant:
    """A model, the batch it is given, and one step of it."""

    def __init__(self, model: nn.Module, batch: dict, device: str, dtype: torch.dtype, training: bool, compiled: bool):
        self.model = model.to(device, dtype).train(training)
        self.step = torch.compile(self.model) if compiled else self.model
        self.batch, self.device, self.training = batch, device, training
        self.weights = None
        if training:  # pads have no part in the loss
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            self.weights = mask.unsqueeze(-1).to(dtype)

    def __call__(self) -> tuple[float, torch.Tensor]:
        """Seconds of one step, and its output `(B, T, H)`."""
        synchronize(self.device)
        started = time.perf_counter()
        with torch.set_grad_enabled(self.training):
            output = self.step(**self.batch).last_hidden_state
            if self.training:
                (output * self.weights).square().mean().backward()
        synchronize(self.device)
        seconds = time.perf_counter() - started
        self.model.zero_grad()
        return seconds, output.detach()

    def warm_up(self) -> torch.Tensor:
        """Runs until no more is compiled, and returns the output. A shape that comes a second time may be compiled again."""
        for number in range(1, 8):
            graphs, output = compiled_graphs(), self()[1]
            if compiled_graphs() == graphs and number >= WARM_UPS[self.device]:
                break
        return output


def why_skipped(peer: Peer, dtype_name: str, training: bool, settings) -> str | None:
    """Why no comparison is made in these runtimes; None where one is."""
    runtimes = {peer.runtime, settings.runtime}
    if runtimes != {"pytorch"} and (training or settings.device != "cpu"):
        return "ONNX Runtime and OpenVINO are for inference on CPU here"
    if settings.runtime != "pytorch" and peer.backend == "packed":
        return "packed rows are for PyTorch"
    lacking = [runtime for runtime in sorted(runtimes) if dtype_name not in RUNTIME_DTYPES[runtime]]
    return f"{lacking[0]} has no {dtype_name} here" if lacking else None


def compare_steps(peer_name: str, workload: Workload, dtype_name: str, training: bool, shape: dict, settings) -> dict:
    """Steps of both sides on the same texts, warmed up, measured by turns; the outputs compared first where weights are shared.

    Args:
        settings: those of eval/throughput.py.

    Raises:
        InputError: the outputs differ though the weights are the same, or something was compiled inside the timed turns.
    """
    peer, device, longest = PEERS[peer_name], settings.device, max(workload.lengths)
    if why := why_skipped(peer, dtype_name, training, settings):
        return {"skipped": why}
    with torch.device(device):
        peer_model, peer_longest = build_peer(peer, shape, longest)
    if longest > peer_longest:
        return {"skipped": f"a text of it has at most {peer_longest} tokens here"}
    start = partial(Contestant, device=device, dtype=getattr(torch, dtype_name), training=training, compiled=settings.compile)
    batch = workload.packed(device) if peer.backend == "packed" else workload.padded(device)
    if peer.runtime == "pytorch":
        theirs = start(peer_model, with_positions(batch) if peer.backend else batch_for(peer_model, workload, device))
    else:
        theirs = serve("stock", peer.runtime, shape, dtype_name, batch)
    if peer.fused:
        pack_encoder(peer_model)
    peer_output = theirs.warm_up()
    if settings.runtime == "pytorch":
        with torch.device(device):
            our_model = build_ours(shape, longest, peer_model.state_dict() if peer.backend else None)
        ours = start(our_model, batch)
    else:
        ours = serve("ours", settings.runtime, shape, dtype_name, batch)
    our_output, found = ours.warm_up(), {}
    if peer.backend and not training:
        real = batch["attention_mask"].bool() if "attention_mask" in batch else slice(None)
        found["relative_difference"] = relative_difference(our_output[real].float(), peer_output[real].float())
        if not found["relative_difference"] <= (1e-4 if dtype_name == "float32" else 5e-2):
            where = f"{peer_name} on {workload.name} in {dtype_name}"
            raise InputError(f"throughput: {where}: outputs differ by {found['relative_difference']:.3g} of their norm")
    del our_output, peer_output
    found |= time_sides(ours, theirs, settings)
    found["tokens_per_second"] = round(sum(workload.lengths) / found["our_seconds"])
    found["flops"] = workload.flops(shape) * (3 if training else 1)  # a backward has twice the matrix products of a forward
    return found


def time_sides(ours: Contestant | Served, theirs: Contestant | Served, settings) -> dict:
    """Memory and seconds of both sides, and their ratio.

    Raises:
        InputError: something was compiled inside the timed turns.
    """
    found = {}
    for side, contestant in (("our", ours), ("peer", theirs)):
        if isinstance(contestant, Contestant):  # nobody counts the tensors of a runtime
            found[f"{side}_memory"] = peak_memory(contestant, settings.device)
    graphs = compiled_graphs()
    found["our_seconds"], found["peer_seconds"], found["runs"] = take_turns(ours, theirs, settings.repeats, settings.seconds)
    if compiled_graphs() > graphs:
        raise InputError(f"throughput: {compiled_graphs() - graphs} graphs were compiled inside the timed turns")
    found["ratio"] = round(found["peer_seconds"] / found["our_seconds"], 3)
    return found


def batch_for(peer_model: PreTrainedModel, workload: Workload, device: str) -> dict:
    """The texts as another encoder takes them: with its own pad token, and without a cache of keys and values."""
    batch = workload.padded(device, getattr(peer_model.config, "pad_token_id", None) or 0)
    return batch | ({"use_cache": False} if peer_model.config.model_type == "qwen3" else {})


def with_positions(batch: dict) -> dict:
    """The batch as stock ModernBERT takes it. In a packed row it does not count positions from each document's start itself."""
    if "cu_seqlens" not in batch:
        return batch
    starts = batch["cu_seqlens"][:-1].repeat_interleave(batch["cu_seqlens"].diff())
    return batch | {"position_ids": (torch.arange(len(starts), device=starts.device) - starts)[None]}


def measure_alone(workload: Workload, dtype_name: str, shape: dict, device: str) -> dict:
    """Time and memory of our side alone."""
    with torch.device(device):
        model = build_ours(shape, max(workload.lengths))
    ours = Contestant(model, workload.padded(device), device, getattr(torch, dtype_name), training=False, compiled=False)
    return {"our_memory": peak_memory(ours, device), "our_seconds": ours()[0]}  # the first is the warm-up
