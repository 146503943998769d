"""The frame of the HTML pages."""

import lzma
from importlib import resources

import numpy as np
import pytest

import tempbalance as tb
from tempbalance.report import render_analysis
from tempbalance.report.page import in_words, model_name

ASSETS = resources.files("tempbalance.report") / "assets"


@pytest.mark.parametrize(
    ("value", "words"), [(np.arange(3), "[0 1 2]"), (np.float64(0.5), "0.5"), ([], "none"), ((), "none"), ({}, "none")]
)
def test_a_setting_may_be_an_array(value, words):
    assert in_words(value) == words


def test_the_library_in_the_pages_is_that_of_plotly_in_python():
    """Renew it, in a folder with ``npm install plotly.js-basic-dist-min@VERSION terser``, by

        npx terser node_modules/plotly.js-basic-dist-min/plotly-basic.min.js --compress passes=2 --mangle \\
            --comments '/licen/i' -o plotly-basic.min.js
        perl -0pi -e "s/(textContent=)'[.]maplibregl-map.*?(?<!\\\\)'/\\$1''/s" plotly-basic.min.js
        xz -9e plotly-basic.min.js

    terser makes the wheel 20 kB smaller, and each page 25 kB; without the styles of maps they are 9 and 83 kB smaller.
    """
    offline = pytest.importorskip("plotly.offline")
    script = lzma.decompress((ASSETS / "plotly-basic.min.js.xz").read_bytes()).decode()
    assert f"(basic - minified) v{offline.get_plotlyjs_version()}" in script[:200]
    assert "maplibre" not in script


def test_a_page_has_the_licence_of_the_library():
    page = render_analysis(tb.Analysis(source="x", settings={}, layers=[]))
    assert (ASSETS / "plotly-LICENSE.txt").read_text() in page


def test_a_page_of_minilm_is_smaller_than_1500_kb(minilm_analysis):
    assert len(minilm_analysis) == 37
    assert len(render_analysis(minilm_analysis).encode()) < 1.5e6


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Sequential", "Sequential"),
        ("state dict", "state dict"),
        ("org/name", "org/name"),
        ("runs/name.v2", "name.v2"),
        ("/data/models/llama-7b", "llama-7b"),
        ("/data/models/llama-7b/", "llama-7b"),
        ("../models/llama-7b", "llama-7b"),
        ("/data/llama/model.safetensors", "llama/model.safetensors"),
        ("out/run3/checkpoint-500", "run3/checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
        ("C:\\models\\llama", "llama"),
        ("/home/me/.cache/huggingface/hub/models--org--name/snapshots/0123abcd", "org/name"),
        ("", ""),
    ],
)
def test_the_name_of_a_model_is_the_part_of_its_path_that_says_most(source, name):
    assert model_name(source) == name
