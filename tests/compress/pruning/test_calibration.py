"""Input norms of linear layers over calibration tokens."""

import logging

import pytest
import torch
from torch import nn

from tempbalance.compress.pruning.calibration import input_norms
from tempbalance.errors import TokensError


def test_an_expert_that_no_token_reaches_any_more_has_equal_norms(caplog):
    used, left = nn.Linear(4, 3), nn.Linear(4, 3)
    with caplog.at_level(logging.WARNING):
        norms = input_norms({"used": used, "left": left}, lambda: used(2 * torch.ones(9, 4)), required=False)
    assert norms["used"].tolist() == [6.0] * 4
    assert norms["left"].tolist() == [1.0] * 4
    assert [record for record in caplog.records if "left" in record.message]


def test_a_layer_that_no_token_reaches_is_refused_if_it_is_required():
    with pytest.raises(TokensError, match="reached left"):
        input_norms({"left": nn.Linear(4, 3)}, lambda: None)
