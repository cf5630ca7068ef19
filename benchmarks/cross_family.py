"""A picture in one style finds the same thing in other styles: search across families of emoji. One JSON line.

    python benchmarks/cross_family.py --cache runs/cache --out benchmarks/results/cross_family.json

The catalogue is the embedded corpus (`Index.update`). The queries are its unseen renditions (`val`): training had
the concept from other families, but not this family's drawing of it.

    r1                      share of queries whose first hit shows the query's concept. The catalogue is `train`
                            without the query's family (a filter), so a query can only recognise the thing and not
                            the style. By the match embedding of the shipped M6
    r1_interval             95 %, bootstrap over concepts
    r5, r10                 the same among the first 5 and 10 hits
    r1_by_family            by the query's family
    r1_all_families         with the query's own family in the catalogue. Its other drawings show other things (a
                            picture's concept is withheld from its family) but look more alike in style
    plain_*                 the same for EfficientNet-Lite0's pooled features (extra `[photo]`), for comparison
    queries, items          numbers of pictures
    index_seconds           time to read, encode and store all items; `query_ms`: median time of a query with its
                            filter, picture decoded and encoded
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench import load_pictures
from benchmarks.common import Stopwatch, emit, machine, rounded
from benchmarks.knn import EfficientNetLite0
from benchmarks.measures import bootstrap_interval
from openm6.search import Index

TOP = 10
Find = Callable[[int, bool], list[str]]  # (query, without its family) -> the concepts of its first hits


def figures_of(find: Find, queries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Recall at 1, 5, 10 of a search, given the rows of the queries."""
    concepts = [row["concept"] for row in queries]
    found = [find(i, True) for i in range(len(queries))]
    first = np.array([hits[:1] == [concept] for hits, concept in zip(found, concepts, strict=True)])
    figures: dict[str, Any] = {"r1": float(first.mean()), "r1_interval": bootstrap_interval(first, concepts)}
    for n in (5, TOP):
        figures[f"r{n}"] = float(np.mean([c in hits[:n] for hits, c in zip(found, concepts, strict=True)]))
    families = np.array([row["family"] for row in queries])
    figures["r1_by_family"] = {name: float(first[families == name].mean()) for name in sorted(set(families))}
    everywhere = [find(i, False)[:1] == [concept] for i, concept in enumerate(concepts)]
    figures["r1_all_families"] = float(np.mean(everywhere))
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, help="folder for EfficientNet-Lite0's features")
    parser.add_argument("--no-plain", action="store_true", help="leave EfficientNet-Lite0 out")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)

    pictures = load_pictures()
    rows = [picture.row for picture in pictures]
    val = [i for i, row in enumerate(rows) if row["split"] == "val"]
    queries = [rows[i] for i in val]
    figures: dict[str, Any] = {
        "benchmark": "cross_family",
        "command": f"python benchmarks/cross_family.py{' --no-plain' if options.no_plain else ''}",
        "machine": machine(),
        "queries": len(queries),
        "items": len(rows),
    }
    with tempfile.TemporaryDirectory() as folder:
        index, seconds = Index.open(folder), list[float]()
        with Stopwatch() as watch:
            index.update("corpus-emoji", workers=1)

        def by_index(query: int, without: bool) -> list[str]:
            start = time.perf_counter()
            other = f" and family != '{queries[query]['family']}'" if without else ""
            picture = pictures[val[query]].image
            hits = index.query(image=picture, where=f"split = 'train'{other}", n=TOP)
            seconds.append(time.perf_counter() - start)
            return [str(hit.attributes["concept"]) for hit in hits]

        figures |= figures_of(by_index, queries)
        figures |= {"index_seconds": watch.seconds, "query_ms": 1000 * float(np.median(seconds))}
    if not options.no_plain:
        features = EfficientNetLite0().features([each.image for each in pictures], cache=options.cache)
        train = np.array([row["split"] == "train" for row in rows])
        families = np.array([row["family"] for row in rows])

        def by_features(query: int, without: bool) -> list[str]:
            allowed = train & (families != queries[query]["family"]) if without else train
            scores = np.where(allowed, features @ features[val[query]], -np.inf)
            return [rows[i]["concept"] for i in np.argsort(-scores, kind="stable")[:TOP]]

        figures |= {f"plain_{key}": value for key, value in figures_of(by_features, queries).items()}
    emit(rounded(figures), options.out)


if __name__ == "__main__":
    main()
