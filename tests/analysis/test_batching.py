"""Weights computed side by side: the same bits, an error or Ctrl-C in one of them, and how much memory."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb

COUNT = 12


@pytest.fixture
def model(monkeypatch) -> dict[str, torch.Tensor]:
    """Twelve weights that count as large, and a small one."""
    monkeypatch.setattr("tempbalance.analysis.batching._SMALL", 1000)
    generator = torch.Generator().manual_seed(0)
    sides = [(64 + 8 * (i % 3), 40 + i) for i in range(COUNT)]
    return {f"{i}.weight": torch.randn(side, generator=generator) for i, side in enumerate([*sides, (30, 30)])}


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads, whatever the machine has; what was set before is set again."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Watch:
    """Stands in for ``fit_weights``, and sees which thread computes what, and how many at a time."""

    def __init__(self, monkeypatch, work=lambda batches: None) -> None:
        self.fit_weights = sys.modules["tempbalance.weight_fit"].fit_weights
        self.work = work
        self.seen: list[tuple[tuple[int, ...], bool]] = []  # shape of a matrix, and whether in a thread of its own
        self.active = self.most = 0
        self.lock = threading.Lock()
        monkeypatch.setattr("tempbalance.analysis.batching.fit_weights", self)

    def __call__(self, batches, layouts, **options):
        with self.lock:
            self.seen.append((tuple(batches[0].shape[1:]), threading.current_thread() is not threading.main_thread()))
            self.active += 1
            self.most = max(self.most, self.active)
        time.sleep(0.01)
        try:
            self.work(batches)
            return self.fit_weights(batches, layouts, **options)
        finally:
            with self.lock:
                self.active -= 1


@pytest.mark.usefixtures("threads")
class TestSideBySide:
    def test_the_numbers_are_the_same_bits_for_any_number_of_threads(self, model, monkeypatch):
        found = set()
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with monkeypatch.context() as patch:
                watch = Watch(patch)
                found.add(repr(tb.analyze(model).layers))
            assert watch.most == number
        assert len(found) == 1

    def test_the_most_expensive_comes_first(self, model, monkeypatch):
        watch = Watch(monkeypatch)
        tb.analyze(model)
        shapes = [shape for shape, _ in watch.seen]
        assert set(shapes[:2]) == {(80, 51), (72, 50)}  # two begin at the same time
        assert (30, 30) in shapes[-2:]

    def test_a_few_large_weights_are_computed_one_after_the_other_with_all_threads(self, model, monkeypatch):
        watch = Watch(monkeypatch)
        tb.analyze({name: model[name] for name in ("0.weight", "1.weight")})
        assert (watch.most, [threaded for _, threaded in watch.seen]) == (1, [False, False])

    def test_a_resumed_analysis_computes_the_rest_as_it_would_have(self, model, monkeypatch, tmp_path):
        # Of the rest alone there is too little for two threads; of the whole model there is enough.
        source, partial = tmp_path / "model.safetensors", tmp_path / "partial"
        save_file(model, source)
        expected = tb.analyze(source)
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.unlink", lambda *_args, **_kwargs: None)
            tb.analyze(source, resume=partial)
        lines = partial.read_text().splitlines(keepends=True)
        partial.write_text("".join(lines[:-2]))
        watch = Watch(monkeypatch)
        assert repr(tb.analyze(source, resume=partial).layers) == repr(expected.layers)
        assert [threaded for _, threaded in watch.seen] == [True, True]

    def test_a_bad_weight_is_listed_and_the_rest_goes_on(self, model):
        model["5.weight"][3, 3] = float("nan")
        analysis = tb.analyze(model)
        assert [name for name, _ in analysis.skipped] == ["5.weight"]
        assert len(analysis.layers) == COUNT

    def test_an_unexpected_error_ends_all(self, model, monkeypatch):
        def fail(batches):
            if batches[0].shape[2] == 40 + 11:  # the most expensive, so the first
                raise MemoryError("no room")

        watch = Watch(monkeypatch, fail)
        with pytest.raises(MemoryError, match="no room"):
            tb.analyze(model)
        assert len(watch.seen) < COUNT
        assert torch.get_num_threads() == 2

    def test_ctrl_c_waits_for_no_more_than_is_being_computed(self, model, monkeypatch):
        calls = itertools.count()

        def interrupt(_batches):
            if next(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

        watch = Watch(monkeypatch, interrupt)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore Ctrl-C
        try:
            with pytest.raises(KeyboardInterrupt):
                tb.analyze(model)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert len(watch.seen) < COUNT
        assert torch.get_num_threads() == 2

    def test_a_weight_that_needs_too_much_memory_is_computed_alone(self, model, monkeypatch):
        monkeypatch.setattr("tempbalance.analysis.batching._ROOM", 8 * 2 * 50**2)
        watch = Watch(monkeypatch)
        tb.analyze(model)
        alone = {shape for shape, threaded in watch.seen if not threaded}
        assert alone == {(64 + 8 * (i % 3), 40 + i) for i in range(11, COUNT)}
        assert watch.most == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_memory_is_that_of_as_many_weights_as_there_are_threads(self, tmp_path):
        side, count = 1100, 8
        generator = torch.Generator().manual_seed(0)
        path = tmp_path / "model.safetensors"
        save_file({f"{i}.weight": torch.randn(side, side, generator=generator) for i in range(count)}, path)
        code = """
import sys
from pathlib import Path
import torch
import tempbalance as tb
torch.set_num_threads(2)
tb.analyze({str(i): torch.randn(50, 50) for i in range(8)})  # all that is loaded when it is used
def kilobytes(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
tb.analyze(sys.argv[1])
print(1024 * (kilobytes("VmHWM") - before))
"""
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        gram, weight, rows = 8 * side**2, 4 * side**2, 8 * 512 * side
        assert int(done.stdout) < 1.25 * 2 * (2 * gram + weight + rows)
