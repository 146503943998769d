"""A small language model from scratch, as in AlphaDecay, at a size for a CPU."""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Published, Search, Study, TaskRow, with_controls

# Decay helps only if text is repeated: 20 thousand tokens, ten times on average. It is tuned for all methods.
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

# Multipliers by role, found by hand on seeds 100 and 101 of 20 thousand tokens; the seeds below are others
VALUE_OUTPUT = "by_role:multipliers={'v':0.25,'o':0.25}"
BY_ROLE = "by_role:multipliers={'v':0.25,'o':0.25,'gate':1.4,'up':1.4,'down':1.4,'norm':3}"
RATE = "tempbalance:every=20"
FLOAT32 = {"weight_decay": 0.3, "bfloat16": False, "evaluated": 128}
BY_LAYER = Study(
    name="20k-tokens-by-layer",
    parameters={"steps": 200, "tokens": 20480, **FLOAT32},
    methods=(
        *with_controls(BY_ROLE, ("uniform", "shuffled")),
        VALUE_OUTPUT,
        RATE,
        "mup",
        "blockwise_lr",
        "muon",
    ),
    lr=(1e-3, 2e-3, 4e-3, 8e-3),
    seeds=20,
    first_seed=300,
    tuning_seeds=1,
    data="lm",
)
# the same multipliers on 307 thousand tokens drawn at random from a million, and on wider and deeper models, no search
LONG = replace(
    BY_LAYER,
    name="1m-tokens-by-layer",
    parameters={"steps": 300, "tokens": 1_000_000, **FLOAT32},
    methods=(*with_controls(BY_ROLE, ("uniform", "shuffled")), VALUE_OUTPUT),
    first_seed=400,
)


def transfer(name: str, seeds: int, lr: tuple[float, ...], **size: int) -> Study:
    """A study of multipliers by role on a model of another size."""
    return replace(
        BY_LAYER,
        name=f"20k-tokens-{name}",
        parameters={**BY_LAYER.parameters, **size},
        methods=(BY_ROLE, VALUE_OUTPUT),
        lr=lr,
        seeds=seeds,
        first_seed=500,
    )


TRANSFER = (
    transfer("width-256", 10, (5e-4, 1e-3, 2e-3), width=256),
    transfer("width-512", 5, (5e-4, 1e-3), width=512),
    transfer("8-blocks", 10, (1e-3, 2e-3, 4e-3, 8e-3), blocks=8),
)
SEARCH = Search(
    name="20k-tokens-search",
    parameters=BY_LAYER.parameters,
    lr=(1e-3, 2e-3, 4e-3),
    seeds=20,
    first_seed=2000,
    tuning_seeds=1,  # seeds differ by far less than rates
    final_seeds=4,
    data="lm",
)
BY_HAND = {"role, by hand": BY_ROLE, "role, v and o at 1/4": VALUE_OUTPUT}
TASK_ROWS = (
    TaskRow(
        title="LLaMA, 20 thousand tokens",
        study=BY_LAYER,
        methods={
            "alpha": RATE,
            "role, published": "blockwise_lr",
            **BY_HAND,
            "shape (muP)": "mup",
            "Muon": "muon",
        },
    ),
    TaskRow(title="LLaMA, 20 thousand tokens, searched", study=SEARCH, methods={"role, searched": None}),
    TaskRow(title="LLaMA, 307 thousand tokens", study=LONG, methods=BY_HAND),
    *(
        TaskRow(title=f"LLaMA, {size}, 20 thousand tokens", study=study, methods=BY_HAND)
        for size, study in zip(("width 256", "width 512", "8 blocks"), TRANSFER, strict=True)
    ),
)
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
    same_tasks=("487206e94a09", "5fb086e1cd13"),  # before names of tempbalance changed, before all hooks were called
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
        Claim(
            name="role",
            sentence="A learning rate per role lowers the perplexity of a language model: a quarter for value and "
            "output projections, 1.4 for the MLP, 3 for norms.",
            paper="ours; after Blockwise LR, ICML 2025, whose numbers are `blockwise_lr`",
            ours=True,
            published=(),
            method=BY_ROLE,
            baseline="plain",
            also=(VALUE_OUTPUT, "blockwise_lr", "mup", RATE, "muon"),
            panels={
                "20 thousand tokens": (BY_LAYER.name,),
                "307 thousand of 1 million tokens": (LONG.name,),
            },
            by_alpha=False,
        ),
    ),
    quick=(QUICK,),
    full=(STUDY, BY_LAYER, LONG, *TRANSFER),
    searches=(SEARCH,),
    task_rows=TASK_ROWS,
    sources={"lm": "get the texts that train_lm.py names"},
)
