"""Perplexity: agreement with a naive loop, standard error, errors."""

import math

import numpy as np
import pytest
import torch

import tempbalance as tb
from tempbalance.errors import TokensError

transformers = pytest.importorskip("transformers")


def naive(model, documents, length, stride):
    """The loop of Transformers' guide to perplexity: labels of -100 for tokens of earlier windows."""
    total, count = 0.0, 0
    for document in documents:
        end = 0
        for start in range(0, len(document), stride):
            window = document[start : start + length]
            fresh = start + len(window) - end
            labels = window.clone()
            labels[: len(window) - fresh] = -100
            predicted = int((labels[1:] != -100).sum())
            if predicted:
                with torch.no_grad():
                    loss = model(input_ids=window[None], labels=labels[None]).loss.double()
                total, count = total + float(loss) * predicted, count + predicted
            end = start + len(window)
            if end >= len(document):
                break
    return math.exp(total / count), count


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (24, 1), (64, None), (16, 16)])
def test_perplexity_agrees_with_a_naive_loop(length, stride, make_llama, tokens):
    model = make_llama().eval()
    found = tb.perplexity(model, tokens, stride, length=length)
    value, count = naive(model, tokens, length, stride or length)
    assert found.value == pytest.approx(value, rel=1e-6)
    assert found.tokens == count


def test_perplexity_of_a_real_model_agrees_with_a_naive_loop(stories):
    folder, documents = stories
    model = tb.compress.load_causal_lm(folder)
    found = tb.perplexity(model, documents[:20])
    assert found.value == pytest.approx(naive(model, documents[:20], 256, 256)[0], rel=1e-6)
    assert 0.05 < found.stderr < 0.3


def test_the_perplexity_of_a_real_model_on_real_stories_is_the_recorded_one(data_file):
    documents = tb.compress.load_tokens(data_file("weights/stories260k/tinystories_1000_tokens.npz"))
    found = tb.perplexity(data_file("weights/stories260k"), [document[:256] for document in documents[:20]])
    assert found.value == pytest.approx(3.8135, abs=1e-3)


def test_the_perplexity_of_a_folder_on_a_file_is_that_of_the_loaded_model(stories, tmp_path):
    folder, documents = stories
    np.save(tmp_path / "tokens.npy", documents[0].numpy())
    loaded = tb.compress.load_causal_lm(folder)
    assert tb.perplexity(folder, tmp_path / "tokens.npy", 16, length=64) == tb.perplexity(
        loaded, documents[0], 16, length=64
    )


def test_the_standard_error_is_the_spread_over_texts(stories):
    """Compare the spread over twenty disjoint texts with the mean standard error."""
    folder, documents = stories
    model = tb.compress.load_causal_lm(folder)
    parts = [tb.perplexity(model, documents[start : start + 10], length=128) for start in range(0, 200, 10)]
    spread = torch.tensor([part.value for part in parts]).std()
    said = torch.tensor([part.stderr for part in parts]).square().mean().sqrt()
    assert 0.5 < float(spread / said) < 1.7


def test_the_training_mode_is_restored(make_llama, tokens):
    model = make_llama().train()
    tb.perplexity(model, tokens)
    assert model.training


def test_the_standard_error_of_one_window_is_nan(make_llama):
    assert math.isnan(tb.perplexity(make_llama(), torch.arange(9)).stderr)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (torch.tensor([64]).repeat(5), {}, "not in the vocabulary of 64"),
        (torch.tensor([-1, 3]), {}, "a token id is negative: -1"),
        (torch.tensor([3]), {}, "nothing to predict"),
        ([], {}, "there is no token"),
        (torch.arange(9), {"length": 1}, "at least 2"),
        (torch.arange(9), {"length": 4, "stride": 5}, "stride from 1"),
        (torch.arange(9), {"length": 4, "stride": 0}, "stride from 1"),
    ],
)
def test_invalid_tokens_and_lengths_are_refused(tokens, options, message, make_llama):
    with pytest.raises(TokensError, match=message):
        tb.perplexity(make_llama(), tokens, **options)


def test_models_that_do_not_predict_the_next_token_are_refused(make_llama, tokens):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=2)).train()
    for model, message in (
        (bert, "BertForMaskedLM is no causal language model: its outputs depend on the tokens that follow"),
        (make_llama().model, "LlamaModel has no head that predicts the next token"),
    ):
        with pytest.raises(TokensError, match=message):
            tb.perplexity(model, tokens)
    assert bert.training


def test_nan_logits_give_a_perplexity_of_nan(make_llama, tokens):
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    assert math.isnan(tb.perplexity(model, tokens).value)


def test_windows_have_the_context_length_by_whatever_name_the_configuration_has():
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64}
    model = transformers.MptForCausalLM(transformers.MptConfig(**sizes, max_seq_len=16))
    assert tb.perplexity(model, torch.arange(48)).windows == 3
