import json
import zipfile

import pytest
import torch
from safetensors.torch import save

from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

pytest.importorskip("matplotlib")
import published_models

PAGE = "<!-- begin summary -->\n<!-- end summary -->\n<!-- begin models -->\n<!-- end models -->\n"


def with_tail(rows, columns, seed):
    return matrix_with_spectrum(pareto_quantiles(columns, 2.5), (rows, columns), seed=seed).float()


@pytest.fixture
def packages(tmp_path):
    """A folder with one package, of a model with a linear layer and a convolution with a tail, and a norm."""
    tensors = {"fc.weight": with_tail(64, 32, 0), "norm.weight": torch.ones(64)}
    tensors["conv.weight"] = torch.stack([with_tail(32, 16, tap) for tap in range(3)], dim=2)
    folder = tmp_path / "packages"
    folder.mkdir()
    with zipfile.ZipFile(folder / "some_net-1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("some_net/model.safetensors", save(tensors))
    return folder


def test_a_model_in_a_package_is_analysed_and_its_alphas_are_computed_again(packages, tmp_path, capsys):
    model = published_models.Model("SomeNet", "some-net==1.2", "some_net/model.safetensors", "a net")
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(PAGE)
    argv = ["--packages", str(packages), "--out", str(out), "--page", str(page)]
    published_models.main(argv, models=[model])
    (found,) = json.loads(out.read_text())["models"]
    assert found["alphas"].keys() == {"fc.weight", "conv.weight"}
    assert (found["parameters"], found["covered"], found["checked"]) == (64 * 32 + 64 + 3 * 512, 64 * 32 + 3 * 512, 2)
    assert found["largest_difference"] < 1e-12
    assert "| SomeNet | a net | 0.00 M | 98% | 2 |" in page.read_text()
    assert (tmp_path / published_models.FIGURE).read_text().startswith("<?xml")
    assert "2 alphas of 1 models" in capsys.readouterr().out
