"""The HTML reports in a browser without a network. Loading a page takes seconds, so tests share one."""

import math
import re
import shutil

import pytest
import torch

import tempbalance as tb
from tempbalance.report.pruning_report import render_pruning
from tempbalance.report.study_report import render_study
from tempbalance.study import paired
from tempbalance.study.summary import Row, Summary

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Six blocks of two layers of known alphas, and an untrained head."""
    tensors = {}
    for block in range(6):
        for part, alpha in (("attention", 2.0 + 0.1 * block), ("mlp", 3.0 - 0.1 * block)):
            weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(60, alpha), (60, 60), seed=block)
            tensors[f"layers.{block}.{part}.weight"] = weight
    tensors["head.weight"] = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    tensors["bad.weight"] = torch.full((20, 20), float("inf"))
    path = tmp_path_factory.mktemp("report") / "report.html"
    tb.analyze(tensors).save(path)
    return path


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, path, drawn):
    """A page that loads no other file and reports no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # a busy machine takes long to load a page of 5 MB
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if path.name not in request.url else None)
    page.goto(path.as_uri())
    page.wait_for_selector(drawn)
    yield page
    assert page.problems == []
    page.close()


@pytest.fixture(scope="module")
def shared_page(browser, report):
    yield from opened(browser, report, "#depth .main-svg")


@pytest.fixture
def page(shared_page):
    """The report of the model above, all layers listed, without errors so far."""
    shared_page.fill("#filter", "")
    shared_page.select_option("#status", "")
    shared_page.evaluate("scrollTo(0, 0)")
    yield shared_page
    assert shared_page.problems == []


def names(page):
    return page.locator("#layers tbody tr td:first-child").all_text_contents()


def column(page, index, table="#layers"):
    return page.locator(f"{table} tbody tr td:nth-child({index})").all_text_contents()


def test_the_findings_are_shown_first_with_their_next_step(page):
    assert page.inner_text("main section >> nth=0").startswith("Findings: 1 error, 2 warnings")
    items = page.locator(".findings li").all_text_contents()
    assert items[0].startswith("error 400 weights are NaN or Inf, in bad.weight.Next: ")
    assert items[1].startswith("warning head.weight (1 of 13) looks untrained")


def test_table_lists_all_layers_in_model_order(page):
    assert names(page)[:2] == ["layers.0.attention.weight", "layers.0.mlp.weight"]
    assert len(names(page)) == 13


def test_click_on_a_row_shows_the_spectrum_of_its_layer(page):
    page.click("#layers tbody tr:nth-child(4)")
    assert "layers.1.mlp.weight" in page.inner_text("#chosen")
    assert page.locator("#layers tbody tr[aria-selected=true]").count() == 1
    legend = page.text_content("#spectrum .legend")
    assert "fitted tail, alpha 2.89" in legend
    assert "xmin" in legend
    assert "Marchenko-Pastur" in legend


def test_enter_on_a_focused_row_selects_its_layer(page):
    page.focus("#layers tbody tr:nth-child(2)")
    page.keyboard.press("Enter")
    assert "layers.0.mlp.weight" in page.inner_text("#chosen")


def test_click_on_a_point_shows_the_spectrum_of_its_layer(page):
    before = page.inner_text("#chosen")
    point = page.locator("#depth .trace .point").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("before => document.getElementById('chosen').innerText !== before", arg=before)
    row = page.locator("#layers tbody tr[aria-selected=true]").bounding_box()
    table = page.locator(".scroll").bounding_box()
    assert table["y"] < row["y"] < table["y"] + table["height"]


def test_an_untrained_layer_is_labelled_instead_of_showing_nan(page):
    page.click("#layers tbody tr:has-text('head.weight')")
    assert "untrained" in page.inner_text("#chosen")
    assert "NaN" not in page.inner_text("body").replace("NaN or Inf", "")


def test_clicks_on_a_heading_sort_up_then_down_then_restore_model_order(page):
    alpha = [heading.strip() for heading in page.locator("#layers th").all_text_contents()].index("alpha") + 1
    page.click("#layers th:has-text('alpha') button")
    rising = column(page, alpha)
    assert rising[-1] == "–"  # layers without an alpha are last
    assert rising[:-1] == sorted(rising[:-1], key=float)
    assert page.get_attribute(f"#layers th:nth-child({alpha})", "aria-sort") == "ascending"
    page.click("#layers th:has-text('alpha') button")
    assert column(page, alpha)[:-1] == rising[-2::-1]
    assert column(page, alpha)[-1] == "–"
    page.click("#layers th:has-text('alpha') button")
    assert names(page)[:2] == ["layers.0.attention.weight", "layers.0.mlp.weight"]
    assert page.get_attribute(f"#layers th:nth-child({alpha})", "aria-sort") == "none"


def test_filters_by_name_and_status_narrow_the_table(page):
    page.fill("#filter", "MLP")
    assert len(names(page)) == 6
    page.fill("#filter", "")
    page.select_option("#status", "random")
    assert names(page) == ["head.weight"]
    assert page.inner_text("#count") == "1 of 13"


def test_skipped_weights_are_listed_with_their_reason(page):
    text = page.inner_text("#skipped")
    assert "bad.weight" in text
    assert "NaN or Inf" in text


def test_there_is_no_history_section_without_a_history(page):
    assert page.locator("#history").count() == 0


def test_arrow_keys_move_the_selected_row(page):
    page.click("#layers tbody tr:nth-child(2)")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert "layers.1.attention.weight" in page.inner_text("#chosen")
    selected = page.locator("#layers tbody tr[aria-selected=true]")
    assert selected.get_attribute("data-index") == "2"
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    assert page.locator("#layers tbody tr[tabindex='0']").count() == 1


@pytest.fixture(scope="module")
def history_page(browser, tmp_path_factory):
    """A report with the history of three units, one of them with HTML in its name."""
    history = [
        tb.balance.Refresh(
            step=10 * i,
            units=[
                tb.balance.UnitState(name="<b>h.0", alpha=2.0 + 0.1 * i, multiplier=0.5),
                tb.balance.UnitState(name="h.1", alpha=3.0 - 0.1 * i, multiplier=1.5),
                tb.balance.UnitState(name="h.2", alpha=float("nan"), multiplier=1.0),
            ],
            measured=2,
            seconds=0.0,
        )
        for i in range(4)
    ]
    path = tmp_path_factory.mktemp("history") / "report.html"
    tb.analyze({"a.weight": torch.zeros(20, 20)}).save(path, history=history)
    yield from opened(browser, path, "#history .main-svg")


def test_the_history_is_drawn_as_two_plots_with_a_line_per_unit(history_page):
    assert history_page.locator("#history .subplot.xy .trace .js-line").count() == 2  # h.2 has no alpha
    assert history_page.locator("#history .subplot.xy2 .trace .js-line").count() == 3
    assert history_page.locator("#history .legendtext").all_text_contents() == ["<b>h.0", "h.1", "h.2"]
    facts = history_page.inner_text("#history-facts")
    assert "3 units, 4 refreshes from step 0 to 30; imbalance 0.500 at the first, 0.200 at the last." in facts
    assert "Without an alpha: h.2." in facts


def test_hovering_over_a_line_of_the_history_shows_its_unit(history_page):
    line = history_page.locator("#history .subplot.xy .trace .js-line").last
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    history_page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    history_page.wait_for_selector("#history .hoverlayer .hovertext")
    text = history_page.text_content("#history .hoverlayer .hovertext")
    assert "h.1" in text
    assert "step 10: alpha 2.900" in text


@pytest.fixture(scope="module")
def pruning_page(browser, tmp_path_factory):
    """The report of a pruned model with one weight that has no alpha."""
    tensors = {f"h.{i}.fc.weight": torch.randn(60, 60, generator=torch.Generator().manual_seed(i)) for i in range(3)}
    for i in range(2):
        tensors[f"h.{i}.fc.weight"] = tb.testing.matrix_with_spectrum(
            tb.testing.pareto_quantiles(60, 2.0 + i), (60, 60)
        )
    plan = tb.allocate_sparsity(tb.analyze(tensors), sparsity=0.5, method="alpha")
    path = tmp_path_factory.mktemp("pruning") / "report.html"
    path.write_text(
        render_pruning(tb.compress.PruningResult(allocation=plan, method="magnitude", achieved=dict(plan))),
        encoding="utf-8",
    )
    yield from opened(browser, path, "#alpha .main-svg")


def test_a_pruned_model_is_drawn_against_depth_and_listed(pruning_page):
    assert pruning_page.locator("#sparsity .trace .point").count() == 3
    assert pruning_page.locator("#sparsity .trace .js-line").count() == 1
    assert pruning_page.locator("#alpha .trace .point").count() == 2
    assert "Not drawn: 1 without an alpha." in pruning_page.inner_text("#alpha-facts")
    assert column(pruning_page, 3, "#weights") == ["2.00", "2.99", "–"]
    assert column(pruning_page, 6, "#weights") == ["0.3500", "0.6500", "0.5000"]
    assert pruning_page.locator("#perplexity").count() == 0


def study_row(method, gains, diverged=0, failed=0):
    gain = paired([*gains.values()], [0.0] * len(gains)) if gains else None
    return Row(
        method=method,
        chosen=f"{method} lr=0.1",
        mean=0.5,
        diverged=diverged,
        failed=failed,
        gains=gains,
        gain=gain,
        p_value=0.25 if gain else math.nan,
    )


@pytest.fixture(scope="module")
def study_page(browser, tmp_path_factory):
    """The report of a study in which trials diverged and failed."""
    summary = Summary(
        seeds=12,
        configurations=2,
        lower_is_better=False,
        baseline="plain",
        rows=[
            study_row("plain", {}),
            study_row("<b>won", {seed: 0.1 + 0.01 * (seed % 3) for seed in range(12)}),
            study_row(
                "lost:low=0.5,control=shuffled", {seed: math.nan if seed == 0 else -0.1 for seed in range(12)}, 1
            ),
            study_row("failed", {}, failed=12),
            study_row("diverged", dict.fromkeys(range(12), math.nan), diverged=12),
        ],
        recommendation="Use <b>won.",
        notes=["Note this."],
        settings={"task": "my_task.py (0123456789ab)", "seeds": 12},
    )
    path = tmp_path_factory.mktemp("study") / "report.html"
    path.write_text(render_study(summary), encoding="utf-8")
    yield from opened(browser, path, "#gains .main-svg")


def test_the_page_of_a_study_shows_every_method(study_page):
    page = study_page
    assert page.inner_text("#headline") == "Use <b>won."
    rows = page.locator("#methods tbody tr")
    assert rows.nth(1).locator("td").all_text_contents()[:3] == ["<b>won lr=0.1", "0.5", "+0.11"]
    assert rows.nth(1).locator("td").all_text_contents()[4:7] == ["12 of 12", "0", "0.25"]
    assert rows.nth(3).locator("td").all_text_contents()[-2:] == ["0", "12"]
    traces = page.locator("#gains .trace")
    assert [traces.nth(i).locator(".point").count() for i in range(traces.count())] == [12, 11, 2]  # last the means
    assert page.locator("#gains .ytick").count() == 3
    assert "NaN" not in page.inner_text("body")
    assert page.inner_text("#notes") == "Note this."


def drifting(step):
    weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(60, 2.5), (60, 60))
    tensors = {f"a_layer_outside_of_the_blocks.with_a_long_name_{i}.weight": weight * (1 + i) for i in range(3)}
    for block in range(4):
        for part, alpha in (("attention", 2.2), ("mlp", 3.0)):
            weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(60, alpha), (60, 60), seed=block)
            tensors[f"encoder.layer.{block}.<b>{part}.weight"] = (1 + 0.01 * step * block) * weight
    return tensors


def test_the_table_of_a_study_sorts_by_numbers_with_empty_cells_last(study_page):
    for heading, first in (("p", "0.25"), ("95 % interval", None), ("gain", None)):
        study_page.click(f"#methods th button:text-is('{heading}')")
        place = study_page.locator("#methods th").all_text_contents().index(heading) + 1
        shown = column(study_page, place, "#methods")
        values = [float(text.split()[0]) for text in shown if text not in ("", "–")]
        assert values == sorted(values) != []
        assert all(text in ("", "–") for text in shown[len(values) :])
        assert first is None or shown[0] == first
    study_page.click("#methods th button:text-is('gain')", click_count=2)


@pytest.fixture(scope="module")
def comparison_page(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "report.html"
    tb.compare(drifting(0), drifting(1), progress=False).save(path)
    yield from opened(browser, path, "#weights .main-svg")


def test_the_page_of_a_comparison_shows_findings_first_and_sorts_its_table(comparison_page):
    findings = comparison_page.locator(".findings li").all_text_contents()
    assert findings[0].startswith("note moved most, as ||dW|| / ||W||: encoder.layer.3 (3.00%)")
    assert comparison_page.locator("#weights .trace").count() == 3
    comparison_page.click("#changes th:has-text('relative change') button")
    assert column(comparison_page, 1, "#changes")[-1] == "encoder.layer.3.<b>mlp.weight"


@pytest.fixture(scope="module")
def track_page(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("track") / "report.html"
    tb.track([drifting(0), drifting(1), drifting(1)], progress=False).save(path)
    yield from opened(browser, path, "#lines .main-svg")


def test_the_page_of_a_tracked_run_shows_each_value_of_each_layer(track_page):
    assert "have the same weights" in track_page.locator(".findings li").first.text_content()
    assert column(track_page, 1, "#checkpoints") == ["model 1", "model 2", "model 3"]
    for panel, title in (("xy", "alpha"), ("xy2", "drift"), ("xy3", "stable rank")):
        assert track_page.locator(f"#lines .subplot.{panel} .trace").count() == 11
        assert track_page.locator(f"#lines .{panel[1:]}title").text_content() == title


def test_a_browser_that_cannot_draw_says_so_and_sorts_the_table(browser, report):
    page = browser.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(report.as_uri())
    page.wait_for_selector("#depth:has-text('This browser is too old for the figures; the tables have the numbers.')")
    page.click("#layers th:has-text('alpha') button")
    assert column(page, 5)[0] == "2.00"
    page.close()


# What is wrong with the page in its window: a text that is cut, or that is over another one.
FAULTS = """() => {
  const faults = document.documentElement.scrollWidth > innerWidth ? ["the page is wider than the window"] : [];
  const boxes = (plot, selector) =>
    [...plot.querySelectorAll(selector)].map((node) => [node.getBoundingClientRect(), node.textContent || selector]);
  const apart = (a, b) => a.right < b.left + 1 || a.bottom < b.top + 1;
  for (const plot of document.querySelectorAll(".plot")) {
    const whole = plot.getBoundingClientRect();
    const ticks = boxes(plot, ".xtick text, .ytick text, .y2tick text, .y3tick text");
    const titles = boxes(plot, ".infolayer [class$=title] text").concat(boxes(plot, ".infolayer text[class$=title]"));
    const others = [...titles, ...boxes(plot, ".legend"), ...boxes(plot, ".modebar")];
    for (const [box, name] of [...ticks, ...others])
      if (Math.min(box.left - whole.left, box.top - whole.top, whole.right - box.right, whole.bottom - box.bottom) < -1)
        faults.push(`${plot.id}: "${name}" is cut`);
    others.forEach((one, i) => {
      for (const other of [...ticks, ...others.slice(i + 1)])
        if (!apart(one[0], other[0]) && !apart(other[0], one[0]) && one[1] !== other[1])
          faults.push(`${plot.id}: "${one[1]}" is over "${other[1]}"`);
    });
    if (titles.length < 1) faults.push(`${plot.id}: no title was found`);
  }
  return faults;
}"""


# Whether the figures have the width of the page.
DRAWN = """() => [...document.querySelectorAll(".plot")].every(
  (plot) => Math.abs(plot.querySelector(".main-svg").getBoundingClientRect().width - plot.clientWidth) < 1
)"""


@pytest.mark.parametrize("kind", ["history", "pruning", "study", "comparison", "track"])
def test_a_page_is_whole_at_three_widths_in_light_and_dark_mode(kind, request):
    page = request.getfixturevalue(f"{kind}_page")
    first = page.locator("main > section").first
    assert first.bounding_box()["y"] < page.locator(".plot").first.bounding_box()["y"]
    assert first.get_attribute("aria-label") in ("Findings", "Result", "Recommendation")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (420, 1300, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(DRAWN)
            assert page.evaluate(FAULTS) == [], (scheme, width)
        ground, ink = (
            page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{color}")
            for element, color in (("body", "backgroundColor"), (".xtick text", "fill"))
        )
        assert brightness(ground) < 0.2 if scheme == "dark" else brightness(ground) > 0.8
        assert abs(brightness(ground) - brightness(ink)) > 0.4


def test_the_check_of_a_page_finds_texts_that_are_cut_or_over_each_other(comparison_page):
    title = "text => Plotly.relayout('weights', {'yaxis.title.text': text})"
    comparison_page.evaluate(title, "long " * 100)
    assert any(fault.endswith("is cut") for fault in comparison_page.evaluate(FAULTS))
    comparison_page.evaluate(title, "short")
    comparison_page.evaluate("Plotly.relayout('weights', {'legend.y': 1, 'legend.yref': 'paper', 'legend.x': 0.8})")
    assert any(" is over " in fault for fault in comparison_page.evaluate(FAULTS))


def brightness(color):
    return sum(map(int, re.findall(r"\d+", color)[:3])) / (3 * 255)
