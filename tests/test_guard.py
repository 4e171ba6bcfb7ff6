import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.guard import Guard

FINE = {"loss/total": 1.0, "loss/ibot": 1.0, "loss/koleo": 1.0, "grad_norm/backbone": 1.0, "update_norm/backbone": 1.0}


def metrics(in_row, **changed):
    named = FINE | {name.replace("__", "/"): value for name, value in changed.items()}
    return {name: jnp.float32(value) for name, value in named.items()} | {"train/skipped_in_row": jnp.int32(in_row)}


def watched(*steps, limit=3):
    """Watches (metrics, finite) of step after step; returns the lines for the user."""
    notes = []
    guard = Guard(limit=limit, name=lambda i: f"image{i}.jpg", note=notes.append)
    for number, (values, finite) in enumerate(steps, start=1):
        guard.watch(number, values, jnp.array(finite), np.array([7, 8, 9]))
    guard.flush()
    return notes


def test_silent_while_all_is_finite():
    assert watched((metrics(0), [True] * 3), (metrics(0), [True] * 3)) == []


def test_names_the_terms_and_the_samples():
    bad = metrics(1, loss__total=np.nan, loss__ibot=np.nan, grad_norm__backbone=np.nan, update_norm__backbone=np.nan)
    assert watched((metrics(0), [True] * 3), (bad, [True, False, True])) == [
        "step 2: update skipped (1 in a row): loss/ibot not finite, in image8.jpg"
    ]
    assert watched((bad, [False] * 3)) == ["step 1: update skipped (1 in a row): loss/ibot not finite, in every sample"]


def test_names_the_gradients_when_every_term_is_finite():
    assert watched((metrics(1, grad_norm__backbone=np.inf), [True] * 3)) == [
        "step 1: update skipped (1 in a row): grad_norm/backbone not finite, although the CLS tokens of every sample "
        "are finite"
    ]


def test_stops_after_the_limit():
    bad = [(metrics(n, loss__koleo=np.nan), [False, True, True]) for n in (1, 2, 3)]
    assert len(watched(*bad[:2], limit=3)) == 2
    with pytest.raises(
        FloatingPointError, match=r"3 updates in a row were not finite .* at step 3 in loss/koleo, in image7"
    ):
        watched(*bad, limit=3)


def test_judges_a_step_when_the_next_one_is_under_way():
    notes = []
    guard = Guard(limit=3, name=str, note=notes.append)
    guard.watch(1, metrics(1, loss__ibot=np.nan), jnp.array([True]), np.array([0]))
    assert not notes  # the host has not waited for it
    guard.watch(2, metrics(0), jnp.array([True]), np.array([0]))
    assert len(notes) == 1
