"""Weights computed in parallel threads: the same bits, an error or Ctrl-C in one of them, and how much memory."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.analysis.batching import BatchLimits, fit_model_weights, should_parallelize
from tempbalance.errors import NonFiniteError, WeightError
from tempbalance.layers import find_weights

GENERATOR = torch.Generator().manual_seed(0)
COUNT = 12
LIMITS = BatchLimits(small=1000)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Twelve weights that are large by ``LIMITS``, and a small one."""
    generator = torch.Generator().manual_seed(0)
    sides = [(64 + 8 * (i % 3), 40 + i) for i in range(COUNT)]
    return {f"{i}.weight": torch.randn(side, generator=generator) for i, side in enumerate([*sides, (30, 30)])}


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Calls:
    """The fits that were made: the short side of each weight, whether in a thread of its own, and how many at once."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []
        self.active = self.most = 0
        self.lock = threading.Lock()


@dataclass(frozen=True)
class Recorded(tb.Hill):
    """Hill's estimator, which records its calls and can do something in each."""

    __module__ = "tempbalance"  # rows of other code are not used again
    calls: Calls = field(default_factory=Calls, repr=False)
    work: Callable[[int], None] = field(default=lambda side: None, repr=False)

    def fit_batch(self, eigenvalues: torch.Tensor) -> list[tb.types.TailFit]:
        side, calls = eigenvalues.shape[1], self.calls
        with calls.lock:
            calls.seen.append((side, threading.current_thread() is not threading.main_thread()))
            calls.active += 1
            calls.most = max(calls.most, calls.active)
        time.sleep(0.05)
        try:
            self.work(side)
            return super().fit_batch(eigenvalues)
        finally:
            with calls.lock:
                calls.active -= 1


def fit(tensors, estimator, limits=LIMITS):
    """Fit weights as ``analyze`` does, with small limits; by name."""
    weights, _ = find_weights(tensors)
    parallel = should_parallelize(weights, limits=limits)
    batches = fit_model_weights(weights, estimator=estimator, parallel=parallel, limits=limits)
    return {weight.name: found for batch in batches for weight, found in batch}


@pytest.mark.usefixtures("threads")
class TestParallelThreads:
    def test_numbers_are_the_same_bits_for_any_number_of_threads(self, tensors):
        results = set()
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            estimator = Recorded()
            found = fit(tensors, estimator)
            results.add(repr([found[name].fit for name in tensors]))
            assert estimator.calls.most == number
        assert len(results) == 1

    def test_the_most_expensive_weights_start_first(self, tensors):
        estimator = Recorded()
        fit(tensors, estimator)
        sides = [side for side, _ in estimator.calls.seen]
        assert set(sides[:2]) == {51, 50}  # two start at the same time
        assert 30 in sides[-2:]

    def test_a_few_large_weights_are_computed_one_after_the_other_with_all_threads(self, tensors):
        estimator = Recorded()
        fit({name: tensors[name] for name in ("0.weight", "1.weight")}, estimator)
        assert estimator.calls.most == 1
        assert estimator.calls.seen == [(40, False), (41, False)]

    def test_a_resumed_analysis_computes_the_rest_in_threads_as_if_it_were_not_interrupted(self, tmp_path):
        # Of the rest alone there is too little for two threads; of the whole model there is enough.
        source, partial = tmp_path / "model.safetensors", tmp_path / "partial"
        save_file({f"{i}.weight": torch.randn(4200, 250 + i, generator=GENERATOR) for i in range(6)}, source)
        expected = tb.analyze(source, estimator=Recorded())

        def interrupt(side: int) -> None:
            if side == 253:  # the third; the most expensive starts first
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tb.analyze(source, estimator=Recorded(work=interrupt), resume=partial)
        estimator = Recorded()
        assert repr(tb.analyze(source, estimator=estimator, resume=partial).layers) == repr(expected.layers)
        assert 0 < len(estimator.calls.seen) < 6
        assert all(in_thread for _, in_thread in estimator.calls.seen)

    def test_a_bad_weight_is_listed_and_the_others_are_fitted(self, tensors):
        tensors["5.weight"][3, 3] = float("nan")
        found = fit(tensors, tb.Hill())
        assert [name for name, fitted in found.items() if isinstance(fitted, NonFiniteError)] == ["5.weight"]
        assert len(found) == COUNT + 1

    def test_an_unexpected_error_stops_all_threads(self, tensors):
        def fail(side: int) -> None:
            if side == 40 + 11:  # the most expensive, so the first
                raise MemoryError("no room")

        estimator = Recorded(work=fail)
        with pytest.raises(MemoryError, match="no room"):
            fit(tensors, estimator)
        assert len(estimator.calls.seen) < COUNT
        assert torch.get_num_threads() == 2

    def test_ctrl_c_waits_only_for_weights_that_are_being_computed(self, tensors):
        calls = itertools.count()

        def interrupt(_: int) -> None:
            if next(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

        estimator = Recorded(work=interrupt)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore Ctrl-C
        try:
            with pytest.raises(KeyboardInterrupt):
                fit(tensors, estimator)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert len(estimator.calls.seen) < COUNT
        assert torch.get_num_threads() == 2

    def test_a_weight_that_needs_too_much_memory_is_computed_alone(self, tensors):
        estimator = Recorded()
        fit(tensors, estimator, BatchLimits(small=1000, memory=8 * 2 * 50**2))
        assert {side for side, in_thread in estimator.calls.seen if not in_thread} == {51}
        assert estimator.calls.most == 2

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
        assert int(done.stdout) < 1.35 * 2 * (2 * gram + weight + rows)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_one_weight_that_no_library_can_compute_is_skipped_and_the_others_are_not():
    good = torch.randn(64, 48)
    freed = good.clone()
    freed.untyped_storage().resize_(0)
    bad = {
        "sparse": good.to_sparse(),
        "csr": good.to_sparse_csr(),
        "mkldnn": good.to_mkldnn(),
        "denormal": good.double() * 1e-315,
        "freed": freed,
    }
    alone = tb.analyze({"good": good})
    for name, weight in bad.items():
        analysis = tb.analyze({"bad": weight, "good": good})
        rows = [replace(row, role=alone.layers[0].role) for row in analysis.layers]  # it depends on the other weights
        assert repr(rows) == repr(alone.layers), name
        assert [row.name for row in analysis.skipped] == ["bad"]
        assert analysis.skipped[0].reason
        with pytest.raises(WeightError, match="bad: "):
            tb.analyze({"bad": weight, "good": good}, strict=True)
