"""Peak memory of the analysis of a quantised checkpoint of 7B shape, which is made of random bytes.

    python benchmarks/quantised.py [gguf | mxfp4] [--layers 32] [--select GLOB] [--dtype float32] [--folder FOLDER]

It writes 32 layers (GGUF: the shapes of LLaMA-7B in Q4_0; MXFP4: 8 experts of gpt-oss a layer), reads them in a process
of its own, and prints size, time and the largest memory of that process (``ru_maxrss``). Weights are read one by one,
so that a few of them (``--layers 1 --select '*down_proj*'``) need as much memory as all. Not part of ``run.py``: 7B
needs minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

HIDDEN, INNER, VOCABULARY = 4096, 11008, 32000
EXPERTS, EXPERT_WIDTH = 8, 2880
READ = """
import json, resource, sys, time
import torch
import tempbalance as tb
start = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
analysis = tb.analyze(sys.argv[1], select=sys.argv[2], dtype=sys.argv[3], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"threads": torch.get_num_threads(), "rows": len(analysis),
                  "skipped": len(analysis.skipped), "seconds": time.perf_counter() - start,
                  "peak_mb": peak / 1024, "import_mb": before / 1024}))
"""


def write_gguf(folder: Path, layers: int) -> Path:
    """Write a LLaMA in Q4_0."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0
    block, size = gguf.GGML_QUANT_SIZES[kind]
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, INNER)}
    named = {"token_embd.weight": (VOCABULARY, HIDDEN), "output.weight": (VOCABULARY, HIDDEN)}
    named |= {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in shapes.items()}
    path, random = folder / "model.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, (rows, columns) in named.items():
        writer.add_tensor_info(
            name, (rows, columns // block * size), np.dtype(np.uint8), rows * columns // block * size, kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for rows, columns in named.values():  # without the highest bits, every scale is finite
        writer.write_tensor_data(random.integers(0, 64, (rows, columns // block * size), dtype=np.uint8))
    writer.close()
    return path


def write_mxfp4(folder: Path, layers: int) -> Path:
    """Write shards with the experts of a layer each."""
    from safetensors.torch import save_file

    for layer in range(layers):
        tensors = {}
        for name, rows in (("gate_up_proj", 2 * EXPERT_WIDTH), ("down_proj", EXPERT_WIDTH)):
            shape = (EXPERTS, rows, EXPERT_WIDTH // 32)
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            tensors[f"{stem}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            tensors[f"{stem}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8)
        save_file(tensors, folder / f"model-{layer + 1:05d}-of-{layers:05d}.safetensors")
    return folder


def main() -> None:
    """Write a checkpoint, and read it in another process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=["gguf", "mxfp4"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--select", default="*")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        write = {"gguf": write_gguf, "mxfp4": write_mxfp4}[options.format]
        path = write(Path(made), options.layers)
        size = sum(file.stat().st_size for file in Path(made).iterdir()) / 2**20
        command = [sys.executable, "-c", READ, str(path), options.select, options.dtype]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        given = {name: getattr(options, name) for name in ("format", "layers", "select", "dtype")}
        print(json.dumps(given | {"file_mb": size} | found))


if __name__ == "__main__":
    main()
