import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from tempbalance.study import Batch, Method, Training


def scores(net, batches, score):
    """Scores of the initial model with the new head of seed 4, one example at a time, by autograd."""
    model = copy.deepcopy(net).eval()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model[3].reset_parameters()
    found = []
    for x, y in ((x, y) for batch in batches for x, y in zip(batch.inputs, batch.targets, strict=True)):
        if score == "el2n":
            found.append((model(x).softmax(0) - one_hot(y, 3)).norm())
        else:
            grads = torch.autograd.grad(cross_entropy(model(x)[None], y[None]), [*model[3].parameters()])
            found.append(torch.cat([grad.flatten() for grad in grads]).norm())
    return torch.stack(found)


@pytest.mark.parametrize("score", ["el2n", "grand"])
def test_the_examples_with_the_largest_scores_are_chosen(net, batches, score):
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    kept = Method(f"data_diet:keep=0.25,score={score},passes=0,runs=1").choose(net, batches, Training(4, 1, 2))
    assert kept.tolist() == scores(net, batches, score).topk(4).indices.sort().values.tolist()
    assert all(map(torch.equal, net.state_dict().values(), before.values()))
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_labels_are_hard_after_some_training_and_all_examples_may_be_kept():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    inputs = 4 * one_hot(labels, 6) + 0.1 * torch.randn(40, 6)
    labels[[3, 17, 28]] = 1 - labels[[3, 17, 28]]
    batches = [Batch(inputs[i : i + 10], labels[i : i + 10]) for i in range(0, 40, 10)]
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    choose = "data_diet:keep={},passes=10,runs=2,rate=0.01"
    training = Training(0, 1, 4)
    assert Method(choose.format(0.075)).choose(net, batches, training).tolist() == [3, 17, 28]
    assert Method(choose.format(1)).choose(net, batches, training).tolist() == [*range(40)]
