"""Reading a part of a file, and files that change while they are read."""

import os

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.errors import CorruptFileError

STORED = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
SAVE = {"model.safetensors": save_file, "model.pt": torch.save}


@pytest.mark.parametrize("file", SAVE)
@pytest.mark.parametrize(
    "index",
    [(), (2,), (-1,), (slice(1, 3),), (slice(None), slice(2, 4)), (1, slice(0, 2)), (slice(0, 5, 2), 3),
     (slice(-2, None),), (1, 2, 3), (slice(3, 3),)],
    ids=str,
)  # fmt: skip
def test_a_part_is_that_of_the_tensor(file, index, tmp_path):
    SAVE[file]({"a.weight": STORED}, tmp_path / file)
    assert torch.equal(tb.open_checkpoint(tmp_path / file).load("a.weight", index), STORED[index])


def test_a_part_of_a_view_is_that_of_the_view(tmp_path):
    views = {"a": STORED.permute(2, 0, 1), "b": STORED[1:4, ::2, 3:], "c": STORED[0, 0].expand(4, 7)}
    torch.save(views, tmp_path / "model.pt")
    with tb.open_checkpoint(tmp_path / "model.pt") as checkpoint:
        for name, view in views.items():
            assert torch.equal(checkpoint.load(name), view)
            assert torch.equal(checkpoint.load(name, (slice(1, 3), 2)), view[1:3, 2])


@pytest.mark.parametrize("file", SAVE)
class TestChanges:
    def test_a_file_that_is_truncated_while_it_is_read_ends_as_skipped_weights(self, file, tmp_path):
        tensors = {f"{i}.weight": torch.randn(64, 64) for i in range(8)}
        SAVE[file](tensors, tmp_path / file)
        checkpoint = tb.open_checkpoint(tmp_path / file)
        with (tmp_path / file).open("r+b") as written:
            written.truncate(80_000)
        analysis = tb.analyze(checkpoint)
        assert len(analysis.skipped) == 8
        assert all("truncated" in reason or "changed" in reason for _, reason in analysis.skipped)

    def test_a_file_that_is_written_again_is_not_read_on(self, file, tmp_path):
        SAVE[file]({"a.weight": STORED}, tmp_path / file)
        os.utime(tmp_path / file, (0, 0))  # times have steps of some milliseconds
        checkpoint = tb.open_checkpoint(tmp_path / file)
        SAVE[file]({"a.weight": -STORED}, tmp_path / file)
        with pytest.raises(CorruptFileError, match="has changed since it was opened"):
            checkpoint.load("a.weight")

    def test_strict_raises_with_the_name(self, file, tmp_path):
        SAVE[file]({"a.weight": torch.randn(64, 64)}, tmp_path / file)
        checkpoint = tb.open_checkpoint(tmp_path / file)
        (tmp_path / file).write_bytes(b"")
        with pytest.raises(CorruptFileError, match=r"a\.weight: .*truncated"):
            tb.analyze(checkpoint, strict=True)
