import math

import pytest
from torch import nn

import tempbalance as tb
from tempbalance.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    TempBalanceError,
    check_integer,
    check_numbers,
)


def recipe(**options):
    return tb.Recipe(**{"name": "x", "assignment": tb.assign.Linear(0.5, 1.5), "every": tb.Every(steps=1)} | options)


def perplexity(**options):
    return tb.perplexity(nn.Linear(1, 1), [[1, 2, 3]], length=4, **options)


NO_LAYERS = tb.Analysis(source="x", settings={}, layers=[])
WRONG = {
    "steps is a fraction": (lambda: tb.Every(steps=1.5), TypeError, "steps must be an integer, got 1.5"),
    "steps is a text": (lambda: tb.Every(steps="3"), TypeError, "steps must be an integer"),
    "steps is a bool": (lambda: tb.Every(steps=True), TypeError, "steps must be an integer"),
    "steps is zero": (lambda: tb.Every(steps=0), ValueError, "steps must be at least 1"),
    "epochs is NaN": (lambda: tb.Every(epochs=math.nan), ValueError, "positive"),
    "epochs is infinite": (lambda: tb.Every(epochs=math.inf), ValueError, "positive"),
    "tolerance is NaN": (lambda: recipe(tolerance=math.nan), ValueError, "tolerance must be 0 or more, got nan"),
    "tolerance is a text": (lambda: recipe(tolerance="0"), TypeError, "tolerance must be a number"),
    "start is a fraction": (lambda: recipe(start=1.5), TypeError, "start must be an integer"),
    "ramp is NaN": (lambda: recipe(ramp=math.nan), TypeError, "ramp must be an integer"),
    "low is a text": (lambda: tb.assign.Linear("a", 1), TypeError, "low must be a number"),
    "share is NaN": (lambda: tb.Hill(math.nan), ValueError, "share must be"),
    "share is a text": (lambda: tb.Hill("a"), TypeError, "share must be a number"),
    "min_eigenvalues is NaN": (lambda: tb.Hill(min_eigenvalues=math.nan), TypeError, "must be an integer"),
    "bins is a fraction": (lambda: tb.Peak(bins=2.5), TypeError, "bins must be an integer"),
    "alpha is NaN": (lambda: tb.testing.pareto_quantiles(10, math.nan), ValueError, "alpha must be"),
    "lr is infinite": (lambda: tb.compress.RecoverySettings(lr=math.inf), ValueError, "lr must be positive and finite"),
    "an allocation of a path": (
        lambda: tb.allocate_sparsity("a.json", 0.5),
        TypeError,
        "analysis must be of type Analysis",
    ),
    "sparsity is a text": (
        lambda: tb.compress.SparsitySettings(sparsity="0.5"),
        TypeError,
        "sparsity must be a number",
    ),
    "a path is a number": (lambda: tb.Analysis.load(1), TypeError, "path must be a path, got 1"),
    "a source is a number": (lambda: tb.open_checkpoint(0), TypeError, "source must be a path, got 0"),
    "a source has a long name": (lambda: tb.open_checkpoint("x" * 5000), CheckpointError, "name too long"),
    "tokens from a number": (lambda: tb.compress.load_tokens(3), TypeError, "path must be a path, got 3"),
    "a pattern is a number": (lambda: tb.Select(include=(3,)), TypeError, "a pattern of include must be of type str"),
    "a pattern alone": (lambda: tb.Select(include="a*"), TypeError, "include must be a tuple of patterns"),
    "select is a number": (lambda: tb.Select.parse(3), TypeError, "include must be a tuple of patterns, got 3"),
    "strength is a triple": (lambda: tb.assign.Sigmoid((1.0, 2.0, 3.0)), TypeError, "a number or a pair of numbers"),
    "base is zero": (lambda: tb.recipes.blockwise_lr(base=0), ValueError, "base must be positive"),
    "an unknown variant": (lambda: tb.recipes.muon_factors(variant="moon"), ValueError, "variant must be"),
    "an integer as long as no float": (lambda: tb.assign.Linear(0, 10**400), ValueError, "high is too large"),
    "rank is huge": (lambda: tb.compress.allocate_ranks(NO_LAYERS, 2**31), ValueError, "rank must be at most 65536"),
    "kinds is a number": (lambda: recipe(kinds=3), ValueError, "kinds must be None or a tuple"),
    "device is a number": (lambda: tb.analyze({}, device=1.5), ValueError, "device '1.5' cannot be used here"),
    "weight is a list": (lambda: tb.weight_spectrum([[1.0]]), TypeError, "weight must be of type Tensor, got a list"),
    "damped is a class": (lambda: tb.assign.Damped(tb.assign.Sqrt), TypeError, "got the class Sqrt"),
    "stride is a text": (lambda: perplexity(stride="4"), TypeError, "stride must be an integer"),
    "a study of 3": (
        lambda: tb.study.run(lambda seed, method: 0, 3, "x"),
        TypeError,
        "methods must be of type Sequence",
    ),
    "n is a fraction": (lambda: tb.testing.pareto_quantiles(2.5, 2.0), TypeError, "n must be an integer"),
    "seed is too large": (lambda: tb.compress.RecoverySettings(seed=2**63), ValueError, "seed must be less"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_error_of_tempbalance_and_the_built_in_one(case):
    build, built_in, message = WRONG[case]
    with pytest.raises(TempBalanceError, match=message) as raised:
        build()
    assert isinstance(raised.value, built_in)


def test_integers_and_numbers_of_numpy_are_accepted():
    np = pytest.importorskip("numpy")
    check_integer("steps", np.int64(3), 1)
    check_numbers(lr=np.float32(0.1), share=1)
    assert tb.Every(steps=np.int64(3)).steps == 3


def test_an_argument_error_names_the_argument_and_the_bound():
    with pytest.raises(ArgumentError, match="rank must be at least 1, got 0"):
        check_integer("rank", 0, 1)
    with pytest.raises(ArgumentTypeError, match="lr must be a number, got None"):
        check_numbers(lr=None)
