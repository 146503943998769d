"""Measure time and memory by number of blocks, for the shapes of LLaMAs of 1, 7 and 70 billion parameters (Linux).

Run with ``python benchmarks/scale.py [--quick] [--dtype float32] [1B 7B 70B]``; results replace those of the same
shapes in ``scale.json`` (not with ``--quick``). One block is on disk, in bfloat16; the other blocks of a model are read
from the same file under other names, so that a model of any depth needs a few gigabytes at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Peak
from run import machine
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.checkpoints import Checkpoint
from tempbalance.checkpoints.checkpoint import Shard
from tempbalance.checkpoints.safetensors_file import SafetensorsShard
from tempbalance.layers import Index

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model.

    Attributes:
        hidden: Width of the model.
        heads: Width of the keys and values.
        inner: Width of the MLP.
        blocks: Number of blocks of the full model.
        measured: Numbers of blocks to analyse, one run each.
    """

    hidden: int
    heads: int
    inner: int
    blocks: int
    measured: tuple[int, ...]


MODELS = {
    "1B": Shapes(2048, 512, 8192, 16, (1, 2, 4, 8)),  # Llama 3.2 1B
    "7B": Shapes(4096, 4096, 11008, 32, (1, 2)),  # Llama 2 7B
    "70B": Shapes(8192, 1024, 28672, 80, (1, 2)),  # Llama 2 70B
}
SMALL = Shapes(256, 64, 1024, 64, (1, 8, 64))


class Repeated:
    """The file of the first block with the tensor names of another block."""

    def __init__(self, shard: Shard, block: int) -> None:
        """Rename the tensors without reading them."""
        self._shard = shard
        self._names = {name.replace(".0.", f".{block}.", 1): name for name in shard.tensors}
        self.tensors = {new: shard.tensors[old] for new, old in self._names.items()}

    def load(self, name: str, index: Index = ()) -> torch.Tensor:
        """Read a tensor or a part of it."""
        return self._shard.load(self._names[name], index)


def write_block(path: Path, shapes: Shapes) -> None:
    """Write the weight matrices of one block, drawn from a Gaussian."""
    width, heads, inner = shapes.hidden, shapes.heads, shapes.inner
    sides = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (heads, width), "self_attn.v_proj": (heads, width)}
    sides |= {"self_attn.o_proj": (width, width), "mlp.down_proj": (width, inner)}
    sides |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.bfloat16}
    save_file({f"model.layers.0.{name}.weight": torch.randn(side, **draw) for name, side in sides.items()}, path)


def analyse(path: Path, blocks: int, dtype: str) -> dict[str, Any]:
    """Analyse a model of a number of blocks; runs in a new process, whose peak memory is measured."""
    torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))  # loads the linear-algebra library
    shard = SafetensorsShard(path)
    shards = {path.with_name(f"model-{block:05}.safetensors"): Repeated(shard, block) for block in range(blocks)}
    checkpoint = Checkpoint(path, shards, None, None, ())
    peak, began, used = Peak("cpu"), time.perf_counter(), time.process_time()
    rows = tb.analyze(checkpoint, dtype=dtype, progress=False, strict=True).layers
    return {
        "blocks": blocks,
        "matrices": len(rows),
        "in_float32": sum(row.error_bound > 1e-9 for row in rows),
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - used,
        "peak_megabytes": peak.megabytes(),
    }


def measure(shapes: Shapes, dtype: str) -> list[dict[str, Any]]:
    """Measure one row per number of blocks, each in a new process."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.safetensors"
        write_block(path, shapes)
        for blocks in shapes.measured:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(analyse, (path, blocks, dtype)))
            print(rows[-1], flush=True)
    return rows


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| shapes | blocks | matrices | processor seconds a block | peak memory, MB |", "|---|---|---|---|---|"]
    for name, found in results.items():
        for row in found["runs"]:
            each = row["processor_seconds"] / row["blocks"]
            of = f"{row['blocks']} of {found['blocks']}"
            lines.append(f"| {name} | {of} | {row['matrices']} | {each:.1f} | {row['peak_megabytes']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small matrices, in seconds; writes nothing")
    parser.add_argument("--shared", action="store_true", help="record that the machine was busy with other work")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], help="all by default")
    options = parser.parse_args()
    models = {"small": SMALL} if options.quick else {name: MODELS[name] for name in options.models or MODELS}
    target = HERE / "scale.json"
    results = json.loads(target.read_text()) if target.exists() and not options.quick else {}
    for name, shapes in models.items():
        where = machine() | {"shared_with_other_work": options.shared}
        label = name if options.dtype == "float64" else f"{name}, {options.dtype}"
        results[label] = {"blocks": shapes.blocks, "machine": where, "runs": measure(shapes, options.dtype)}
        if not options.quick:
            target.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
