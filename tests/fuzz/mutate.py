"""Draw hostile values, and change files at random; the same random numbers give the same changes."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMBERS = [
    *(0, 1, -1, 2, 3, 2**31, 2**63, -(2**63) - 1, 10**20, 10**400, 1e20, 1e308, 5e-324, 0.5, 1.5, -0.0),
    *(math.nan, math.inf, -math.inf, True, False),
]
TEXTS = [
    *(
        "",
        " ",
        "a",
        "3",
        "1e9",
        "nan",
        "inf",
        "\u0663",
        "1\u00b2",
        "\ud800",
        "\x00",
        "\x1b]52;c;ZXZpbA==\x07",
        "\u202e\r\n",
    ),
    *("=cmd|' /C calc'!A0", "[/]", "[red]", "../../x", "/", ".", "~", "a/b", "*", "[", "(a+)+$", "%s", "{}", "--help"),
    *("x" * 300, "x" * 5000, "\U0001f600" * 100, "/".join(["y" * 200] * 30)),
]
OBJECTS: list[Callable[[], Any]] = [
    *(
        lambda: None,
        list,
        dict,
        tuple,
        object,
        lambda: b"bytes",
        lambda: [None],
        lambda: [math.nan],
        lambda: {"a": "b"},
    ),
    *(
        lambda: np.float32(0.5),
        lambda: np.array([1, 2]),
        lambda: np.nan,
        lambda: torch.tensor(3),
        lambda: torch.ones(2, 3),
    ),
    *(
        lambda: torch.tensor([]),
        lambda: int,
        lambda: 1j,
        lambda: Path("x"),
        lambda: {1: 2},
        lambda: torch.float16,
    ),
]
# Values that the writer of JSON does not write: they get into the text by their number.
RAW = [
    *("9" * 5000, "1e400", "-" + "9" * 400, "NaN", "-Infinity", "[" * 100_000, "[" * 900 + "]" * 900, '"\\ud800"'),
    *('{"a":' * 3000 + "1" + "}" * 3000, '"\x01"', "01", "nul", '{"a": 1, "a": 2}', "[1,]", '"' + "x" * 10**6 + '"'),
]


class Mutator(random.Random):
    """Random changes."""

    def value(self) -> Any:
        """Return a hostile argument: a number, a text, or something else."""
        kind = self.random()
        if kind < 0.45:
            return self.choice(NUMBERS)
        return self.choice(TEXTS) if kind < 0.7 else self.choice(OBJECTS)()

    def json_value(self) -> Any:
        """Return a hostile value of JSON."""
        kind = self.random()
        if kind < 0.35:
            return self.choice([each for each in NUMBERS if each != 10**400])
        if kind < 0.6:
            return self.choice(TEXTS)
        if kind < 0.8:
            return f"@RAW{self.randrange(len(RAW))}@"
        return self.choice([None, [], {}, [None], [[]], {"": None}, [1, "a", {}], {"a": {"b": {"c": []}}}])

    def bytes(self, data: bytes) -> bytes:
        """Flip, cut, insert, repeat or zero bytes."""
        content = bytearray(data)
        for _ in range(self.choice([1, 1, 1, 2, 5, 30])):
            place = self.randrange(len(content) + 1)
            match self.randrange(7):
                case 0 | 1 | 2 if place < len(content):
                    content[place] ^= 1 << self.randrange(8)
                case 3:
                    del content[place:]
                case 4:
                    content[place:place] = self.randbytes(self.choice([1, 8, 100]))
                case 5:
                    del content[place : place + self.choice([1, 8, 1000])]
                case _:
                    content[place : place + 8] = self.choice([bytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x7f"])
        return bytes(content)

    def json(self, data: bytes) -> bytes:
        """Change one or several values of a JSON text, or its bytes."""
        if self.random() < 0.1:
            return self.bytes(data)
        if self.random() < 0.05:
            return self._written(self.json_value())
        tree = json.loads(data)
        for _ in range(self.choice([1, 1, 1, 1, 2, 4])):
            self._change(tree)
        return self._written(tree)

    def json_lines(self, data: bytes) -> bytes:
        """Change one line of a file of JSON lines, or the order of its lines."""
        lines = data.splitlines()
        place = self.randrange(len(lines))
        match self.randrange(5):
            case 0:
                self.shuffle(lines)
            case 1:
                lines.insert(place, self.choice(lines))
            case 2:
                del lines[place]
            case _:
                lines[place] = self.json(lines[place])
        return b"\n".join(lines) + self.choice([b"\n", b""])

    def _written(self, tree: Any) -> bytes:
        text = json.dumps(tree, ensure_ascii=self.random() < 0.8)
        for number, raw in enumerate(RAW):
            text = text.replace(f'"@RAW{number}@"', raw)
        return text.encode(errors="surrogatepass")

    def _change(self, tree: Any) -> None:
        """Change one value anywhere in a tree, in place."""
        holders = [each for each in _containers(tree) if each]
        if not holders:
            return
        holder = self.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key, kind = self.choice(keys), self.random()
        if kind < 0.7:
            holder[key] = self.json_value()
        elif kind < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[self.choice(TEXTS)] = holder.pop(key) if kind < 0.9 else self.json_value()
        else:
            holder[key] = self.choice(holder)

    def safetensors(self, data: bytes) -> bytes:
        """Change the header of a safetensors file, or any of its bytes."""
        if self.random() < 0.4:
            return self.bytes(data)
        length = int.from_bytes(data[:8], "little")
        header = self.json(data[8 : 8 + length])
        stated = len(header) if self.random() < 0.9 else self.choice([0, 1, 2**63, 2**64 - 1, len(data), 10**8])
        return stated.to_bytes(8, "little") + header + data[8 + length :]

    def archive(self, source: Path, target: Path) -> None:
        """Write a zip archive whose members are changed, left out, renamed, repeated or compressed."""
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for member in old.namelist():
                name, content, kind = member, old.read(member), self.random()
                if kind < 0.2:
                    content = self.bytes(content)
                elif kind < 0.25:
                    continue
                elif kind < 0.3:
                    name = name.rpartition("/")[0] + "/" + self.choice(["x", "data.pkl", "../../x", "constants.pkl"])
                packed = zipfile.ZIP_DEFLATED if self.random() < 0.1 else zipfile.ZIP_STORED
                new.writestr(name, content, packed)

    def place(self, path: Path) -> None:
        """Put something else where a file is expected."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        match self.randrange(6):
            case 0:
                path.mkdir()
            case 1:
                os.mkfifo(path)
            case 2:
                path.symlink_to(path)
            case 3:
                path.symlink_to(self.choice(["/dev/null", "/dev/zero", "/nowhere", "/"]))
            case 4:
                path.write_bytes(
                    self.choice([b"", b"\x00", b"PK\x03\x04", b"\x80\x02", b"{}", b"[]", b"\xff\xfe", b"null"])
                )
            case _:
                pass


def _containers(tree: Any) -> list[Any]:
    """Return all lists and objects in a tree."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return [] if inner is None else [tree, *(found for each in inner for found in _containers(each))]
