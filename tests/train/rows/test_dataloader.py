"""Micro-batches are functions of their number: the same on resumption, with workers, and on more processes."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.dataloader import MicroBatches, micro_batches, rows_of_updates
from zh_modernbert.train.rows.masking import IGNORE_INDEX, Masking, MlmSchedule
from zh_modernbert.train.rows.row_stream import PackedStream, shuffled

CLS, SEP = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
RATE = MlmSchedule([0.15, 0.3, 0.15], 4, 12)


@pytest.fixture(scope="module")
def rows(stages):
    return PackedStream(stages / "packed", {})


def dataset(rows, batch=2, accumulation=1, seed=0, process=0, processes=1, rate=RATE) -> MicroBatches:
    full = np.full(rate.max_steps, batch * accumulation * processes)
    return MicroBatches(rows, Masking(512), rate, batch, full, seed, process, processes)


def order(batches: MicroBatches, epoch: int) -> list[int]:
    return shuffled(np.arange(len(batches.rows)), len(batches.rows), (batches.seed, epoch, 0)).tolist()


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first | second)


def test_a_micro_batch_depends_on_its_number_alone(rows):
    """Read in order, backwards or alone, it is the same."""
    in_order = [dataset(rows)[index] for index in range(12)]
    used = dataset(rows)
    used[11]
    for index in reversed(range(12)):
        assert same(used[index], in_order[index])
        assert same(dataset(rows)[index], in_order[index])
    assert not same(in_order[0], in_order[1])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("first_update", [0, 5, 11, 12])
def test_resumption_yields_exactly_the_tail(rows, accumulation, first_update):
    whole = list(micro_batches(dataset(rows, accumulation=accumulation), 0, 0))
    tail = list(micro_batches(dataset(rows, accumulation=accumulation), first_update, 0))
    assert len(whole) == 12 * accumulation
    assert len(tail) == (12 - first_update) * accumulation
    assert all(same(a, b) for a, b in zip(tail, whole[first_update * accumulation :], strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_share_what_one_takes(rows, accumulation):
    """In every update, the micro-batches of both behind one another are the one process's, masks included."""
    one = list(micro_batches(dataset(rows, batch=4, accumulation=accumulation), 0, 0))
    two = [list(micro_batches(dataset(rows, 2, accumulation, process=process, processes=2), 0, 0)) for process in range(2)]
    for update in range(12):
        micros = slice(update * accumulation, (update + 1) * accumulation)
        together = [*two[0][micros], *two[1][micros]]
        for name in ("input_ids", "labels"):
            expected = torch.cat([batch[name] for batch in one[micros]], 1)
            assert torch.equal(torch.cat([batch[name] for batch in together], 1), expected)


def test_an_update_is_the_same_however_it_is_cut(rows):
    whole, parts = dataset(rows, batch=4), dataset(rows, batch=1, accumulation=4)
    for update in range(3):
        together = torch.cat([parts[update * 4 + part]["input_ids"] for part in range(4)], 1)
        assert torch.equal(together, whole[update]["input_ids"])


def test_every_epoch_visits_every_row_once(rows):
    batch = 3
    count = -(-3 * len(rows) // batch)
    batches = dataset(rows, batch, rate=MlmSchedule([0.3], 0, count))
    stream = [position for index in range(count) for position in batches.positions(index)]
    for epoch in range(3):
        part = stream[epoch * len(rows) : (epoch + 1) * len(rows)]
        assert {position[0] for position in part} == {epoch}
        assert sorted(row for _, row in part) == list(range(len(rows)))


def test_epochs_differ_in_order_and_masks(rows):
    batches = dataset(rows, batch=1, rate=MlmSchedule([0.3], 0, 10 * len(rows)))
    orders = [order(batches, epoch) for epoch in range(3)]
    assert all(first != second for first, second in pairwise([*orders, orders[0]]))
    assert orders[0] != order(dataset(rows, seed=1), 0)

    row, epochs = orders[0][0], range(2)
    places = [epoch * len(rows) + orders[epoch].index(row) for epoch in epochs]
    assert [batches.positions(place) for place in places] == [[(0, row)], [(1, row)]]
    first, second = (batches[place] for place in places)
    originals = [torch.where(b["labels"] == IGNORE_INDEX, b["input_ids"], b["labels"]) for b in (first, second)]
    assert torch.equal(*originals)
    assert not torch.equal(first["labels"], second["labels"])


def test_the_seed_changes_masks(rows):
    """The masks of the same row in the same epoch."""
    batches = [dataset(rows, batch=1, seed=seed, rate=MlmSchedule([0.3], 0, len(rows))) for seed in (0, 1)]
    first, second = (b[order(b, 0).index(7)] for b in batches)
    assert first["labels"].shape == second["labels"].shape
    assert not torch.equal(first["labels"], second["labels"])


def test_no_mask_has_the_seed_of_an_order(rows, monkeypatch):
    """NumPy does not see zeros at the end of a seed."""
    used = {"SeedSequence": set(), "default_rng": set()}  # by the order of rows, and by the masks

    def note(name, make):
        return lambda seed: (used[name].add(np.trim_zeros(seed, "b")), make(seed))[1]

    for name in used:
        monkeypatch.setattr(np.random, name, note(name, getattr(np.random, name)))
    list(micro_batches(dataset(rows, batch=8, seed=3, rate=MlmSchedule([0.3], 0, len(rows) // 4)), 0, 0))
    assert len(used["SeedSequence"]) >= 2, "epochs"
    assert len(used["default_rng"]) > len(rows)
    assert used["SeedSequence"].isdisjoint(used["default_rng"])


def test_workers_change_nothing(rows):
    alone = list(micro_batches(dataset(rows, accumulation=2), 3, 0))
    with_workers = list(micro_batches(dataset(rows, accumulation=2), 3, 2))
    assert all(same(a, b) for a, b in zip(with_workers, alone, strict=True))


def test_bounds_are_the_documents(rows):
    batches = dataset(rows, batch=3)
    for index in range(12):
        batch, positions = batches[index], batches.positions(index)
        ids, bounds = batch["input_ids"], batch["cu_seqlens"]
        assert bounds.dtype == torch.int32
        assert ids.shape == batch["labels"].shape == (1, bounds[-1])
        assert bounds[0] == 0
        # Special tokens are never masked: documents begin with [CLS], end with [SEP], and have neither inside.
        assert torch.equal((ids[0] == CLS).nonzero().flatten(), bounds[:-1].long())
        assert torch.equal((ids[0] == SEP).nonzero().flatten(), bounds[1:].long() - 1)
        assert batch["max_seqlen"] == int(bounds.diff().max())
        originals = torch.where(batch["labels"] == IGNORE_INDEX, ids, batch["labels"])
        packed = torch.cat([torch.from_numpy(rows.row(row)[0].astype("int64")) for _, row in positions])
        assert torch.equal(originals[0], packed)


def test_the_masking_rate_follows_the_update(rows):
    """Of micro-batches of many rows; all that belong to one update are masked at one rate."""
    batches = dataset(rows, batch=len(rows) // 2, accumulation=2)
    for update, rate in ((0, 0.15), (2, 0.225), (4, 0.3), (8, 0.225)):
        for index in (2 * update, 2 * update + 1):
            batch = batches[index]
            maskable = (torch.where(batch["labels"] == IGNORE_INDEX, batch["input_ids"], batch["labels"]) > 4).sum()
            assert int((batch["labels"] != IGNORE_INDEX).sum()) / int(maskable) == pytest.approx(rate, rel=0.05)


# --- updates of other sizes ------------------------------------------------------------------------------------------------


def test_updates_grow():
    assert rows_of_updates(8, 6, 4, 0.25).tolist() == [2, 4, 5, 6, 8, 8]
    assert rows_of_updates(8, 3, 0, 0.25).tolist() == [8, 8, 8]
    assert rows_of_updates(8, 3, 10, 0.0).tolist() == [1, 1, 2]


@pytest.mark.parametrize(("batch", "processes"), [(2, 1), (3, 2), (16, 1), (2, 3)])
def test_updates_take_the_same_rows_however_they_are_shared(rows, batch, processes):
    sizes = rows_of_updates(13, 12, 6, 0.3)
    shares = [MicroBatches(rows, Masking(512), RATE, batch, sizes, 0, process, processes) for process in range(processes)]
    alone = MicroBatches(rows, Masking(512), RATE, 13, sizes, 0)
    assert len(alone) == 12
    for update in range(12):
        indices = range(*shares[0].first_batches[update : update + 2])
        parts = [share.positions(index) for share in shares for index in indices]
        together = [position for part in parts for position in part]
        assert together == alone.positions(update)
        assert len(together) == sizes[update]
        assert {len(part) for part in parts} <= {size := min(map(len, parts)), size + 1}
        assert 1 <= size <= max(map(len, parts)) <= batch
        assert all(share.update_of(index) == update for share in shares for index in indices)


def test_an_update_that_cannot_be_shared():
    for batch, sizes, processes in ((4, [3], 4), (1, [8, 3], 2)):
        with pytest.raises(InputError, match="tokens_per_update"):
            MicroBatches(None, Masking(512), RATE, batch, np.array(sizes), 0, 0, processes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_row_is_one_line(stages, tmp_path, workers):
    """A worker's error too has no traceback in its text."""
    folder = shutil.copytree(stages / "packed", tmp_path / "packed")
    path = folder / "00000" / "word_starts.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError) as caught:
        next(iter(micro_batches(dataset(PackedStream(folder, {})), 0, workers)))
    assert re.fullmatch(rf"{folder}: row \d+ of 00000/ is damaged; delete .* and run train/pack.py again", str(caught.value))


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing(rows, workers):
    """Dropout draws from PyTorch's generator, which is seeded before the first batch is read."""
    before = torch.get_rng_state()
    next(micro_batches(dataset(rows), 0, workers))
    assert torch.equal(torch.get_rng_state(), before)


ERRORS = """
import sys
from pathlib import Path
import numpy as np
from zh_modernbert.train.rows.dataloader import MicroBatches, micro_batches
from zh_modernbert.train.rows.masking import Masking, MlmSchedule
from zh_modernbert.train.rows.row_stream import PackedStream

dataset = MicroBatches(PackedStream(Path(sys.argv[1]), {}), Masking(512), MlmSchedule([0.3], 0, 4), 1, np.ones(4, int), 0)
stream = micro_batches(dataset, 0, 1)
next(stream)
raise ValueError("out of memory")
"""


def test_an_error_ends_the_process_and_its_workers(stages):
    """Workers ignore SIGTERM, with which `multiprocessing` ends them."""
    command = [sys.executable, "-c", ERRORS, str(stages / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: out of memory\n")
