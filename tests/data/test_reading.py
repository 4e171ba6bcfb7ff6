"""Reading ahead of the consumer, and batches of images of several shapes; `test_pipeline` has those of one."""

import threading

import numpy as np
import pytest

from dino_jax.data.reading import read_ahead, read_by_shape


class Shapes:
    """Images of given heights."""

    class_names = ()

    def __init__(self, heights):
        self.heights = heights

    def __len__(self):
        return len(self.heights)

    def __getitem__(self, index):
        return {"image": np.full((self.heights[index], 4, 3), index, np.uint8), "label": -1}

    def name(self, index):
        return str(index)


@pytest.mark.parametrize(("shards", "rows"), [(1, [8, 4, 1]), (2, [8, 4, 2]), (8, [8, 8, 8])])
def test_few_images_of_a_shape_share_a_small_batch(shards, rows):
    """Eleven images of one shape and one of another; a network need not run on eight rows for one image."""
    source = Shapes([4] * 11 + [6])
    batches = list(
        read_by_shape(source, range(12), batch_size=8, prepare=lambda image: image, shards=shards),
    )
    assert [len(batch["images"]) for batch in batches] == rows
    assert [batch["ids"][batch["valid"]].tolist() for batch in batches] == [[*range(8)], [8, 9, 10], [11]]


def test_what_is_read_ahead_comes_in_order_and_no_further_than_asked():
    read, lock = [], threading.Lock()

    def double(key):
        with lock:
            read.append(key)
        return 2 * key

    stream = read_ahead(double, iter(range(100)), ahead=3, threads=2)
    assert [next(stream) for _ in range(5)] == [0, 2, 4, 6, 8]
    stream.close()
    assert max(read) <= 7  # the fifth, and three more


def test_an_error_comes_in_its_place():
    def inverse(key):
        return 1 / key

    stream = read_ahead(inverse, [2, 1, 0, 4])
    assert [next(stream), next(stream)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
