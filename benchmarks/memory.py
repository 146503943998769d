"""Memory: the peak of a fresh process that analyses a checkpoint, above what it holds after its imports (Linux)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SHAPE = (16384, 256)
_CHILD = """
import sys
from pathlib import Path
import torch
import tempbalance as tb
import safetensors, tempbalance.checkpoints
torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))  # the linear-algebra library, loaded
def kilobytes(key):
    return next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: a child inherits that of its parent
before = kilobytes("VmRSS")
rows = tb.analyze(sys.argv[1], progress=False).layers
print(len(rows), before, kilobytes("VmHWM"))
"""


def peak_megabytes(source: Path) -> tuple[int, float]:
    """Analyse a checkpoint in a process of its own.

    Args:
        source: The checkpoint.

    Returns:
        Number of rows, and the peak of resident memory above that before the analysis, in MB.
    """
    done = subprocess.run([sys.executable, "-c", _CHILD, str(source)], capture_output=True, text=True, check=True)
    rows, before, after = map(int, done.stdout.split()[-3:])
    return rows, (after - before) / 1024


def _write_block(folder: Path) -> None:
    """One LLaMA-7B block in bfloat16, a shard per tensor, with an index."""
    shapes = {f"model.layers.0.self_attn.{part}_proj.weight": (4096, 4096) for part in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{part}_proj.weight": (11008, 4096) for part in ("gate", "up")}
    shapes["model.layers.0.mlp.down_proj.weight"] = (4096, 11008)
    generator, index = torch.Generator().manual_seed(0), {}
    for number, (name, shape) in enumerate(shapes.items()):
        index[name] = f"model-{number:05}.safetensors"
        save_file({name: (0.02 * torch.randn(shape, generator=generator)).bfloat16()}, folder / index[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _write_equal(folder: Path, count: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = folder / f"{count}.safetensors"
    save_file({f"layers.{i}.weight": torch.randn(_SHAPE, generator=generator) for i in range(count)}, path)
    return path


def measure(quick: bool) -> list[dict[str, Any]]:
    """Measure the peaks.

    Args:
        quick: Leave the LLaMA-7B block out.

    Returns:
        One row per measurement.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, hundred = (peak_megabytes(_write_equal(folder, count))[1] for count in (1, 100))
        megabytes = _SHAPE[0] * _SHAPE[1] * 4 / 2**20
        rows.append(
            {
                "name": f"100 tensors of {megabytes:.0f} MB: MB more than for 1 such tensor",
                "target": "at most 1 tensor",
                "value": hundred - one,
                "one_tensor": one,
                "hundred_tensors": hundred,
            }
        )
        print(rows[-1], flush=True)
    if not quick:
        with tempfile.TemporaryDirectory() as name:
            _write_block(Path(name))
            found, peak = peak_megabytes(Path(name))
            rows.append(
                {
                    "name": f"LLaMA-7B block in bfloat16, {found} tensors in shards: MB",
                    "target": "under 1200",
                    "value": peak,
                }
            )
            print(rows[-1], flush=True)
    return rows
