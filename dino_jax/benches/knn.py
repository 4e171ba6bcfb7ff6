"""Speed of the exact search of nearest neighbours beside faiss and scikit-learn, for `bench knn`."""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dino_jax.data.reading import processors
from dino_jax.evals.neighbours import neighbours
from dino_jax.progress import table

SIDES = ("ours", "faiss", "scikit-learn")
Found = np.ndarray
Search = Callable[[np.ndarray, np.ndarray, int], Found]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("--train", type=int, default=100_000, help="number of training samples (default 100,000)")
    parser.add_argument("--queries", type=int, default=100_000, help="number of queries (default 100,000)")
    parser.add_argument("--dims", type=int, default=384, help="dimensions of the features (default 384)")
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200], help="numbers of neighbours (default 20 200)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the sides take turns (default 5)")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, help="sides to measure (default all)")


def bench_knn(options: argparse.Namespace) -> dict[str, float]:
    """Measures each side on the same random unit vectors and prints a table.

    The queries are cut into rounds and the sides take turns, so that whatever else the machine does slows all alike.
    Each side gets NumPy arrays and returns indices as one; copying, building an index and, for us, compilation count.

    Returns:
      Flat `knn/<side>_k<k>_seconds` numbers and `..._cpu_seconds`, the processor time over all threads;
      `knn/ratio_<side>_k<k>` of seconds, above 1 where ours is faster; and `knn/agreement_<side>_k<k>`, the share of
      neighbours that the side and ours both name.

    Raises:
      ValueError: sizes that do not fit, or a library that is not installed.
    """
    if (
        min(options.dims, options.rounds) < 1
        or options.queries < options.rounds
        or not 1 <= min(options.k) <= max(options.k) <= options.train
    ):
        raise ValueError("--dims and --rounds must be at least 1, --queries at least --rounds, and 1 <= --k <= --train")
    searches = {name: _SEARCHES[name]() for name in SIDES if name in options.sides}
    rng = np.random.default_rng(0)
    train, queries = (_unit_vectors(rng, count, options.dims) for count in (options.train, options.queries))
    numbers: dict[str, float] = {}
    head = ["k", "side", "seconds", "CPU seconds", "GFLOP/s", "ours is faster by", "same neighbours"]
    rows: list[list[str | float]] = [[*head]]
    flops = 2.0 * options.train * options.queries * options.dims
    with tqdm(total=len(options.k) * options.rounds * len(searches), unit=" searches") as bar:
        for k in options.k:
            times, shared = _take_turns(searches, train, np.array_split(queries, options.rounds), k, bar.update)
            for name, (seconds, cpu) in times.items():
                numbers |= {f"knn/{name}_k{k}_seconds": float(seconds), f"knn/{name}_k{k}_cpu_seconds": float(cpu)}
                speed = f"{flops / seconds / 1e9:.0f}"
                row: list[str | float] = [str(k), name, f"{seconds:.3g}", f"{cpu:.3g}", speed, "-", "-"]
                if name != "ours" and "ours" in times:
                    ratio = float(seconds / times["ours"][0])
                    numbers |= {f"knn/ratio_{name}_k{k}": ratio, f"knn/agreement_{name}_k{k}": shared[name]}
                    row[5:] = [f"{ratio:.2f} x", f"{shared[name]:.4%}"]
                rows.append(row)
    device = f"1 x {jax.devices()[0].device_kind}, {processors()} threads"
    print(f"{options.queries:,} queries, {options.train:,} training samples, {options.dims} dimensions; {device}")
    print(table(rows))
    return numbers


def _take_turns(
    searches: Mapping[str, Search], train: np.ndarray, parts: Sequence[np.ndarray], k: int, advance: Callable[[], Any]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Lets each side search for the queries of one part after the other.

    Returns:
      By side, the seconds on the clock and of the processors `(2,)`, and the share of neighbours that ours names too.
    """
    times = {name: np.zeros(2) for name in searches}
    shared = dict.fromkeys(searches, 0.0)
    for part in parts:
        found = {}
        for name, search in searches.items():
            found[name] = _timed(search, train, part, k, times[name])
            advance()
        for name in found:
            shared[name] += agreement(found[name], found.get("ours", found[name])) * len(part)
    queries = sum(len(part) for part in parts)
    return times, {name: total / queries for name, total in shared.items()}


def _timed(search: Search, train: np.ndarray, queries: np.ndarray, k: int, times: np.ndarray) -> Found:
    """Searches, and adds the seconds on the clock and of the processors to `times` `(2,)`."""
    start = time.perf_counter(), time.process_time()
    found = search(train, queries, k)
    times += time.perf_counter() - start[0], time.process_time() - start[1]
    return found


def agreement(first: Found, second: Found) -> float:
    """Returns the share of neighbours `(queries, k)` that both name, in any order."""
    sample = slice(None, None, max(1, len(first) // 2000))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(first[sample], second[sample], strict=True)]
    return float(np.mean(shared) / first.shape[1])


def _unit_vectors(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dims), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _ours() -> Search:
    return lambda train, queries, k: neighbours(train, queries, k=k)[1]


def _faiss() -> Search:
    try:
        import faiss
    except ImportError:
        raise ValueError("faiss is not installed: pip install -e '.[bench]', or leave it out of --sides") from None
    faiss.omp_set_num_threads(processors())

    def search(train: np.ndarray, queries: np.ndarray, k: int) -> Found:
        index = faiss.IndexFlatIP(train.shape[1])
        index.add(train)
        return index.search(queries, k)[1]

    return search


def _scikit_learn() -> Search:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise ValueError(
            "scikit-learn is not installed: pip install -e '.[bench]', or leave it out of --sides"
        ) from None

    os.environ["OMP_NUM_THREADS"] = str(processors())  # otherwise it may count fewer processors than the others use

    def search(train: np.ndarray, queries: np.ndarray, k: int) -> Found:
        # On unit vectors the order is that of cosines, and scikit-learn has its fast path for this metric.
        index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(train)
        return index.kneighbors(queries, return_distance=False)

    return search


_SEARCHES: dict[str, Callable[[], Search]] = {"ours": _ours, "faiss": _faiss, "scikit-learn": _scikit_learn}
