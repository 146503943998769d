"""Every output is the old or the new one, whatever happens, and no litter stays."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import exit_code
from tempbalance._files import atomic_folder, check_replaceable, check_writable, read_regular, write_atomically
from tempbalance.errors import AnalysisError, CheckpointError, OutputError

AS_ROOT = getattr(os, "geteuid", int)() == 0  # on Windows, permissions do not restrict either
MARKER = "allocation.json"


@contextlib.contextmanager
def largest_file(size):
    """A limit on the size of a file, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_folder(out, content="new"):
    with atomic_folder(out, MARKER) as folder:
        (folder / MARKER).write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(bytes(10_000))


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_an_output_error_is_an_error_of_the_analysis_the_checkpoint_and_the_system():
    assert issubclass(OutputError, (AnalysisError, CheckpointError, OSError))
    assert str(OutputError("cannot write x")) == "cannot write x"


def test_a_file_is_replaced_and_readable_by_all_that_the_umask_allows(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    write_atomically(target, b"new")
    assert target.read_text() == "new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    assert names(tmp_path) == {"a.json"}


@pytest.mark.parametrize("write", [lambda path: write_atomically(path, bytes(10_000)), write_folder])
def test_on_a_full_disk_the_old_output_stays(tmp_path, write):
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "file").write_text("old")
    target = tmp_path / ("folder" if write is write_folder else "file")
    with largest_file(5000), pytest.raises(OutputError, match=r"cannot write .*: File too large; an earlier output is"):
        write(target)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / MARKER).read_text() == "old"
    assert names(tmp_path) == {"file", "folder"}


def test_a_full_disk_is_an_output_error_also_where_safetensors_writes(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    with (
        largest_file(5000),
        pytest.raises(OutputError, match="File too large"),
        atomic_folder(tmp_path / "out", MARKER) as folder,
    ):
        save_file({"a": np.zeros(5000)}, folder / "a.safetensors")
    assert names(tmp_path) == set()


def other_places(tmp_path, kind):
    """A path that cannot be an output, and what the error says."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / ("file" if kind == "file" else "folder"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    return {
        "link": "symbolic link",
        "dangling": "symbolic link",
        "pipe": f"is not a {kind}",
        "nowhere/x": "there is no folder",
        "file/x": "there is no folder",
        "x" * 300: "File name too long",
        "/".join(["y" * 200] * 30): "File name too long",
        "\ud800": "surrogates not allowed",
        **({"folder": "is not a file"} if kind == "file" else {"file": "is not a folder", "..": "choose a name in it"}),
    }


def check_refused(write: Callable[[Path], object], folder: Path, kind: str) -> None:
    for path, message in other_places(folder, kind).items():
        before = names(folder)
        with pytest.raises(OutputError, match=message):
            write(folder / path)
        assert names(folder) == before


@pytest.mark.parametrize("write", [check_writable, lambda path: write_atomically(path, b"new")])
def test_a_path_that_cannot_be_a_file_is_refused_and_untouched(tmp_path, write):
    check_refused(write, tmp_path, "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("write", [lambda path: check_replaceable(path, MARKER), write_folder])
def test_a_path_that_cannot_be_a_folder_is_refused_and_untouched(tmp_path, write):
    check_refused(write, tmp_path, "folder")
    with pytest.raises(CheckpointError, match="is not an earlier output"):
        write(tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"


@pytest.fixture
def read_only():
    """A folder that this process may read and not write; root becomes another user."""
    folder = Path(tempfile.mkdtemp())
    write_folder(folder / "out", "old")
    folder.chmod(0o555)
    if AS_ROOT:
        os.seteuid(65534)
    yield folder
    if AS_ROOT:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("write", [check_writable, lambda path: write_atomically(path, b"new"), write_folder])
def test_a_read_only_folder_is_refused_and_the_old_output_stays(read_only, write):
    with pytest.raises(OutputError, match="Permission denied"):
        write(read_only / ("out" if write is write_folder else "a"))
    assert names(read_only) == {"out"}
    assert (read_only / "out" / MARKER).read_text() == "old"


def test_an_error_of_the_writer_passes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / "out", MARKER) as folder:
        (folder / "half").touch()
        raise KeyError
    assert names(tmp_path) == set()


def write_killed(out, kind, calls):
    """Write a file or a folder, and kill this process after some calls of functions that the output depends on."""
    events = {"os.rename", "ctypes.dlsym", "open", "shutil.rmtree", "os.chmod", "os.remove"}
    left, armed = calls, False

    def kill(event, _):
        nonlocal left
        if armed and event in events:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if kind == "folder in two renames":
        sys.platform = "a system without exchange"
    sys.addaudithook(kill)
    armed = True
    write_folder(out) if kind != "file" else write_atomically(out, b"new")
    armed = False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder", "folder in two renames"])
def test_killed_at_any_step_the_next_run_leaves_one_whole_output_and_no_litter(tmp_path, kind):
    number, killed, contents, missing = 0, True, set(), 0
    while killed:
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        if kind == "file":
            out.write_text("old")
        else:
            write_folder(out, "old")
        killed = exit_code(write_killed, out, kind, number) == -signal.SIGKILL
        missing += not out.exists()
        check_writable(out) if kind == "file" else check_replaceable(out, MARKER)
        assert names(out.parent) == {"out"}
        contents.add(content := (out if kind == "file" else out / MARKER).read_text())
        number += 1
    assert content == "new"
    assert contents == {"old", "new"}
    assert missing == (1 if kind == "folder in two renames" or (kind == "folder" and sys.platform != "linux") else 0)
    assert number > (4 if kind == "file" else 10)


def hold_open(out, started, done):
    with atomic_folder(out, MARKER) as folder:
        (folder / MARKER).write_text("slow")
        started.set()
        done.wait()


def test_what_another_process_is_writing_is_not_removed(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, done = context.Event(), context.Event()
    process = context.Process(target=hold_open, args=(tmp_path / "out", started, done))
    process.start()
    started.wait()
    write_folder(tmp_path / "out", "quick")
    assert (tmp_path / "out" / MARKER).read_text() == "quick"
    done.set()
    process.join()
    assert (tmp_path / "out" / MARKER).read_text() == "slow"
    assert names(tmp_path) == {"out"}


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file") == b"content"
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
