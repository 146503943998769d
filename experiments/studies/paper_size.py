"""The experiments at the size of the papers, for one GPU; run by ``run_paper_size.py``."""

from claims import Claim, Experiment, Metric, Study, with_controls

CONTROLS = ("uniform", "shuffled", "untrained")
ACCURACY = Metric(name="accuracy", unit="points", scale=100)

RESNET18 = Study(
    name="resnet18-cifar100",
    parameters={"epochs": 200},
    methods=with_controls("tempbalance", CONTROLS),
    lr=(0.05, 0.1, 0.15),  # as in the ablation of the paper
    seeds=10,
    tuning_seeds=1,
    data="images",
    files=("cifar100.npz",),
)
TEMPBALANCE = Experiment(
    name="resnet18",
    task="paper_size/resnet18.py",
    metric=ACCURACY,
    size=("epochs", "epochs"),
    claims=(
        Claim(
            name="layer",
            sentence="A learning rate per layer, by alpha, helps training from scratch with SGD and a cosine.",
            paper="TempBalance, NeurIPS 2023; its table of accuracies was not available to us",
            published=(),
            method="tempbalance",
            panels={"ResNet-18, CIFAR-100": (RESNET18.name,)},
        ),
    ),
    quick=(),
    full=(RESNET18,),
    sources={"images": "make cifar100.npz from cs.toronto.edu/~kriz/cifar.html, see vision.py"},
    packages={"transformers": "pip install 'tempbalance[transformers]'"},  # of vision.py
)

PAPER_SIZE = {each.name: each for each in (TEMPBALANCE,)}
