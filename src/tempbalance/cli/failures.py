"""What a command does when it fails: one line for a person, and the traceback of a bug in a file."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Generator
from types import FrameType
from typing import Any

from tempbalance._text import one_line
from tempbalance.errors import TempBalanceError

__all__ = ["BUG", "FAILED", "FOUND", "INTERRUPTED", "handled_failures"]

# Exit status; 2 is that of a usage error, 70 is EX_SOFTWARE of sysexits.h.
FAILED, FOUND, BUG, INTERRUPTED = 1, 3, 70, 130
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


_ASCII = dict(zip("▁▂▃▄▅▆▇█–", ".:-=+*%#-", strict=True)) | {"±": "+-", "…": "..."}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: those of bars and numbers by similar ones, the others by escapes."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    return "".join(_ASCII.get(each) or each.encode("unicode_escape").decode() for each in found), error.end


codecs.register_error("tempbalance", _plainer)


@contextlib.contextmanager
def handled_failures() -> Generator[None]:
    """End the process with a status and one line on standard error for any exception in the block.

    SIGTERM and SIGHUP are handled as Ctrl-C. Log messages and warnings are printed as one line, too.
    """
    with _existing_streams(), _terminated_as_interrupted(), _printed_lines():
        try:
            try:
                yield
            finally:
                _flush()
        except KeyboardInterrupt:
            _print("interrupted")
            sys.exit(INTERRUPTED)
        except TempBalanceError as error:
            _print(f"error: {error}")
            sys.exit(FAILED)
        except OSError as error:  # of printing, or of a file that the library does not write
            _print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
            sys.exit(FAILED)
        except SystemExit as stopped:
            if not isinstance(getattr(stopped.__context__, "__cause__", None), KeyboardInterrupt):
                raise
            _print("interrupted")  # typer handles Ctrl-C itself, without a word, or with status 1 in old versions
            sys.exit(INTERRUPTED)
        except BaseException as error:  # a bug, or a failure that the library does not wrap; also a panic in Rust
            _print(f"error: unexpected {type(error).__name__}: {error}; {_log()}")
            sys.exit(BUG)


@contextlib.contextmanager
def _existing_streams() -> Generator[None]:
    """Drop what is printed to a stream that is closed, or that Windows does not give without a console."""
    missing = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with open(os.devnull, "w") as nothing:
        for name in missing:
            setattr(sys, name, nothing)
        try:
            yield
        finally:
            for name in missing:
                setattr(sys, name, None)


def _print(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        print(one_line(message), file=sys.stderr, flush=True)


def _flush() -> None:
    """Write what was printed; without this, a full disk or a closed pipe would fail after the end of this module."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered goes nowhere
        if not isinstance(error, BrokenPipeError):
            raise


def _log() -> str:
    """Write the traceback of the current exception to a file, and return where it is."""
    try:
        handle, name = tempfile.mkstemp(prefix="tempbalance-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{' '.join(sys.argv)}\n{traceback.format_exc()}")
    except OSError as error:
        return f"please report it (no log could be written: {error.strerror})"
    return f"please report it with the log {name}"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Generator[None]:
    """Let a signal that asks the process to end raise KeyboardInterrupt, so that it leaves no unfinished file."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    own = threading.current_thread() is threading.main_thread()
    replaced = [each for each in _SIGNALS if own and signal.getsignal(each) is signal.SIG_DFL]  # nohup ignores SIGHUP
    for each in replaced:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each in replaced:
            signal.signal(each, signal.SIG_DFL)


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _print(f"{record.levelname.lower()}: {record.getMessage()}")


@contextlib.contextmanager
def _printed_lines() -> Generator[None]:
    """Print log messages and warnings, which contain names from files, as printable lines."""

    def show(message: Warning | str, category: type[Warning], *_place: Any, **_more: Any) -> None:
        """Print a warning without the line of code that gave it."""
        _print(
            f"warning: {message}"
            if category.__module__.startswith("tempbalance")
            else f"{category.__name__}: {message}"
        )

    logger, handler = logging.getLogger("tempbalance"), _LineHandler(logging.WARNING)
    logger.addHandler(handler)
    shown = warnings.showwarning
    warnings.showwarning = show
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks is escaped
            stream.reconfigure(errors="tempbalance")
    try:
        yield
    finally:
        logger.removeHandler(handler)
        warnings.showwarning = shown
