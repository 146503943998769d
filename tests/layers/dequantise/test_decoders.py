"""Files of each quantised format, made by the own tool of the format, have its dequantised matrix."""

import json
from pathlib import Path

import pytest
import torch

import tempbalance as tb
from tempbalance.layers import find_weights

FILES = Path(__file__).parent / "files"
EXPECTED = json.loads((FILES / "expected.json").read_text("utf-8"))
STRIDE = 61  # of the entries in expected.json


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_the_own_tool_of_a_format_has_its_dequantised_matrix(name):
    expected = EXPECTED[name]
    with tb.open_checkpoint(FILES / name) as checkpoint:
        (row,) = tb.analyze(checkpoint).layers
        (weight,) = find_weights(checkpoint)[0]
        matrix = weight.load()
    assert (row.name, row.shape) == ("layers.0.fc.weight", tuple(expected["shape"]))
    assert row.lambda_max == pytest.approx(expected["lambda_max"], rel=1e-6)
    assert row.alpha == pytest.approx(expected["alpha"], rel=1e-6)
    torch.testing.assert_close(matrix.flatten()[::STRIDE], torch.tensor(expected["entries"]), rtol=1e-6, atol=1e-9)
