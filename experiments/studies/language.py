"""A small language model from scratch, as in AlphaDecay, at a size for a CPU."""

from evidence.study import Claim, Contest, Metric, Published, Study, with_controls

BALANCE = "alphadecay:every=20"
DECAY = "decay:weight_decay=[0.1,1],lr=[2e-3,3e-3]"  # tuned, for plain training and AlphaDecay alike
CONTEST = Contest(
    name="300-steps",
    settings={"steps": 300},
    methods=(*with_controls(BALANCE), DECAY, f"{DECAY}+{BALANCE}", "tempbalance:every=20"),
    lr=(1e-3, 2e-3, 3e-3, 5e-3),
    seeds=6,
    tuning_seeds=1,
    data="lm",
)
QUICK = Contest(
    name="quick",
    settings={"steps": 60},
    methods=with_controls("alphadecay:every=10", ("shuffled",)),
    lr=(1e-3, 3e-3),
    seeds=10,
    tuning_seeds=2,
    data="lm",
)

STUDY = Study(
    name="language",
    task="language.py",
    metric=Metric(name="cross-entropy", unit="nats a token", lower_is_better=True, digits=4),
    size=("steps", "steps of 1,024 tokens"),
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
            method=BALANCE,
            panels={"real text": (CONTEST.name,)},
        ),
    ),
    quick=(QUICK,),
    full=(CONTEST,),
    sources={"lm": "get the texts that train_lm.py names"},
)
