"""``Analysis.to_weightwatcher`` against the output of WeightWatcher 0.7.7."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

import tempbalance as tb
from golden_models import ResNet, fill

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "weightwatcher_details.json").read_text())["results"]
ABSENT = {"sv_min", "weak_rank_loss"}
NUMBERED = {"layer_id"}  # theirs counts modules
OF_THE_FIT = {"alpha", "alpha_weighted", "log_alpha_norm", "D", "sigma", "xmin", "xmax", "num_pl_spikes"}


@pytest.fixture(scope="module")
def our_tables(minilm):
    """Our table of each golden model."""
    models = {"minilm": minilm, "resnet": fill(ResNet(16))}
    with_embeddings = tb.Select(embeddings=True)
    return {
        name: tb.analyze(model, estimator=tb.KS(), select=with_embeddings).to_weightwatcher()
        for name, model in models.items()
    }


@pytest.fixture(params=["minilm", "resnet"])
def tables(request, our_tables):
    """Their table and ours, with the same rows."""
    theirs = pd.DataFrame(GOLDEN[request.param]["details"]).set_index("longname")
    ours = our_tables[request.param].set_index("longname")
    assert set(theirs.index) <= set(ours.index)
    return theirs, ours.loc[theirs.index]


def test_it_has_the_columns_in_their_order(tables):
    theirs, ours = tables
    assert list(ours.columns) == [name for name in theirs.columns if name not in ABSENT]


def test_what_does_not_depend_on_the_fit_is_equal(tables):
    theirs, ours = tables
    for column in sorted(set(ours.columns) - OF_THE_FIT - NUMBERED - {"status", "warning"}):
        if pd.api.types.is_float_dtype(theirs[column]):
            # their entropy adds 1e-10 to each probability
            assert ours[column].tolist() == pytest.approx(theirs[column].tolist(), rel=1e-6), column
        else:
            assert ours[column].tolist() == theirs[column].tolist(), column


def test_fits_are_equal(tables):
    theirs, ours = tables
    same = (ours["status"] == "success") & (ours["num_evals"] >= 20)  # 0.7.7 has another rule for fewer
    assert same.sum() >= 9
    for column in sorted(OF_THE_FIT):
        # embeddings are float32 in their loop
        assert ours.loc[same, column].tolist() == pytest.approx(theirs.loc[same, column].tolist(), rel=1e-5), column
    assert ours.loc[same, "warning"].tolist() == theirs.loc[same, "warning"].tolist()


def test_an_untrained_layer_has_nan_and_its_status_where_theirs_has_an_alpha(our_tables):
    row = our_tables["minilm"].set_index("longname").loc["pooler.dense"]
    assert (row["status"], row["warning"]) == ("random", "")
    assert all(math.isnan(row[column]) for column in OF_THE_FIT - {"num_pl_spikes"})


def test_the_summary_is_the_mean_of_the_columns(our_tables):
    table = our_tables["minilm"].set_index("longname")
    table = table.drop("embeddings.token_type_embeddings")  # two rows: WeightWatcher leaves it out
    for name in ("log_norm", "log_spectral_norm", "stable_rank"):
        assert table[name].mean() == pytest.approx(GOLDEN["minilm"]["summary"][name], rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"this analysis used Hill\(.*\): analyze with estimator=tb.KS\(\)"),
        ({"estimator": tb.KS(), "windows": tb.FARMS()}, "has no windows: analyze without windows="),
    ],
)
def test_an_analysis_that_it_cannot_describe_is_refused(options, message):
    analysis = tb.analyze(torch.nn.Sequential(torch.nn.Linear(64, 64)), **options)
    with pytest.raises(tb.errors.AnalysisError, match=message):
        analysis.to_weightwatcher()


def test_an_analysis_without_layers_gives_an_empty_table():
    analysis = tb.Analysis(source="nothing", settings={"estimator": "KS(min_eigenvalues=10)"}, layers=[])
    assert len(analysis.to_weightwatcher()) == 0
