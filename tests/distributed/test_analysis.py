"""Processes that share an analysis get the result of a single process; an error on one ends all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

import tempbalance as tb
from command_line import interrupted
from command_line import run as run_command
from tempbalance.analysis import analyzer
from tempbalance.analysis.distributed import WorkQueue
from tempbalance.checkpoints import Checkpoint
from tempbalance.errors import AnalysisError

from .worlds import run, run_once

SHAPES = [(96, 96), (200, 60), (60, 200), (24, 16, 3, 3), (150, 150), (3, 7)]
FAILED = "another process has failed"


@pytest.fixture
def checkpoint(tmp_path):
    """Three weights of each shape, one of them with a NaN, in two shards."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{layer}.{part}.weight": torch.randn(shape, generator=generator)
        for layer in range(3)
        for part, shape in enumerate(SHAPES)
    }
    tensors["layers.1.4.weight"][0, 0] = torch.nan
    names = list(tensors)
    folder = tmp_path / "model"
    folder.mkdir()
    for number, held in enumerate((names[:7], names[7:]), start=1):
        save_file({name: tensors[name] for name in held}, folder / f"model-{number:05}-of-00002.safetensors")
    return folder


def joined(folder: Path) -> WorkQueue:
    """Return the queue of the processes of this world."""
    store = dist.FileStore(str(folder.with_name(f"messages{dist.get_world_size()}")), dist.get_world_size())
    return WorkQueue(store, dist.get_rank(), dist.get_world_size())


def analysed(folder: Path, **options: Any) -> tuple[str, list[str]]:
    """Return the analysis as text, and the names that this process read."""
    read: list[str] = []
    load = Checkpoint.load

    def recorded(self: Checkpoint, name: str, index: Any = ()) -> torch.Tensor:
        read.append(name)
        return load(self, name, index)

    with mock.patch.object(Checkpoint, "load", recorded):
        found = tb.analyze(folder, progress=False, processes=joined(folder), **options)
    return repr(asdict(found)), read


@pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
@pytest.mark.parametrize("size", [2, 3])
def test_every_process_gets_the_result_of_a_single_process(size, windows, checkpoint):
    alone = repr(asdict(tb.analyze(checkpoint, windows=windows)))
    assert "NaN" in alone
    assert [found for found, _ in run(size, _with, analysed, checkpoint, {"windows": windows})] == [alone] * size


def _with(function: Any, folder: Path, options: dict[str, Any]) -> Any:
    return function(folder, **options)


def test_each_process_reads_its_own_part(checkpoint):
    parts = [set(read) for _, read in run(2, analysed, checkpoint)]
    assert all(len(part) > 3 for part in parts)
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0] | parts[1]) == 3 * len(SHAPES)


def counted(folder: Path) -> tuple[bool, int]:
    """Return whether a process shows progress, and how many weights it counted."""
    shown: list[bool] = []
    counts: list[int] = []

    @contextlib.contextmanager
    def bar(_: str, total: int, wanted: bool) -> Iterator[Any]:
        shown.append(wanted)
        yield counts.append

    with mock.patch.object(analyzer, "progress_bar", bar):
        tb.analyze(folder, processes=joined(folder))
    return shown[0], sum(counts)


def test_one_progress_bar_counts_the_weights_of_all_processes(checkpoint):
    count = 3 * len(SHAPES)
    assert run(2, counted, checkpoint) == [(True, count), (False, count)]


def fails_in_the_middle(folder: Path, partial: Path, bad_rank: int) -> str:
    """Return the message of the error if one process fails at its third batch."""
    processes = joined(folder)
    if dist.get_rank() == bad_rank:
        gather = processes.gather

        def failing(own):
            for number, value in enumerate(own):
                if number == 2:
                    raise MemoryError("no room")
                yield value

        processes.gather = lambda own: gather(failing(own))
    with pytest.raises((AnalysisError, MemoryError)) as raised:
        tb.analyze(folder, progress=False, resume=partial, processes=processes)
    if dist.get_rank() == bad_rank:
        assert processes.report_failure()
    return str(raised.value)


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_weights_done_before_a_failure_are_reused_by_more_or_fewer_processes(bad_rank, checkpoint, tmp_path):
    partial = tmp_path / "partial"
    messages = run(2, fails_in_the_middle, checkpoint, partial, bad_rank)
    assert messages[bad_rank] == "no room"
    assert FAILED in messages[1 - bad_rank]
    lines = partial.read_text().splitlines()
    done = {json.loads(line)["name"] for line in lines[1:]}
    assert done
    alone = repr(asdict(tb.analyze(checkpoint)))
    others = run(3, _with, analysed, checkpoint, {"resume": partial})
    assert [found for found, _ in others] == [alone] * 3
    assert done.isdisjoint(name for _, read in others for name in read)
    assert not partial.exists()
    partial.write_text("\n".join(lines))
    assert repr(asdict(tb.analyze(checkpoint, resume=partial))) == alone


@contextlib.contextmanager
def launch() -> Iterator[None]:
    """Set up what torchrun does in each process: a store, and environment variables with its address."""
    rank, size = dist.get_rank(), dist.get_world_size()
    server = dist.TCPStore("localhost", 0, is_master=True) if rank == 0 else None
    port = [server.port if server else 0]
    dist.broadcast_object_list(port)
    variables = {
        **{"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_RANK": str(rank)},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(port[0]), "RANK": str(rank), "WORLD_SIZE": str(size)},
    }
    with mock.patch.dict(os.environ, variables):
        yield
    dist.barrier()


def command(arguments: list[str], bad_rank: int | None = None) -> tuple[Any, str, str]:
    """Return exit status, output and errors of a command that torchrun starts."""
    output, errors = io.StringIO(), io.StringIO()
    with launch(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = run_command(*(arguments if dist.get_rank() != bad_rank else ["analyze", "nowhere"]))
    return status, output.getvalue(), errors.getvalue()


def test_analyze_under_torchrun_prints_and_writes_once(checkpoint, tmp_path):
    arguments = ["analyze", str(checkpoint), "--out", str(tmp_path / "a.json")]
    first, second = run(2, command, arguments)
    assert second == (0, "", "")
    assert first[0] == 0
    assert first[1].count("weight matrices") == 1
    assert first[2] == ""
    assert repr(tb.Analysis.load(tmp_path / "a.json").layers) == repr(tb.analyze(checkpoint).layers)


@pytest.mark.parametrize(
    ("options", "bad_rank", "message"),
    [
        (["--strict"], None, "error: layers.1.4.weight: 1 of 22500 weights are NaN or Inf"),
        (["--select", "nothing"], None, "error: no weight matches"),
        (["--device", "cuda:99"], None, "error: device 'cuda:99' cannot be used here"),
        ([], 1, "error: there is no file or folder nowhere"),
        (["--out", "nowhere/a.json"], None, "error: cannot write nowhere/a.json"),
    ],
)
def test_an_error_ends_all_processes_with_one_message(options, bad_rank, message, checkpoint):
    outcomes = run(2, command, ["analyze", str(checkpoint), *options], bad_rank)
    assert [status for status, _, _ in outcomes] == [1, 1]
    assert [output for _, output, _ in outcomes] == ["", ""]
    (said,) = filter(None, (errors for _, _, errors in outcomes))
    assert said.startswith(message)
    assert said.count("\n") == 1


def starts_alone() -> str:
    """Return the message that one process of a training gets if it alone starts a shared analysis."""
    with launch():
        if dist.get_rank() == 0:
            with pytest.raises(AnalysisError) as raised:
                WorkQueue.launched(timeout=0.2)
            return str(raised.value)
    return ""


def test_a_command_started_by_one_process_of_a_training_raises_after_its_timeout():
    message, _ = run_once(2, starts_alone)
    assert "torchrun has started 2 processes, but only 1 of them run this command" in message
    assert "unset TORCHELASTIC_RUN_ID" in message


def in_a_script(folder: Path) -> list[str]:
    model = torch.nn.Sequential(*(torch.nn.Linear(40, 40) for _ in range(5)))
    with launch():
        return [repr(asdict(tb.analyze(source, processes=WorkQueue.launched()))) for source in (folder, model, folder)]


def test_a_script_can_distribute_several_analyses_in_turn(checkpoint):
    first, second = run(2, in_a_script, checkpoint)
    assert first[0] == first[2] == second[0] == second[2] == repr(asdict(tb.analyze(checkpoint)))
    assert first[1] == second[1]


def test_without_torchrun_the_work_queue_has_one_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # as other tools set them
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    processes = WorkQueue.launched()
    assert (processes.rank, processes.size) == (0, 1)


def on_one_process_only() -> int:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(40, 40))
    return len(tb.analyze(model).layers) if dist.get_rank() == 1 else 0


def test_one_process_of_a_training_can_analyse_the_model():
    assert run(2, on_one_process_only) == [0, 1]


@pytest.mark.slow
def test_an_interrupted_torchrun_resumes_with_another_number_of_processes(tmp_path):
    path, out = tmp_path / "model.safetensors", tmp_path / "out.json"
    generator = torch.Generator().manual_seed(0)
    save_file({f"layers.{i}.weight": torch.randn(900 + i, 900, generator=generator) for i in range(24)}, path)
    arguments = ["-m", "tempbalance", "analyze", str(path), "--out", str(out), "--quiet"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    partial = out.with_name("out.json.partial")
    status, errors, done = interrupted([*torchrun, "2", *arguments], partial)
    assert status != 0
    assert errors.count("run the same command again to resume") == 1
    assert not out.exists()
    assert 0 < done < 24
    subprocess.run([*torchrun, "3", *arguments], check=True)
    assert not partial.exists()
    tb.analyze(path).save(tmp_path / "alone.json")
    assert out.read_bytes() == (tmp_path / "alone.json").read_bytes()
