"""An analysis is resumed only if its files are the same; its resume file goes after the outputs are written."""

import json
import os
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from command_line import check_error, run
from tempbalance.analysis import TrackResume
from tempbalance.analysis.resume import ResumeFile
from tempbalance.errors import AnalysisError, OutputError, WeightError

NAMES = [f"l{i}.weight" for i in range(6)]


def write_model(path, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, 1 + seed, 48)
    save_file({name: torch.randn(64 + i, 48, generator=generator) * scale for i, name in enumerate(NAMES)}, path)


@dataclass(frozen=True)
class Interrupted(tb.Hill):
    """Stops after a few weights; has the settings of Hill."""

    __module__, __qualname__ = "tempbalance", "Hill"

    def fit_tails(self, eigenvalues):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(None)
        return super().fit_tails(eigenvalues)

    def __repr__(self):
        return repr(tb.Hill())


done: list[None] = []


@pytest.fixture
def source(tmp_path):
    write_model(tmp_path / "m.safetensors", seed=0)
    return tmp_path / "m.safetensors"


@pytest.fixture
def partial(source, tmp_path):
    """The file of an interrupted analysis."""
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        tb.analyze(source, estimator=Interrupted(), resume=tmp_path / "a.json.partial")
    return tmp_path / "a.json.partial"


def alphas(source, **options):
    return [layer.alpha for layer in tb.analyze(source, progress=False, **options).layers]


def test_finished_rows_of_the_same_file_are_used(source, partial):
    lines = partial.read_text().splitlines()
    row = json.loads(lines[1]) | {"alpha": 77.0}
    partial.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    found = alphas(source, resume=partial)
    assert found.count(77.0) == 1
    assert len(found) == 6
    assert not partial.exists()


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_noticed(source, partial, caplog):
    times = os.stat(source)
    for way in ("in place", "by rename"):
        new = source if way == "in place" else source.with_name("new.safetensors")
        write_model(new, seed=1)
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
        new.replace(source)
        assert (source.stat().st_size, source.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
        kept = partial.read_bytes()
        assert alphas(source, resume=partial) == alphas(source)
        assert "starting afresh" in caplog.text
        partial.write_bytes(kept)


def test_the_same_file_under_another_path_is_the_same_work(source, partial, tmp_path, monkeypatch):
    (tmp_path / "link.safetensors").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    expected = len(partial.read_text().splitlines())
    with pytest.raises(KeyboardInterrupt):
        tb.analyze("link.safetensors", estimator=Interrupted(), resume=partial)
    assert len(partial.read_text().splitlines()) == expected


@pytest.mark.parametrize(
    "damage",
    [
        {"alpha": "3"},
        {"alpha": None},
        {"shape": [64]},
        {"num_tail": -1},
        {"status": "fine"},
        {"esd": {"eigenvalues": [1.0], "ranks": []}},
    ],
)
def test_a_damaged_row_is_computed_again(source, partial, damage):
    lines = partial.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | damage)
    lines[2] = "[" * 100_000
    partial.write_text("\n".join(lines) + "\n")
    assert alphas(source, resume=partial) == alphas(source)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"my notes\n", b'{"a": 1}\n', b"[" * 100_000, b"9" * 5000])
def test_a_file_of_the_user_is_refused_and_untouched(source, tmp_path, capsys, content):
    partial = tmp_path / "a.json.partial"
    partial.write_bytes(content)
    with pytest.raises(AnalysisError, match=r"a\.json\.partial exists and is not the resume file of an analysis"):
        tb.analyze(source, resume=partial)
    check_error(capsys, "analyze", source, "--out", tmp_path / "a.json", match="choose another")
    assert partial.read_bytes() == content
    assert not (tmp_path / "a.json").exists()


def test_a_path_that_is_no_regular_file_is_refused(source, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(AnalysisError, match="not a regular file"):
            tb.analyze(source, resume=tmp_path / name)
    with pytest.raises(OutputError, match="too long"):
        tb.analyze(source, resume=tmp_path / ("x" * 300))


def test_the_resume_file_stays_until_every_output_is_written(source, tmp_path, monkeypatch):
    def fail(*_args):
        raise OutputError("cannot write")

    outputs = ("--out", tmp_path / "a.json", "--out", tmp_path / "a.csv")
    with monkeypatch.context() as patched:
        patched.setattr("tempbalance.analysis.result.csv_bytes", fail)
        assert run("analyze", source, *outputs, "--quiet") == 1
    assert len((tmp_path / "a.json.partial").read_text().splitlines()) == 7
    assert run("analyze", source, *outputs, "--quiet") == 0
    assert not (tmp_path / "a.json.partial").exists()


@pytest.mark.parametrize("outputs_written", [False, True])
def test_rows_of_an_estimator_whose_code_may_have_changed_are_measured_again(source, tmp_path, outputs_written):
    def alphas_plus(number):
        class Mine(tb.Hill):
            def fit_tails(self, eigenvalues):
                fit = super().fit_tails(eigenvalues)
                return fit._replace(alpha=fit.alpha + number)

        try:
            with TrackResume(tmp_path / "t.json") as resume, ResumeFile(tmp_path / "a.json.partial") as rows:
                analysis = tb.analyze(source, estimator=Mine(), resume=rows)
                tracked = tb.track([source], estimator=Mine(), resume=resume)
                if not outputs_written:
                    raise KeyboardInterrupt
                tracked.save(tmp_path / "t.json")
        except KeyboardInterrupt:
            pass
        return [analysis.layers[0].alpha, tracked.checkpoints[0].layers[0].alpha]

    assert alphas_plus(10) == [pytest.approx(alpha + 10) for alpha in alphas_plus(0)]


def test_with_strict_a_weight_that_was_skipped_before_raises(tmp_path):
    torch.save({"a.weight": torch.full((48, 48), torch.nan)}, tmp_path / "m.pt")
    partial = tmp_path / "a.json.partial"
    with pytest.raises(KeyboardInterrupt), ResumeFile(partial) as resume:  # the outputs are not written
        tb.analyze(tmp_path / "m.pt", resume=resume)
        raise KeyboardInterrupt
    with pytest.raises(WeightError, match=r"a\.weight: .*NaN"):
        tb.analyze(tmp_path / "m.pt", resume=partial, strict=True)
