"""Check and time everything on one GPU, in at most ten minutes.

    python benchmarks/gpu.py [--cpu] [--minutes 10] [--only CHECK ...] [--out gpu.json]

Each check is written to one JSON file as soon as it is done; run the same command again for the others. A
check that fails, or is slower than its target, is in the file with the reason, and the exit status is 1. ``--cpu``
rehearses all of them with small matrices on the CPU, in seconds, without targets of time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import scale
import solvers
import torch
from models import gaussian, resnet18
from run import machine
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.checkpoints import Checkpoint
from tempbalance.checkpoints.safetensors_file import SafetensorsShard

HERE = Path(__file__).parent
FULL_7B_SECONDS, TIMES_WEIGHTWATCHER = 60.0, 10.0


class Missed(Exception):
    """A result that is wrong, or slower than its target."""


@dataclass(frozen=True)
class Run:
    """Where and at what size the checks run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: Whether this is a rehearsal.
        until: Time at which no new work is begun (``time.perf_counter``).
    """

    device: str
    small: bool
    until: float

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """Return the least seconds of several calls, after one that is not counted."""
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return min(times[1:])


def weights(shapes: dict[tuple[int, int], int]) -> dict[str, Tensor]:
    """Return a number of weights of each shape: Gaussian, with columns of different sizes."""
    generator, found = torch.Generator().manual_seed(0), {}
    for (rows, columns), count in shapes.items():
        for place in range(count):
            sizes = torch.logspace(-1 - 0.1 * place, 0, columns)
            found[f"{rows}x{columns}.{place}.weight"] = torch.randn(rows, columns, generator=generator) * sizes
    return found


def worst_difference(one: tb.Analysis, other: tb.Analysis) -> float:
    """Return the largest relative difference of an alpha; the rows must have equal names and status."""
    rows = list(zip(one.layers, other.layers, strict=True))
    for here, there in rows:
        if (here.name, here.status, here.num_zero) != (there.name, there.status, there.num_zero):
            raise Missed(
                f"{here.name}: {here.status.value}, {here.num_zero} zeros; on the device {there.status.value}, "
                f"{there.num_zero}"
            )
    return max(abs(there.alpha / here.alpha - 1) for here, there in rows if here.status.value == "ok")


def correctness(run: Run) -> dict[str, Any]:
    """Compare with the CPU: full matrices, windows, and float32."""
    state = weights({(96, 96): 3, (200, 80): 2} if run.small else {(512, 512): 3, (1024, 256): 3, (256, 1024): 2})
    state["of low rank.weight"] = state[next(iter(state))].clone()
    state["of low rank.weight"][: len(state["of low rank.weight"]) // 4] = 0
    state["bad.weight"] = torch.full((40, 40), torch.nan)
    found = {}
    for name, options, most in (
        ("float64", {}, 1e-6),
        ("KS", {"estimator": "ks"}, 1e-6),
        ("FARMS", {"windows": tb.FARMS()}, 1e-6),
        ("float32", {"dtype": "float32"}, 1e-4),
    ):
        here = tb.analyze(state, progress=False, **options | {"dtype": None})
        there = tb.analyze(state, progress=False, device=run.device, **options)
        found[name] = worst_difference(here, there)
        if found[name] > most or there.skipped != here.skipped:
            raise Missed(f"{name}: alphas differ by {found[name]:.1e} from those of the CPU, more than {most:.0e}")
    return {"relative_difference_of_alpha": found}


def llama_7b(run: Run) -> dict[str, Any]:
    """Analyse one block of LLaMA-7B's shapes from a file, then all 32 if one of them fits into the time."""
    shapes = replace(scale.SMALL, blocks=2) if run.small else scale.MODELS["7B"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.safetensors"
        scale.write_block(path, shapes)
        shard = SafetensorsShard(path)

        def analyse(blocks: int, **options: Any) -> float:
            """Return the seconds for a number of blocks."""
            shards = {
                path.with_name(f"{block:05}.safetensors"): scale.Repeated(shard, block) for block in range(blocks)
            }
            began = time.perf_counter()
            rows = tb.analyze(
                Checkpoint(path, shards, None, None, ()), device=run.device, progress=False, strict=True, **options
            )
            if len(rows) != 7 * blocks:
                raise Missed(f"{len(rows)} rows for {blocks} blocks of 7 matrices")
            return time.perf_counter() - began

        for dtype in ("float64", "float32"):
            analyse(1, dtype=dtype)  # the first call loads libraries
            found[dtype] = {"one_block": analyse(1, dtype=dtype)}
            expected = found[dtype]["one_block"] * shapes.blocks
            if time.perf_counter() + expected < run.until:
                found[dtype]["all_blocks"] = analyse(shapes.blocks, dtype=dtype)
    best = min(each.get("all_blocks", shapes.blocks * each["one_block"]) for each in found.values())
    found["seconds_of_all_blocks"] = best
    if not run.small and best > FULL_7B_SECONDS:
        raise Missed(f"7B needs {best:.0f} s, more than {FULL_7B_SECONDS:.0f}: {json.dumps(found)}")
    return found


def farms(run: Run) -> dict[str, Any]:
    """Time FARMS windows of one large matrix."""
    side = 192 if run.small else 4096
    model = gaussian((side, side)).to(run.device)
    return {"side": side, "seconds": run.seconds(lambda: tb.analyze(model, windows=tb.FARMS(), progress=False), 1)}


def all_solvers(run: Run) -> dict[str, Any]:
    """Time every solver by size, and its error."""
    sizes = [(4, 64), (1, 128)] if run.small else [(16, 128), (4, 512), (1, 1024), (1, 4096)]
    return {"rows": [row for size in sizes for row in solvers.measure(run.device, *size, runs=1)]}


def batched(run: Run) -> dict[str, Any]:
    """Time many small layers of one shape, together and one by one."""
    count, side = (8, 48) if run.small else (128, 256)
    state = {name: tensor.to(run.device) for name, tensor in weights({(side, side): count}).items()}
    together = run.seconds(lambda: tb.analyze(state, progress=False))
    alone = run.seconds(lambda: [tb.analyze({name: one}, progress=False) for name, one in state.items()], 1)
    return {"layers": count, "side": side, "together": together, "one_by_one": alone, "ratio": alone / together}


def float32(run: Run) -> dict[str, Any]:
    """Time float32 against float64, and count the rows that stay in float32."""
    found = {}
    for shape in ((96, 96), (64, 256)) if run.small else ((4096, 4096), (4096, 11008)):
        state = {name: tensor.to(run.device) for name, tensor in weights({shape: 1}).items()}
        row = tb.analyze(state, dtype="float32", progress=False).layers[0]
        analyses = {d: functools.partial(tb.analyze, state, dtype=d, progress=False) for d in ("float64", "float32")}
        times = {name: run.seconds(analysis, 1) for name, analysis in analyses.items()}
        found[f"{shape[0]} x {shape[1]}"] = times | {"in_float32": row.error_bound > 1e-9}
    return found


def delayed(run: Run) -> dict[str, Any]:
    """Train ResNet-18 from one refresh to the next, waiting for it or not."""
    interval, batch = (2, 4) if run.small else (60, 128)
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    model = (nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *head) if run.small else resnet18()).to(run.device)
    images, labels = torch.randn(batch, 3, 32, 32, device=run.device), torch.arange(batch, device=run.device) % 10
    found: dict[str, Any] = {}
    for name, delay in (("warm", 0), ("waits", 0), ("delayed", interval)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        recipe = tb.Recipe(name="benchmark", assignment=tb.assign.Sigmoid(), every=tb.Every(steps=interval))
        balancer = tb.Balancer(optimizer, model, recipe, delay=delay)
        run.wait()
        began = time.perf_counter()
        for _ in range(interval):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        optimizer.state_dict()  # waits for the measurement, as the next step would
        run.wait()
        found[name] = {"interval": time.perf_counter() - began, "refresh": balancer.history[0].seconds}
        balancer.remove()
    del found["warm"]
    return {"steps": interval, "batch": batch} | found


def weightwatcher(run: Run) -> dict[str, Any]:
    """Compare with WeightWatcher on MiniLM with KS, each in a process of its own with this GPU."""
    import weightwatcher as _  # noqa: F401  the reason is told if it is missing

    jobs = {
        tool: measure.Job("MiniLM", "KS", tool, run.device, os.cpu_count() or 1, 2)
        for tool in ("tempbalance", "WeightWatcher")
    }
    times = {tool: min(measure.in_a_process(job)["seconds"]) for tool, job in jobs.items()}
    ratio = times["WeightWatcher"] / times["tempbalance"]
    if not run.small and ratio < TIMES_WEIGHTWATCHER:
        raise Missed(f"WeightWatcher takes {ratio:.1f} times as long, less than {TIMES_WEIGHTWATCHER:.0f}")
    return {"seconds": times, "ratio": ratio}


CHECKS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "correctness": correctness,
    "7B": llama_7b,
    "float32": float32,
    "batched": batched,
    "delayed": delayed,
    "WeightWatcher": weightwatcher,
    "FARMS": farms,
    "solvers": all_solvers,
}


def outcome(check: Callable[[Run], dict[str, Any]], run: Run) -> dict[str, Any]:
    """Run one check; what goes wrong is its result."""
    began = time.perf_counter()
    try:
        found = {"ok": True} | check(run)
    except ModuleNotFoundError as error:
        found = {"ok": None, "left_out": f"the package {error.name} is not installed"}
    except Exception as error:  # the other checks are still run
        found = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
    return found | {"wall_seconds": time.perf_counter() - began}


def main() -> int:
    """Run the checks that are not in the file yet; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="small matrices on the CPU")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", choices=[[], *CHECKS], default=[])
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: --cpu rehearses the checks on the CPU")
    where = machine() | {"device": "cpu" if options.cpu else torch.cuda.get_device_name()}
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if {**results.get("machine", {}), "date": ""} != {**where, "date": ""}:
        results = {"machine": where, "checks": {}}
    run = Run("cpu" if options.cpu else "cuda", options.cpu, time.perf_counter() + 60 * options.minutes)
    checks = results["checks"]
    for name in options.only or CHECKS:
        if checks.get(name, {}).get("ok"):
            continue
        if time.perf_counter() > run.until:
            print(f"{name}: left for the next run, the time is over", flush=True)
            continue
        checks[name] = outcome(CHECKS[name], run)
        print(name, {key: value for key, value in checks[name].items() if key != "rows"}, flush=True)
        new = options.out.with_suffix(".new")
        new.write_text(json.dumps(results, indent=1) + "\n")
        new.replace(options.out)
    return int(any(checks.get(name, {}).get("ok") is False for name in CHECKS))


if __name__ == "__main__":
    sys.exit(main())
