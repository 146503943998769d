import pytest
import torch
from torch import nn

from tempbalance.study import Batch


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 3))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [Batch(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in "ab"]
