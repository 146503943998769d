import copy

import torch
from torch.nn.functional import cross_entropy

from tempbalance.study import Method, Training, outputs_of


def test_each_network_learns_from_the_sum_and_their_average_is_the_sum(net, batches):
    method = Method("boosting:members=3,shrinkage=0.5,longer=0.25")
    assert (method.members, method.epochs) == (3, 0.25)
    nets, finished = [copy.deepcopy(net).eval() for _ in range(3)], []
    x, y = batches[0]
    for member, each in enumerate(nets):
        with torch.no_grad():
            each[3].bias.add_(member)
        model = method.prepare(each, Training(member, 1, 2))
        outputs = model(x)
        total = 0.5 * (outputs + sum(before(x) for before in nets[:member]))
        found = method.loss(model, batches[0], outputs, cross_entropy(outputs, y))
        torch.testing.assert_close(found, cross_entropy(total, y))
        found.backward()
        assert all(before[3].bias.grad is not None for before in nets[: member + 1])
        gradients = [before[3].bias.grad.clone() for before in nets[:member]]
        finished.append(method.finish(model, batches))
        assert all(map(torch.equal, gradients, (before[3].bias.grad for before in nets[:member])))
    mean = torch.stack([outputs_of(model, x) for model in finished]).mean(dim=0)
    torch.testing.assert_close(mean, 0.5 * sum(each(x) for each in nets))


def test_the_first_network_is_trained_as_without_boosting(net, batches):
    method = Method("boosting:members=2")
    for _ in range(2):  # a second sequence begins anew
        method.prepare(net, Training(0, 1, 2))
        assert method.loss(net, batches[0], net(batches[0].inputs), torch.tensor(7.0)).item() == 7
        method.finish(net, batches)
        method.prepare(net, Training(1, 1, 2))
        assert method.loss(net, batches[0], net(batches[0].inputs), torch.tensor(7.0)).item() != 7
        method.finish(net, batches)
