"""What the command line prints and returns when a command fails, and that names never reach the terminal as control."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from command_line import check_error, run
from tempbalance.cli.failures import handled_failures
from tempbalance.errors import BalanceWarning

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x07\u202e\rw.weight"


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    save_file({HOSTILE: torch.randn(64, 48), "=cmd|' /C calc'!A0": torch.randn(64, 48)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def check_printable(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))


def test_an_unexpected_error_is_one_line_with_the_place_of_the_log_and_exit_code_70(model, logs, capsys, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError(f"out of memory:\n{HOSTILE}")

    monkeypatch.setattr("tempbalance.analysis.analyze", fail)
    assert run("analyze", model) == 70
    out, err = capsys.readouterr()
    assert out == ""
    place = re.fullmatch(
        r"error: unexpected RuntimeError: out of memory: .*; please report it with the log (.*)\n", err
    )
    check_printable(err)
    assert "RuntimeError: out of memory" in Path(place[1]).read_text()
    assert list(logs.iterdir()) == [Path(place[1])]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "##-# +-0.1 - \\u4e16"), ("cp1252", "##–# ±0.1 – \\u4e16"), ("utf-8", "██–█ ±0.1 – 世")],
)
def test_characters_that_an_encoding_lacks_are_similar_ones_or_escapes(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with handled_failures():
        print("██–█ ±0.1 – 世")
    assert stream.buffer.getvalue().decode(encoding).strip() == shown


def test_a_command_runs_without_standard_output(model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run("analyze", model) == 0


def test_an_unexpected_error_is_one_line_where_no_log_can_be_written(model, capsys, monkeypatch):
    monkeypatch.setattr("tempbalance.analysis.analyze", lambda *_args, **_kwargs: 1 // 0)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert run("analyze", model) == 70
    assert "no log could be written: No such file or directory" in capsys.readouterr().err


def test_names_in_tables_errors_and_files_are_printed_escaped(model, tmp_path, capsys):
    assert run("analyze", model, "--out", tmp_path / "a.csv") == 0
    check_error(capsys, "analyze", tmp_path / f"{HOSTILE}.pt", match=r"\x1b]52;c;ZXZpbA==\x07")
    assert run("analyze", model) == 0
    out, err = capsys.readouterr()
    assert r"\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x07\u202e\rw" in out.replace("\n", "")
    check_printable(out + err)


@pytest.mark.parametrize(
    "place", [("analyze", "a", HOSTILE), ("analyze", f"--{HOSTILE}"), (f"x{HOSTILE}",), (f"--{HOSTILE}",)]
)
def test_arguments_in_errors_of_usage_are_printed_escaped(place, capsys):
    assert run(*place) == 2
    out, err = capsys.readouterr()
    check_printable(out + err)
    assert r"\x1b" in err


def test_log_messages_and_warnings_are_printed_escaped_and_on_one_line(capsys):
    with pytest.raises(SystemExit), handled_failures(), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("tempbalance").warning("skipped %s", HOSTILE)
        warnings.warn(f"no effect on\n{HOSTILE}", BalanceWarning, stacklevel=1)
        sys.exit(0)
    _, err = capsys.readouterr()
    check_printable(err)
    assert re.findall("^.*: ", err, re.MULTILINE) == ["warning: ", "warning: "]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_is_handled_as_ctrl_c(number, capsys):
    before = signal.signal(number, signal.SIG_DFL)  # a shell may have started the tests with nohup
    try:
        with pytest.raises(SystemExit) as stopped, handled_failures():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupted_command_says_so(model, tmp_path, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("tempbalance.compress.prune_folder", interrupt)
    assert run("prune", model, "-s", 0.5, "--out", tmp_path / "p") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handled_failures():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_to_a_full_disk_is_an_error_of_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tempbalance", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_reader_that_ends_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tempbalance", "--version"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""


TOO_LONG = "x" * 5000
USAGE = {
    "analyze": [("--farms-rows", 1), ("--farms-rows", "1e3")],
    "prune": [
        *(("-s", value) for value in (50, -0.1, "nan", "half")),
        *(("-s", 0.5, *more) for more in (("--epsilon", 7), ("--samples", "1e20"), ("--samples", 10**20))),
        *(("-s", 0.5, *more) for more in (("--seed", -1), ("--seed", 10**20), ("--group", 1), ("--length", 10**20))),
    ],
    "recover": [("--seed", 10**20), ("--length", 1), ("--lr", "inf"), ("--lr", "nan")],
}


@pytest.mark.parametrize("command", USAGE)
def test_a_number_out_of_range_is_one_line_before_any_work(command, tmp_path, capsys):
    for arguments in USAGE[command]:
        given = ("--tokens", tmp_path / "t.npz") if command == "recover" else ()
        assert run(command, tmp_path / "nowhere", *given, "--out", tmp_path / "p.json", *arguments) in (1, 2)
        err = capsys.readouterr().err
        assert "nowhere" not in err  # the source was not looked for
        assert "Traceback" not in err


def test_a_device_that_does_not_exist_is_one_line_before_any_work(tmp_path, capsys):
    tokens, out = ("--tokens", tmp_path / "t.npz"), ("--out", tmp_path / "p")
    for device in ("0", "gpu", "cuda:99"):
        message = f"device '{device}' cannot be used here"
        check_error(capsys, "analyze", "nowhere", "--device", device, match=message)
        check_error(capsys, "prune", "nowhere", "-s", 0.5, *out, "--device", device, match=message)
        check_error(capsys, "recover", "nowhere", *tokens, *out, "--device", device, match=message)


def test_names_that_are_too_long_are_one_line(model, tmp_path, capsys):
    for arguments in (
        ("analyze", TOO_LONG),
        ("analyze", model, "--out", tmp_path / f"{TOO_LONG}.json"),
        ("analyze", model, "--out", tmp_path / f"{'x' * 249}.json"),
        ("compare", f"{TOO_LONG}.json", model),
        ("prune", model, "-s", 0.5, "--out", tmp_path / TOO_LONG),
        ("prune", model, "--from-allocation", TOO_LONG, "--out", tmp_path / "p"),
        ("study", "--task", f"{TOO_LONG}.py", "--methods", "llr", "--out", tmp_path / "s"),
    ):
        check_error(capsys, *arguments, match="")
        assert {path.name for path in tmp_path.iterdir()} == {"logs", model.name}


@pytest.mark.parametrize("command", ["analyze", "prune", "recover", "study"])
def test_a_place_that_cannot_be_an_output_is_one_line_and_stays_as_it_is(command, model, tmp_path, capsys, monkeypatch):
    (tmp_path / "task.py").write_text("def train(seed, method): return 0.0")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.json" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.json").symlink_to("folder.json")
    (tmp_path / "dangling.json").symlink_to("nowhere")
    before = {path: path.is_symlink() for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    given = {
        "analyze": (model,),
        "prune": (model, "-s", 0.5),
        "recover": (tmp_path, "--tokens", tmp_path / "t.npz"),
        "study": ("--task", tmp_path / "task.py", "--methods", "llr"),
    }[command]
    monkeypatch.chdir(tmp_path)
    for place in ("folder.json", "link.json", "dangling.json", "file/x.json", ".", "/"):
        check_error(capsys, command, *given, "--out", place, match="")
    if command != "analyze":
        check_error(capsys, command, *given, "--out", "file", match="")
    assert {path: path.is_symlink() for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before
    assert (tmp_path / "file").read_text() == (tmp_path / "folder.json" / "thesis.tex").read_text() == "mine"


def test_json_that_no_reader_takes_is_one_line(model, tmp_path, capsys):
    given = tmp_path / "a.json"
    for content in ("[" * 100_000, "9" * 5000, '"plan"', '{"method": "[/]"}', "\x00\xff"):
        given.write_text(content)
        check_error(capsys, "compare", given, model, match="a.json is not an analysis")
        options = ("--from-allocation", given, "--out", tmp_path / "p")
        check_error(capsys, "prune", model, *options, match="a.json is not an allocation")


def test_markup_in_a_saved_allocation_is_printed_as_it_is(tmp_path, capsys):
    scale = torch.logspace(0, 1, 48)
    save_file({f"layers.{i}.fc.weight": torch.randn(64, 48) * scale for i in range(3)}, tmp_path / "m.safetensors")
    assert run("prune", tmp_path / "m.safetensors", "-s", 0.5, "--out", tmp_path / "p") == 0
    path = tmp_path / "p" / "allocation.json"
    path.write_text(path.read_text().replace('"method": "', '"method": "[/][red]\\u001b'))
    options = ("--from-allocation", path, "--out", tmp_path / "again")
    assert run("prune", tmp_path / "m.safetensors", *options) == 0
    assert r"allocation by [/][red]\x1b" in capsys.readouterr().out


def test_a_panic_of_a_library_in_rust_is_an_unexpected_error(capsys):
    class PanicException(BaseException):
        """As of pyo3: it is no Exception."""

    with pytest.raises(SystemExit) as stopped, handled_failures():
        raise PanicException("index out of bounds")
    assert stopped.value.code == 70
    assert "unexpected PanicException: index out of bounds" in capsys.readouterr().err


def test_an_analysis_that_is_interrupted_before_it_starts_names_no_file(model, tmp_path, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        for name in started:
            (tmp_path / name).write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr("tempbalance.analysis.analyze", interrupt)
    started = []
    assert run("analyze", model, "--out", tmp_path / "a.json") == 130
    assert capsys.readouterr().err == "interrupted\n"
    started = ["a.json.partial"]
    assert run("analyze", model, "--out", tmp_path / "a.json") == 130
    assert "interrupted; finished layers are in" in capsys.readouterr().err
