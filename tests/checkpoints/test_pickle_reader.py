"""Pickles that make a loader hang, crash or fill the memory end in a typed error."""

import io
import resource
import struct
import time
import zipfile

import pytest
import torch

import tempbalance as tb
from tempbalance.checkpoints.pickle_reader import read_pickle
from tempbalance.errors import CheckpointError, CorruptFileError, UnsafeFileError

PROTOCOL = b"\x80\x02"
NAME = b"X\x08\0\0\0a.weight"


def dictionary(value):
    return PROTOCOL + b"}" + NAME + value + b"s."


def nested_levels(levels, width):
    """Dictionaries of a level all have the same dictionary as every value."""
    pickle = PROTOCOL + b"}q\x00"
    for level in range(levels):
        items = b"".join(b"X\x02\0\0\0%02dh%c" % (i, level) for i in range(width))
        pickle += b"}(" + items + b"uq" + bytes([level + 1])
    return pickle + b"."


HOSTILE = {
    "a dictionary that contains itself": PROTOCOL + b"}q\0X\x05\0\0\0modelh\0s.",
    "a key that takes forever to hash": PROTOCOL + b"}K\x01" + b"q\x01h\x01\x86" * 60 + b"K\x05s.",
    "a key that is too deep to hash": PROTOCOL + b"}K\x01" + b"\x85" * 500_000 + b"K\x05s.",
    "deep lists": dictionary(b"]" * 500_000 + b"a" * 499_999),
    "deep dictionaries": PROTOCOL + (b"}" + NAME) * 300_000 + b"N" + b"s" * 300_000 + b".",
    "the same dictionary many times": nested_levels(9, 60),
    "a string of the same list many times": dictionary(b"c__builtin__\nstr\n]" + b"q\x00]h\x00ah\x00a" * 60 + b"\x85R"),
    "an array of 2^50 numbers": dictionary(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n\x8a\x07\0\0\0\0\0\0\x04\x85C\x01btR"
    ),
    "millions of values": PROTOCOL + b"]" * 30_000_000,
    "a string that is longer than the file": PROTOCOL + b"X\xff\xff\xff\xff.",
    "an integer of 2 GB": PROTOCOL + b"\x8b\xff\xff\xff\x7f.",
    "bytes of 2^63": PROTOCOL + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "no pickle": b"",
    "an end without a value": PROTOCOL + b".",
    "an unknown operation": PROTOCOL + b"\xff",
    "a key without a value": PROTOCOL + b"}(K\x01u.",
}


def write(path, pickle, *members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression=compression) as archive:
        archive.writestr("m/data.pkl", pickle)
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_in_bounded_time_and_memory(case, tmp_path):
    path = write(tmp_path / "model.pt", HOSTILE[case])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        tb.analyze(path, progress=False)
    assert time.process_time() - start < 15  # 1 to 3 seconds on a quiet machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KB


def test_a_function_is_refused_by_name_and_not_called(tmp_path):
    path = write(tmp_path / "model.pt", dictionary(b"cos\nmkdir\n" + NAME + b"\x85R"))
    with pytest.raises(UnsafeFileError, match=r"os\.mkdir.*nothing was executed"):
        tb.analyze(path)


def test_a_compressed_archive_is_refused_without_unpacking_it(tmp_path):
    path = write(tmp_path / "model.pt", b"\0" * 10**8, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        tb.analyze(path)


def tensor(shape, stride, numel=4):
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in (*shape, *stride))
    sizes = numbers[:20] + b"\x86" + numbers[20:] + b"\x86"
    saved = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + bytes([75, numel]) + b"tQ"
    return dictionary(b"ctorch._utils\n_rebuild_tensor_v2\n(" + saved + b"K\x00" + sizes + b"\x89}tR")


@pytest.mark.parametrize(
    ("shape", "stride", "numel", "reason"),
    [
        ((2, 2), (2**30, 1), 4, "fewer numbers"),
        ((3, 2), (2, 1), 4, "fewer numbers"),
        ((3, 2), (2, 1), 6, "fewer numbers"),  # the pickle says more than the file has
        ((2**20, 2**20), (0, 0), 4, "expanded to more than the size of its file"),
    ],
)
def test_a_tensor_that_is_not_all_in_the_file_is_skipped(shape, stride, numel, reason, tmp_path):
    path = write(tmp_path / "model.pt", tensor(shape, stride, numel), ("m/data/0", bytes(16)))
    analysis = tb.analyze(path)
    assert [skipped.name for skipped in analysis.skipped] == ["a.weight"]
    assert reason in analysis.skipped[0].reason


@pytest.mark.parametrize("shape", [(-2, 2), (2**50, 2)])
def test_a_tensor_with_impossible_sizes_is_refused(shape, tmp_path):
    path = write(tmp_path / "model.pt", tensor(shape, (2, 1)), ("m/data/0", bytes(16)))
    with pytest.raises(CorruptFileError, match="impossible sizes"):
        tb.open_checkpoint(path)


def test_such_a_file_is_read_if_its_tensor_is_whole(tmp_path):
    numbers = torch.arange(4.0)
    path = write(tmp_path / "model.pt", tensor((2, 2), (1, 2)), ("m/data/0", numbers.numpy().tobytes()))
    assert torch.equal(tb.open_checkpoint(path).load("a.weight"), numbers.view(2, 2).T)


def test_integers_in_digits_are_read_as_python_2_writes_them():
    found = read_pickle(
        io.BytesIO(PROTOCOL + b"(I4294967296\nI-5\nI01\nI00\nt."), 99, 99, name=print, call=print, load=print
    )
    assert found == (2**32, -5, True, False)
    assert [type(value) for value in found] == [int, int, bool, bool]
