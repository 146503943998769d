"""Make a set of product reviews, to test models trained on film reviews: ``text/amazon/test.tsv``.

    python experiments/product_reviews.py vaderSentiment-3.3.2.tar.gz DATA/text/amazon

The first argument is the source distribution of the package vaderSentiment (MIT licence), which has 3,708 sentences of
Amazon reviews with the mean of 20 people's ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014). The 2,455 sentences
with a clear mean, 1 or more in size, are written in the form of GLUE: sentence, and label 1 for a positive one, else 0.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

from tempbalance._files import write_atomically

INNER = "hutto_ICWSM_2014.tar.gz"
RATED = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
CLEAR = 1.0  # least size of a mean rating


def ratings(package: Path) -> list[tuple[str, float]]:
    """Read the sentences and their mean ratings."""
    with tarfile.open(package) as outer:
        (name,) = (name for name in outer.getnames() if name.endswith(f"/{INNER}"))
        inner = outer.extractfile(name)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            file = archive.extractfile(RATED)
            assert file is not None
            lines = file.read().decode().splitlines()
    return [(text.strip(), float(rating)) for _, rating, text in (line.split("\t") for line in lines)]


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description="Make a set of product reviews with labels as in SST-2.")
    parser.add_argument("package", type=Path, help="source distribution of vaderSentiment")
    parser.add_argument("out", type=Path, help="folder for test.tsv")
    given = parser.parse_args()
    rows = [f"{text}\t{int(rating > 0)}" for text, rating in ratings(given.package) if abs(rating) >= CLEAR]
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / "test.tsv", "\n".join(["sentence\tlabel", *rows, ""]).encode())
    print(f"{given.out / 'test.tsv'}: {len(rows)} sentences")


if __name__ == "__main__":
    main()
