import runpy
from pathlib import Path

import pytest
import torch

from tempbalance.study import Configuration, Method, load_task

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDY = EXPERIMENTS / "low_data_pde.py"
BALANCED = "model_balancing_sciml:every=1"
pytest.importorskip("neuralop")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pde")
    torch.manual_seed(0)
    for part, count in (("train", 502), ("test", 3)):
        medium, speeds = torch.rand(count, 16, 16), torch.rand(count, 17, 16, dtype=torch.float64)
        torch.save({"x": medium > 0.5, "y": medium}, folder / f"darcy_{part}_16.pt")
        torch.save({"x": speeds[:, 0], "y": speeds}, folder / f"burgers_{part}_16.pt")
    return str(folder)


def run(name="plain", **settings):
    task = load_task(STUDY, {"examples": 3, "steps": 3, "batch_size": 2, **settings})
    return task.run(Configuration(name, 1e-2), 0)


@pytest.mark.parametrize("problem", ["darcy", "burgers"])
@pytest.mark.parametrize("network", ["fno", "unet"])
def test_the_pde_task_trains_and_strength_0_equals_plain(data, problem, network):
    names = ("plain", BALANCED, f"{BALANCED},strength=0")
    plain, balanced, neutral = (run(name, data=data, problem=problem, network=network) for name in names)
    assert [each.error for each in (plain, balanced, neutral)] == ["", "", ""]
    assert set(plain.metrics) == {"validation", "test"}
    assert all(0 < error < 10 for error in plain.metrics.values())
    assert plain.metrics == neutral.metrics != balanced.metrics
    assert balanced.balance["refreshes"] == 3


@pytest.mark.parametrize(
    ("name", "spectral", "others"),
    [(BALANCED, 4, 5), (f"{BALANCED},kinds=('conv1d','linear')", 0, 5), ("model_balancing_sciml_as_released", 0, 5)],
)
def test_the_spectral_weights_can_be_left_out(name, spectral, others):
    torch.manual_seed(0)
    model = runpy.run_path(str(STUDY))["build"]("fno")
    balancer = Method(name).balance(torch.optim.Adam(model.parameters()), model, steps_per_epoch=1)
    balancer.refresh()
    measured = [unit.name for unit in balancer.units if unit.alpha == unit.alpha]
    assert sum("fno_blocks.convs" in each for each in measured) == spectral
    assert len(measured) == spectral + others


def test_training_and_test_simulations_are_disjoint(data_file):
    load = runpy.run_path(str(STUDY))["load"]
    for problem, sizes in (("darcy", [400, 100, 550]), ("burgers", [400, 100, 700])):
        parts = load(str(data_file("pde")), problem)
        assert [len(part.solutions) for part in parts.values()] == sizes
        fields = torch.cat([part.fields for part in parts.values()]).flatten(1)
        assert len(fields.unique(dim=0)) == len(fields)


def test_missing_pde_files_are_named(tmp_path):
    result = run(data=str(tmp_path))
    assert result.status == "failed"
    assert f"there is no {tmp_path}/darcy_train_16.pt: get it from neuraloperator" in result.error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "examples must be 1 to 400: the other simulations are tested on; got 0"),
        ({"examples": 401}, "examples must be 1 to 400"),
        ({"problem": "heat"}, "problem must be darcy or burgers, got heat"),
        ({"network": "mlp"}, "network must be fno or unet, got mlp"),
    ],
)
def test_unknown_networks_problems_and_sizes_are_refused(data, settings, message):
    assert message in run(data=data, **settings).error


def test_an_independent_solver_agrees_with_the_files(data_file):
    check = runpy.run_path(str(EXPERIMENTS / "check_pde.py"))
    found = torch.load(data_file("pde/burgers_test_16.pt"), weights_only=True)
    assert distance(check["burgers"](found["x"], 16 * check["INTERVAL"]), found["y"][:, 16]) < 3e-4
    for side, tolerance in ((16, 0.08), (32, 0.04)):  # more points describe the medium better
        found = torch.load(data_file(f"pde/darcy_test_{side}.pt"), weights_only=True)
        solved = [torch.from_numpy(check["darcy"](x)) for x in found["x"][:5].numpy()]
        assert distance(torch.stack(solved), found["y"][:5]) < tolerance


def distance(solved, file):
    return ((solved - file).flatten(1).norm(dim=1) / file.flatten(1).norm(dim=1)).median()
