"""Fine-tuning on a few handwritten digits: a task of seconds, as a first look at Model Balancing's claim."""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Published, Study

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BLOCK = "model_balancing"
UPDATE = "model_balancing:spectrum_of=update"
UPDATE_CONTROLS = tuple(f"{UPDATE},control={control}" for control in ("uniform", "inverted", "shuffled"))

EIGHT = Study(
    name="8",
    parameters={"examples": 8},
    methods=(
        BLOCK,
        *(f"{BLOCK}:control={control}" for control in ("uniform", "inverted", "shuffled", "untrained")),
        f"{BLOCK}:unit=layer",
        f"{BLOCK}:windows=farms,every=20",  # less often, to save time; the others as in their recipes
        f"{BLOCK}:damped=true",
        f"{BLOCK}:change=true",
        UPDATE,
        *UPDATE_CONTROLS,
        "tempbalance",
        "layerwise_decay",
        "slow_learner",
        "gradual_unfreezing",
    ),
    lr=RATES,
    seeds=20,
    tuning_seeds=5,
)
TWO = Study(
    name="2",
    parameters={"examples": 2},
    methods=(
        BLOCK,
        f"{BLOCK}:control=uniform",
        UPDATE,
        f"{UPDATE},control=uniform",
        f"{UPDATE},control=shuffled",
        "layerwise_decay",
    ),
    lr=RATES,
    seeds=20,
    tuning_seeds=5,
)
EIGHT_FIXED = Study(
    name="8-rate-0.001", parameters={"examples": 8}, methods=(UPDATE, *UPDATE_CONTROLS), lr=(1e-3,), seeds=20
)
HIGHER = tuple(replace(EIGHT_FIXED, name=f"8-rate-{rate:g}", lr=(rate,)) for rate in RATES[1:])
# fresh seeds, not used to find the variant
EIGHT_FRESH = replace(EIGHT_FIXED, name="8-rate-0.001-fresh", seeds=60, first_seed=20)
TWO_FIXED = Study(
    name="2-rate-0.003", parameters={"examples": 2}, methods=(UPDATE, *UPDATE_CONTROLS), lr=(3e-3,), seeds=20
)

# every training method of the package, with its default parameters
METHODS = Study(
    name="8-methods",
    parameters={"examples": 8},
    methods=(
        "constant",
        "probe:c=[0.01,0.1,1,10],lr=1e-2",
        "lp_ft",
        "progressive_freezing",
        "projection_head",
        "few_sample",
        "spectrum",
        "lora",
        "svfit",
        "sara",
        "pego",
        "glad+lora",
        "sam+lora",  # the control of glad+lora
        "glad",
        "sam",
        "spd",
        "snr",
        "wise_ft",
        "gradient_noise",
        "ps_kd",
        "classifier_alignment",
        "guidance",
        "levi",
        "data_diet",
        "ensemble_decay",
        "boosting",
        "muon",
        BLOCK,
        "layerwise_decay",
    ),
    lr=(3e-3, 1e-2, 3e-2, 1e-1),  # plain chose the highest of RATES
    seeds=20,
    first_seed=200,
    tuning_seeds=5,
)

EXPERIMENT = Experiment(
    name="digits",
    task="digits.py",
    # before names of tempbalance changed, before all hooks were called, before other test data
    same_tasks=("fba4418a39ab", "798e8a43eba2", "544c6299de8e"),
    metric=Metric(name="accuracy", unit="points", scale=100),
    others=(
        Metric(name="with noise", unit="points", scale=100, key="noisy"),
        Metric(name="rotated", unit="points", scale=100, key="rotated"),
    ),
    size=("examples", "images per class"),
    claims=(
        Claim(
            name="block",
            sentence="A learning rate per block, by alpha, helps fine-tuning on little data.",
            paper="Model Balancing, EMNLP 2024, table 17",
            published=(
                Published(where="RoBERTa-base, SST-2", size="0.02 %", baseline=58.49, method=68.39),
                Published(where="RoBERTa-base, SST-2", size="0.1 %", baseline=84.13, method=87.16),
                Published(where="RoBERTa-base, SST-2", size="5 %", baseline=92.85, method=93.69),
            ),
            method=BLOCK,
            also=(UPDATE, f"{UPDATE},control=uniform", f"{UPDATE},control=shuffled"),
            panels={"handwritten digits": ("2", "8")},
        ),
    ),
    quick=(TWO, TWO_FIXED),
    full=(EIGHT, TWO, EIGHT_FIXED, EIGHT_FRESH, *HIGHER, TWO_FIXED, METHODS),
    packages={"sklearn": "pip install 'tempbalance[demo]'"},
)
