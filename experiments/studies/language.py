"""A small language model from scratch, as in AlphaDecay, at a size for a CPU."""

from claims import Claim, Experiment, Metric, Published, Study, with_controls

# Decay helps only if text is repeated: 20 thousand tokens, ten times. It is tuned for all methods.
DECAY = "decay:weight_decay=[0.3,2],lr=[2e-3,4e-3]"
ALPHADECAY, TEMPBALANCE = f"{DECAY}+alphadecay:every=20", f"{DECAY}+tempbalance:every=20"
FARMS = f"{TEMPBALANCE},windows=farms"
STUDY = Study(
    name="20k-tokens",
    parameters={"steps": 200, "tokens": 20480},
    methods=(DECAY, *with_controls(ALPHADECAY), *with_controls(TEMPBALANCE), FARMS),
    lr=(1e-3, 2e-3, 4e-3, 8e-3),
    seeds=20,
    tuning_seeds=1,
    data="lm",
)
PANELS = {"real text": (STUDY.name,)}
QUICK = Study(
    name="quick",
    parameters={"steps": 60},
    methods=with_controls("alphadecay:every=10", ("shuffled",)),
    lr=(1e-3, 3e-3),
    seeds=10,
    tuning_seeds=2,
    data="lm",
)

EXPERIMENT = Experiment(
    name="language",
    task="language.py",
    same_tasks=("487206e94a09",),  # before names of tempbalance changed
    metric=Metric(name="cross-entropy", unit="nats per token", lower_is_better=True, digits=4),
    size=("tokens", "tokens to train on"),
    claims=(
        Claim(
            name="decay",
            sentence="A weight decay per layer, by alpha, lowers the perplexity of a language model.",
            paper="AlphaDecay, NeurIPS 2025, main table, weight decay 1e-5",
            published=(
                Published(where="LLaMA 60M, C4, perplexity", size="1 B tokens", baseline=32.39, method=31.56),
                Published(where="LLaMA 135M, C4, perplexity", size="2 B tokens", baseline=22.99, method=22.76),
                Published(where="LLaMA 1B, C4, perplexity", size="8.9 B tokens", baseline=15.36, method=15.13),
            ),
            method=ALPHADECAY,
            baseline=DECAY,
            panels=PANELS,
        ),
        Claim(
            name="rate",
            sentence="A learning rate per layer, by alpha, lowers the perplexity of a language model.",
            paper="TempBalance, NeurIPS 2023",
            published=(),
            method=TEMPBALANCE,
            baseline=DECAY,
            also=(FARMS,),
            panels=PANELS,
        ),
    ),
    quick=(QUICK,),
    full=(STUDY,),
    sources={"lm": "get the texts that train_lm.py names"},
)
