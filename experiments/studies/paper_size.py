"""The experiments at the size of the papers, for one GPU; run by ``run_paper_size.py``."""

from claims import Claim, Experiment, Metric, Published, Study, with_controls

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

BALANCE = "model_balancing:strength=1.25"  # tuned per size in the paper: 1.25 at three of these five


def sst2(percent: str, examples: int, batch_size: int) -> Study:
    """Fine-tuning on a part of SST-2, with the learning rates of the paper."""
    return Study(
        name=f"roberta-sst2-{percent}",
        parameters={"examples": examples, "batch_size": batch_size},
        methods=with_controls(BALANCE, CONTROLS),
        lr=(1e-5, 2e-5, 3e-5, 5e-5),
        seeds=10,
        tuning_seeds=3,
        data=".",
        files=("roberta-base/config.json", "text/sst2/train.tsv", "text/sst2/dev.tsv"),
    )


PARTS = (sst2("0.02", 13, 4), sst2("0.05", 34, 4), sst2("0.1", 67, 8), sst2("0.5", 337, 16), sst2("1", 673, 16))
MODEL_BALANCING = Experiment(
    name="roberta",
    task="paper_size/roberta.py",
    metric=ACCURACY,
    size=("examples", "sentences to train on"),
    claims=(
        Claim(
            name="block",
            sentence="A learning rate per block, by alpha, helps fine-tuning on little data.",
            paper="Model Balancing, EMNLP 2024, table 17, the best epoch, 3 seeds",
            published=(
                Published(where="RoBERTa-base, SST-2", size="0.02 %", baseline=58.49, method=68.39),
                Published(where="RoBERTa-base, SST-2", size="0.05 %", baseline=83.07, method=84.17),
                Published(where="RoBERTa-base, SST-2", size="0.1 %", baseline=84.13, method=87.16),
                Published(where="RoBERTa-base, SST-2", size="0.5 %", baseline=90.44, method=91.44),
                Published(where="RoBERTa-base, SST-2", size="1 %", baseline=91.06, method=91.97),
            ),
            method=BALANCE,
            panels={"RoBERTa-base, SST-2": tuple(study.name for study in PARTS)},
        ),
    ),
    quick=(),
    full=PARTS,
    sources={".": "get roberta-base from huggingface.co/FacebookAI/roberta-base, SST-2 from gluebenchmark.com"},
    packages={"transformers": "pip install 'tempbalance[transformers]'"},
)

DECAY = "alphadecay:high=3"  # as the paper at weight decay 1e-5
LLAMA = Study(
    name="llama60m-c4",
    parameters={"steps": 10_000, "weight_decay": 1e-5},
    methods=with_controls(DECAY, CONTROLS),
    lr=(5e-4, 1e-3, 2e-3),
    seeds=10,
    tuning_seeds=1,
    data="c4",
    files=("train.npy", "validation.npy"),
)
ALPHADECAY = Experiment(
    name="llama",
    task="paper_size/llama.py",
    metric=Metric(name="perplexity", unit="perplexity", lower_is_better=True),
    size=("steps", "steps"),
    claims=(
        Claim(
            name="decay",
            sentence="A weight decay per layer, by alpha, lowers the perplexity of a language model.",
            paper="AlphaDecay, NeurIPS 2025, main table, weight decay 1e-5",
            published=(Published(where="LLaMA 60M, C4", size="10,000", baseline=32.39, method=31.56),),
            method=DECAY,
            panels={"LLaMA 60M, C4": (LLAMA.name,)},
        ),
    ),
    quick=(),
    full=(LLAMA,),
    sources={
        "c4": "get the English part of C4 (huggingface.co/datasets/allenai/c4), encode its documents with a tokenizer "
        "of 32,000 tokens or fewer, and save the ids in one row of uint16 by numpy.save, 1.31 billion in train.npy"
    },
    packages={"transformers": "pip install 'tempbalance[transformers]'"},
)

PAPER_SIZE = {each.name: each for each in (TEMPBALANCE, MODEL_BALANCING, ALPHADECAY)}
