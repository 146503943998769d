import re

import pytest
import torch

import tempbalance as tb
from tempbalance.errors import StudyError
from tempbalance.study import Method, read_candidates, read_recipe


def balanced(name, steps_per_epoch=10):
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    return Method(name).balance(torch.optim.AdamW(model.parameters()), model, steps_per_epoch=steps_per_epoch)


def configurations(*names, **options):
    return [[str(each) for each in candidate.configurations] for candidate in read_candidates(names, **options)]


class TestReadRecipe:
    def test_a_recipe_is_built_with_its_parameters_and_options(self):
        assert read_recipe("model_balancing") == tb.recipes.model_balancing()
        recipe = read_recipe("model_balancing:strength=0.5,unit=layer,every=7")
        assert recipe.assignment == tb.recipes.model_balancing(strength=0.5).assignment
        assert (recipe.unit, recipe.every) == ("layer", tb.Every(steps=7))
        assert read_recipe("tempbalance_as_released") == tb.released.tempbalance_as_released()

    @pytest.mark.parametrize("name", ["plain", "llr:lr=0.1", "llr:control=shuffled", "snr", "llr+snr"])
    def test_a_method_that_is_more_or_less_than_a_recipe_is_refused(self, name):
        with pytest.raises(StudyError, match=f"{re.escape(name)}: expected a recipe and its parameters"):
            read_recipe(name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("magic", "there is no method 'magic'"), ("llr+tempbalance", "at most one"), ("llr:high=-1", "bounds must")],
    )
    def test_a_name_that_cannot_be_read_is_refused(self, name, message):
        with pytest.raises(StudyError, match=message):
            read_recipe(name)


class TestNames:
    def test_plain_attaches_no_balancer(self):
        method = Method("plain")
        model = torch.nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert method.balance(optimizer, model, steps_per_epoch=3) is None
        assert (len(optimizer.param_groups), method.called, method.balancers) == (1, True, [])

    @pytest.mark.parametrize(
        "name", [*tb.recipes.__all__, *(name for name in tb.released.__all__ if name.endswith("_as_released"))]
    )
    def test_every_recipe_is_a_method(self, name):
        given = {"by_role": ":multipliers={'up':0.5}", "fixed": ":multipliers={'role:up':0.5}"}.get(name, "")
        assert configurations(f"{name}{given}") == [["plain"], [f"{name}{given}"]]

    def test_a_name_sets_parameters_of_the_recipe(self):
        assert balanced("model_balancing_sciml:strength=(2,0.5),normalize=true").recipe.assignment == tb.assign.Sigmoid(
            (2, 0.5), normalize=True
        )

    def test_a_name_sets_options_that_every_recipe_has(self):
        recipe = balanced("model_balancing:unit=layer,windows=farms,every=7,kinds=('linear','conv1d')").recipe
        assert (recipe.unit, recipe.windows, recipe.every) == ("layer", tb.FARMS(), tb.Every(steps=7))
        assert recipe.kinds == ("linear", "conv1d")

    def test_an_estimator_keeps_the_recipes_minimum_of_eigenvalues(self):
        assert balanced("llr:estimator=ks").recipe.estimator == tb.KS(min_eigenvalues=50)
        assert balanced("model_balancing_sciml:estimator=averaged_hill").recipe.estimator == tb.AveragedHill(
            min_eigenvalues=tb.recipes.model_balancing_sciml().estimator.min_eigenvalues
        )

    def test_damped_and_change_wrap_the_assignment(self):
        recipe = balanced("model_balancing_sciml:spectrum_of=update,damped=true,change=true").recipe
        assert recipe.spectrum_of == "update"
        assert recipe.assignment == tb.assign.AlphaChange(
            tb.assign.Damped(tb.recipes.model_balancing_sciml().assignment)
        )
        assert balanced("model_balancing_sciml:damped=false").recipe == tb.recipes.model_balancing_sciml()

    def test_options_of_balance_are_passed_to_the_balancer(self):
        seen = []
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Method("tempbalance").balance(optimizer, model, steps_per_epoch=3, on_refresh=[seen.append]).refresh()
        assert len(seen) == 1

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("magic", "there is no method 'magic'; the methods are plain, .*model_balancing"),
            ("model_balansing", "there is no method 'model_balansing'; did you mean model_balancing"),
            ("by_role", r'by_role needs multipliers: write "by_role:multipliers=\.\.\."'),
            ("", "there is no method ''"),
            ("plain:strength=1", "plain has no parameter strength; it has lr"),
            (
                "llr:strength=1",
                "llr has no parameter strength; it has low, high, windows, unit, estimator, .*damped, .*lr",
            ),
            ("llr:high", "cannot read 'llr:high'"),
            ("llr:high=", "cannot read"),
            ("llr:high=1)(low=2", "cannot read"),
            ("llr:**{}", "cannot read|no parameter"),
            ("llr:high=open('x')", "neither a number nor a word"),
            ("llr:high=high", "llr:high=high: "),
            ("llr:high=-1", "bounds must satisfy"),
            ("llr:damped=true", "llr:damped=true: Linear must not be damped"),
            ("llr:unit=neuron", "unit must be one of layer, block"),
            ("llr:kinds=linear", "kinds must be None or a tuple"),
            ("llr:estimator=magic", "unknown estimator .magic.: expected one of hill, peak, ks, averaged_hill"),
            ("llr:estimator={}", "llr:estimator={}: "),
            ("llr:windows=bay", "windows must be farms or none"),
            ("llr:every=often", "llr:every=often: "),
            ("llr:control=magic", "control must be one of inverted, shuffled, uniform, untrained"),
            ("llr:control=[inverted,shuffled]", "compare them as separate methods"),
            ("llr:high=[]", "high is an empty list"),
        ],
    )
    def test_the_error_for_a_wrong_name_lists_what_is_allowed(self, name, message):
        with pytest.raises(StudyError, match=message):
            read_candidates([name])

    def test_a_method_refuses_a_list(self):
        with pytest.raises(StudyError, match="high must be one value"):
            Method("llr:high=[3,5]")


class TestTrainingMethods:
    def test_they_are_built_by_name_in_every_task_and_joined_with_a_recipe(self):
        method = Method("wise_ft:coefficient=0.3+snr+llr:high=3")
        assert [type(each).__name__ for each in method.custom] == ["WiseFT", "SpectralNorm"]
        assert method.custom[0].coefficient == 0.3
        assert configurations("ps_kd:strength=[0.1,0.2]+llr", "plain:lr=[1,2]")[1] == [
            "ps_kd:strength=0.1+llr",
            "ps_kd:strength=0.2+llr",
        ]


class Lora:
    """A custom method."""

    def __init__(self, rank=8, balance=None):
        if rank < 1:
            raise ValueError("rank must be positive")
        self.rank = rank


CUSTOM = {"lora": Lora, "snr": lambda strength=0.1: ("snr", strength)}


class TestCustomMethods:
    def test_custom_methods_are_built_with_their_parameters(self):
        method = Method("snr:strength=1e+2+lora:rank=4", custom=CUSTOM)
        assert (method.custom[0], method.custom[1].rank) == (("snr", 100.0), 4)
        assert Method("snr", custom=CUSTOM).custom == (("snr", 0.1),)

    def test_a_custom_method_without_a_recipe_attaches_no_balancer(self):
        model = torch.nn.Linear(64, 64)
        method = Method("lora", custom=CUSTOM)
        assert method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model) is None
        assert method.called

    def test_a_custom_method_can_be_joined_with_a_recipe(self):
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        method = Method("lora:rank=2+llr:high=3,control=uniform", custom=CUSTOM)
        balancer = method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model, steps_per_epoch=3)
        assert (method.custom[0].rank, balancer.recipe.name) == (2, "llr")

    def test_plain_and_recipes_have_no_custom_objects(self):
        assert Method("plain", custom=CUSTOM).custom == Method("llr", custom=CUSTOM).custom == ()

    def test_choices_of_a_custom_method_and_a_recipe_are_combined(self):
        assert configurations("lora:rank=[2,4]+llr:high=[3,5]", "plain:lr=[1,2,3,4]", custom=CUSTOM)[1] == [
            "lora:rank=2+llr:high=3",
            "lora:rank=2+llr:high=5",
            "lora:rank=4+llr:high=3",
            "lora:rank=4+llr:high=5",
        ]

    def test_a_joined_method_and_its_control_have_the_same_base(self):
        _, method, control = read_candidates(
            ["lora:rank=2+llr:lr=1", "lora:rank=2+llr:control=uniform,lr=1"], custom=CUSTOM
        )
        assert (control.is_control, control.base, method.base) == (True, "lora:rank=2+llr", "lora:rank=2+llr")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("magic", "the methods are plain, .*lora, snr"),
            ("lora:depth=3", "lora has no parameter depth; it has rank, balance, lr"),
            ("lora:rank=0", "lora:rank=0: rank must be positive"),
            ("lora:rank=x", "lora:rank=x: "),
            ("lora:control=uniform", "lora has no parameter control"),
            ("lora+lora", "joined with itself"),
            ("llr+alphadecay", "at most one recipe"),
            ("plain+lora", "and plain cannot"),
            ("lora+", r"there is no method 'lora\+'"),
            ("lora:lr=1+llr:lr=2", "lr occurs twice"),
        ],
    )
    def test_the_error_for_a_wrong_custom_name_lists_what_is_allowed(self, name, message):
        with pytest.raises(StudyError, match=message):
            read_candidates([name], custom=CUSTOM)
