"""The order of rows: permutations, epochs of several folders in their shares, and folders that do not fit one another."""

import shutil
from collections import Counter

import numpy as np
import pytest

from zh_modernbert.train import pack
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.row_stream import BLOCK, PackedStream, RowStream, rows_of_block, scramble, shuffled


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_order_is_a_permutation(count):
    places = np.arange(count)
    for seed in range(5):
        found = shuffled(places, count, (seed,))
        assert sorted(found) == list(range(count))
        some = places[::-3]  # in any order, any part of it
        assert (shuffled(some, count, (seed,)) == found[some]).all()


def test_an_order_never_changes():
    """A run that goes on with a newer release has to read on in the order in which it began."""
    assert shuffled(np.arange(16), 16, (0, 0, 0)).tolist() == [5, 14, 6, 10, 0, 4, 13, 12, 2, 8, 3, 15, 9, 1, 7, 11]
    many = shuffled(np.array([0, 10**9, 10**12 - 1]), 10**12, (5, 1, 0, 2))
    assert many.tolist() == [555217432063, 688464476790, 169514649770]
    # SplitMix64's published first numbers, of seed 1234567.
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert scramble(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_an_order_of_many_rows_needs_no_memory():
    places = np.arange(10**12 - 50, 10**12)
    found = shuffled(places, 10**12, (0, 1))
    assert len(set(found)) == 50
    assert 0 <= found.min() < 3e11
    assert 7e11 < found.max() < 10**12
    assert (found != shuffled(places, 10**12, (0, 2))).all()


def test_orders_are_mixed():
    """As in random permutations: one number in its own place and two pairs of neighbours in the mean, all places alike."""
    count, orders = 200, 2000
    found = np.array([shuffled(np.arange(count), count, (1, epoch)) for epoch in range(orders)])
    assert (found == np.arange(count)).sum(1).mean() == pytest.approx(1, abs=0.12)
    assert (abs(np.diff(found, axis=1)) == 1).sum(1).mean() == pytest.approx(2, abs=0.16)
    for place in (0, 1, 100, 199):
        tenths = np.bincount(found[:, place] // 20, minlength=10)
        assert ((tenths - 200) ** 2 / 200).sum() < 34  # chi-square of 9 degrees: 1 in 10,000 is above
    correlation = (found - 99.5) @ (np.arange(count) - 99.5) / ((count**2 - 1) / 12 * count)
    assert correlation.mean() == pytest.approx(0, abs=4 / (count * orders) ** 0.5)
    assert correlation.std() == pytest.approx(count**-0.5, rel=0.1)


# --- several folders ----------------------------------------------------------------------------------------------------

LENGTHS = {"large": 700, "small": 37, "tiny": 1}
SHARES = [0.57, 0.4, 0.03]


class Made:
    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length


@pytest.fixture
def mixed() -> RowStream:
    return RowStream({name: Made(length) for name, length in LENGTHS.items()}, SHARES)


def test_shares_become_whole_rows():
    assert rows_of_block([1.0]).tolist() == [BLOCK]
    assert rows_of_block([3, 3, 3]).tolist() == [342, 341, 341]
    assert rows_of_block(SHARES).tolist() == [584, 409, 31]
    assert all(rows_of_block(list(np.random.default_rng(i).random(9) + 0.01)).sum() == BLOCK for i in range(20))


def test_any_part_of_the_stream_has_the_shares(mixed):
    folders = np.searchsorted(mixed.first_rows, [row for _, row in mixed.at(np.arange(5 * BLOCK), 0)], side="right") - 1
    for start in (0, BLOCK, 3 * BLOCK):
        assert np.bincount(folders[start : start + BLOCK]).tolist() == [584, 409, 31]
    for number, rows in enumerate((584, 409, 31)):  # each in the middle of its part of the block
        middles = (np.arange(rows) + 0.5) * BLOCK / rows
        assert np.flatnonzero(folders[:BLOCK] == number) == pytest.approx(middles, abs=2)
    for start in range(0, 4 * BLOCK, 97):  # an update of 100 rows, wherever it begins, to a row and a half
        assert np.bincount(folders[start : start + 100], minlength=3) == pytest.approx([57, 40, 3], abs=1.5)


def test_each_folder_has_epochs_of_its_own(mixed):
    """Each row once in every epoch; each epoch in another order; a folder of one row comes round and round."""
    read = mixed.at(np.arange(10 * BLOCK), 0)
    for number, (name, length) in enumerate(LENGTHS.items()):
        first, end = mixed.first_rows[number : number + 2]
        own = [(epoch, row) for epoch, row in read if first <= row < end]
        orders = [[row for _, row in own[start : start + length]] for start in range(0, len(own) - length + 1, length)]
        assert [epoch for epoch, _ in own] == [place // length for place in range(len(own))]
        assert all(sorted(order) == list(range(first, end)) for order in orders), name
        assert length == 1 or len({*map(tuple, orders)}) == len(orders) > 5
    assert mixed.at(np.arange(BLOCK), 0) != mixed.at(np.arange(BLOCK), 1)


def test_folders_alike_are_not_read_in_one_order():
    """Else texts that are kept in several folders, as the two scripts of one document, would come together in every epoch."""
    stream, count = RowStream({"hans": Made(500), "hant": Made(500)}, [1, 1]), 2500
    read = stream.at(np.arange(2 * count), 0)
    orders = [[row % 500 for _, row in read if row // 500 == number] for number in range(2)]
    assert (np.array(orders[0]) == orders[1]).mean() < 0.02


def test_a_place_says_all(mixed):
    """Read at once, backwards or one by one, far out too."""
    for places in (np.arange(3000), np.arange(10**13, 10**13 + 500)):
        whole = mixed.at(places, 3)
        assert mixed.at(places[::-1], 3) == whole[::-1]
        assert [mixed.at(places[index : index + 1], 3)[0] for index in range(0, len(places), 41)] == whole[::41]


def test_one_folder_is_its_own_epochs(stages):
    """However large its share, and whatever else is in the way."""
    stream = PackedStream(stages / "packed", {})
    expected = [(epoch, int(row)) for epoch in range(3) for row in shuffled(np.arange(len(stream)), len(stream), (5, epoch, 0))]
    assert stream.at(np.arange(3 * len(stream)), 5) == expected


@pytest.fixture
def folder(stages, tmp_path):
    """Two packed folders in one."""
    shutil.copytree(stages / "packed", tmp_path / "a")
    pack.main(pack.Settings(input_dir=str(stages / "encoded"), output_dir=str(tmp_path / "b"), seq_len=128, seed=1))
    return tmp_path


def test_rows_of_packed_folders(stages, folder):
    stream, alone = PackedStream(folder, {"a": 3, "b": 1}), [PackedStream(folder / name, {}) for name in "ab"]
    assert len(stream) == sum(map(len, alone))
    assert (stream.seq_len, stream.tokenizer) == (alone[0].seq_len, alone[0].tokenizer)
    for index, (part, row) in {0: (0, 0), len(alone[0]): (1, 0), len(stream) - 1: (1, len(alone[1]) - 1)}.items():
        assert all(np.array_equal(x, y) for x, y in zip(stream.row(index), alone[part].row(row), strict=True))
    counts = Counter(row < len(alone[0]) for _, row in stream.at(np.arange(BLOCK), 0))
    assert counts == {True: BLOCK * 3 // 4, False: BLOCK // 4}
    contents = {PackedStream(folder, mixture).content for mixture in ({"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"b": 1, "a": 1})}
    assert len(contents) == 4


def test_folders_that_do_not_fit(stages, folder, tmp_path):
    for mixture, said in (
        ({"a": 1, "c": 1}, r"c: no such folder"),
        ({"a": 1, "./a": 1}, "two of a, ./a are one folder"),
        ({"a": 1, "b": 0}, "b=0: a share is above 0"),
        ({"a": 1, "b": float("nan")}, "b=nan"),
        ({"a": -0.5}, "a=-0.5"),
        ({"a": float("inf")}, "a=inf"),
        ({"a": 5000, "b": 1}, "b=1: .*1/1024"),
    ):
        with pytest.raises(InputError, match=said):
            PackedStream(folder, mixture)
    pack.main(pack.Settings(input_dir=str(stages / "encoded"), output_dir=str(tmp_path / "c"), seq_len=64))
    with pytest.raises(InputError, match="differ in seq_len: 64 and 128"):
        PackedStream(folder, {"a": 1, "c": 1})
