"""Compare the three views of every architecture of Transformers that can be made small: ``make breadth``."""

import argparse
import concurrent.futures
import sys
import tempfile

import transformers

from three_views import FOLDER, STATE_DICT, differences, unexpected
from tiny_transformers import model_types, quiet

LEAST = 300


def check(model_type):
    """Return the type, whether it could be built, and what is wrong."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(model_type, folder)
        lines = unexpected(model_type, found)
        for view, listed in (("state dict", STATE_DICT), ("folder", FOLDER)):
            if model_type in listed and not found[view]:
                lines.append(f"{view}: equal, but listed as different: take it off the list")
        return model_type, True, lines
    except Exception as error:  # of any of 500 architectures
        return model_type, False, [f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; by default all")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with quiet():
        types = options.types or model_types()
    with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
        results = list(pool.map(check, types, chunksize=4))
    compared = [(name, lines) for name, built, lines in results if built]
    for name, built, lines in results:
        if not built:
            print(f"{name} cannot be compared: {lines[0]}")
    wrong = [(name, lines) for name, lines in compared if lines]
    for name, lines in wrong:
        print(f"{name} differs:", *lines[:5], *(["..."] if len(lines) > 5 else []), sep="\n    ")
    listed = sorted({name for name, _ in compared} & (STATE_DICT.keys() | FOLDER.keys()))
    print(
        f"{len(compared)} types of Transformers {transformers.__version__} compared, {len(wrong)} differ; "
        f"{len(listed)} have a listed difference: {', '.join(listed)}"
    )
    return bool(wrong) or (not options.types and len(compared) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
