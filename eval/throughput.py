"""Speed and memory of this encoder beside the models that people would take instead, side by side in one run, offline.

Every peer is transformers' own class with random weights; stock ModernBERT has the very weights of ours, and its outputs are
compared before anything is timed. First the backends are checked against each other on the device. Then each peer and this
encoder take turns, the order changing, each after a warm-up; the medians are compared. `ratio` is the peer's time by ours:
above 1 this encoder is faster. Floors are counted: the floating-point operations that the real tokens need, at the rate of this
device's own matrix product.

    python eval/throughput.py --device cpu
    python eval/throughput.py --device cuda
    python eval/throughput.py --device cuda --modes pretraining
    python eval/throughput.py --workload collator

Workloads are `TxB`, B texts of T tokens, or `TxB-KIND`, texts of at most T tokens whose lengths are even quantiles of a real
distribution: `questions`, `articles` or `documents`. A training step is forward and backward, without the optimizer, which
would be the same for all. The mode `pretraining` has the optimizer and all else that an update of train/pretrain.py does to B
full packed rows of T tokens, beside stock ModernBERT in transformers' Trainer; it runs where it is asked for. `collator` is the
masking of whole words alone, beside transformers' collator on the same rows.
"""

import gc
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from matplotlib import pyplot
from torch import nn
from tqdm import tqdm
from transformers import AttentionInterface, AutoConfig, AutoModel, ModernBertModel

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.measuring import LENGTHS, lengths_at, matmul_rate, peak_memory, synchronize, take_turns
from zh_modernbert.eval.training_speed import MIXED_PRECISION, compare_collators, compare_updates, stock_config
from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.files import write_json
from zh_modernbert.train.flops import encoder_flops

# Encoders that are compared layer for layer: the base width at 12 layers, and System A's shape.
SHAPES = {
    "12x768": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152},
    "28x1024": {"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2624},
}
WORKLOADS = {
    "cpu": ["64x1", "128x1", "512x1", "512x16", "512x16-questions", "512x16-articles", "8192x1"],
    "cuda": ["512x32", "512x32-questions", "512x32-articles", "8192x8", "8192x8-documents"],
}
PRETRAINING_WORKLOADS = {"cpu": ["512x4"], "cuda": ["1024x64", "8192x8"]}
DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}

# Peers at the sizes that are published; those of transformers' defaults have nothing to say here.
OTHER_PEERS = {
    "chinese-roberta-wwm-ext-large": (
        "bert",
        {
            "vocab_size": 21128,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "xlm-roberta-base": ("xlm-roberta", {"vocab_size": 250002, "max_position_embeddings": 514}),
    "qwen3-embedding-0.6b": (
        "qwen3",
        {
            "vocab_size": 151669,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
    "eurobert-210m": ("eurobert", {}),
    "gte-multilingual-base": ("gte", {}),
    "nomic-embed": ("nomic_bert", {}),
    "jina-embeddings-v3": ("jina_embeddings_v3", {}),
}
STOCK = (
    "modernbert-sdpa",
    "modernbert-eager",
    "modernbert-flash_attention_2",
    "modernbert-flex_attention",
    "modernbert-packed",
)
PEERS = (*STOCK, *OTHER_PEERS)
PRETRAINING_PEERS = ("modernbert-sdpa", "modernbert-flash_attention_2")
MODES = ("inference", "training", "curve", "pretraining")
EAGER_LONGEST = 2048  # it keeps T x T weights a head; more does not fit


@dataclass
class Settings(BaseSettings):
    device: str = setting("auto", "auto takes the GPU where there is one", choices=("auto", "cpu", "cuda"))
    dtypes: list[str] = setting([], "empty: float32 and bfloat16 on CPU, bfloat16 on a GPU", ("float32", "bfloat16", "float16"))
    shape: str = setting("auto", "layers x width; auto: 12x768 on CPU, 28x1024 on a GPU", choices=("auto", *SHAPES))
    workload: list[str] = setting(
        [], "TxB or TxB-KIND, KIND one of questions, articles, documents; or collator; empty: those of the device"
    )
    modes: list[str] = setting(
        ["inference", "training", "curve"], "curve: cost against length; pretraining: whole updates", choices=MODES
    )
    peers: list[str] = setting(list(PEERS), choices=PEERS)
    compile: bool = setting(False, "torch.compile for both sides")
    curve_lengths: list[int] = setting([128, 512, 2048, 8192, 32768], "tokens of the one text of the curve", least=1)
    repeats: int = setting(5, "timed runs a side, after the warm-up", least=1)
    seconds: float = setting(90.0, "a comparison stops after so long, each side having run once at least", least=0)
    threads: int = setting(0, "CPU threads; 0: as many as PyTorch takes", least=0)
    results_dir: str = setting("results", "where throughput-DEVICE.json and .png go")


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass
class Workload:
    """`lengths` of the texts of one batch, in tokens, and how the workload is called."""

    name: str
    lengths: list[int]

    @classmethod
    def parse(cls, name: str) -> "Workload":
        """Raises InputError for anything but TxB and TxB-KIND."""
        match = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)(?:-({'|'.join(LENGTHS)}))?", name)
        if match is None:
            kinds = ", ".join(LENGTHS)
            raise InputError(f"throughput: workload holds {name!r}; it must be TxB or TxB-KIND, as 512x16, KIND one of {kinds}")
        longest, rows = int(match[1]), int(match[2])
        if not match[3]:
            return cls(name, [longest] * rows)
        lengths = lengths_at(match[3], (np.arange(rows) + 0.5) / rows)
        return cls(name, np.minimum(lengths, longest).tolist())

    def padded(self, device, pad_token_id: int = 0) -> dict:
        """`input_ids` `(B, T)`, and `attention_mask` where there are pads."""
        rows, width = len(self.lengths), max(self.lengths)
        mask = torch.arange(width) < torch.tensor(self.lengths)[:, None]
        input_ids = torch.randint(10, 1000, (rows, width), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": input_ids.masked_fill(~mask, pad_token_id)}
        if not mask.all():
            batch["attention_mask"] = mask.long()
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def packed(self, device) -> dict:
        """The same texts in one row `(1, N)`, with `cu_seqlens` and `max_seqlen`."""
        batch = self.padded("cpu")
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        cu_seqlens = F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0)).to(torch.int32)
        input_ids = batch["input_ids"][mask][None]
        return {"input_ids": input_ids.to(device), "cu_seqlens": cu_seqlens.to(device), "max_seqlen": max(self.lengths)}

    def flops(self, shape: dict) -> float:
        """Floating-point operations of one forward of an encoder of `shape` over the real tokens."""
        return encoder_flops(self.lengths, ZhModernBertConfig(**shape))


# --- models -----------------------------------------------------------------------------------------------------------


def build_ours(shape: dict, longest: int, state_dict: dict | None = None) -> nn.Module:
    config = ZhModernBertConfig(**shape, norm_type="layernorm", max_position_embeddings=max(longest, 8192))
    model = modeling.ZhModernBertModel(config)
    if state_dict is not None:
        model.load_state_dict(state_dict)
    return model


def packed_attention(module, query, key, value, attention_mask, cu_seqlens, max_seqlen, sliding_window, dropout=0.0, **kwargs):
    """What a user can register today for stock ModernBERT on packed rows: PyTorch's varlen kernel on a GPU; on CPU, which has
    none, SDPA on each document, with a band where the layer has a window. `(1, A, N, C)` -> `(1, N, A, C)`.
    """
    reach = -1 if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        if modeling.varlen_attn is None:
            raise ImportError("PyTorch has a varlen kernel with a window from 2.11")
        bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return modeling.varlen_attn(query, key, value, *bounds, window_size=(reach, reach))[None], None
    outputs = []
    for start, end in pairwise(cu_seqlens.tolist()):
        position, mask = torch.arange(end - start), None
        if 0 <= reach < end - start - 1:
            mask = (position[:, None] - position).abs() <= reach
        states = (states[:, :, start:end] for states in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(*states, attn_mask=mask, dropout_p=dropout))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def build_peer(name: str, shape: dict, longest: int) -> tuple[nn.Module, int]:
    """A peer with random weights, and the most tokens a text of it may have."""
    if name not in OTHER_PEERS:
        backend = name.removeprefix("modernbert-")
        if backend == "packed":
            AttentionInterface.register(backend, packed_attention)
        config = stock_config(shape, 32768, longest, backend)
        return ModernBertModel(config), EAGER_LONGEST if backend == "eager" else 10**9
    kind, changes = OTHER_PEERS[name]
    config = AutoConfig.for_model(kind, **changes)
    return AutoModel.from_config(config), min(config.max_position_embeddings, 32768) // 64 * 64


class Contestant:
    """A model, the batch it is given, and one step of it."""

    def __init__(self, model: nn.Module, batch: dict, device: str, dtype: torch.dtype, training: bool, compiled: bool):
        self.model = model.to(device, dtype).train(training)
        self.step = torch.compile(self.model) if compiled else self.model
        self.batch, self.device, self.training = batch, device, training
        self.weights = None
        if training:  # pads count for nothing, as under any loss
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


# --- correctness ------------------------------------------------------------------------------------------------------


def check_backends(device: str) -> dict[str, float]:
    """Every backend that runs, padded left and right and packed, forward and backward, beside eager in float32.

    Returns the largest error of each backend and dtype, of outputs and of gradients, as a share of their norm; float32 may
    differ by 1e-5, half precision by twice what eager itself does in it.

    Raises:
        InputError: one differs by more, or gives something that is not finite, or pads that are not zero.
    """
    texts = Workload("check", [1, 2, 64, 65, 130, 300])
    rows = texts.padded(device)
    # A row of pads, and texts with stretches of pads longer than the window on either side of them.
    rows = {name: torch.cat((tensor, torch.zeros_like(tensor[:1]))) for name, tensor in rows.items()}
    mask = rows["attention_mask"].bool()
    flipped = {name: tensor.flip(1) for name, tensor in rows.items()}
    arrangements = {
        "right": rows,
        "left": {**flipped, "input_ids": _left(rows["input_ids"], mask)},
        "packed": texts.packed(device),
    }
    shape = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192}
    torch.manual_seed(0)
    config = ZhModernBertConfig(vocab_size=1000, **shape, initializer_range=0.08)
    model = modeling.ZhModernBertModel(config).to(device)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    direction = torch.randn(sum(texts.lengths), shape["hidden_size"], generator=torch.Generator().manual_seed(1)).to(device)

    def measure(backend, dtype, how):
        for parameter, weight in zip(model.to(dtype).parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        model.set_attn_implementation(backend)
        model.zero_grad()
        batch = arrangements[how]
        output = model(**batch).last_hidden_state
        real = (
            batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(output[..., 0], dtype=torch.bool)
        )
        if output[~real].any():
            raise InputError(f"correctness: {backend} in {dtype}, {how}: pads are not zero")
        (output[real].float() * direction).sum().backward()
        gradient = torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])
        return output[real].detach().float(), gradient

    exact = measure("eager", torch.float32, "right")
    backends = ["sdpa"] + ["flash_attention_2"] * (device == "cuda" and modeling.flash_attn_varlen_func is not None)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = [_share(mine, theirs) for mine, theirs in zip(measure("eager", dtype, "right"), exact, strict=True)]
        allowed = [1e-5] * 2 if dtype == torch.float32 else [2 * share + 1e-3 for share in plain]
        for backend, how in product(backends, arrangements):
            if dtype == torch.float32 and backend != "sdpa":
                continue  # FlashAttention has half precision only
            for what, mine, theirs, limit in zip(
                ("outputs", "gradients"), measure(backend, dtype, how), exact, allowed, strict=True
            ):
                share = _share(mine, theirs)
                if not share <= limit:
                    name = f"{backend} in {dtype}, {how}"
                    raise InputError(f"correctness: {name}: {what} differ by {share:.3g}, {limit:.3g} is allowed")
                key = f"{backend} {str(dtype).removeprefix('torch.')} {what}"
                found[key] = max(found.get(key, 0.0), share)
    return found


def _left(input_ids, mask):
    """The texts of right-padded rows moved to the right end."""
    moved = torch.zeros_like(input_ids)
    moved[mask.flip(1)] = input_ids[mask]
    return moved


def _share(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


# --- measuring --------------------------------------------------------------------------------------------------------


def compare(peer_name: str, workload: Workload, dtype_name: str, mode: str, shape: dict, settings: Settings) -> dict:
    """One row of the table. A peer that cannot run here, or memory that does not suffice, says so under `skipped`."""
    row = {"workload": workload.name, "mode": mode, "dtype": dtype_name, "peer": peer_name}
    torch.manual_seed(0)
    try:
        if mode == "pretraining":
            backend, lengths = peer_name.removeprefix("modernbert-"), workload.lengths
            return row | compare_updates(backend, lengths[0], len(lengths), dtype_name, shape, settings)
        return row | _compare(peer_name, workload, dtype_name, mode == "training", shape, settings)
    except torch.OutOfMemoryError as error:
        return row | {"skipped": f"out of memory: {str(error).splitlines()[0][:100]}"}
    finally:
        gc.collect()
        if settings.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()


def _compare(peer_name, workload, dtype_name, training, shape, settings) -> dict:
    device, dtype = settings.device, getattr(torch, dtype_name)
    longest = max(workload.lengths)
    same_weights, is_packed = peer_name not in OTHER_PEERS, peer_name == "modernbert-packed"
    batch = workload.packed(device) if is_packed else workload.padded(device)
    try:
        peer_model, peer_longest = build_peer(peer_name, shape, longest)
        if longest > peer_longest:
            return {"skipped": f"a text of it has at most {peer_longest} tokens here"}
        theirs = dict(batch)
        if is_packed:
            starts = theirs["cu_seqlens"][:-1].repeat_interleave(theirs["cu_seqlens"].diff())
            theirs["position_ids"] = (torch.arange(len(starts), device=device) - starts)[None]
        elif not same_weights:
            theirs = workload.padded(device, getattr(peer_model.config, "pad_token_id", None) or 0)
            if peer_model.config.model_type == "qwen3":
                theirs["use_cache"] = False
        peer = Contestant(peer_model, theirs, device, dtype, training, settings.compile)
        peer_output = peer()[1]  # the warm-up
    except torch.OutOfMemoryError:
        raise
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:  # the peer's backend does not run here
        return {"skipped": f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"}
    our_model = build_ours(shape, longest, peer_model.state_dict() if same_weights else None)
    ours = Contestant(our_model, batch, device, dtype, training, settings.compile)
    our_output = ours()[1]
    found = {}
    if same_weights and not training:
        real = batch["attention_mask"].bool() if "attention_mask" in batch else slice(None)
        found["relative_difference"] = _share(our_output[real].float(), peer_output[real].float())
        if not found["relative_difference"] <= (1e-4 if dtype == torch.float32 else 5e-2):
            where = f"{peer_name} on {workload.name} in {dtype_name}"
            raise InputError(f"throughput: {where}: outputs differ by {found['relative_difference']:.3g} of their norm")
    del our_output, peer_output
    if settings.compile:  # a graph may be compiled again where it is given the same shape a second time
        ours(), peer()
    found["our_memory"], found["peer_memory"] = peak_memory(ours, device), peak_memory(peer, device)
    found["our_seconds"], found["peer_seconds"], found["runs"] = take_turns(ours, peer, settings.repeats, settings.seconds)
    found["ratio"] = round(found["peer_seconds"] / found["our_seconds"], 3)
    found["tokens_per_second"] = round(sum(workload.lengths) / found["our_seconds"])
    found["flops"] = workload.flops(shape) * (3 if training else 1)  # a backward is two forwards' worth of matrix products
    return found


def measure_curve(shape: dict, settings: Settings) -> Iterator[dict]:
    """One text of each length: ours, and stock ModernBERT on sdpa until that is too slow."""
    device, dtype, slow = settings.device, settings.dtypes[0], False
    for length in settings.curve_lengths:
        workload = Workload(f"{length}x1", [length])
        row = {"skipped": "would take too long"}
        if not slow:
            row = compare("modernbert-sdpa", workload, dtype, "inference", shape, settings)
        # Four times the length is up to sixteen times the work.
        slow = slow or "skipped" in row or 16 * row["peer_seconds"] > settings.seconds
        if "skipped" in row:
            batch = workload.padded(device)
            ours = Contestant(build_ours(shape, length), batch, device, getattr(torch, dtype), training=False, compiled=False)
            row["our_memory"] = peak_memory(ours, device)  # the warm-up
            row["our_seconds"] = ours()[0]
        yield {"length": length} | row


def draw_curve(curve: list[dict], path: Path, title: str) -> None:
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for side, label in (("our_seconds", "zh-modernbert"), ("peer_seconds", "transformers' ModernBERT, sdpa")):
        points = [(row["length"], row[side] * 1e6 / row["length"]) for row in curve if side in row]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens in the text", ylabel="ms for 1,000 tokens", title=title)
    axes.set_xticks([row["length"] for row in curve], [f"{row['length']:,}" for row in curve])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
    pyplot.close(figure)


def show(row: dict) -> str:
    """One line of the table."""
    name = f"{row['workload']:<18}{row['mode']:<12}{row['dtype']:<9}{row['peer']:<30}"
    if "skipped" in row:
        return f"{name}{row['skipped']}"
    memory = "".join(f"{row[key] / 2**20:>9,.0f}" for key in ("our_memory", "peer_memory"))
    times = f"{row['our_seconds'] * 1e3:>11,.1f}{row['peer_seconds'] * 1e3:>11,.1f}{row['ratio']:>8.2f}"
    return f"{name}{times}{100 * row['flop_utilisation']:>8.0f}{memory}"


def pretraining_jobs(settings: Settings) -> list[tuple]:
    """Workload, mode, dtype and peer of each comparison of whole updates.

    Raises:
        InputError: it cannot be made of these settings.
    """

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"throughput: the mode pretraining {message}")

    workloads = [Workload.parse(name) for name in settings.workload or PRETRAINING_WORKLOADS[settings.device]]
    for workload in workloads:
        require("-" not in workload.name, f"has full rows: the workload is TxB, not {workload.name}")
    for dtype in settings.dtypes:
        require(dtype in MIXED_PRECISION, f"is in {' or '.join(MIXED_PRECISION)}, not in {dtype}")
    peers = [peer for peer in settings.peers if peer in PRETRAINING_PEERS]
    require(bool(peers), f"has no peers but {' and '.join(PRETRAINING_PEERS)}")
    require(
        settings.device == "cpu" or torch.cuda.device_count() == 1,
        "is of one GPU, and the Trainer would take all; set CUDA_VISIBLE_DEVICES=0",
    )
    return list(product(workloads, ["pretraining"], settings.dtypes, peers))


def main(settings: Settings) -> dict:
    if "collator" in settings.workload:
        if len(settings.workload) > 1:
            raise InputError("throughput: the workload collator has no model; give it alone")
        return compare_collators(64, 1024, settings)
    if settings.device == "auto":
        settings.device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("throughput: device is 'cuda', but PyTorch finds no GPU")
    device = settings.device
    settings.dtypes = settings.dtypes or DTYPES[device]
    shape_name = settings.shape if settings.shape != "auto" else {"cpu": "12x768", "cuda": "28x1024"}[device]
    modes = [mode for mode in settings.modes if mode in ("inference", "training")]
    workloads = [Workload.parse(name) for name in settings.workload or WORKLOADS[device]]
    jobs = list(product(workloads, modes, settings.dtypes, settings.peers))
    if "pretraining" in settings.modes:
        jobs += pretraining_jobs(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    shape = SHAPES[shape_name]

    results_dir = Path(settings.results_dir)
    results_dir.mkdir(parents=True, exist_ok=True)
    print(f"correctness on {device}, largest error as a share of the norm:", file=sys.stderr)
    checks = check_backends(device)
    for name, share in checks.items():
        print(f"  {name:<40}{share:.2g}", file=sys.stderr)

    rates = {name: matmul_rate(device, getattr(torch, name)) for name in settings.dtypes}
    for name, rate in rates.items():
        print(f"matrix product in {name}: {rate / 1e12:.3f} TFLOP/s", file=sys.stderr)
    print(
        f"\n{'workload':<18}{'mode':<12}{'dtype':<9}{'peer':<30}{'ours ms':>11}{'peer ms':>11}{'ratio':>8}{'% floor':>8}"
        f"{'our MiB':>9}{'peer MiB':>9}",
        file=sys.stderr,
    )
    device_name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {
        "device": device_name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": shape_name,
        "compiled": settings.compile,
        "correctness": checks,
        "matmul_flops_per_second": rates,
        "lengths": {workload.name: workload.lengths for workload, *_ in jobs if len(set(workload.lengths)) > 1},
        "rows": [],
        "curve": [],
        "ratio": {},
    }

    def keep(kind: str, row: dict) -> None:
        result[kind].append(row)
        write_json(results_dir / f"throughput-{device}.json", result)  # each time: a run is long

    with tqdm(jobs, unit=" comparisons", leave=False) as progress:
        for workload, mode, dtype, peer in progress:
            progress.set_postfix_str(f"{workload.name} {mode} {dtype} {peer}")
            row = compare(peer, workload, dtype, mode, shape, settings)
            if "ratio" in row:
                row["floor_seconds"] = row["flops"] / rates[dtype]
                row["flop_utilisation"] = round(row["floor_seconds"] / row["our_seconds"], 3)
                if "peer_flops" in row:
                    row["peer_flop_utilisation"] = round(row["peer_flops"] / rates[dtype] / row["peer_seconds"], 3)
                result["ratio"][f"{workload.name} {mode} {dtype} {peer}"] = row["ratio"]
            progress.write(show(row), file=sys.stderr)
            keep("rows", row)

    for row in measure_curve(shape, settings) if "curve" in settings.modes else ():
        peer = f"{row['peer_seconds']:.3f} s" if "peer_seconds" in row else row["skipped"]
        print(f"one text of {row['length']:,} tokens: ours {row['our_seconds']:.3f} s, stock {peer}", file=sys.stderr)
        keep("curve", row)
    if result["curve"]:
        title = f"One text, {settings.dtypes[0]}, {shape_name}, {device_name}"
        draw_curve(result["curve"], results_dir / f"throughput-{device}.png", title)
    return result


if __name__ == "__main__":
    run(main, Settings)
