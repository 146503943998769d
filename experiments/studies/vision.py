"""Vision from scratch on a part of CIFAR, as in TempBalance and FARMS, at a size for a CPU."""

from evidence.study import Claim, Contest, Metric, Study, with_controls

RATES = (0.003, 0.01, 0.03)
EPOCHS = {500: 60, 1000: 30}  # as many steps
BALANCE = "tempbalance"
PANELS = {"ResNet-20, CIFAR-10": ("resnet20", 10), "VGG, CIFAR-10": ("vgg", 10)}


def contest(network: str, classes: int, examples: int) -> Contest:
    """One amount of data."""
    return Contest(
        name=f"{network}-cifar{classes}-{examples}",
        settings={"network": network, "classes": classes, "examples": examples, "epochs": EPOCHS[examples]},
        methods=(*with_controls(BALANCE), "tempbalance:windows=farms", "snr", "snr+tempbalance"),
        lr=RATES,
        seeds=20,
        data="images",
        files=(f"cifar{classes}.npz",),
    )


FULL = {panel: tuple(contest(*of, examples) for examples in EPOCHS) for panel, of in PANELS.items()}
QUICK = Contest(
    name="quick",
    settings={"examples": 200, "epochs": 20},
    methods=with_controls(BALANCE, ("shuffled",)),
    lr=(0.01, 0.03),
    seeds=10,
    tuning_seeds=2,
    data="images",
    files=("cifar10.npz",),
)

STUDY = Study(
    name="vision",
    task="vision.py",
    metric=Metric(name="accuracy", unit="points", scale=100),
    size=("examples", "images to train on"),
    claims=(
        Claim(
            name="layer",
            sentence="A learning rate per layer, by alpha, helps training from scratch with SGD and a cosine.",
            paper="TempBalance, NeurIPS 2023",
            published=(),
            method=BALANCE,
            also=("tempbalance:windows=farms", "snr", "snr+tempbalance"),
            panels={panel: tuple(each.name for each in contests) for panel, contests in FULL.items()},
        ),
    ),
    quick=(QUICK,),
    full=tuple(each for contests in FULL.values() for each in contests),
    sources={"images": "make cifar10.npz and cifar100.npz from cs.toronto.edu/~kriz/cifar.html, as vision.py says"},
)
