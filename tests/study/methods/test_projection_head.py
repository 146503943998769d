import copy

import torch
from torch import nn

from tempbalance.study import Method, Training


def test_the_projection_is_trained_and_dropped_and_the_head_is_fitted_to_the_features(net, batches):
    method = Method("projection_head:c=0.5")
    model = method.prepare(copy.deepcopy(net), Training(3, 1, 2))
    projection, head = model[3]
    assert [type(layer) for layer in projection] == [nn.Linear, nn.ReLU, nn.Linear]
    assert projection[0].weight.shape == projection[2].weight.shape == (10, 10)
    x = batches[0].inputs
    torch.testing.assert_close(model.eval()(x), head(projection(net[:2](x))))
    again = method.prepare(copy.deepcopy(net), Training(3, 1, 2))
    assert torch.equal(again[3][0][0].weight, projection[0].weight)
    with torch.no_grad():
        again[0].weight.mul_(2)  # trained
    finished = method.finish(again, batches)
    expected = copy.deepcopy(net)
    with torch.no_grad():
        expected[0].weight.mul_(2)
    Method("probe:c=0.5").start(expected, batches)
    assert list(finished.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(finished.state_dict(), expected.state_dict())
