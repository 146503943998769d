"""Check the simulations of ``low_data_pde.py``: solve them again and print the distance to the files.

    python experiments/check_pde.py DIR

DIR contains neuraloperator's files. Burgers: Fourier series and fourth-order Runge-Kutta, from the 16 points at time 0.
Darcy: finite volumes on a finer grid, the permeability of each fine cell that of the nearest of the n x n points. The
files do not document times and permeabilities; the fitted times are 0.06 apart, the fitted permeabilities 0.36 and
0.02 under a load of 1. About a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

Array = NDArray[np.float64]
VISCOSITY, INTERVAL = 0.01, 0.06
PERMEABLE, TIGHT = 0.36, 0.02
POINTS = 64  # of the Fourier series
FINE = {16: 8, 32: 4}  # cells per point along an axis


def burgers(start: Tensor, time: float, steps: int = 100) -> Tensor:
    """Solutions ``(N, n)`` of ``u_t + u u_x = 0.01 u_xx``, period 1, from their values at time 0."""
    n = start.shape[1]
    wave = 2j * torch.pi * torch.arange(POINTS // 2 + 1)
    kept = wave.abs() < 2 * torch.pi * POINTS / 3  # products of the others would alias
    dt = time / steps
    decay = torch.exp(VISCOSITY * wave**2 * dt / 2)

    def slope(u: Tensor) -> Tensor:
        return -wave / 2 * torch.fft.rfft(torch.fft.irfft(u, n=POINTS) ** 2) * kept

    u = torch.fft.rfft(start.double())
    u[:, -1] /= 2  # the last of 16 points' frequencies stands for a pair
    u = torch.nn.functional.pad(u, (0, len(wave) - u.shape[1])) * POINTS / n
    for _ in range(steps):
        a = slope(u)
        b = slope(decay * (u + dt / 2 * a))
        c = slope(decay * u + dt / 2 * b)
        d = slope(decay**2 * u + dt * decay * c)
        u = decay**2 * (u + dt / 6 * a) + dt / 3 * decay * (b + c) + dt / 6 * d
    return torch.fft.irfft(u, n=POINTS)[:, :: POINTS // n]


def darcy(permeable: NDArray[np.bool_]) -> Array:
    """Solution ``(n, n)`` of ``-div(a grad u) = 1`` on the unit square, 0 on its edge; ``a`` is known at its points."""
    n = len(permeable)
    fine = FINE[n]
    m = n * fine
    point = np.minimum(np.round((np.arange(m) + 0.5) / fine).astype(int), n - 1)
    a = np.where(permeable[np.ix_(point, point)], PERMEABLE, TIGHT)
    cell = np.arange(m * m).reshape(m, m)
    diagonal = np.zeros((m, m))
    entries = []
    for values, cells, total in ((a, cell, diagonal), (a.T, cell.T, diagonal.T)):
        flow = 2 * values[1:] * values[:-1] / (values[1:] + values[:-1])
        total[1:] += flow
        total[:-1] += flow
        total[[0, -1]] += 2 * values[[0, -1]]
        entries += [(-flow, cells[1:], cells[:-1]), (-flow, cells[:-1], cells[1:])]
    entries.append((diagonal, cell, cell))
    data, rows, columns = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*entries, strict=True))
    u: Array = spsolve(sparse.csc_matrix((data, (rows, columns))), np.full(m * m, m**-2.0)).reshape(m, m)
    return u[::fine, ::fine]


def main(folder: Path) -> None:
    """Print the median and the largest relative distance of each file."""
    for part in ("train", "test"):
        found = torch.load(folder / f"burgers_{part}_16.pt", weights_only=True)
        last = found["y"].shape[1] - 1
        say(f"burgers_{part}_16", burgers(found["x"], last * INTERVAL), found["y"][:, last])
    for name in ("darcy_train_16", "darcy_test_16", "darcy_test_32"):
        found = torch.load(folder / f"{name}.pt", weights_only=True)
        solved = np.stack([darcy(x) for x in found["x"][:50].numpy()])
        say(name, torch.from_numpy(solved), found["y"][:50])


def say(name: str, solved: Tensor, file: Tensor) -> None:
    """Print a line."""
    distance = (solved - file).flatten(1).norm(dim=1) / file.flatten(1).norm(dim=1)
    print(f"{name}: median {distance.median():.4f}, largest {distance.max():.4f} of {len(file)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
