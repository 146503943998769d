import pytest

from tempbalance.analysis.matching import match_layers, renamed
from tempbalance.errors import SelectionError

ENCODER = {f"encoder.{i}.{part}.weight": (8, 4 + i) for i in range(3) for part in ("q", "k")}
EMBEDDING = {"embeddings.word.weight": (100, 8)}
HEAD = {"classifier.weight": (2, 8)}


def under(prefix, names):
    return {f"{prefix}{name}": shape for name, shape in names.items()}


def test_equal_names_match_without_an_affix():
    pairs, affix = match_layers(ENCODER | EMBEDDING, ENCODER | HEAD)
    assert pairs == {name: name for name in ENCODER}
    assert affix is None


@pytest.mark.parametrize("resized", [False, True])
def test_a_prefix_of_the_second_model_is_found(resized):
    after = under("bert.", ENCODER | EMBEDDING) | HEAD
    after |= {"bert.embeddings.word.weight": (101, 8)} if resized else {}
    pairs, affix = match_layers(ENCODER | EMBEDDING, after)
    assert pairs == {f"bert.{name}": name for name in ENCODER | EMBEDDING}
    assert str(affix) == "prefix 'bert.'"
    assert affix.of_after


def test_a_prefix_of_the_first_model_is_found():
    pairs, affix = match_layers(under("model.", ENCODER), ENCODER)
    assert pairs == {name: f"model.{name}" for name in ENCODER}
    assert not affix.of_after


def test_a_suffix_is_found_also_of_parts_of_fused_weights():
    before = {"h.0.attn:q": (8, 8), "h.0.attn:k": (8, 8), "h.0.fc": (8, 4)}
    pairs, affix = match_layers(
        before, {"h.0.attn.inner:q": (8, 8), "h.0.attn.inner:k": (8, 8), "h.0.fc.inner": (8, 4)}
    )
    assert pairs["h.0.attn.inner:k"] == "h.0.attn:k"
    assert pairs["h.0.fc.inner"] == "h.0.fc"
    assert str(affix) == "suffix '.inner'"


def test_a_head_of_equal_name_does_not_hide_the_prefix_of_the_others():
    pairs, _ = match_layers(ENCODER | HEAD, under("model.", ENCODER) | HEAD)
    assert len(pairs) == 7
    assert pairs["classifier.weight"] == "classifier.weight"


def test_two_prefixes_that_fit_the_same_layers_are_not_guessed():
    after = under("encoder.", {"0.weight": (4, 4), "1.weight": (4, 4)}) | under("decoder.", {"0.weight": (4, 4)})
    after |= under("decoder.", {"1.weight": (4, 4)})
    assert match_layers({"0.weight": (4, 4), "1.weight": (4, 4)}, after).pairs == {}


def test_a_prefix_under_which_every_shape_differs_is_not_used():
    assert match_layers(ENCODER, {f"other.{name}": (3, 3) for name in ENCODER}).pairs == {}


def test_layers_are_renamed_by_the_beginning_of_names_and_by_patterns():
    rules = {"h.*.c_fc.*": "layers.*.up.*", "h.": "layers.", "wte.weight": "embed.weight"}
    assert renamed(["h.0.c_fc.weight", "h.1.attn.weight", "wte.weight", "ln.weight"], rules) == {
        "h.0.c_fc.weight": "layers.0.up.weight",
        "h.1.attn.weight": "layers.1.attn.weight",
        "wte.weight": "embed.weight",
        "ln.weight": "ln.weight",
    }
    assert renamed(["fc.weight"], {"": "model."}) == {"fc.weight": "model.fc.weight"}


def test_a_rule_names_layers_of_the_first_model():
    before = {"h.0.fc.weight": (4, 4)}
    assert match_layers(before, {"layers.0.fc.weight": (4, 4)}, {"h.": "layers."}).pairs == {
        "layers.0.fc.weight": "h.0.fc.weight"
    }


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"g.": "x."}, "no layer fits 'g.'"),
        ({"h.*": "*.*"}, "more \\* on the right"),
        ({"h.*": "same"}, "two layers the name 'same'"),
    ],
)
def test_a_rule_that_does_not_fit_the_names_raises(rules, match):
    with pytest.raises(SelectionError, match=match):
        renamed(["h.0.weight", "h.1.weight"], rules)
