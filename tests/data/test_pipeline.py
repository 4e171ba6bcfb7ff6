"""Batches: their contents, their reproducibility, and what happens when files or workers fail."""

import collections
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from dino_jax.data import pipeline
from dino_jax.data.decode import BadImage
from dino_jax.data.packaged import PackagedSource
from dino_jax.data.pipeline import eval_batches, train_batches
from dino_jax.data.samples import NOTHING_READABLE
from dino_jax.data.sources import open_source
from tests.data.images import encode, photograph

OPTIONS = {
    "batch_size": 8,
    "seed": 3,
    "global_size": 16,
    "global_scale": (0.32, 1.0),
    "local_size": 8,
    "local_scale": (0.05, 0.32),
    "local_number": 3,
    "horizontal_flips": True,
    "patch_size": 4,
    "mask_ratio": (0.1, 0.5),
    "mask_probability": 0.5,
    "mask_group_size": 4,
}


class Squares:
    """Flat images whose value is their index; every index in `bad` is unreadable, `fatal` raises another error."""

    class_names = ("even", "odd")

    def __init__(self, number, bad=(), fatal=-1, deadly=-1):
        self.number, self.bad, self.fatal, self.deadly = number, bad, fatal, deadly

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index in self.bad:
            raise BadImage("bad")
        if index == self.fatal:
            raise RuntimeError("the disk is on fire")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.full((20, 24, 3), index, np.uint8), "label": index % 2}

    def name(self, index):
        return f"square {index}"


def take(batches, number):
    return [next(batches) for _ in range(number)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_contents():
    batch = next(train_batches(Squares(20), gram_size=32, **OPTIONS))
    expected = {
        "global_crops": ((8, 2, 16, 16, 3), np.uint8),
        "local_crops": ((8, 3, 8, 8, 3), np.uint8),
        "gram_crops": ((8, 2, 32, 32, 3), np.uint8),
        "masks": ((8, 2, 16), bool),
        "mask_indices": ((2, 24), np.int32),
        "mask_weights": ((2, 24), np.float32),
        "labels": ((8,), np.int32),
        "ids": ((8,), np.int32),
        "replaced": ((8,), np.int32),
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
    for name in ("global_crops", "local_crops", "gram_crops"):
        assert (batch[name] == batch["ids"].reshape(8, 1, 1, 1, 1)).all()
    np.testing.assert_array_equal(batch["labels"], batch["ids"] % 2)
    assert (batch["replaced"] == -1).all()
    for group, (indices, weights) in enumerate(zip(batch["mask_indices"], batch["mask_weights"], strict=True)):
        masks = batch["masks"][4 * group : 4 * group + 4].reshape(-1)
        np.testing.assert_array_equal(indices[weights > 0], np.flatnonzero(masks))


def test_what_is_asked_for_reaches_the_crops_and_the_masks(monkeypatch):
    seen = {}

    def spy_on(name):
        function = getattr(pipeline, name)

        def spy(*arguments, **options):
            seen[name] = options
            return function(*arguments, **options)

        monkeypatch.setattr(pipeline, name, spy)

    spy_on("multi_crop")
    spy_on("draw_masks")
    crops = {
        "global_size": 24,
        "global_scale": (0.5, 0.9),
        "local_size": 12,
        "local_scale": (0.1, 0.2),
        "local_number": 2,
        "horizontal_flips": False,
    }
    masks = {"ratio": (0.2, 0.4), "probability": 0.75, "drawn_sizes": True, "circular_shift": True}
    options = OPTIONS | crops | {f"mask_{name}": value for name, value in masks.items()}
    next(train_batches(Squares(20), **options | {"gram_size": 32, "mask_group_size": 2, "patch_size": 3}))
    assert seen == {
        "multi_crop": crops | {"gram_size": 32},
        "draw_masks": masks | {"crops": 4, "grid": (8, 8)},  # two crops of each of two samples
    }


def test_every_epoch_is_another_permutation():
    ids = np.concatenate([batch["ids"] for batch in take(train_batches(Squares(24), **OPTIONS), 9)]).reshape(3, 24)
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(24), (3, 1)))
    assert (ids[0] != ids[1]).any() and (ids[1] != ids[2]).any()


def test_crops_and_masks_differ_between_epochs(packaged):
    batches = take(train_batches(packaged, **OPTIONS | {"batch_size": 48}), 2)
    crops = [batch["global_crops"][np.argsort(batch["ids"])] for batch in batches]
    assert (crops[0] != crops[1]).any((1, 2, 3, 4)).all()
    assert (batches[0]["masks"] != batches[1]["masks"]).any()


@pytest.fixture(scope="module")
def packaged():
    return PackagedSource(split="train", window_size=32, windows_per_photograph=3)


@pytest.mark.parametrize("processes", [1, 2])
def test_some_images_stay_among_themselves(processes):
    source = Squares(30, bad=(2, 25))
    options = OPTIONS | {"homogeneous": 6, "homogeneous_share": 0.3}
    parts = [
        take(train_batches(source, **options, process_index=p, process_count=processes), 40) for p in range(processes)
    ]
    whole = [{name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][i]} for i in range(40)]
    assert_same(take(train_batches(source, **options), 40), whole)
    alone = [batch["ids"] >= 24 for batch in whole]
    assert all(ids.all() or not ids.any() for ids in alone) and sum(ids.all() for ids in alone) == 12
    for batch in whole:  # also what stands in for an unreadable image
        replaced = batch["replaced"] >= 0
        assert ((batch["replaced"] >= 24) == (batch["ids"] >= 24))[replaced].all()
    for share, first in ((False, 0), (True, 24)):
        ids = np.concatenate([batch["ids"] for batch, a in zip(whole, alone, strict=True) if a.all() == share])
        assert set(ids) == set(range(first, 30 if share else 24)) - {2, 25}
    resumed = train_batches(source, **options)
    resumed.set_state({"batches_taken": 11})
    assert_same(take(resumed, 5), whole[11:16])


@pytest.mark.parametrize("options", [{"workers": 2}, {"process_count": 2}])
def test_masks_of_drawn_sizes_have_one_shape_and_do_not_depend_on_who_draws_them(packaged, options):
    drawn = OPTIONS | {"mask_drawn_sizes": True}
    whole = take(train_batches(packaged, **drawn), 6)
    assert {batch["mask_indices"].shape for batch in whole} == {(2, 24)}
    counts = {int(batch["masks"][:4].sum()) for batch in whole}
    assert len(counts) > 1 and max(counts) <= 21  # the sum of the upper ends: 3, 4, 6 and 8 of 16 patches
    other = train_batches(packaged, **drawn, **options)
    if "workers" in options:
        assert_same(take(other, 6), whole)
    else:
        half = {name: x[: len(x) // 2] for name, x in whole[0].items()}
        assert_same(take(other, 1), [half])
    other.close()


def test_without_masks_the_crops_are_the_same(packaged):
    with_masks, without = (
        take(train_batches(packaged, **OPTIONS | {"mask_probability": share}), 2) for share in (0.5, 0.0)
    )
    names = {"masks", "mask_indices", "mask_weights"}
    for one, other in zip(with_masks, without, strict=True):
        assert one.keys() - other.keys() == names
        assert_same([{name: x for name, x in one.items() if name not in names}], [other])


def test_a_source_smaller_than_the_batch_repeats():
    batch = next(train_batches(Squares(3), **OPTIONS))
    assert np.bincount(batch["ids"]).min() >= 2


def test_seeds(packaged):
    first, again, other = (take(train_batches(packaged, **OPTIONS | {"seed": seed}), 2) for seed in (3, 3, 4))
    assert_same(first, again)
    assert (first[0]["ids"] != other[0]["ids"]).any() and (first[0]["masks"] != other[0]["masks"]).any()


def test_seeds_draw_sizes_and_homogeneous_batches():
    options = OPTIONS | {"batch_size": 12, "mixture": MIXTURE, "homogeneous": 20, "homogeneous_share": 0.5}
    first, other = (take(train_batches(Squares(40), **options | {"seed": seed}), 8) for seed in (3, 4))
    sides, other_sides = ([batch["global_crops"].shape[2] for batch in batches] for batches in (first, other))
    assert sides != other_sides
    ids, other_ids = ([b["ids"] for b in batches if b["ids"].min() >= 20] for batches in (first, other))
    assert (np.array(ids) != np.array(other_ids)).any()


def test_processes_share_the_global_batch(packaged):
    whole = take(train_batches(packaged, **OPTIONS), 8)
    parts = [take(train_batches(packaged, process_index=p, process_count=2, **OPTIONS), 8) for p in range(2)]
    joined = [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize(("workers", "later"), [(0, (0, 2)), (2, (1,))])
def test_resumption_is_exact(packaged, workers, later):
    whole = take(train_batches(packaged, **OPTIONS), 7)
    first = train_batches(packaged, workers=workers, **OPTIONS)
    assert_same(take(first, 3), whole[:3])
    state = first.get_state()
    assert_same(take(first, 1), whole[3:4])
    first.close()
    for number in later:
        resumed = train_batches(packaged, workers=number, **OPTIONS)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same(take(resumed, 3), whole[3:6])
        if not number:
            resumed.set_state({"batches_taken": 1})
            assert_same(take(resumed, 1), whole[1:2])
        resumed.close()


MIXTURE = [(0.25, 24, 8, 32), (0.25, 16, 12, 48)]


def test_each_batch_has_one_of_several_sizes(packaged):
    batches = take(train_batches(packaged, gram_size=32, mixture=MIXTURE, **OPTIONS), 40)
    sizes = [tuple(batch[f"{kind}_crops"].shape[2] for kind in ("global", "local", "gram")) for batch in batches]
    counts = collections.Counter(sizes)
    assert counts.keys() == {(16, 8, 32), (24, 8, 32), (16, 12, 48)}
    assert counts[16, 8, 32] > counts[24, 8, 32] > 4 < counts[16, 12, 48]  # 20, 10 and 10 are expected
    for batch, (side, _, _) in zip(batches, sizes, strict=True):
        assert batch["masks"].shape == (8, 2, (side // 4) ** 2)
        masked = np.flatnonzero(batch["masks"][:4])  # of the first group
        np.testing.assert_array_equal(batch["mask_indices"][0, : len(masked)], masked)
    always = take(train_batches(packaged, mixture=[(1.0, 24, 8, 0)], **OPTIONS), 10)
    assert {batch["global_crops"].shape[2] for batch in always} == {24}


def test_sizes_are_those_of_the_whole_batch_and_of_its_number(packaged):
    options = OPTIONS | {"mixture": MIXTURE, "gram_size": 32, "mask_group_size": 2}
    whole = take(train_batches(packaged, **options), 8)
    halves = [take(train_batches(packaged, **options, process_index=p, process_count=2), 8) for p in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same(joined, whole)
    continued = train_batches(packaged, **options)
    continued.set_state({"batches_taken": 5})
    assert_same(take(continued, 3), whole[5:])


def test_the_state_is_saved_by_grain_s_checkpoint_handler(packaged, tmp_path):
    batches = train_batches(packaged, **OPTIONS)
    take(batches, 2)
    grain.checkpoint.CheckpointHandler().save(tmp_path, batches)
    resumed = grain.checkpoint.CheckpointHandler().restore(tmp_path, train_batches(packaged, **OPTIONS))
    assert_same(take(resumed, 2), take(batches, 2))


def test_a_closed_iterator_says_so(packaged):
    batches = train_batches(packaged, **OPTIONS)
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_bad_images_are_replaced_and_named():
    source = Squares(24, bad=(2, 5, 6))
    batches = take(train_batches(source, **OPTIONS), 3)
    replaced = np.concatenate([batch["replaced"] for batch in batches])
    ids = np.concatenate([batch["ids"] for batch in batches])
    assert sorted(replaced[replaced >= 0]) == [2, 5, 6]
    assert not set(ids) & {2, 5, 6}
    resumed = train_batches(source, **OPTIONS)
    resumed.set_state({"batches_taken": 1})
    assert_same(take(resumed, 2), batches[1:])


def test_where_no_image_is_found_the_sample_says_so():
    batch = next(train_batches(Squares(5, bad=range(5)), **OPTIONS, channels=4, dtype=np.uint16))
    assert batch["global_crops"].shape == (8, 2, 16, 16, 4) and batch["global_crops"].dtype == np.uint16
    assert (batch["ids"] == NOTHING_READABLE).all()
    assert (batch["replaced"] >= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "batch size 9 does not divide by the 2 processes"),
        ({"mask_group_size": 3}, "mask_group_size 3 must divide the batch of one process, 8"),
        ({"global_size": 18}, "18 px are not a multiple of the patch, 4 px"),
    ],
)
def test_sizes_that_do_not_divide(changes, message):
    with pytest.raises(ValueError, match=message):
        train_batches(Squares(5), **OPTIONS | changes)


def test_an_empty_source():
    with pytest.raises(ValueError, match="no images"):
        train_batches(Squares(0), **OPTIONS)


def test_an_error_in_a_worker_surfaces():
    batches = train_batches(Squares(16, fatal=5), workers=1, **OPTIONS)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        take(batches, 4)
    batches.close()


def test_a_killed_worker_surfaces():
    batches = train_batches(Squares(16, deadly=5), workers=1, **OPTIONS)
    with pytest.raises(
        OSError, match=r"a process that prepares batches ended .*: lower data.workers, then run the same"
    ):
        take(batches, 4)
    batches.close()


def test_a_full_shared_memory_is_named(monkeypatch):
    batches = train_batches(Squares(16), **OPTIONS)
    batches.start_prefetch()

    code = -signal.SIGBUS

    class Ended:
        def __next__(self):
            raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs")

        def close(self):
            pass

    batches._iterator = Ended()
    with pytest.raises(OSError, match=r"as /dev/shm is full; .* enlarge it \(docker run --shm-size=8g\), then run"):
        next(batches)


def terminate_the_first():
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.01)
    os.kill(workers[0].pid, signal.SIGTERM)


def test_workers_work_on_when_a_cluster_terminates_the_group():
    whole = take(train_batches(Squares(16), **OPTIONS), 4)
    batches = train_batches(Squares(16), workers=1, **OPTIONS)
    terminator = threading.Thread(target=terminate_the_first)  # while the worker still imports
    terminator.start()
    first = take(batches, 1)
    terminator.join()
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert_same(first + take(batches, 3), whole)
    batches.close()
    assert not multiprocessing.active_children()


TRAINER = """
    import sys, time
    import jax
    from dino_jax.data.pipeline import train_batches
    from tests.data.test_pipeline import OPTIONS, Squares

    if __name__ == "__main__":
        batches = train_batches(Squares(16), workers=1, **OPTIONS)
        next(batches)
        import multiprocessing
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        if sys.argv[1] == "sleep":
            time.sleep(60)
        if sys.argv[1] == "raise":
            raise SystemExit(3)
"""


@pytest.mark.parametrize("end", ["return", "raise", "kill", "terminate"])
def test_no_worker_outlives_its_parent(end, tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    mode = "sleep" if end in ("kill", "terminate") else end
    with subprocess.Popen(
        [sys.executable, str(script), mode],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as trainer:
        workers = [int(number) for number in trainer.stdout.readline().split()]
        assert len(workers) == 1
        if mode == "sleep":
            trainer.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        assert trainer.wait(timeout=30) == {"return": 0, "raise": 3, "kill": -9, "terminate": -15}[end]
    deadline = time.monotonic() + 10
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the training process"
        time.sleep(0.05)


def is_alive(process):
    """Tells whether a process runs; one that has ended and waits for somebody to notice does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # no such file system, or it has just ended
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_eval_batches_are_padded_and_in_order(tmp_path):
    for number in range(5):
        content = b"" if number == 3 else encode(photograph(20 + number, 30, seed=number))
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.png").write_bytes(content)
    source = open_source("folder", str(tmp_path))
    batches = list(eval_batches(source, size=16, batch_size=2))
    assert [batch["valid"].tolist() for batch in batches] == [[True, True], [True, True], [False, False]]
    assert [batch["ids"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, -1]]
    assert [batch["labels"].tolist() for batch in batches] == [[0, 0], [0, 1], [-1, -1]]
    assert all(batch["images"].shape == (2, 16, 16, 3) and batch["images"].dtype == np.uint8 for batch in batches)
    assert (batches[2]["images"] == 0).all()


def test_eval_images_of_the_right_size_are_untouched(packaged):
    image = next(eval_batches(packaged, size=32, batch_size=1))["images"][0]
    np.testing.assert_array_equal(image, packaged[0]["image"])
