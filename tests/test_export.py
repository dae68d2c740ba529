"""torch.compile, torch.export and ONNX: one graph for every batch, and the numbers of the model itself."""

import shutil
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

import tiny
from tiny import HEADS
from zh_modernbert import modeling_zh_modernbert as modeling

ROWS, TOKENS = torch.export.Dim("rows", max=64), torch.export.Dim("tokens", max=1024)
# Lengths and width of a batch: on both sides of a block of queries and of the window; a row of pads; one row, one token.
BATCHES = [((100, 37, 5), 100), ((7, 300, 64, 65), 300), ((0, 9), 20), ((129,), 129), ((1,), 1), ((3, 63), 64)]


def build(model_class=modeling.ZhModernBertForMaskedLM, num_hidden_layers=2, **changes):
    """A full layer and one with a window; what more layers cost is time."""
    return tiny.build(model_class, num_hidden_layers=num_hidden_layers, **changes)


def build_head(head, **changes):
    """A head on a full layer alone, but for masked language modelling: the encoder is exported with that and by itself."""
    return build(HEADS[head], num_hidden_layers=2 if head == "MaskedLM" else 1, **changes)


def make_batch(lengths, width, side="right", choices=False):
    """Random ids, also at pads, and the mask of real tokens; with `choices` two of each row."""
    position = torch.arange(width).expand(len(lengths), width)
    mask = position < torch.tensor(lengths)[:, None]
    if side == "left":
        mask = mask.flip(1)
    elif side == "holes":
        mask &= position % 3 != 1
    batch = {"input_ids": torch.randint(8, 96, mask.shape), "attention_mask": mask.long()}
    return {name: tensor[:, None].repeat(1, 2, 1) if choices else tensor for name, tensor in batch.items()}


def assert_same(actual, expected):
    for mine, theirs in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), theirs, rtol=1e-5, atol=2e-5)


def run(model, batch):
    with torch.no_grad():
        return model(**batch).to_tuple()


@pytest.mark.parametrize(
    ("head", "pooling"),
    [(head, "cls") for head in (None, *HEADS)] + [("SequenceClassification", "mean"), ("MultipleChoice", "mean")],
)
def test_an_exported_program_fits_every_batch(head, pooling):
    model = build_head(head, classifier_pooling=pooling) if head else build(modeling.ZhModernBertModel)
    choices = head == "MultipleChoice"
    example = make_batch((50, 37, 5), 50, choices=choices)
    shapes = {name: {0: ROWS, tensor.ndim - 1: TOKENS} for name, tensor in example.items()}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes).module()
    for (lengths, width), side in product(BATCHES, ("right", "left", "holes")):
        batch = make_batch(lengths, width, side, choices)
        assert_same(program(**batch), run(model, batch))


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and used
def test_a_traced_program_fits_every_batch():
    model = build(modeling.ZhModernBertModel, return_dict=False)
    traced = torch.jit.trace(model, tuple(make_batch((50, 37, 5), 50).values()), check_trace=False)
    for (lengths, width), side in product(BATCHES, ("right", "left")):
        batch = make_batch(lengths, width, side)
        with torch.no_grad():
            assert_same(traced(*batch.values()), run(model, batch | {"return_dict": True}))


def test_an_exported_program_without_mask():
    model = build(modeling.ZhModernBertModel)
    program = torch.export.export(
        model, (torch.ones(3, 50, dtype=torch.long),), dynamic_shapes=({0: ROWS, 1: TOKENS},)
    ).module()
    for lengths, width in BATCHES:
        ids = make_batch(lengths, width)["input_ids"]
        assert_same(program(ids), run(model, {"input_ids": ids}))


def test_packed_rows_are_not_exported():
    packed = {"input_ids": torch.ones(1, 9, dtype=torch.long), "cu_seqlens": torch.tensor([0, 4, 9], dtype=torch.int32)}
    with pytest.raises(ValueError, match="cannot be exported"):
        torch.export.export(build(modeling.ZhModernBertModel), (), packed)


@pytest.mark.parametrize(("head", "pooling"), [(None, "cls"), *product(["SequenceClassification"], ["cls", "mean"])])
def test_a_program_for_short_texts(head, pooling):
    """Pads stay in place in it. Windows are masks."""
    changes = {"classifier_pooling": pooling, "max_position_embeddings": 128}
    model, example = build(HEADS.get(head, modeling.ZhModernBertModel), **changes), make_batch((50, 37, 5), 50)
    shapes = {name: {0: ROWS, 1: torch.export.Dim("tokens", max=128)} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    assert not any("sort" in str(node.target) or "index" in str(node.target) for node in program.graph.nodes)
    for lengths, width in (((100, 37, 5), 100), ((0, 9), 20), ((128,), 128), ((1,), 1), ((3, 63), 64)):
        for side in ("right", "left", "holes"):
            batch = make_batch(lengths, width, side)
            assert_same(program.module()(**batch), run(model, batch))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_a_file_for_short_texts_and_a_longer_one(tmp_path):
    """Outputs of texts longer than promised are exact, too."""
    pytest.importorskip("onnxscript")
    model, exact = (build(modeling.ZhModernBertModel, max_position_embeddings=length) for length in (64, 1024))
    exact.load_state_dict(model.state_dict())
    example = make_batch((50, 37, 5), 50)
    shapes = {name: {0: ROWS, 1: torch.export.Dim("tokens", max=64)} for name in example}
    torch.onnx.export(model, (), kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False).save(
        tmp_path / "model.onnx"
    )
    found = load_onnx(tmp_path / "model.onnx")
    for (lengths, width), side in product(BATCHES, ("right", "left", "holes")):
        batch = make_batch(lengths, width, side)
        assert_same([found(batch)], run(exact, batch))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification", "QuestionAnswering"])
def test_onnxruntime_gives_equal_outputs(head, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, example = build_head(head), make_batch((50, 37, 5), 50)
    shapes = {name: {0: ROWS, 1: TOKENS} for name in example}
    program = torch.onnx.export(model, (), kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for side in ("right", "left"):
        for lengths, width in BATCHES:
            batch = make_batch(lengths, width, side)
            found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
            assert_same(found, run(model, batch))


def load_onnx(path):
    """A function from a batch to the first output of the ONNX file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.tensor(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])


def long_batches():
    """Lengths past what 8 bits count, pads on the left, and a row of pads."""
    for width in (1, 129, 300, 600, 2049):
        yield make_batch((width, width - width // 3, 0), width, "left")


@pytest.fixture(scope="module")
def long_model():
    return build(modeling.ZhModernBertModel, max_position_embeddings=4096, local_attention=128)


@pytest.fixture(scope="module")
def long_program(long_model):
    shapes = {name: {0: ROWS, 1: torch.export.Dim("tokens", max=4096)} for name in ("input_ids", "attention_mask")}
    return torch.export.export(long_model, (), make_batch((50, 37), 50), dynamic_shapes=shapes)


def test_long_documents_in_an_exported_program(long_model, long_program):
    for batch in long_batches():
        assert_same(long_program.module()(**batch), run(long_model, batch))


def test_long_documents_in_openvino(long_model, long_program):
    openvino = pytest.importorskip("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    traced = torch.jit.trace(long_model, tuple(make_batch((50, 37), 50).values()), check_trace=False, strict=False)
    for program in (long_program, traced):
        compiled = openvino.compile_model(openvino.convert_model(program), "CPU", exact)
        for batch in long_batches():
            found = compiled([tensor.numpy() for tensor in batch.values()])[0]
            assert_same([found], run(long_model, batch))


def test_exported_programs_count_no_booleans(long_program):
    """OpenVINO would count them in 8 bits, and ONNX Runtime not at all."""
    counts = [node for node in long_program.graph.nodes if str(node.target).startswith(("aten.cumsum", "aten.sum"))]
    assert len(counts) >= 3
    assert all(node.args[0].meta["val"].dtype != torch.bool for node in counts)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_long_documents_in_onnx_and_in_eight_bits(long_model, long_program, tmp_path):
    pytest.importorskip("onnxscript")
    onnx, quantization = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime.quantization")
    torch.onnx.export(long_program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    del graph.graph.value_info[:]  # the shapes of weights that the quantiser turns round
    quantization.quantize_dynamic(graph, tmp_path / "int8.onnx")
    full, int8 = load_onnx(tmp_path / "model.onnx"), load_onnx(tmp_path / "int8.onnx")
    for batch in long_batches():
        (expected,) = run(long_model, batch)
        assert_same([full(batch)], [expected])
        assert F.cosine_similarity(int8(batch).flatten(), expected.flatten(), dim=0) > 0.99
    assert {"MatMulInteger", "DynamicQuantizeLinear"} < {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}


@pytest.mark.filterwarnings("ignore")  # the exporter is deprecated, and used: optimum has no other
@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("head", [None, "SequenceClassification"])
def test_the_exporter_of_traced_programs(head, norm_type, tmp_path):
    pytest.importorskip("onnx")
    changes = {"norm_type": norm_type, "max_position_embeddings": 4096, "classifier_pooling": "mean"}
    model = build(HEADS.get(head, modeling.ZhModernBertModel), **changes)
    example = make_batch((50, 37), 50)
    axes = {name: {0: "rows", 1: "tokens"} for name in example}
    axes["output"] = {0: "rows"} | ({} if head else {1: "tokens"})
    torch.onnx.export(
        model, tuple(example.values()), tmp_path / "model.onnx", dynamo=False,
        input_names=list(example), output_names=["output"], dynamic_axes=axes,
    )  # fmt: skip
    program = load_onnx(tmp_path / "model.onnx")
    for batch in long_batches():
        assert_same([program(batch)], run(model, batch))


# --- torch.compile ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("zh_modernbert_test::varlen", mutates_args=())
def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu: torch.Tensor, longest: int, window: int
) -> torch.Tensor:
    """Stands in for FlashAttention's kernel, which is an operator of its own too, and runs on CUDA only."""
    token = torch.arange(len(query))
    document = torch.bucketize(token, cu[1:], right=True)
    visible = document[:, None] == document
    if window >= 0:
        visible &= (token[:, None] - token).abs() <= window
    states = (states.transpose(0, 1) for states in (query, key, value))
    return F.scaled_dot_product_attention(*states, attn_mask=visible).transpose(0, 1).contiguous()


@varlen.register_fake
def _(query, key, value, cu, longest, window):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@pytest.fixture
def varlen_kernel(monkeypatch):
    """FlashAttention, PyTorch's and the package's, that runs here."""

    def call(query, key, value, cu_q, cu_k, max_q, max_k, window_size, **given):
        return torch.ops.zh_modernbert_test.varlen(query, key, value, cu_q, max_q, window_size[0])

    monkeypatch.setattr(modeling, "_varlen_attention_runs", lambda query, dropout: True)
    monkeypatch.setattr(modeling, "varlen_attn", call)
    monkeypatch.setattr(modeling, "flash_attn_varlen_func", call)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_program_for_short_texts_where_flash_attention_runs(attention, varlen_kernel):
    """Bounds of documents say nothing of pads between them."""
    model, example = build(modeling.ZhModernBertModel, max_position_embeddings=128), make_batch((50, 37, 5), 50)
    model.config._attn_implementation = attention
    shapes = {name: {0: ROWS, 1: torch.export.Dim("tokens", max=128)} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes).module()
    for lengths, side in product(((100, 37, 5), (0, 9, 20), (64, 64)), ("right", "left", "holes")):
        batch = make_batch(lengths, max(lengths), side)
        assert_same(program(**batch), run(model, batch))


@pytest.fixture
def graphs(varlen_kernel):
    """A backend for torch.compile that keeps the graphs it is given, and a varlen kernel that runs here."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    yield graphs, keep
    torch._dynamo.reset()


@pytest.mark.parametrize("head", [None, "MaskedLM", "SequenceClassification"])
def test_compiled_layers_are_one_graph_for_ragged_batches(head, graphs):
    graphs, keep = graphs
    model = build(HEADS.get(head, modeling.ZhModernBertModel))
    compiled = torch.compile(model, backend=keep)
    batches = [
        make_batch(lengths, max(lengths)) for lengths in ((100, 37, 5), (7, 30, 64, 65), (9, 8), (80, 70, 60, 50, 40), (31, 90))
    ]
    for number, batch in enumerate(batches):
        assert_same(run(compiled, batch), run(model, batch))
        if number == 2:
            seen = len(graphs)  # by now every size that varies has varied, and is left open
    assert len(graphs) == seen
    kernels = [sum("varlen" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert set(kernels) - {0} == {2}, "all layers are in one graph"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
def test_compiled_on_cpu():
    torch._dynamo.reset()
    model = build(num_hidden_layers=1).train()  # attention is not compiled on CPU, whatever the layer
    compiled = torch.compile(model, dynamic=True)  # one compilation, not a second one at the second shape
    for lengths in ((100, 37, 5), (7, 30, 64, 65), (9, 300), (8, 9, 3)):
        batch = make_batch(lengths, max(lengths))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        found = []
        for version in (compiled, model):
            model.zero_grad()
            loss = version(**batch, labels=labels).loss
            loss.backward()
            found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
        assert_same(*found)
    torch._dynamo.reset()
