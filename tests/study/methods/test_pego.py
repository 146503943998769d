import copy

import torch
from torch import nn

from tempbalance.study import Batch, Method, Training
from tempbalance.study.methods import PEGO

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(12, 12) for n in ("query", "key", "value")}) for _ in "ab"
        )
        self.classifier = nn.Linear(12, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer["query"](x)) * torch.tanh(layer["key"](x)) + layer["value"](x)
        return self.classifier(x)


def test_pego_trains_updates_of_queries_and_values_and_the_head():
    torch.manual_seed(0)
    before = Attention()
    method = Method("pego:rank=2,count=3,strength=0.01")
    model = method.prepare(copy.deepcopy(before), Training(0, 1, 1))
    torch.testing.assert_close(model(X), before(X))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 4 * 3 * 2 * (12 + 12) + 2 * 12 + 2
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        batch = Batch(X, torch.tensor([0, 1, 0, 1, 1]))
        outputs = model(X)
        method.loss(model, batch, outputs, nn.functional.cross_entropy(outputs, batch.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
    outputs = model(X)
    after = method.finish(model, [])
    torch.testing.assert_close(after(X), outputs)
    for layer, old in zip(after.layers, before.layers, strict=True):
        assert torch.equal(layer["key"].weight, old["key"].weight)
        for name in ("query", "value"):
            update = layer[name].weight - old[name].weight
            assert 0 < torch.linalg.matrix_rank(update, rtol=1e-4) <= 6


def test_the_penalty_is_the_sum_over_entries_of_the_paper():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))  # no attention: all linear layers
    weight = net[0].weight.detach().clone()
    pego = PEGO(rank=2, count=3, strength=0.5)
    pego.prepare(net, Training(0, 1, 1))
    updates = net[0].parametrizations.weight[0]
    with torch.no_grad():
        updates.b.normal_()
    products = [b @ a for a, b in zip(updates.a, updates.b, strict=True)]
    expected = sum((weight @ product.T).abs().sum() for product in products)
    expected += sum((products[i] @ products[j].T).abs().sum() for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(pego.loss(net, None, None, torch.tensor(2.0)), 2 + 0.5 * expected)
