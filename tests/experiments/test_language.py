import math
import random
from dataclasses import replace

import pytest
import torch

from tempbalance.errors import StudyError
from tempbalance.study import Configuration, Method, load_task

pytest.importorskip("transformers")


@pytest.fixture
def language(monkeypatch):
    import language

    monkeypatch.setattr(language, "SMALL", replace(language.SMALL, batch_size=2, context=64))
    return language


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("lm")
    rng = random.Random(0)
    (tmp_path / "wikitext-2").mkdir()
    for name in ("brown.txt", "warandpeace.txt", "tinyshakespeare.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt"):
        words = ("".join(rng.choices("abcdefgh", k=5)) for _ in range(2000))
        (tmp_path / name).write_text(" ".join(words) + "\n")
    (tmp_path / "tinystories_1000.json").write_text('["Once upon a time.", "The end."]')
    return str(tmp_path)


def run(language, data, name, **settings):
    method = Method(name, 0, language.METHODS)
    return method, language.train(0, method, 1e-2, steps=3, data=data, evaluated=2, **settings)


@pytest.mark.slow
def test_recipes_and_decay_change_the_training_and_neutral_ones_do_not(language, data):
    _, plain = run(language, data, "plain")
    assert {"validation", "test", "train", "imbalance", "mean_alpha"} < set(plain)
    assert 4 < plain["test"] < 8  # a new network: about ln 1024
    assert run(language, data, "decay:weight_decay=0.1")[1] == plain
    assert run(language, data, "decay:weight_decay=0.1+alphadecay:low=1,high=1,every=2")[1] == plain
    method, decayed = run(language, data, "alphadecay:every=2")
    assert decayed != plain
    assert len(method.balancers[0].history) == 2
    assert run(language, data, "decay:weight_decay=3")[1]["test"] != plain["test"]


def test_the_language_task_names_missing_texts(experiments, tmp_path):
    task = load_task(experiments / "language.py", {"data": str(tmp_path)})
    found = task.run(Configuration("decay:weight_decay=1+alphadecay", 1e-3), 0)
    assert found.status == "failed"
    assert f"there is no {tmp_path}/brown.txt: get the texts that train_lm.py names" in found.error


def test_held_out_text_is_not_in_the_training_text(language, data):
    streams = language.load(data)
    assert len(streams["validation"]) == pytest.approx(len(streams["test"]), rel=0.1)
    assert len(streams["validation"]) == pytest.approx(0.025 * len(streams["train"]), rel=0.2)
    seen = {tuple(window) for window in streams["train"].unfold(0, 12, 1).tolist()}
    for part in ("validation", "test"):
        assert not seen & {tuple(window) for window in streams[part].unfold(0, 12, 1).tolist()}


def test_a_seed_chooses_passages_of_the_text(language):
    stream = torch.arange(10_000)
    found = language.excerpt(stream, 3000, seed=0)
    starts = found[::1024]
    assert len(found) == 2048  # whole passages
    assert (starts % 1024 == 0).all()
    assert torch.equal(found, (starts[:, None] + torch.arange(1024)).flatten())
    assert torch.equal(found, language.excerpt(stream, 3000, seed=0))
    assert not torch.equal(found, language.excerpt(stream, 3000, seed=1))
    assert language.excerpt(stream, None, seed=0) is stream


@pytest.mark.parametrize("tokens", [0, 1023, 10_001])
def test_a_number_of_tokens_that_is_not_available_is_refused(language, tokens):
    with pytest.raises(StudyError, match=f"tokens must be 1024 to 10000, .* got {tokens}"):
        language.excerpt(torch.arange(10_000), tokens, seed=0)


@pytest.mark.filterwarnings("ignore::tempbalance.errors.NumericsWarning")
def test_a_diverged_network_has_no_finite_loss(language, data):
    assert not math.isfinite(language.train(0, Method("plain"), 1e30, steps=3, data=data, evaluated=2)["test"])
