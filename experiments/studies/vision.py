"""Vision from scratch on a part of CIFAR, as in TempBalance and FARMS, at a size for a CPU."""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Search, Study, TaskRow, with_controls

from studies.language import VALUE_OUTPUT

BALANCE = "tempbalance"
FARMS = "tempbalance:windows=farms,every=64"  # less often, to save time; the others once an epoch
SNR = "snr:strength=[0.001,0.01],lr=[0.003,0.01]"
SNR_BALANCE = "snr:strength=[0.001,0.01]+tempbalance:low=0.6,high=1.4,lr=[0.003,0.01]"
VGG = Study(
    name="vgg-cifar10-500",
    parameters={"network": "vgg", "classes": 10, "examples": 500, "epochs": 30},
    methods=(*with_controls(BALANCE), FARMS, SNR, SNR_BALANCE),
    lr=(0.001, 0.003, 0.01, 0.03),
    seeds=20,
    tuning_seeds=1,
    data="images",
    files=("cifar10.npz",),
)
RESNET = Study(
    name="resnet20-cifar100-1000",
    parameters={"network": "resnet20", "classes": 100, "examples": 1000, "epochs": 20},
    methods=(*with_controls(BALANCE, ("uniform", "shuffled")), FARMS),
    lr=(0.003, 0.01, 0.03, 0.1),
    seeds=20,
    tuning_seeds=1,
    data="images",
    files=("cifar100.npz",),
)

# by role and by shape, on fresh seeds
MUP = "mup:optimizer=sgd"
VIT = Study(
    name="vit-cifar10-1000",
    parameters={"network": "vit", "classes": 10, "examples": 1000, "epochs": 12, "tested": 3000},
    methods=("tempbalance", *with_controls("mup", ("uniform",)), VALUE_OUTPUT, "blockwise_lr", "muon"),
    lr=(2.5e-4, 5e-4, 1e-3, 2e-3),
    seeds=20,
    first_seed=100,
    tuning_seeds=2,
    data="images",
    files=("cifar10.npz",),
)
VGG_BY_LAYER = replace(
    VIT,
    name="vgg-cifar10-500-by-layer",
    parameters={"network": "vgg", "classes": 10, "examples": 500, "epochs": 30, "tested": 3000},
    methods=("tempbalance", *with_controls(MUP, ("uniform",)), "muon:lr=[0.001,0.002,0.004,0.008]"),
    lr=(0.003, 0.01, 0.03, 0.1),
)
RESNET_BY_LAYER = replace(
    VGG_BY_LAYER,
    name="resnet20-cifar10-500-by-layer",
    parameters={"network": "resnet20", "classes": 10, "examples": 500, "epochs": 20, "tested": 3000},
)
VIT_SEARCH = Search(
    name="vit-cifar10-1000-search",
    parameters={"network": "vit", "examples": 1000, "epochs": 12, "tested": 3000},
    lr=(5e-4, 1e-3, 2e-3, 4e-3),
    seeds=30,
    first_seed=2000,
    tuning_seeds=2,
    data="images",
    files=("cifar10.npz",),
)
VGG_SEARCH = replace(
    VIT_SEARCH,
    name="vgg-cifar10-500-search",
    parameters={"network": "vgg", "examples": 500, "epochs": 30, "tested": 3000},
    lr=VGG_BY_LAYER.lr,
)
BY_ALPHA = {"alpha": "tempbalance", "shape (muP)": MUP, "Muon": "muon"}
TASK_ROWS = (
    TaskRow(
        title="ViT, 1,000 images",
        study=VIT,
        methods=BY_ALPHA
        | {"shape (muP)": "mup", "role, published": "blockwise_lr", "role, v and o at 1/4": VALUE_OUTPUT},
    ),
    TaskRow(title="VGG, 500 images", study=VGG_BY_LAYER, methods=BY_ALPHA),
    TaskRow(title="ResNet-20, 500 images", study=RESNET_BY_LAYER, methods=BY_ALPHA),
    TaskRow(title="ViT, 1,000 images, searched", study=VIT_SEARCH, methods={"role, searched": None}),
    TaskRow(title="VGG, 500 images, searched", study=VGG_SEARCH, methods={"role, searched": None}),
)
PANELS = {"VGG, CIFAR-10": (VGG.name,), "ResNet-20, CIFAR-100": (RESNET.name,)}
QUICK = Study(
    name="quick",
    parameters={"examples": 200, "epochs": 20},
    methods=with_controls(BALANCE, ("shuffled",)),
    lr=(0.01, 0.03),
    seeds=10,
    tuning_seeds=2,
    data="images",
    files=("cifar10.npz",),
)

EXPERIMENT = Experiment(
    name="vision",
    task="vision.py",
    same_tasks=("8a841d21ad38", "04b133b014ee"),  # before names of tempbalance changed, before all hooks were called
    metric=Metric(name="accuracy", unit="points", scale=100),
    size=("examples", "images to train on"),
    claims=(
        Claim(
            name="layer",
            sentence="A learning rate per layer, by alpha, helps training from scratch with SGD and a cosine.",
            paper="TempBalance, NeurIPS 2023",
            published=(),
            method=BALANCE,
            also=(FARMS, SNR, SNR_BALANCE),
            panels=PANELS,
        ),
    ),
    quick=(QUICK,),
    full=(VGG, RESNET, VIT, VGG_BY_LAYER, RESNET_BY_LAYER),
    searches=(VIT_SEARCH, VGG_SEARCH),
    task_rows=TASK_ROWS,
    sources={"images": "make cifar10.npz and cifar100.npz from cs.toronto.edu/~kriz/cifar.html, see vision.py"},
)
