"""Neural PDE solvers trained on a few simulations, as in Model Balancing and FARMS, at a size for a CPU."""

from dataclasses import replace

from claims import Claim, Experiment, Metric, Published, Search, Study, TaskRow, with_controls

# every 25 steps, less often than published: with 4 examples an epoch is one step, and a measurement costs as much
PUBLISHED = "model_balancing_sciml:strength=[0.5,1],every=25"  # raises the mean rate
BALANCE = "model_balancing_sciml:strength=[0.5,1],normalize=true,every=25"  # keeps the mean rate
REAL = f"{BALANCE},kinds=('conv1d','linear')"  # as the released code, without the complex weights of the FNO
SHUFFLED, INVERTED, UNTRAINED = (f"{BALANCE},control={control}" for control in ("shuffled", "inverted", "untrained"))
LOW, HIGH = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)


def six(lr: tuple[float, ...]) -> str:
    """Six learning rates, for methods without a strength to tune; the others have three rates and two strengths."""
    low, middle, high = lr
    return f"lr=[{','.join(f'{rate:.3g}' for rate in (low / 3, low, (low * middle) ** 0.5, middle, high, 2 * high))}]"


UNTUNED = f"model_balancing_sciml:normalize=true,every=25,{six(LOW)}"  # strength 1, more rates
RAISED = (PUBLISHED, f"{PUBLISHED},control=uniform")


def study(
    name: str,
    methods: tuple[str, ...],
    lr: tuple[float, ...],
    seeds: int = 20,
    first_seed: int = 0,
    tuning_seeds: int = 2,
) -> Study:
    """A study with the network, the problem and the amount of data in its name."""
    network, problem, examples, *_ = name.split("-")
    return Study(
        name=name,
        parameters={
            "network": network,
            "problem": problem,
            "examples": int(examples),
            "steps": 250 if int(examples) < 64 else 500,
        },
        methods=(f"plain:{six(lr)}", *methods),
        lr=lr,
        seeds=seeds,
        first_seed=first_seed,
        tuning_seeds=tuning_seeds,
        data="pde",
        files=tuple(f"{problem}_{part}_16.pt" for part in ("train", "test")),
    )


FNO = (BALANCE, SHUFFLED, REAL)
MANY = (BALANCE, SHUFFLED)
FOUR = (
    BALANCE,
    SHUFFLED,
    INVERTED,
    REAL,
    f"{BALANCE},windows=farms",
    *RAISED,
    f"{PUBLISHED},kinds=('conv1d','linear')",
    UNTUNED,
    f"{BALANCE},spectrum_of=update",
)
PANELS = {
    "FNO, Darcy": (
        study("fno-darcy-4", FOUR, LOW),
        study("fno-darcy-16", FNO, HIGH),
        study("fno-darcy-64", MANY, HIGH, seeds=10, tuning_seeds=1),  # fewer, since a trial costs more
        study("fno-darcy-256", MANY, HIGH, seeds=10, tuning_seeds=1),
    ),
    "FNO, Darcy, fresh seeds": (
        study("fno-darcy-4-fresh", (BALANCE, SHUFFLED, INVERTED, UNTRAINED, *RAISED), LOW, seeds=40, first_seed=20),
    ),
    # tuned on ten seeds in place of two, compared on fresh seeds
    "FNO, Darcy, tuned on 10 seeds": (
        study("fno-darcy-4-tuned", (*MANY, INVERTED, UNTRAINED), LOW, seeds=40, first_seed=60, tuning_seeds=10),
    ),
    "UNet, Darcy": (study("unet-darcy-4", (BALANCE, SHUFFLED, *RAISED), (3e-2, 1e-1, 2e-1)),),
    "FNO, Burgers": (study("fno-burgers-4", FNO, HIGH),),
    "FNO, Burgers, tuned on 10 seeds": (
        study("fno-burgers-4-tuned", (*FNO, UNTRAINED), HIGH, seeds=40, first_seed=20, tuning_seeds=10),
    ),
}
WIDE = (3e-3, 1e-2, 2e-2, 4e-2)


def by_layer(problem: str, found: dict[str, float]) -> Study:
    """A study of learning rates by role and shape beside those by alpha; all choose from the same four rates."""
    return Study(
        name=f"fno-{problem}-4-by-layer",
        parameters={"network": "fno", "problem": problem, "examples": 4, "steps": 250},
        methods=(
            "model_balancing_sciml:normalize=true,every=25",
            *with_controls("mup", ("uniform",)),
            *(with_controls(f"by_role:multipliers={found}", ("uniform", "shuffled")) if found else ()),
        ),
        lr=WIDE,
        seeds=40,
        first_seed=100,
        tuning_seeds=4,
        data="pde",
        files=tuple(f"{problem}_{part}_16.pt" for part in ("train", "test")),
    )


BY_LAYER = (by_layer("darcy", {}), by_layer("burgers", {}))
SEARCHES = tuple(
    Search(
        name=f"fno-{problem}-4-search",
        parameters={"problem": problem, "network": "fno", "examples": 4, "steps": 250},
        lr=WIDE,
        seeds=60,
        first_seed=2000,
        tuning_seeds=3,
        final_seeds=12,
        data="pde",
        files=tuple(f"{problem}_{part}_16.pt" for part in ("train", "test")),
    )
    for problem in ("darcy", "burgers")
)
TASK_ROWS = tuple(
    TaskRow(
        title=f"FNO, {problem.capitalize()}, 4 simulations",
        study=study,
        methods={"alpha": study.methods[0], "shape (muP)": "mup"},
    )
    for problem, study in zip(("darcy", "burgers"), BY_LAYER, strict=True)
) + tuple(
    TaskRow(
        title=f"FNO, {problem.capitalize()}, 4 simulations, searched", study=study, methods={"role, searched": None}
    )
    for problem, study in zip(("darcy", "burgers"), SEARCHES, strict=True)
)
FULL = (*(each for studies in PANELS.values() for each in studies), *BY_LAYER)
QUICK = replace(
    FULL[0],
    name="quick",
    parameters={"examples": 4, "steps": 200},
    methods=tuple(f"model_balancing_sciml:normalize=true,every=25{control}" for control in ("", ",control=shuffled")),
    lr=(3e-3, 1e-2),
    seeds=10,
)

EXPERIMENT = Experiment(
    name="pde",
    task="low_data_pde.py",
    same_tasks=("a97cb95ab48c",),  # before names of tempbalance changed
    metric=Metric(name="nRMSE, %", unit="% of plain's nRMSE", scale=100, lower_is_better=True, relative=True),
    size=("examples", "simulations to train on"),
    claims=(
        Claim(
            name="layer",
            sentence="A learning rate per layer, by alpha, lowers the error of neural PDE solvers, and lowers it more "
            "with less data.",
            paper="Model Balancing, EMNLP 2024, table 23",
            published=(
                Published(where="FNO, Darcy, nRMSE in %", size="0.6 %", baseline=6.28, method=5.67),
                Published(where="FNO, Darcy, nRMSE in %", size="2.5 %", baseline=2.88, method=2.64),
                Published(where="FNO, Darcy, nRMSE in %", size="10 %", baseline=1.04, method=1.01),
                Published(where="FNO, Darcy, nRMSE in %", size="100 %", baseline=0.258, method=0.252),
                Published(where="UNet, Darcy, nRMSE in %", size="0.6 %", baseline=4.59, method=4.45),
                Published(where="UNet, Darcy, nRMSE in %", size="2.5 %", baseline=2.57, method=2.29),
                Published(where="UNet, Darcy, nRMSE in %", size="100 %", baseline=0.527, method=0.507),
            ),
            method=BALANCE,
            also=(REAL,),
            panels={panel: tuple(each.name for each in studies) for panel, studies in PANELS.items()},
        ),
    ),
    quick=(QUICK,),
    full=FULL,
    searches=SEARCHES,
    task_rows=TASK_ROWS,
    sources={
        "pde": "get the .pt files of neuraloperator (neuralop/data/datasets/data at "
        "github.com/neuraloperator/neuraloperator)"
    },
    packages={"neuralop": "pip install neuraloperator"},
)
