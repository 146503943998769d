"""End commands in the middle and run them again: the output is the old or the new one, and no litter stays.

``make kills`` runs it. A command (analyze, prune, recover, study) replaces an old output. It is ended before every call
that changes a file or folder (rename, exchange, unlink, fsync, ...), and at random moments. Then every output must be
the old or the new one, whole, and the same command must end in the bytes of an uninterrupted run, with no other file
left. It prints a line per command and way to end it, and ends with exit code 1 if one of them failed.

- ``kill``: SIGKILL.
- ``term``: SIGTERM, which must end the command with exit code 130 and one line.
- ``full``: the call fails as on a full disk, which must end the command with exit code 1 and one line.

Example: ``python -m kills.commands --commands analyze study --ways kill --kills 20 --seed 1``, with ``tests`` in
``PYTHONPATH``
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from study_task import TASK
from tempbalance.cli import main as tempbalance

CHANGES = {  # audit events
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "open", "fsync"),
}
IMPORTED = (  # before the processes are forked, so that random moments are those of the work
    *("pandas", "plotly", "pydantic", "rich.progress", "torch._dynamo", "tempbalance.analysis.resume"),
    *("tempbalance.compress", "tempbalance.released", "tempbalance.report.study_report", "tempbalance.study"),
    *("typer.core", "pydantic.fields", "pydantic.main", "pydantic.type_adapter", "plotly.offline"),
    "tempbalance.report.analysis_report",
)
_SECONDS = re.compile(rb'"seconds": [\d.e-]+')  # the wall time of a trial
# The exit status; SIGTERM before the command line handles it ends the process.
EXPECTED = {"kill": (-signal.SIGKILL,), "term": (130, -signal.SIGTERM), "full": (1,)}
State = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command, the options of its old and its new output, and how to write its inputs."""

    arguments: tuple[str, ...]
    old: tuple[str, ...]
    new: tuple[str, ...]
    prepare: Callable[[Path], None]
    whole: bool  # whether the folder "out" is one output; otherwise each file is


def write_weights(inputs: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{i}.fc.weight": torch.randn(64 + i, 48, generator=generator) * torch.logspace(0, 0.5 + i / 2, 48)
        for i in range(6)
    }
    (inputs / "model").mkdir()
    for number in (1, 2):
        part = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 2 == number - 1}
        save_file(part, inputs / "model" / f"model-{number:05}-of-00002.safetensors")
    (inputs / "model" / "config.json").write_text("{}\n")


def write_llama(inputs: Path) -> None:
    import numpy as np
    import transformers

    import tempbalance as tb

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4))
    model.save_pretrained(inputs / "dense")
    tb.compress.prune_folder(inputs / "dense", inputs / "pruned", tb.compress.SparsitySettings(sparsity=0.5))
    np.savez(inputs / "tokens.npz", tokens=np.arange(400) % 64, offsets=np.array([0, 400]))


def write_task(inputs: Path) -> None:
    (inputs / "task.py").write_text(TASK)


COMMANDS = {
    "analyze": Command(
        ("analyze", "inputs/model", *(f"--out=work/a{suffix}" for suffix in (".json", ".csv", ".html"))),
        ("--estimator=peak",),
        (),
        write_weights,
        False,
    ),
    "prune": Command(
        ("prune", "inputs/model", "--out=work/out", "--report=work/report.json"),
        ("--sparsity=0.3",),
        ("--sparsity=0.5",),
        write_weights,
        True,
    ),
    "recover": Command(
        ("recover", "inputs/pruned", "--tokens=inputs/tokens.npz", "--length=8", "--out=work/out"),
        ("--seed=1",),
        ("--seed=2",),
        write_llama,
        True,
    ),
    "study": Command(
        ("study", "--task=inputs/task.py", "--out=work/out", "--methods=model_balancing_sciml"),
        ("--seeds=1",),
        ("--seeds=2",),
        write_task,
        False,
    ),
}


def read_state(folder: Path) -> State:
    """Return mode and content of all that is in a folder."""
    found: State = {}
    for path in sorted(folder.rglob("*")):
        content = _SECONDS.sub(b"", path.read_bytes()) if path.is_file() else None
        found[str(path.relative_to(folder))] = (oct(path.stat().st_mode), content)
    return found


def outputs(state: State, whole: bool) -> State:
    """Return the outputs by name; without what only a run that ended early leaves."""
    found: State = {}
    for name, value in state.items():
        folder, _, rest = name.partition("/")
        if ".tempbalance-" in name or name.endswith(".partial") or value[1] is None:
            continue
        if whole and rest:
            found.setdefault(folder, {})[rest] = value
        else:
            found[name] = value
    return found


def at_changes(act: Callable[[int], None]) -> None:
    """Call a function with the number of each change of a file in the folder "work", before it."""
    numbers, root = itertools.count(), os.path.abspath("work")

    def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":
            return "rename" in str(arguments[1])
        if event == "open" and not (isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return False
        if event not in CHANGES:
            return False
        paths = [os.path.abspath(os.fsdecode(each)) for each in arguments if isinstance(each, (str, os.PathLike))]
        return not paths or any(path.startswith(root) for path in paths)

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments):
            act(next(numbers))

    sync = os.fsync

    def fsync(file: int) -> None:
        sys.audit("fsync")
        sync(file)

    os.fsync = fsync
    sys.addaudithook(check)


def end(way: str, last: int, number: int) -> None:
    """End this process at a change, in one of the ways."""
    if number != last:
        return
    if way == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGKILL if way == "kill" else signal.SIGTERM)


class Trials:
    """Runs of one command in a folder of its own, in processes that are forked from this one, which has no threads."""

    def __init__(self, name: str, folder: Path) -> None:
        for module in (*IMPORTED, *(("peft", "transformers") if name == "recover" else ())):
            importlib.import_module(module)
        self.command = COMMANDS[name]
        self.folder = folder
        self.work = folder / "work"
        (folder / "inputs").mkdir()
        (folder / "tmp").mkdir()
        self.work.mkdir()
        self._fork(lambda: self.command.prepare(folder / "inputs"))
        self._expect_success(self.command.old)
        self.old = read_state(self.work)
        shutil.copytree(self.work, folder / "old")
        began = time.monotonic()
        self._expect_success(self.command.new, lambda: at_changes(lambda _: note("changes")))
        self.changes = (folder / "changes").stat().st_size
        self.seconds = time.monotonic() - began
        self.new = read_state(self.work)
        assert outputs(self.old, self.command.whole) != outputs(self.new, self.command.whole)

    def at_change(self, way: str, number: int) -> list[str]:
        """End a run before one of its changes; return what is wrong."""
        self._reset()
        return self._check(way, self._run(self.command.new, lambda: at_changes(functools.partial(end, way, number))))

    def at_moment(self, way: str, delay: float) -> tuple[bool, list[str]]:
        """End a run after some seconds; return whether it had not ended before, and what is wrong."""
        self._reset()
        status = self._run(self.command.new, None, way, delay)
        return status != 0, self._check(way, status)

    def _reset(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.folder / "old", self.work)

    def _check(self, way: str, status: int) -> list[str]:
        """Return what is wrong after a run that was ended, and after the same command."""
        log = (self.folder / "log").read_text()
        wrong = []
        if status not in (0, *EXPECTED[way]):
            wrong.append(f"exit status {status}: {log}")
        if status > 0 and not re.fullmatch("interrupted.*\n" if way == "term" else "error: cannot .*\n", log):
            wrong.append(f"it said {log!r}")
        found = outputs(read_state(self.work), self.command.whole)
        old, new = (outputs(state, self.command.whole) for state in (self.old, self.new))
        wrong += [
            f"{name} is neither the old nor the new one"
            for name in {*found, *old, *new}
            if found.get(name) not in (old.get(name), new.get(name))
        ]
        if said := re.search("cannot write .*work/([^:]*): .*; an earlier output is unchanged", log):
            name = said[1].partition("/")[0] if self.command.whole else said[1]
            wrong += [] if found.get(name) == old.get(name) else [f"{name} is not unchanged: {log}"]
        if status := self._run(self.command.new):
            wrong.append(f"the next run has exit status {status}: {(self.folder / 'log').read_text()}")
        else:
            wrong += [f"{name} differs after the next run" for name in differing(read_state(self.work), self.new)]
        wrong += [f"{path} is left" for path in (self.folder / "tmp").iterdir()]
        return wrong

    def _expect_success(self, options: tuple[str, ...], prepare: Callable[[], None] | None = None) -> None:
        if status := self._run(options, prepare):
            raise RuntimeError(f"exit status {status}: {(self.folder / 'log').read_text()}")

    def _run(
        self, options: tuple[str, ...], prepare: Callable[[], None] | None = None, way: str = "", delay: float = 0.0
    ) -> int:
        """Run the command in another process; return its exit status, minus the signal if one killed it."""
        return self._fork(lambda: tempbalance(*self.command.arguments, *options), prepare, way, delay)

    def _fork(
        self,
        work: Callable[[], object],
        prepare: Callable[[], None] | None = None,
        way: str = "",
        delay: float = 0.0,
    ) -> int:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.chdir(self.folder)
                tempfile.tempdir = str(self.folder / "tmp")
                log = os.open("log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(log, 2)
                if prepare is not None:
                    prepare()
                work()
                status = 0
            except SystemExit as stopped:
                status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        if way:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL if way == "kill" else signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def note(name: str) -> None:
    """Append a byte to a file."""
    with open(name, "ab") as file:
        file.write(b".")


def differing(found: State, expected: State) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def main() -> None:
    """End commands, and print a line per command and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--ways", nargs="+", choices=EXPECTED, default=list(EXPECTED))
    parser.add_argument("--kills", type=int, default=100, help="number of random moments per command and way")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures = 0
    for name in options.commands:
        with tempfile.TemporaryDirectory() as folder:
            trials = Trials(name, Path(folder))
            for way in options.ways:
                failures += run_all(trials, name, way, options.kills, options.seed)
    sys.exit(bool(failures))


def run_all(trials: Trials, name: str, way: str, kills: int, seed: int) -> int:
    """End a command at each change and at random moments, and print what is wrong; return the number of failures."""
    draw, began, failures, late, done = random.Random(f"{name} {way} {seed}"), time.monotonic(), 0, 0, 0
    for number in range(trials.changes):
        wrong = trials.at_change(way, number)
        failures += bool(wrong)
        print(*(f"{name}, {way} at change {number}: {each}\n" for each in wrong), end="", flush=True)
    while way != "full" and done < kills:
        delay = draw.uniform(0, trials.seconds)
        in_time, wrong = trials.at_moment(way, delay)
        done, late, failures = done + in_time, late + (not in_time), failures + bool(wrong)
        print(*(f"{name}, {way} after {delay:.3f} s: {each}\n" for each in wrong), end="", flush=True)
    print(
        f"{name}, {way}: {trials.changes} changes and {done} random moments ({late} others came too late), "
        f"{failures} failures, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return failures


if __name__ == "__main__":
    main()
