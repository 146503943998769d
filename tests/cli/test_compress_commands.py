"""``tempbalance prune``, ``tempbalance perplexity`` and ``tempbalance recover``."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tempbalance as tb
from command_line import check_error, run


@pytest.fixture
def model(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of a small language model, trained on a language in which each token has two equally likely successors."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            tokens = sentences(32, seed=step)
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return folder


def sentences(length, seed, count=16):
    """Token t is followed by 5 t or by 5 t + 7, modulo 64."""
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(64, (count,), generator=rng)]
    for _ in range(length - 1):
        columns.append((5 * columns[-1] + 7 * torch.randint(2, (count,), generator=rng)) % 64)
    return torch.stack(columns, dim=1)


@pytest.fixture
def stories(tmp_path):
    """Tokens of eight texts."""
    tokens = sentences(128, seed=1000, count=8)
    np.savez(tmp_path / "stories.npz", tokens=tokens.flatten().numpy(), offsets=np.arange(0, tokens.numel() + 1, 128))
    return tmp_path / "stories.npz"


def without_warnings(text):
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("warning: "))


@pytest.mark.parametrize("command", ["allocate", "prune", "perplexity", "recover"])
def test_the_help_of_a_compression_command_has_examples(command, capsys):
    assert run(command, "--help") == 0
    assert "Examples" in capsys.readouterr().out


def test_prune_saves_a_folder_and_reports(model, tmp_path, capfd):
    out, page, numbers = tmp_path / "pruned", tmp_path / "r.html", tmp_path / "r.json"
    assert run("prune", model, "--sparsity", 0.5, "--out", out, "--report", page, "--report", numbers) == 0
    weights = load_file(out / "model.safetensors")
    zeros = sum(int((tensor == 0).sum()) for name, tensor in weights.items() if name.endswith("weight"))
    assert zeros == 12_800
    text, progress = capfd.readouterr()
    assert "12,800 of 25,600 weights are zero: 50.0%" in text
    assert progress == ""  # silent when piped
    data = json.loads(numbers.read_text())
    assert (data["method"], data["calibration"], data["perplexity"]) == ("magnitude", None, None)
    assert {row["name"]: row["achieved"] for row in data["layers"]} == pytest.approx(
        {name: float((weights[name] == 0).double().mean()) for name in tb.Allocation.load(out / "allocation.json")}
    )
    assert "0.weight" in page.read_text("utf-8")


def test_prune_quiet_prints_nothing(model, tmp_path, capfd):
    assert run("prune", model, "--sparsity", 0.5, "--out", tmp_path / "pruned", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_prune_from_an_allocation_gives_the_same_weights(model, tmp_path):
    assert run("prune", model, "-s", 0.3, "-o", tmp_path / "a", "-q") == 0
    assert run("prune", model, "--from-allocation", tmp_path / "a" / "allocation.json", "-o", tmp_path / "b", "-q") == 0
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prune_by_wanda_prints_the_perplexities_that_the_perplexity_command_prints(llama, stories, tmp_path, capfd):
    options = ("--method", "wanda", "--calibration", stories, "--samples", 4, "--length", 64, "--seed", 3)
    numbers = tmp_path / "r.json"
    out = tmp_path / "p"
    assert run("prune", llama, "-s", 0.5, *options, "-o", out, "--evaluate", stories, "--report", numbers) == 0
    text, progress = capfd.readouterr()
    assert without_warnings(progress) == ""  # neither our bars nor those of Transformers
    data = json.loads(numbers.read_text())
    assert data["calibration"] == {"samples": 4, "length": 64, "seed": 3}
    assert data["achieved"] == pytest.approx(0.5, abs=1e-5)
    before, after = (data["perplexity"][key] for key in ("before", "after"))
    assert f"perplexity {before['value']:.4g} (standard error {before['stderr']:.2g}) before" in text
    assert 1 < before["value"] < after["value"]
    assert run("perplexity", out, stories, "--length", 64) == 0
    assert f"perplexity {after['value']:.4g} " in capfd.readouterr().out


def test_the_progress_bars_of_transformers_are_restored(llama, stories, capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        assert run("perplexity", llama, stories) == 0
        assert logging.is_progress_bar_enabled()
    finally:
        if not shown:
            logging.disable_progress_bar()
    assert capfd.readouterr().err == ""


def test_prune_quiet_prints_the_perplexities_only(llama, stories, tmp_path, capfd):
    assert run("prune", llama, "-s", 0.1, "-o", tmp_path / "p", "-q", "--evaluate", stories) == 0
    out, err = capfd.readouterr()
    assert out.startswith("perplexity ")
    assert len(out.splitlines()) == 1
    assert without_warnings(err) == ""


def test_recover_prints_the_perplexities_and_saves_the_folder(llama, stories, tmp_path, capfd):
    pytest.importorskip("peft")
    out, again = tmp_path / "pruned", tmp_path / "recovered"
    assert run("prune", llama, "-s", 0.5, "-o", out, "-q") == 0
    options = ("--lr", 3e-3, "--batch", 4, "--length", 128, "--evaluate", stories)
    assert run("recover", out, "--tokens", stories, "--out", again, *options) == 0
    text, progress = capfd.readouterr()
    assert without_warnings(progress) == ""
    assert re.search(r"35 weight matrices trained, 50\.0% of their weights zero, every zero kept", text)
    assert re.search(r"perplexity .* before, .* after", text)
    record = json.loads((again / "recovery.json").read_text())
    assert record["settings"] == {"rank": 8, "lr": 3e-3, "epochs": 1, "batch": 4, "length": 128, "seed": 0}
    assert record["recipe"] is None


def test_recover_balances_when_asked(llama, stories, tmp_path, capsys):
    pytest.importorskip("peft")
    assert run("prune", llama, "-s", 0.5, "-o", tmp_path / "pruned", "-q") == 0
    options = ("--tokens", stories, "--balance", "--batch", 4, "--length", 128, "--json", "-o", tmp_path / "again")
    assert run("recover", tmp_path / "pruned", *options) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "model_balancing"


def test_without_a_text_prune_allocates_uniformly(llama, tmp_path, capsys):
    assert run("prune", llama, "-s", 0.5, "-o", tmp_path / "p", "--json") == 0
    assert json.loads(capsys.readouterr().out)["allocation"] == "uniform"


def test_with_a_text_prune_uses_the_best_simple_allocation_on_it(llama, stories, tmp_path, capsys):
    text = ("--calibration", stories, "--samples", 4, "--length", 64, "-m", "wanda")
    assert run("prune", llama, "-s", 0.7, *text, "-o", tmp_path / "p", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["allocation"] == found["compared"][0]["method"] != "owl, epsilon 0.08"


@pytest.mark.parametrize("more", [("--no-compare",), ("--group", 8)])
def test_where_nothing_is_measured_on_the_text_prune_uses_owl(llama, stories, tmp_path, more, capsys):
    text = ("--calibration", stories, "--samples", 4, "--length", 64)
    assert run("prune", llama, "-s", 0.5, *text, *more, "-o", tmp_path / "p", "--json") == 0
    assert json.loads(capsys.readouterr().out)["allocation"] == "owl, epsilon 0.08"


def test_the_best_simple_allocation_names_the_search_as_the_next_step(llama, stories, tmp_path, capfd):
    options = ("--calibration", stories, "--samples", 4, "--length", 32, "--unit", "block", "--allocation", "best")
    assert run("prune", llama, "-s", 0.6, *options, "-o", tmp_path / "p") == 0
    assert (
        "next, unless you will recover the model: --allocation search, a search of 100 generations"
        in capfd.readouterr().out
    )
    found = tb.Allocation.load(tmp_path / "p" / "allocation.json")
    methods = [score.method for score in found.compared if not score.method.startswith("erk")]
    assert (found.method, found.unit) == (methods[0], "block")


def test_prune_searches_an_allocation_and_prints_what_each_method_gives(llama, stories, tmp_path, capfd):
    text = ("--calibration", stories, "--samples", 4, "--length", 32)
    search = ("--allocation", "search", "--generations", 1, "--search-folder", tmp_path / "search")
    assert run("prune", llama, "-s", 0.6, *text, *search, "-o", tmp_path / "p") == 0
    out = capfd.readouterr().out
    lines = [line.split(",")[0].split()[0] for line in out.splitlines() if line.strip()]
    assert {"search", "uniform", "owl", "atp", "alpha", "erk"} <= set(lines)
    assert "after that, uniform was no worse in 7 of 8 cells of our study" in out
    assert tb.Allocation.load(tmp_path / "p" / "allocation.json").unit == "layer"
    out = tmp_path / "plan.json"
    assert run("allocate", llama, "-s", 0.6, *text, *search, "-o", out, "-q") == 0  # resumed: the search is finished
    assert dict(tb.Allocation.load(out)) == dict(tb.Allocation.load(tmp_path / "p" / "allocation.json"))


def test_a_dry_run_prints_the_allocation_that_prune_uses(llama, tmp_path, capsys):
    arguments = ("prune", llama, "-s", 0.5, "--allocation", "depth", "--out", tmp_path / "p")
    assert run(*arguments, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "p").exists()
    assert run(*arguments, "--quiet") == 0
    assert json.loads((tmp_path / "p" / "allocation.json").read_text()) == planned
    assert run(*arguments, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "model.layers.4" in text
    assert "nothing was pruned, evaluated or written" in text


def test_a_dry_run_fails_where_prune_would(tmp_path, capsys):
    state = {f"layers.{i}.fc.weight": torch.randn(64, 64) for i in range(2)}
    state |= {f"layers.{i}.mix.kernel": torch.randn(8, 32, 64) for i in range(2)}
    torch.save(state, tmp_path / "model.pt")
    check_error(capsys, "prune", tmp_path / "model.pt", "-s", 0.5, "--dry-run", match="20%")


@pytest.mark.parametrize("more", [("--dry-run",), ("--out", "pruned")])
def test_a_quantised_model_is_refused_before_it_is_analysed(tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    rounded = {f"layers.{i}.fc.weight": torch.ones(64, 64).to(torch.float8_e4m3fn) for i in range(2)}
    save_file(rounded | {f"layers.{i}.fc.weight_scale": torch.ones(64, 1) for i in range(2)}, "model.safetensors")
    monkeypatch.setattr("tempbalance.compress.prune_workflow.analyze", None)
    check_error(capsys, "prune", "model.safetensors", "-s", 0.5, *more, match="prune the unquantised model")


def test_after_pruning_the_next_command_is_printed(llama, tmp_path, capsys):
    assert run("prune", llama, "-s", 0.5, "-o", tmp_path / "p") == 0
    assert f"tempbalance recover {tmp_path / 'p'} --tokens" in capsys.readouterr().out


@pytest.mark.parametrize("calibrated", [False, True], ids=["evaluated", "calibrated"])
def test_texts_beside_the_weights_are_not_copied(llama, stories, tmp_path, calibrated):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    text = folder / "stories.npz"
    shutil.copyfile(stories, text)
    options = ("--calibration", text, "--samples", 4, "--length", 64) if calibrated else ("--evaluate", text)
    assert run("prune", folder, "-s", 0.5, *options, "-o", tmp_path / "p", "-q") == 0
    assert not (tmp_path / "p" / "stories.npz").exists()
    assert (tmp_path / "p" / "config.json").exists()


@pytest.mark.parametrize(
    "budget", [("--sparsity", 0.5), ("--bits", 3.5), ("--rank", 8), ("--trainable", 0.4, "--by", "alpha")]
)
def test_allocate_takes_a_model_or_its_saved_analysis(llama, tmp_path, budget, capsys):
    assert run("analyze", llama, "--quiet", "--out", tmp_path / "analysis.json") == 0
    assert run("allocate", llama, *budget, "--out", tmp_path / "a.json", "--quiet") == 0
    assert run("allocate", tmp_path / "analysis.json", *budget, "--out", "-") == 0
    printed, saved = json.loads(capsys.readouterr().out), json.loads((tmp_path / "a.json").read_text())
    inside = [[row for row in each["layers"] if "layers." in row["name"]] for each in (printed, saved)]
    assert inside[0] == inside[1]  # the command also trains embeddings, which the saved analysis has not
    assert dict(tb.Allocation.load(tmp_path / "a.json"))
    assert run("allocate", llama, *budget) == 0
    assert "model.layers.0" in capsys.readouterr().out


def test_embeddings_that_a_saved_analysis_lacks_are_frozen_with_a_warning(llama, tmp_path, capsys, caplog):
    for options, warned in (((), True), (("--embeddings",), False)):
        caplog.clear()
        assert run("analyze", llama, "-o", tmp_path / "analysis.json", "-q", *options) == 0
        assert run("allocate", tmp_path / "analysis.json", "--trainable", 0.5, "--by", "alpha", "-q") == 0
        assert ("are frozen" in caplog.text + capsys.readouterr().err) is warned


def test_the_names_of_gguf_are_those_of_the_named_architecture(tmp_path):
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    export = f"llama-quantize:gpt2={tmp_path / 'types.txt'}"
    assert run("allocate", tmp_path / "gpt2", "--bits", 5, "--formats", "q4_0,q8_0", "--export", export, "-q") == 0
    assert "^blk\\.1\\.ffn_down\\.weight$=q4_0" in (tmp_path / "types.txt").read_text()


def test_bits_are_allocated_to_formats_by_error_exported_and_measured(llama, stories, tmp_path, capsys):
    out, config = tmp_path / "bits.json", tmp_path / "layers.json"
    options = ("--bits", 3.3, "--formats", "int2,int3,int4", "--by", "error", "--out", out, "-q")
    assert run("allocate", llama, *options, "--export", f"autoround={config}") == 0
    found = tb.Allocation.load(out)
    assert found.method.startswith("least error")
    assert {name: each["bits"] for name, each in json.loads(config.read_text()).items()} == {
        layer.name: int(layer.format.removeprefix("int")) for layer in found.layers
    }
    weighted = ("--calibration", stories, "--samples", 2, "--length", 64)
    assert run("allocate", llama, *options[:-3], *weighted, "-o", tmp_path / "higgs.json", "-q") == 0
    assert tb.Allocation.load(tmp_path / "higgs.json") != found
    values = []
    for rounded in ((), ("--bits", out)):
        assert run("perplexity", llama, stories, *rounded, "--json") == 0
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values[0] != values[1]  # tests of perplexity compare it with the rounded model


def test_bits_are_searched_on_calibration_text(llama, stories, tmp_path, capsys):
    text = ("--calibration", stories, "--samples", 4, "--length", 32)
    options = ("--bits", 3.5, "--formats", "int2,int3,int4", "--by", "search", "--generations", 2, *text)
    assert run("allocate", llama, *options, "--search-folder", tmp_path / "s", "-o", tmp_path / "a.json") == 0
    assert {"search", "uniform", "error", "alpha"} <= set(capsys.readouterr().out.split())
    found = tb.Allocation.load(tmp_path / "a.json")
    assert found.method.startswith("search, 2 generations from ")
    assert [score.method for score in found.compared] != []
    sequences = tb.compress.Calibration(tokens=stories, samples=4, length=32).draw()
    settings = tb.compress.SearchSettings(generations=2)
    same = tb.compress.search_bits(llama, 3.5, sequences, ["int2", "int3", "int4"], settings, progress=False)
    assert dict(found) == dict(same)


@pytest.mark.parametrize("by", ["snr", "drift"])
def test_trainable_layers_are_chosen_by_a_score_and_exported_for_axolotl(llama, tmp_path, by):
    base = ("--base", llama) if by == "drift" else ()
    out, page = tmp_path / "trainable.json", tmp_path / "unfrozen.yaml"
    assert run("allocate", llama, "--trainable", 0.4, "--by", by, *base, "-o", out, "--export", f"axolotl={page}") == 0
    found = tb.Allocation.load(out)
    assert sum(found.values()) == 7 * 2 + 1
    assert found["model.embed_tokens.weight"] == 1
    assert page.read_text().count("\n") == 1 + 7 * 2 + 1


class TestErrorsOfOneLine:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (("--bits", 3, "--base", "x"), "--base has no effect with --bits"),
            (("--rank", 3, "--formats", "int4"), "--formats has no effect with --rank"),
            (("--trainable", 0.5, "--by", "drift", "--export", "axolotl=missing/x"), "missing/x"),  # before the work
            (("--trainable", 0.5, "--unit", "block"), "--unit has no effect with --trainable"),
            (("--bits", 3, "--epsilon", 0.1), "--epsilon has no effect with --bits"),
            (("--rank", 3, "--no-compare"), "--no-compare has no effect with --rank"),
            (("--bits", 3, "--calibration", "x.npz"), "--calibration has no effect with --bits and --by uniform"),
            (("--bits", 3, "--samples", 4), "--samples has no effect without --calibration"),
            (("--sparsity", 0.5, "--method", "wanda"), "--method has no effect without --calibration"),
            (("--trainable", 0.5, "--by", "drift"), "--by drift needs --base"),
            (("--bits", 3, "--by", "error"), "--by error needs --formats"),
            (("--bits", 3, "--by", "search", "--formats", "int3"), "--by search needs --calibration FILE"),
            (("--bits", 3, "--by", "error", "--generations", 9), "--generations has no effect with --bits and --by"),
            (("--bits", 3, "--by", "snr"), "method must be one of"),
            (("--bits", 3, "--formats", "int4,fp3"), "unknown format 'fp3'"),
            (("--sparsity", 0.5, "--by", "alpha"), "--by has no effect with --sparsity (see --allocation)"),
            (("--bits", 3, "--export", "vllm=x"), "--export must be TOOL=FILE"),
            (("--bits", 3, "--export", "axolotl"), "--export must be TOOL=FILE"),
            (("--bits", 3, "--export", "autoround:gpt2=x"), "llama-quantize:gpt2=FILE for another architecture"),
        ],
    )
    def test_allocate_refuses_options_without_effect(self, capsys, model, options, match):
        check_error(capsys, "allocate", model, *options, match=match)

    @pytest.mark.parametrize("budgets", [(), ("--bits", 3, "--sparsity", 0.5)])
    def test_allocate_needs_one_budget(self, capsys, model, budgets):
        check_error(capsys, "allocate", model, *budgets, match="give one of --sparsity S, --bits B, --rank R and")

    @pytest.mark.parametrize("option", [("--farms",), ("--estimator", "peak"), ("--key", "ema"), ("--device", "cpu")])
    def test_allocate_refuses_options_of_an_analysis_that_is_saved(self, capsys, tmp_path, option):
        match = f"{option[0]} has no effect with a saved analysis"
        check_error(capsys, "allocate", tmp_path / "analysis.json", "--bits", 3, *option, match=match)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (("--epsilon", 0.1), "--epsilon has no effect with --from-allocation"),
            (("--allocation", "alpha"), "--allocation has no effect with --from-allocation"),
            (("--generations", 9), "--generations has no effect with --from-allocation"),
            (("--search-folder", "x"), "--search-folder has no effect with --from-allocation"),
            (("--unit", "layer"), "--unit has no effect with --from-allocation"),
            (("--group", 8), "--group has no effect with --from-allocation"),
            (("--routers",), "--routers has no effect with --from-allocation"),
            (("--farms-rows", 8), "--farms-rows has no effect with --from-allocation"),
            (("--seed", 0), "--seed has no effect without --calibration"),
            (("--length", 64), "--length has no effect without --calibration or --evaluate"),
        ],
    )
    def test_prune_from_an_allocation_refuses_options_of_another(self, capsys, model, tmp_path, options, match):
        given = ("--from-allocation", tmp_path / "a.json", "-o", tmp_path / "p")
        check_error(capsys, "prune", model, *given, *options, match=match)

    @pytest.mark.parametrize("options", [("--allocation", "search"), ("--allocation", "atp"), ("--group", 8)])
    def test_prune_refuses_not_to_compare_where_that_does_not_depend_on_it(self, capsys, model, tmp_path, options):
        given = ("--calibration", tmp_path / "x.npz", "-o", tmp_path / "p", "--no-compare")
        check_error(capsys, "prune", model, "-s", 0.5, *given, *options, match="--no-compare has no effect with")

    def test_a_dry_run_refuses_the_allocation_of_another_model_and_missing_text(self, capsys, model, tmp_path):
        save_file({"other.weight": torch.randn(8, 8)}, tmp_path / "other.safetensors")
        assert run("prune", tmp_path / "other.safetensors", "-s", 0.3, "-o", tmp_path / "a", "-q") == 0
        given = ("prune", model, "--from-allocation", tmp_path / "a" / "allocation.json", "--dry-run")
        check_error(capsys, *given, match="the allocation is for another model")
        check_error(capsys, *given, "-m", "wanda", match="need calibration text")

    def test_prune_refuses_an_epsilon_without_effect(self, capsys, model, tmp_path):
        check_error(capsys, "prune", model, "-s", 0.5, "--epsilon", 0.1, "-o", tmp_path / "p", match="no effect")

    def test_prune_needs_an_output_or_a_dry_run(self, capsys, model):
        check_error(capsys, "prune", model, "-s", 0.5, match="--dry-run")

    def test_prune_with_neither_sparsity_nor_allocation_is_refused(self, capsys, model, tmp_path):
        check_error(capsys, "prune", model, "-o", tmp_path / "p", match="--sparsity")

    def test_prune_by_wanda_without_calibration_is_refused(self, capsys, model, tmp_path):
        check_error(capsys, "prune", model, "-s", 0.5, "-m", "wanda", "-o", tmp_path / "p", match="--calibration")

    @pytest.mark.parametrize(("report", "match"), [("r.csv", ".json, .html"), ("nowhere/r.json", "cannot write")])
    def test_prune_with_a_report_that_cannot_be_saved_is_refused(self, capsys, model, tmp_path, report, match):
        out = tmp_path / "p"
        check_error(capsys, "prune", model, "-s", 0.5, "-o", out, "--report", tmp_path / report, match=match)
        assert not out.exists()

    def test_a_search_without_text_or_of_another_budget_and_options_without_a_search_are_refused(
        self, capsys, llama, stories, tmp_path
    ):
        out, text = ("-o", tmp_path / "p"), ("--calibration", stories, "--samples", 4, "--length", 32)
        search = ("--allocation", "search", "--generations", 1, "--search-folder", tmp_path / "search")
        check_error(capsys, "prune", llama, "-s", 0.5, *search, *out, match="--calibration FILE")
        check_error(capsys, "prune", llama, "-s", 0.5, "--generations", 3, *out, match="--allocation search")
        assert run("prune", llama, "-s", 0.5, *search, *text, "--dry-run", "-q") == 0
        check_error(capsys, "prune", llama, "-s", 0.6, *search, *text, *out, match="another budget")

    def test_perplexity_of_a_folder_without_a_language_model_is_refused(self, capsys, tmp_path):
        pytest.importorskip("transformers")
        np.savez(tmp_path / "t.npz", tokens=np.arange(9))
        check_error(capsys, "perplexity", tmp_path, tmp_path / "t.npz", match="not a causal language model")

    def test_recover_refuses_a_folder_that_is_not_an_earlier_recovery(self, capsys, tmp_path):
        (tmp_path / "keep.txt").write_text("mine")
        options = ("--tokens", "nothing.npy", "--out", tmp_path)
        check_error(capsys, "recover", "nowhere", *options, match="choose another folder")


def test_prune_of_a_model_of_which_little_can_be_analysed_needs_partial(tmp_path, capsys):
    state = {f"layers.{i}.fc.weight": torch.randn(64, 64) for i in range(2)}
    state |= {f"layers.{i}.mix.kernel": torch.randn(8, 32, 64) for i in range(2)}
    torch.save(state, tmp_path / "model.pt")
    arguments = ("prune", tmp_path / "model.pt", "-s", 0.5, "-o", tmp_path / "out")
    check_error(capsys, *arguments, match="20%")
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--partial") == 0
    assert "10.0% of all 40,960 parameters" in capsys.readouterr().out
