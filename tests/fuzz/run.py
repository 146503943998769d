"""Read and call everything with random damage: only right answers and typed errors, in little time and memory.

``make fuzz`` runs 20,000 cases (``make fuzz CASES=100000 SEED=3`` for others); ``make test`` runs 2,000. A failure is
printed with the line that repeats it alone.

Example: ``PYTHONPATH=tests python -m fuzz.run --group saved --seed 1 --cases 1000``
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "COLUMNS": "200"}

import peft  # noqa: F401  imported here, so that no case has to wait for it
import torch

from fuzz import arguments, commands, files, saved
from fuzz.corpus import Corpus
from fuzz.mutate import Mutator
from tempbalance._files import TEMPORARY

SHARES = {"files": 0.3, "saved": 0.35, "arguments": 0.25, "commands": 0.1}  # commands take the longest
GROUPS = {each.__name__.partition(".")[2]: each.TARGETS for each in (files, saved, arguments, commands)}
SECONDS, STUCK = 5, 60  # of the processor in a case; of the clock, until the process is ended
GROWTH = 2**30  # bytes of resident memory in a case, above that before it
ADDRESSES = 2**34  # bytes of address space: protects the machine


class TooSlow(BaseException):
    """A case has used its time; no code that is tested catches it."""


def main() -> int:
    """Run the cases, and return the exit code."""
    options = _options()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _stop)
    failures: Counter[str] = Counter()
    started, cases = time.monotonic(), _cases(options)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder, "corpus"))
        for group, case in cases:
            print(f"{group} {case}", file=sys.stderr, flush=True)  # the last line, if the process dies
            failure = _run(GROUPS[group], f"{options.seed}:{group}:{case}", corpus, Path(folder, "case"))
            if failure:
                replay = f"--group {group} --seed {options.seed} --case {case}"
                print(f"FAILED: PYTHONPATH=tests python -m fuzz.run {replay}\n{failure}\n", flush=True)
                failures[failure.splitlines()[-1][:100]] += 1
    print(
        f"{len(cases)} cases with seed {options.seed} in {time.monotonic() - started:.0f} s, {failures.total()} failed"
    )
    for reason, count in failures.most_common():
        print(f"{count:6} {reason}")
    return bool(failures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", choices=[*GROUPS], nargs="*", default=[*GROUPS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000, help="number of cases if all groups are run")
    parser.add_argument("--case", type=int, help="run only this case")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> list[tuple[str, int]]:
    if options.case is not None:
        return [(options.group[0], options.case)]
    return [(group, case) for group in options.group for case in range(round(options.cases * SHARES[group]))]


def _run(targets: dict[Callable[..., Any], int], key: str, corpus: Corpus, place: Path) -> str | None:
    """Run one case, and return how it failed."""
    mutator = Mutator(key)
    (target,) = mutator.choices([*targets], [*targets.values()])
    shutil.rmtree(place, ignore_errors=True)
    (place / "in").mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(STUCK, exit=True)
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        target(mutator, corpus, place / "in")
    except BaseException:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return f"{target.__name__}: {traceback.format_exc()[-4000:]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > GROWTH:
        return f"{target.__name__}: the memory grew by {grown / 2**30:.1f} GiB"
    litter = [path for path in place.rglob(f"{TEMPORARY}*") if path.is_file()]
    return f"{target.__name__}: left {litter}" if litter else None


def _stop(*_: object) -> None:
    raise TooSlow(f"more than {SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
