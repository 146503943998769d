import pytest
import torch

import tempbalance as tb
from tempbalance.errors import StudyError
from tempbalance.study import Method, Trial, read_candidates


def balanced(name, steps_per_epoch=10):
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    return Method(name).balance(torch.optim.AdamW(model.parameters()), model, steps_per_epoch=steps_per_epoch)


def trials(*names, **options):
    return [[str(trial) for trial in candidate.trials] for candidate in read_candidates(names, **options)]


class TestNames:
    def test_plain_does_nothing(self):
        method = Method("plain")
        model = torch.nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert method.balance(optimizer, model, steps_per_epoch=3) is None
        assert (len(optimizer.param_groups), method.called, method.balancers) == (1, True, [])

    @pytest.mark.parametrize("name", tb.recipes.__all__)
    def test_every_recipe_is_a_method(self, name):
        assert trials(name) == [["plain"], [name]]

    def test_parameters_of_the_recipe(self):
        assert balanced("model_balancing_sciml:strength=(2,0.5),normalize=true").recipe.assignment == tb.assign.Sigmoid(
            (2, 0.5), normalize=True
        )

    def test_options_of_every_recipe(self):
        recipe = balanced("model_balancing:unit=layer,windows=farms,every=7,kinds=('linear','conv1d')").recipe
        assert (recipe.unit, recipe.windows, recipe.every) == ("layer", tb.FARMS(), tb.Every(steps=7))
        assert recipe.kinds == ("linear", "conv1d")

    def test_an_estimator_keeps_the_fewest_eigenvalues_of_the_recipe(self):
        assert balanced("llr:estimator=ks").recipe.estimator == tb.KS(min_eigenvalues=50)
        assert balanced("model_balancing_sciml:estimator=averaged_hill").recipe.estimator == tb.AveragedHill(
            min_eigenvalues=tb.recipes.model_balancing_sciml().estimator.min_eigenvalues
        )

    def test_what_is_put_around_the_assignment(self):
        recipe = balanced("model_balancing_sciml:spectrum_of=update,damped=true,change=true").recipe
        assert recipe.spectrum_of == "update"
        assert recipe.assignment == tb.assign.AlphaChange(
            tb.assign.Damped(tb.recipes.model_balancing_sciml().assignment)
        )
        assert balanced("model_balancing_sciml:damped=false").recipe == tb.recipes.model_balancing_sciml()

    def test_options_of_the_balancer_are_passed_on(self):
        seen = []
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Method("tempbalance").balance(optimizer, model, steps_per_epoch=3, on_refresh=[seen.append]).refresh()
        assert len(seen) == 1

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("magic", "there is no method 'magic'; the methods are plain, .*model_balancing"),
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
            ("llr:estimator=magic", "estimator must be one of hill, peak, ks, averaged_hill, got magic"),
            ("llr:estimator={}", "llr:estimator={}: "),
            ("llr:windows=bay", "windows must be farms or none"),
            ("llr:every=often", "llr:every=often: "),
            ("llr:control=magic", "control must be one of inverted, shuffled, uniform, untrained"),
            ("llr:control=[inverted,shuffled]", "compare them as separate methods"),
            ("llr:high=[]", "high is an empty list"),
        ],
    )
    def test_a_wrong_name_says_what_is_right(self, name, message):
        with pytest.raises(StudyError, match=message):
            read_candidates([name])

    def test_a_method_by_itself_has_no_choice(self):
        with pytest.raises(StudyError, match="a method has one high"):
            Method("llr:high=[3,5]")


class TestContenders:
    def test_plain_is_added_as_the_baseline(self):
        assert trials("llr", "tempbalance") == [["plain"], ["llr"], ["tempbalance"]]
        assert trials("llr", "plain") == [["plain"], ["llr"]]

    def test_another_baseline_comes_first(self):
        assert trials("llr", baseline="llr") == [["llr"], ["plain"]]
        names = ["llr:control=uniform", "plain:lr=[1]", "llr:high=3"]
        assert trials(*names, baseline="llr:high=3", lrs=[1])[0] == ["llr:high=3 lr=1"]

    def test_every_choice_is_a_trial(self):
        assert trials("llr:high=[3,5],low=1", "plain:lr=[0.1,0.2]") == [
            ["plain lr=0.1", "plain lr=0.2"],
            ["llr:high=3,low=1", "llr:high=5,low=1"],
        ]
        assert trials("llr", lrs=[0.1, 0.2])[1] == ["llr lr=0.1", "llr lr=0.2"]

    def test_spaces_do_not_matter(self):
        assert read_candidates(["model_balancing: strength = (2, 1)"])[1].trials == (
            Trial("model_balancing:strength=(2,1)", None),
        )

    def test_the_controls_of_a_method_are_of_its_family(self):
        _, method, control, other = read_candidates(["llr:high=3", "llr:high=3,control=uniform", "llr:control=uniform"])
        assert (method.of, control.of) == ("llr:high=3", "llr:high=3")
        assert other.of != method.of
        assert [each.is_control for each in (method, control)] == [False, True]

    @pytest.mark.parametrize(
        ("names", "options", "message"),
        [
            (["llr:high=[3,5]"], {}, "same number of trials.*plain 1, .* 2"),
            (["plain"], {}, "nothing to compare plain with; the methods are"),
            (["llr", "llr"], {}, "a method comes twice"),
            (["plain", "llr"], {"baseline": "alphadecay"}, "the baseline alphadecay is none of the methods"),
            (["llr:lr=fast"], {}, "lr must be a number"),
        ],
    )
    def test_what_cannot_be_compared(self, names, options, message):
        with pytest.raises(StudyError, match=message):
            read_candidates(names, **options)


class Lora:
    """A method of a task's own."""

    def __init__(self, rank=8, balance=None):
        if rank < 1:
            raise ValueError("rank must be positive")
        self.rank = rank


MAKERS = {"lora": Lora, "snr": lambda strength=0.1: ("snr", strength)}


class TestOwnMethods:
    def test_are_made_with_their_parameters(self):
        method = Method("snr:strength=1e+2+lora:rank=4", makers=MAKERS)
        assert (method.own[0], method.own[1].rank) == (("snr", 100.0), 4)
        assert Method("snr", makers=MAKERS).own == (("snr", 0.1),)

    def test_without_a_recipe_nothing_is_balanced(self):
        model = torch.nn.Linear(64, 64)
        method = Method("lora", makers=MAKERS)
        assert method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model) is None
        assert method.called

    def test_can_be_joined_with_a_recipe(self):
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        method = Method("lora:rank=2+llr:high=3,control=uniform", makers=MAKERS)
        balancer = method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model, steps_per_epoch=3)
        assert (method.own[0].rank, balancer.recipe.name) == (2, "llr")

    def test_are_none_for_plain_and_recipes(self):
        assert Method("plain", makers=MAKERS).own == Method("llr", makers=MAKERS).own == ()

    def test_are_tuned_together_with_the_recipe(self):
        assert trials("lora:rank=[2,4]+llr:high=[3,5]", "plain:lr=[1,2,3,4]", makers=MAKERS)[1] == [
            "lora:rank=2+llr:high=3",
            "lora:rank=2+llr:high=5",
            "lora:rank=4+llr:high=3",
            "lora:rank=4+llr:high=5",
        ]

    def test_controls_of_the_recipe_are_found(self):
        _, method, control = read_candidates(
            ["lora:rank=2+llr:lr=1", "lora:rank=2+llr:control=uniform,lr=1"], makers=MAKERS
        )
        assert (control.is_control, control.of, method.of) == (True, "lora:rank=2+llr", "lora:rank=2+llr")

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
            ("plain+lora", "plain with none"),
            ("lora+", r"there is no method 'lora\+'"),
            ("lora:lr=1+llr:lr=2", "lr comes twice"),
        ],
    )
    def test_a_wrong_name_says_what_is_right(self, name, message):
        with pytest.raises(StudyError, match=message):
            read_candidates([name], makers=MAKERS)
