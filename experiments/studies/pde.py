"""Neural PDE solvers trained on a few simulations, as in Model Balancing and FARMS, at a size for a CPU."""

from evidence.study import Claim, Contest, Metric, Published, Study, with_controls

SEEDS = {4: 20, 16: 20, 64: 20, 256: 10}  # fewer where a run costs more
RATES = (1e-3, 3e-3, 1e-2)
BALANCE = "model_balancing_sciml:normalize=true,every=10"  # to measure after each step costs more than to train
AS_PUBLISHED = "model_balancing_sciml:every=10"  # raises the mean rate, too
REAL = f"{BALANCE},kinds=('conv1d','linear')"  # as the released code: without the complex weights of the FNO
CONTROLS = ("inverted", "shuffled", "untrained")  # with a mean of 1, one uniform rate is plain training
METHODS = (*with_controls(BALANCE, CONTROLS), *with_controls(AS_PUBLISHED, ("uniform",)))
PANELS = {"FNO, Darcy": ("fno", "darcy"), "FNO, Burgers": ("fno", "burgers"), "UNet, Darcy": ("unet", "darcy")}


def contest(network: str, problem: str, examples: int) -> Contest:
    """One amount of data."""
    return Contest(
        name=f"{network}-{problem}-{examples}",
        settings={"network": network, "problem": problem, "examples": examples},
        methods=(*METHODS, REAL) if network == "fno" else METHODS,
        lr=RATES,
        seeds=SEEDS[examples],
        data="pde",
        files=tuple(f"{problem}_{part}_16.pt" for part in ("train", "test")),
    )


FULL = {panel: tuple(contest(*of, examples) for examples in SEEDS) for panel, of in PANELS.items()}
QUICK = Contest(
    name="quick",
    settings={"examples": 4, "steps": 200},
    methods=with_controls(BALANCE, ("shuffled",)),
    lr=(3e-3, 1e-2),
    seeds=10,
    tuning_seeds=2,
    data="pde",
    files=tuple(f"darcy_{part}_16.pt" for part in ("train", "test")),
)

STUDY = Study(
    name="pde",
    task="low_data_pde.py",
    metric=Metric(name="nRMSE, %", unit="% of plain's nRMSE", scale=100, lower_is_better=True, relative=True),
    size=("examples", "simulations to train on"),
    claims=(
        Claim(
            name="layer",
            sentence="A learning rate per layer, by alpha, lowers the error of neural PDE solvers, and the more so the "
            "less data there is.",
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
            also=(AS_PUBLISHED, REAL),
            panels={panel: tuple(each.name for each in contests) for panel, contests in FULL.items()},
        ),
    ),
    quick=(QUICK,),
    full=tuple(each for contests in FULL.values() for each in contests),
    sources={
        "pde": "get the .pt files of neuraloperator (neuralop/data/datasets/data at "
        "github.com/neuraloperator/neuraloperator)"
    },
    packages={"neuralop": "pip install neuraloperator"},
)
