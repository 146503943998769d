import pytest

from tempbalance.balance.assign import Fixed
from tempbalance.errors import ArgumentTypeError, BalanceError, StudyError
from tempbalance.study import Configuration, read_candidates


def configurations(*names, **options):
    return [[str(each) for each in candidate.configurations] for candidate in read_candidates(names, **options)]

    assert configurations("llr", "tempbalance") == [["plain"], ["llr"], ["tempbalance"]]
    assert configurations("llr", "plain") == [["plain"], ["llr"]]


def test_the_baseline_is_the_first_candidate():
    assert configurations("llr", baseline="llr") == [["llr"], ["plain"]]
    names = ["llr:control=uniform", "plain:lr=[1]", "llr:high=3"]
    assert configurations(*names, baseline="llr:high=3", lrs=[1])[0] == ["llr:high=3 lr=1"]


def test_every_combination_of_choices_is_a_configuration():
    assert configurations("llr:high=[3,5],low=1", "plain:lr=[0.1,0.2]") == [
        ["plain lr=0.1", "plain lr=0.2"],
        ["llr:high=3,low=1", "llr:high=5,low=1"],
    ]
    assert configurations("llr", lrs=[0.1, 0.2])[1] == ["llr lr=0.1", "llr lr=0.2"]


def test_spaces_in_a_name_are_ignored():
    assert read_candidates(["model_balancing: strength = (2, 1)"])[1].configurations == (
        Configuration("model_balancing:strength=(2,1)", None),
    )


def test_a_method_and_its_control_have_the_same_base():
    _, method, control, other = read_candidates(["llr:high=3", "llr:high=3,control=uniform", "llr:control=uniform"])
    assert (method.base, control.base) == ("llr:high=3", "llr:high=3")
    assert other.base != method.base
    assert [each.is_control for each in (method, control)] == [False, True]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["llr:high=[3,5]"], {}, "same number of configurations.*plain 1, .* 2"),
        (["plain"], {}, "nothing to compare plain with; the methods are"),
        (["llr", "llr"], {}, "a method occurs twice"),
        (["plain", "llr"], {"baseline": "alphadecay"}, "the baseline alphadecay is not among the methods"),
        (["llr:lr=fast"], {}, "llr:lr=fast: lr must be a number"),
        (["llr:lr=True"], {}, "lr must be a number, got True"),
        (["llr:lr=[0.1,-1]", "plain:lr=[1,2]"], {}, "learning rates must be positive and finite, got -1"),
        (["llr:lr=1e999"], {}, "learning rates must be positive and finite, got inf"),
        (["llr:lr=[0.1,1e-1]", "plain:lr=[1,2]"], {}, "lr has the same value twice"),
        (["llr:lr=[1,1.0]", "plain:lr=[1,2]"], {}, "a learning rate occurs twice: 1, 1.0"),
        (["llr:high=[3,3]", "plain:lr=[1,2]"], {}, "high has the same value twice, or occurs twice"),
        (["llr:high=3,high=4"], {}, "high has the same value twice, or occurs twice"),
        (["llr"], {"lrs": [0.1, 0.1]}, "a learning rate occurs twice: 0.1, 0.1"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(names, options, message):
    with pytest.raises((ArgumentTypeError, StudyError), match=message):
        read_candidates(names, **options)


def test_a_file_of_multipliers_counts_by_its_content(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = folder / "found.yaml"
    Fixed({"role:v": 0.25}).save(path)
    name = f"fixed: multipliers='{path}'"
    before = read_candidates([name])[1]
    assert str(before.configurations[0]) == "fixed:multipliers={'role:v':0.25}"
    control = read_candidates([name, f"{name},control=uniform"])[2]
    assert (control.base, control.is_control) == (before.base, True)
    Fixed({"role:v": 0.5}).save(path)
    assert read_candidates([name])[1].configurations != before.configurations


def test_a_file_that_is_missing_or_not_in_quotes_is_refused(tmp_path):
    with pytest.raises(BalanceError, match="cannot read a file of multipliers"):
        read_candidates([f"fixed:multipliers='{tmp_path}/none.yaml'"])
    with pytest.raises(StudyError, match="put a path in quotes"):
        read_candidates(["fixed:multipliers=found.yaml"])
