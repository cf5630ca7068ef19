"""Search in 10 thousand, 100 thousand and 1 million items: coarse codes and re-rank against exact. One JSON line.

    python benchmarks/search_scale.py --disk PATH --out benchmarks/results/search_scale.json

The items are vectors of 128 dimensions, like those of the shipped M6 (`catalogue_vectors.py` explains how they are
made), with a category and a price. The queries are further such vectors. The engine is LanceDB, used as
`openm6.search` uses it. `exact` compares the query with every vector. `two_rounds` compares its binary code with
every code (Hamming), then takes the vectors of the nearest few hundred and ranks them exactly. The two take turns,
query by query, so other work on the machine affects both. Pages are warm: every arm answers some queries before it
is timed.

    recall10_of_exact   at the largest size: the share of exact search's first 10 that two rounds find
    speedup             at the largest size: median time of exact search over that of two rounds
    recall10_filtered, speedup_filtered
                        the same with a filter that one item in ten passes
    sizes               by number of items, and in it by arm:
        p50_ms, p95_ms      a query, one at a time
        qps                 queries a second by as many threads as there are cores
        recall10            of exact search's first 10
        build_s             time to write the items; for an index beside them, time to build the index
      arms: exact, two_rounds, exact_filtered, two_rounds_filtered; answer (through `Index.nearest`, with the items'
      attributes: a user's waiting time, without the encoder); lancedb_rq (LanceDB's own IVF with RaBitQ codes and
      re-rank, whose answer depends on the spread of items over shards); faiss_flat (exact), faiss_codes (the same
      codes, IndexBinaryFlat, same re-rank), faiss_hnsw, usearch_hnsw: indices in memory, without attributes or
      filters
    dimension_real, dimension_items
                        intrinsic dimension of the real embeddings, and of the largest set of items
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openm6
from benchmarks.catalogue_vectors import catalogue_vectors, dimension, pairs_within
from benchmarks.common import Stopwatch, emit, machine, rounded
from openm6.data.embedded import EmojiCorpus
from openm6.search.codes import Codes
from openm6.search.index import CANDIDATES, Index
from openm6.search.lance import LanceStore
from openm6.search.rounds import exact, two_rounds
from openm6.search.store import About, Entries
from openm6.search.where import Condition

K = 10
WARM = 3  # queries of each arm that are not timed
LOT = 50_000  # items written at a time
BITS = 256
PRICES = 100
CHEAP = Condition("price", "<", PRICES / 10)
Answer = Callable[[int], Sequence[Any]]  # query -> ids of the first 10


def timed(arms: dict[str, Answer], queries: int, threads: int) -> tuple[dict[str, Any], dict[str, list[set]]]:
    """(figures, answers) of arms that take turns, query by query; then each alone, on all threads."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    answers: dict[str, list[set]] = {name: [] for name in arms}
    for query in range(WARM):
        for answer in arms.values():
            answer(query)
    for query in range(queries):
        for name, answer in arms.items():
            start = time.perf_counter()
            found = answer(query)
            seconds[name].append(time.perf_counter() - start)
            answers[name].append(set(found))
    figures: dict[str, Any] = {}
    for name, answer in arms.items():
        p50, p95 = (1000 * float(np.percentile(seconds[name], p)) for p in (50, 95))
        with Stopwatch() as watch, ThreadPoolExecutor(threads) as pool:
            list(pool.map(answer, range(queries)))
        figures[name] = {"p50_ms": p50, "p95_ms": p95, "qps": queries / watch.seconds}
    return figures, answers


def recall(found: Sequence[set], wanted: Sequence[set]) -> float:
    return float(np.mean([len(a & b) / len(b) for a, b in zip(found, wanted, strict=True)]))


def lance_arms(
    folder: Path, items_ND: np.ndarray, queries_QD: np.ndarray, threads: int, rq_from: int
) -> tuple[dict[str, Any], list[set]]:
    """Figures of LanceDB's arms by name, and the exact answers as numbers of items."""
    store, rng = LanceStore(str(folder)), np.random.default_rng(0)
    about = About(
        encoder="m6",
        fingerprint="vectors",
        dim=items_ND.shape[1],
        bits=BITS,
        centre=items_ND[:512].mean(axis=0).tolist(),
        columns={"category": "text", "price": "number"},
        category="category",
    )
    codes = Codes(about.centre, about.bits)
    with Stopwatch() as watch:
        store.create(about)
        for start in range(0, len(items_ND), LOT):
            lot_ND = items_ND[start : start + LOT]
            ids = [str(i) for i in range(start, start + len(lot_ND))]
            prices = rng.uniform(0, PRICES, len(lot_ND)).tolist()
            attributes = [{"category": f"kind {i % 20}", "price": prices[i]} for i in range(len(lot_ND))]
            store.write(Entries(ids, ["-"] * len(ids), lot_ND, codes.pack(lot_ND), attributes), known=False)
        store.settle()
    index = Index(store)

    def one(query: int, where: Condition | None = None) -> list[str]:
        return [hit.id for hit in exact(store, queries_QD[query], K, where)]

    def two(query: int, where: Condition | None = None) -> list[str]:
        found = two_rounds(store, queries_QD[query], K, codes, candidates=CANDIDATES, where=where)
        return [hit.id for hit in found]

    figures, answers = timed(
        {
            "exact": one,
            "two_rounds": two,
            "exact_filtered": lambda query: one(query, CHEAP),
            "two_rounds_filtered": lambda query: two(query, CHEAP),
            "answer": lambda query: [hit.id for hit in index.nearest(queries_QD[query], None, K)],
        },
        len(queries_QD),
        threads,
    )
    for name in figures:
        figures[name]["recall10"] = recall(answers[name], answers[f"exact{'_filtered' * ('filt' in name)}"])
    figures["two_rounds"]["build_s"] = watch.seconds
    if len(items_ND) >= rq_from:
        figures["lancedb_rq"] = lance_rq(store, queries_QD, answers["exact"], threads)
    return figures, [{int(i) for i in found} for found in answers["exact"]]


def lance_rq(store: LanceStore, queries_QD: np.ndarray, wanted: list[set], threads: int) -> dict[str, Any]:
    """LanceDB's own index of binary codes: an eighth of the partitions are probed, 200 candidates re-ranked."""
    from lancedb.index import IvfRq

    table: Any = store.table
    with Stopwatch() as watch:
        table.create_index("item_vector", config=IvfRq(distance_type="dot"))

    def answer(query: int) -> list[str]:
        search = table.search(queries_QD[query], vector_column_name="item_vector").distance_type("dot")
        probes = max(1, round(len(table) / 8192 / 8))
        return (
            search.nprobes(probes)
            .refine_factor(20)
            .limit(K)
            .select(["id", "_distance"])
            .to_arrow()["id"]
            .to_pylist()
        )

    figures, answers = timed({"rq": answer}, len(queries_QD), threads)
    return {**figures["rq"], "recall10": recall(answers["rq"], wanted), "build_s": watch.seconds}


def memory_arms(
    items_ND: np.ndarray, queries_QD: np.ndarray, wanted: list[set], threads: int
) -> dict[str, Any]:
    """Figures of faiss and usearch, one index at a time."""
    import faiss
    from usearch.index import Index as Usearch

    n, dim = items_ND.shape
    codes = Codes(items_ND[:512].mean(axis=0), BITS)
    figures: dict[str, Any] = {}

    def measure(name: str, make: Callable[[], Answer]) -> None:
        faiss.omp_set_num_threads(threads)
        with Stopwatch() as watch:
            answer = make()
        faiss.omp_set_num_threads(1)  # one query is not divided, and several come from our threads
        found, answers = timed({name: answer}, len(queries_QD), threads)
        figures[name] = {**found[name], "recall10": recall(answers[name], wanted), "build_s": watch.seconds}

    def flat() -> Answer:
        index = faiss.IndexFlatIP(dim)
        index.add(items_ND)  # pyright: ignore[reportCallIssue]
        return lambda query: index.search(queries_QD[query : query + 1], K)[1][0].tolist()  # pyright: ignore[reportCallIssue]

    def binary() -> Answer:
        index = faiss.IndexBinaryFlat(BITS)
        index.add(codes.pack(items_ND))  # pyright: ignore[reportCallIssue]

        def answer(query: int) -> list[int]:
            near = index.search(codes.pack(queries_QD[query : query + 1]), min(CANDIDATES, n))[1][0]  # pyright: ignore[reportCallIssue]
            return near[np.argsort(-(items_ND[near] @ queries_QD[query]))[:K]].tolist()

        return answer

    def hnsw() -> Answer:
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.add(items_ND)  # pyright: ignore[reportCallIssue]
        index.hnsw.efSearch = 64
        return lambda query: index.search(queries_QD[query : query + 1], K)[1][0].tolist()  # pyright: ignore[reportCallIssue]

    def usearch() -> Answer:
        index = Usearch(ndim=dim, metric="ip", dtype="f32")
        index.add(np.arange(n), items_ND, threads=threads)
        return lambda query: index.search(queries_QD[query], K).keys.tolist()  # pyright: ignore[reportAttributeAccessIssue]

    for name, make in (
        ("faiss_flat", flat),
        ("faiss_codes", binary),
        ("faiss_hnsw", hnsw),
        ("usearch_hnsw", usearch),
    ):
        measure(name, make)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", type=Path, help="folder for the index (1.5 GB); default: a temporary one")
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of items")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rq-from", type=int, default=100_000, help="items from which lancedb_rq is built")
    parser.add_argument("--embeddings", type=Path, help="a file .npy that keeps the real embeddings")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    sizes = [int(each) for each in options.sizes.split(",")]
    threads = os.cpu_count() or 1

    corpus = EmojiCorpus(None)
    if options.embeddings and options.embeddings.exists():
        real_RD = np.load(options.embeddings, allow_pickle=False)
    else:
        real_RD = openm6.load().embed_images(list(corpus.images))
        if options.embeddings:
            np.save(options.embeddings, real_RD)
    pairs_P2 = pairs_within([row["concept"] for row in corpus.rows])
    queries_QD = catalogue_vectors(real_RD, pairs_P2, options.queries, seed=1)
    items_ND = catalogue_vectors(real_RD, pairs_P2, max(sizes), seed=0)

    figures: dict[str, Any] = {}
    for n in sizes:
        folder = Path(tempfile.mkdtemp(prefix="search-scale-", dir=options.disk))
        try:
            figures[str(n)], wanted = lance_arms(folder, items_ND[:n], queries_QD, threads, options.rq_from)
        finally:
            shutil.rmtree(folder)
        figures[str(n)] |= memory_arms(items_ND[:n], queries_QD, wanted, threads)
        print(f"{n:,} items: {rounded(figures[str(n)], 3)}", file=sys.stderr, flush=True)
    largest = figures[str(max(sizes))]
    some_RD = real_RD[:: max(1, len(real_RD) // 300)]
    emit(
        rounded(
            {
                "benchmark": "search_scale",
                "command": f"python benchmarks/search_scale.py --sizes {options.sizes}",
                "machine": machine(),
                "recall10_of_exact": largest["two_rounds"]["recall10"],
                "speedup": largest["exact"]["p50_ms"] / largest["two_rounds"]["p50_ms"],
                "recall10_filtered": largest["two_rounds_filtered"]["recall10"],
                "speedup_filtered": largest["exact_filtered"]["p50_ms"]
                / largest["two_rounds_filtered"]["p50_ms"],
                "bits": BITS,
                "candidates": CANDIDATES,
                "queries": options.queries,
                "dimension_real": dimension(
                    nearest(real_RD, some_RD)[:, 1:]
                ),  # the first is the query itself
                "dimension_items": dimension(nearest(items_ND, queries_QD[:100])),
                "sizes": figures,
            }
        ),
        options.out,
    )


def nearest(items_ND: np.ndarray, queries_QD: np.ndarray, k: int = 21) -> np.ndarray:
    """Cosines of the `k` nearest, nearest first, (Q, k)."""
    return np.stack([np.sort(np.partition(items_ND @ query_D, -k)[-k:])[::-1] for query_D in queries_QD])


if __name__ == "__main__":
    main()
