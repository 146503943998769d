"""Low-data neural PDE solvers, a task for ``tempbalance study`` (as in Model Balancing, at a size for a CPU).

An FNO (neuraloperator's) or a small UNet learns from a few simulations of

- ``darcy``: permeability of a medium to pressure, 16 x 16 points;
- ``burgers``: speed at time 0 to speed at 16 later times, 16 points each, 1-D Burgers with viscosity 0.01.

Adam with the rate halved every fifth of the training, as published; the metric is the nRMSE after the last step (lower
is better): the root mean square error of a simulation over the root mean square of its solution, averaged. The seed
chooses the simulations, the initial weights and the batches. 100 simulations are held out for validation, 550 (Darcy)
or 700 (Burgers) for the test. For example

    tempbalance study --task experiments/low_data_pde.py --out pde/darcy-4 --lower-is-better --seeds 20 \
        --set examples=4 steps=250 --lr 1e-3 3e-3 1e-2 --methods model_balancing_sciml:normalize=true,every=25 \
        "model_balancing_sciml:normalize=true,every=25,kinds=('conv1d','linear')"

where the last leaves out the complex weights of the FNO, as the released code does. ``every=25``, because with a few
simulations a step is an epoch, and measuring takes longer than the step. ``--set data=DIR`` names a folder
with the files of neuraloperator, ``darcy_train_16.pt`` and so on; ``check_pde.py`` solves them again.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tempbalance.errors import MissingExtraError, NotFoundError
from tempbalance.study import Method

DATA = Path(__file__).parents[2] / "shared" / "data" / "pde"
SIDE = 16  # points along each axis, of space or time
TRAINING, VALIDATION = 400, 100  # simulations of the training file; the others and the test file are for the test
CHANNELS = 3  # the field at a point, and its two coordinates
STAGES = 5  # of the learning rate: published are 500 epochs, halved every 100
WIDTH, MODES, LAYERS = 20, 8, 4  # of the FNO; 20, 12 and 4 in the released code, on grids of 128 points
FIRST_CHANNELS = 16  # of the UNet; 32 in the released code
EVALUATION_BATCH = 50


class Simulations(NamedTuple):
    """Fields ``(N, 3, 16, 16)`` and solutions ``(N, 1, 16, 16)``, float32."""

    fields: Tensor
    solutions: Tensor


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 3e-3,
    *,
    problem: Literal["darcy", "burgers"] = "darcy",
    network: Literal["fno", "unet"] = "fno",
    examples: int = 4,
    steps: int = 500,
    batch_size: int = 16,
    weight_decay: float = 1e-4,
    data: str = str(DATA),
) -> dict[str, float]:
    """Train once.

    Args:
        seed: Seed of everything random.
        method: How to balance.
        lr: Learning rate at first; it is halved four times.
        problem: ``darcy`` or ``burgers``.
        network: ``fno`` or ``unet``.
        examples: Simulations to train on, at most 400.
        steps: Steps of the optimizer; with 4 simulations of Darcy the error after 250 is that after 500.
        batch_size: Simulations in a batch, if there are as many; 50 and fewer in the paper.
        weight_decay: Of Adam; 1e-4 in the released configuration.
        data: Folder of the files.

    Returns:
        nRMSE on validation and test data.

    Raises:
        ValueError: There is no such problem or network, or there are not so many simulations.
    """
    if not 1 <= examples <= TRAINING:
        raise ValueError(f"examples must be 1 to {TRAINING}: the other simulations are tested on; got {examples}")
    parts = load(data, problem)
    model = build(network)
    chosen = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(seed))[:examples]

    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    method.balance(optimizer, model, steps_per_epoch=-(-examples // batch_size))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // STAGES), gamma=0.5)
    batches: list[Tensor] = []
    for _ in range(steps):
        batches = batches or list(chosen[torch.randperm(examples)].split(batch_size))
        batch = batches.pop()
        found = model(parts["train"].fields[batch])
        nn.functional.mse_loss(found, parts["train"].solutions[batch]).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return {part: nrmse(model, parts[part]) for part in ("validation", "test")}


@torch.no_grad()
def nrmse(model: nn.Module, simulations: Simulations) -> float:
    """Root mean square error over root mean square of the solution, averaged over simulations."""
    model.eval()
    solutions = simulations.solutions.flatten(1)
    found = torch.cat([model(part) for part in simulations.fields.split(EVALUATION_BATCH)])
    errors = found.flatten(1) - solutions
    return float((errors.norm(dim=1) / solutions.norm(dim=1)).mean())


def build(network: str) -> nn.Module:
    """Build a network by its name, with random weights."""
    if network == "unet":
        return UNet(FIRST_CHANNELS)
    if network != "fno":
        raise ValueError(f"network must be fno or unet, got {network}")
    try:
        from neuralop.models import FNO
    except ImportError as error:
        raise MissingExtraError("this study trains neuraloperator's FNO: pip install neuraloperator") from error
    fno: nn.Module = FNO(
        n_modes=(MODES, MODES),
        in_channels=CHANNELS,
        out_channels=1,
        hidden_channels=WIDTH,
        n_layers=LAYERS,
        positional_embedding=None,  # the fields have it
        use_channel_mlp=False,
        lifting_channel_ratio=0,
        projection_channel_ratio=128 / WIDTH,
    )
    return fno


class UNet(nn.Module):
    """Two convolutions at each of three resolutions on the way down, at two on the way up."""

    def __init__(self, channels: int) -> None:
        """Build it with random weights.

        Args:
            channels: At the finest resolution; twice and four times as many at the coarser ones.
        """
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        self.down = nn.ModuleList(
            convolutions(before, after) for before, after in zip([CHANNELS, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.merge = nn.ModuleList(convolutions(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute solutions."""
        passed = []
        for level, down in enumerate(self.down):
            x = down(nn.functional.max_pool2d(x, 2) if level else x)
            passed.append(x)
        passed.pop()
        for up, merge in reversed(list(zip(self.up, self.merge, strict=True))):
            x = merge(torch.cat([up(x), passed.pop()], dim=1))
        found: Tensor = self.head(x)
        return found


def convolutions(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each with batch norm and tanh, as in PDEBench's UNet."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.Tanh()]
    return nn.Sequential(*layers)


@functools.cache
def load(data: str, problem: str) -> dict[str, Simulations]:
    """Read the simulations: ``train`` (to draw from), ``validation`` and ``test``."""
    if problem not in ("darcy", "burgers"):
        raise ValueError(f"problem must be darcy or burgers, got {problem}")
    first, second = (read(Path(data) / f"{problem}_{part}_{SIDE}.pt") for part in ("train", "test"))
    fields, solutions = (torch.cat([first[key], second[key]]).float() for key in ("x", "y"))
    if problem == "burgers":  # (N, points), (N, times, points), of which time 0 is the field
        fields, solutions = fields[:, None].expand(-1, SIDE, -1), solutions[:, 1:]
    fields, solutions = (values / values[:TRAINING].square().mean().sqrt() for values in (fields, solutions))
    axis = torch.linspace(0, 1, SIDE)
    where = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(fields), -1, -1, -1)
    sizes = [TRAINING, VALIDATION, len(fields) - TRAINING - VALIDATION]
    inputs = torch.cat([fields[:, None], where], dim=1).split(sizes)
    outputs = solutions[:, None].split(sizes)
    return {
        part: Simulations(x, y) for part, x, y in zip(("train", "validation", "test"), inputs, outputs, strict=True)
    }


def read(path: Path) -> dict[str, Any]:
    """One file of tensors ``x`` and ``y``."""
    if not path.is_file():
        raise NotFoundError(
            f"there is no {path}: get it from neuraloperator (neuralop/data/datasets/data at "
            "github.com/neuraloperator/neuraloperator) and name its folder by --set data=DIR"
        )
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found
