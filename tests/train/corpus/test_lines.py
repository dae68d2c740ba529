"""Strict reading of plain and compressed files; lines that are set aside."""

import bz2
import gzip
import lzma
import random

import pytest
import zstandard

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import Quarantine, read_jsonl, read_lines

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write(path, data: bytes):
    path.write_bytes(COMPRESS["" if path.suffix not in COMPRESS else path.suffix](data))
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
class TestReading:
    def test_lines(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\r\n二 \n\n 四".encode())
        assert list(read_lines(path)) == [(1, "一"), (2, "二 "), (3, ""), (4, " 四")]

    def test_byte_order_mark_is_dropped_only_at_the_start(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "\ufeff一\n\ufeff二\n".encode())
        assert list(read_lines(path)) == [(1, "一"), (2, "\ufeff二")]

    def test_unicode_line_separators_end_no_line(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\u2028二\x85三\x0c\n".encode())
        assert list(read_lines(path)) == [(1, "一\u2028二\x85三\x0c")]

    def test_jsonl_skips_blank_lines_and_keeps_numbers(self, tmp_path, suffix):
        path = write(tmp_path / f"a.jsonl{suffix}", '\ufeff{"text": "一"}\r\n\r\n{"text": "\\u4e8c"}'.encode())
        assert list(read_jsonl(path)) == [(1, {"text": "一"}), (3, {"text": "二"})]

    def test_empty_file(self, tmp_path, suffix):
        assert list(read_jsonl(write(tmp_path / f"a.jsonl{suffix}", b""))) == []

    @pytest.mark.parametrize("bad", [b"{", b'{"a": 1} x', b"[1, 2]", b'"text"', b"5", b"null", b"[" * 100_000])
    def test_bad_json_names_its_line(self, tmp_path, suffix, bad):
        path = write(tmp_path / f"a.jsonl{suffix}", b'{"text": "a"}\n\n' + bad + b'\n{"text": "b"}\n')
        with pytest.raises(InputError, match="line 3") as caught:
            list(read_jsonl(path))
        assert str(path) in str(caught.value)

    def test_bad_utf8_names_its_line(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\n二\n".encode() + "三".encode("gbk") + b"\n")
        with pytest.raises(InputError, match="line 3: not UTF-8") as caught:
            list(read_lines(path))
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path, suffix):
        with pytest.raises(InputError, match="nothing"):
            list(read_lines(tmp_path / f"nothing.txt{suffix}"))


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5", "big5hkscs", "cp950", "utf-8"])
def test_other_encodings(tmp_path, encoding):
    path = write(tmp_path / "a.txt.gz", "許功蓋\n一\r\n乙".encode(encoding))  # in Big5 three with a backslash
    assert list(read_lines(path, encoding=encoding)) == [(1, "許功蓋"), (2, "一"), (3, "乙")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_utf16_is_known_by_its_byte_order_mark(tmp_path, encoding, suffix):
    path = write(tmp_path / f"a.txt{suffix}", "\ufeff一\r\n\u0a00\u2028二\n".encode(encoding))
    assert list(read_lines(path)) == [(1, "一"), (2, "\u0a00\u2028二")]


def test_wrong_encoding_names_it(tmp_path):
    path = write(tmp_path / "a.txt", "一\n".encode("gbk") + b"\xff\xff\n")
    with pytest.raises(InputError, match=r"line 2: not GB18030 .*txt_encoding"):
        list(read_lines(path, encoding="gb18030"))
    path.write_bytes("\ufeff一".encode("utf-16-le") + b"\x00\xd8")
    with pytest.raises(InputError, match="not UTF-16"):
        list(read_lines(path))


def test_several_compressed_parts_in_one_file(tmp_path):
    for suffix in [*COMPRESS][1:]:
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix]("一\n".encode()) + COMPRESS[suffix]("二\n".encode()))
        assert [line for _, line in read_lines(path)] == ["一", "二"]


@pytest.mark.parametrize("suffix", [*COMPRESS][1:])
def test_what_stands_behind_a_stream_is_read_or_refused(tmp_path, suffix):
    """A dump of many streams of which one header is damaged, other bytes, and a file without a header."""
    first, second = COMPRESS[suffix]("一\n".encode()), COMPRESS[suffix]("二\n".encode())
    path = tmp_path / f"a.txt{suffix}"
    headers = [second[:place] + bytes([second[place] ^ 1]) + second[place + 1 :] for place in range(2)]
    for behind in (*headers, second[:1], second[:3], b"\n", b"x", b"more than a header has"):
        path.write_bytes(first + behind)
        with pytest.raises(InputError, match=r"a\.txt.*: damaged, or not what its name says, after line [01]"):
            list(read_lines(path))
    path.write_bytes(COMPRESS[suffix](b"") + first + COMPRESS[suffix](b"") + second)
    assert [line for _, line in read_lines(path)] == ["一", "二"]
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.txt.*: empty"):
        list(read_lines(path))


def test_padding_of_xz(tmp_path):
    """The format has zeros behind a stream, also between two, and more of them than are read at once."""
    first, second = lzma.compress("一\n".encode()), lzma.compress("二\n".encode())
    path = tmp_path / "a.txt.xz"
    path.write_bytes(first + bytes(4) + second + bytes(1 << 16))
    assert [line for _, line in read_lines(path)] == ["一", "二"]


def test_a_long_line_in_little_data(tmp_path):
    """It decompresses to far more than one read returns."""
    for suffix in (".bz2", ".xz"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix](b"a" * (5 << 20) + b"\nb") + COMPRESS[suffix](b"c"))
        assert [(len(line), line[-1:]) for _, line in read_lines(path)] == [(5 << 20, "a"), (2, "c")]


@pytest.mark.parametrize("suffix", [*COMPRESS][1:])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.999])
def test_truncated_file(tmp_path, suffix, share):
    generator = random.Random(0)
    lines = "".join(f"{generator.random()}\n" for _ in range(20_000)).encode()
    data = COMPRESS[suffix](lines)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.txt"):
        list(read_lines(path))


def test_truncated_zst_that_ends_between_lines(tmp_path):
    """A writer that was killed right after a flush: everything decompresses, but the frame has no end."""
    compressor = zstandard.ZstdCompressor().compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(b'{"text": "a"}\n') + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(InputError, match=r"a\.jsonl\.zst"):
        list(read_jsonl(path))


@pytest.mark.parametrize("suffix", [*COMPRESS][1:])
def test_file_that_is_not_compressed(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("not compressed at all, whatever the name says\n")
    with pytest.raises(InputError, match=r"a\.txt"):
        list(read_lines(path))


def test_lone_surrogates_are_refused_where_they_are_read(tmp_path):
    """JSON can spell half a character. No stage can write it again, so the line is to blame."""
    path = write(tmp_path / "a.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}\n')
    with pytest.raises(InputError, match="line 2"):
        list(read_jsonl(path))


# --- quarantine ---


def test_lines_in_quarantine(tmp_path):
    """What cannot be read is set aside with file, line and reason; all else is read."""
    lines = [b'{"n": 1}', b"{", "三".encode("gbk"), b'{"n": 4}', b"[]", b'{"n": "\\ud800"}', b'{"n": 7}', b'{"n": 8}']
    path = write(tmp_path / "a.jsonl.zst", b"\n".join(lines))
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    assert [value["n"] for _, value in read_jsonl(path, quarantine)] == [1, 4, 7, 8]
    assert (quarantine.count, quarantine.lines) == (4, 8)
    entries = [value for _, value in read_jsonl(quarantine.path)]
    assert [entry["line"] for entry in entries] == [2, 3, 5, 6]
    assert {entry["file"] for entry in entries} == {str(path)}
    assert entries[1]["text"] == "\\xc8\\xfd\n"
    for entry, reason in zip(entries, ("JSON", "UTF-8", "object", "surrogate"), strict=True):
        assert reason in entry["reason"]


def test_a_file_that_is_mostly_unreadable_is_no_such_file(tmp_path):
    """Text in another encoding, say: it does not vanish among many good files. A few lines do not tell that."""
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    lines = "三\n四\n5\n".encode("gbk")
    assert [line for _, line in read_lines(write(tmp_path / "few.txt", lines), quarantine)] == ["5"]
    assert (quarantine.count, quarantine.lines) == (2, 3)
    with pytest.raises(InputError, match=r"a\.txt: 68 of its 102 lines cannot be read.*GB18030"):
        list(read_lines(write(tmp_path / "a.txt", lines * 34), quarantine))


def test_no_quarantine_without_need(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    list(read_jsonl(write(tmp_path / "a.jsonl", b"{}"), quarantine))
    assert not quarantine.path.parent.exists()
