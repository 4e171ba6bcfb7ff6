import argparse

import numpy as np
import pytest

from dino_jax.benches import knn


def options(*arguments):
    parser = argparse.ArgumentParser()
    knn.add_arguments(parser)
    return parser.parse_args(arguments)


SMALL = ("--train", "300", "--queries", "50", "--dims", "8", "--k", "5", "--rounds", "2")


def test_sides_agree_and_are_timed(capsys):
    numbers = knn.bench_knn(options(*SMALL, "--sides", "ours", "scikit-learn"))
    assert numbers["knn/agreement_scikit-learn_k5"] == pytest.approx(1)
    ratio = numbers["knn/scikit-learn_k5_seconds"] / numbers["knn/ours_k5_seconds"]
    assert numbers["knn/ratio_scikit-learn_k5"] == pytest.approx(ratio)
    assert "300 training samples, 8 dimensions" in capsys.readouterr().out


def test_agreement_counts_shared_neighbours():
    assert knn.agreement(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 5]])) == 0.75


def test_faiss_agrees():
    pytest.importorskip("faiss")
    assert knn.bench_knn(options(*SMALL))["knn/agreement_faiss_k5"] == pytest.approx(1)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="--k <= --train"):
        knn.bench_knn(options(*SMALL[:-4], "--k", "301"))
