import torch


def train(seed, method):
    model = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(3)))
    method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model, steps_per_epoch=5)
    return {"validation": seed, "test": seed + len(method.name) / 100}
