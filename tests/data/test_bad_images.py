"""The list of bad images and the limit to their share."""

import json

import numpy as np
import pytest

from dino_jax.data.bad_images import BadImages
from dino_jax.data.samples import NOTHING_READABLE
from dino_jax.data.sources import open_source
from tests.data.images import encode, photograph


@pytest.fixture
def source(tmp_path):
    """Twenty images; 3, 7 and 11 are bad."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(b"" if number in (3, 7, 11) else encode(photograph()))
    return open_source("folder", str(folder))


def batch(*bad, size=10):
    """The arrays `replaced` and `ids` of a batch in which these were replaced."""
    return np.array([*bad, *[-1] * (size - len(bad))], np.int32), np.zeros(size, np.int32)


def listed(workdir):
    return [json.loads(line) for line in (workdir / "bad_images.jsonl").read_text().splitlines()]


def test_each_bad_image_is_listed_once_with_its_reason_across_restarts(source, tmp_path):
    workdir = tmp_path / "run"
    notes = []
    first = BadImages(workdir, source, most=0.5, note=notes.append)
    first.update(*batch())
    assert not (workdir / "bad_images.jsonl").exists()
    first.update(*batch(7, 7))
    first.update(*batch(7))
    assert listed(workdir) == [{"id": 7, "name": "07.png", "reason": "the file is empty"}]
    (note,) = notes
    assert note.startswith("07.png (the file is empty) cannot be used, another image takes its place; see ")
    again = BadImages(workdir, source, most=0.5, note=notes.append)
    again.update(*batch(3, 7))
    again.update(*batch(11))
    assert [entry["name"] for entry in listed(workdir)] == ["07.png", "03.png", "11.png"]
    assert len(again) == 3
    assert len(notes) == 1
    assert [file.name for file in workdir.iterdir()] == ["bad_images.jsonl"]


def test_too_large_a_share_stops_the_run_in_one_line(source, tmp_path):
    bad_images = BadImages(tmp_path, source, most=0.1)
    bad_images.update(*batch(3))
    bad_images.update(*batch(7))  # 2 of 20 is the limit itself
    with pytest.raises(ValueError, match=r"3 of the first 20 images drawn .*data\.max_bad_share.*\.png") as error:
        BadImages(tmp_path, source, most=0.09).update(*batch(3, 7, 11, size=30))
    assert "\n" not in str(error.value)


def test_an_image_that_comes_again_counts_once(source, tmp_path):
    """2 of 20 are a tenth, in the middle of the second epoch too."""
    bad_images = BadImages(tmp_path, source, most=0.1)
    bad_images.update(*batch(3, 7, size=20))
    bad_images.update(*batch(3, 7, size=5))


def test_a_line_that_was_cut_is_dropped(source, tmp_path):
    BadImages(tmp_path, source, most=1.0).update(*batch(3))
    file = tmp_path / "bad_images.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    again = BadImages(tmp_path, source, most=1.0)
    again.update(*batch(7))
    assert [entry["name"] for entry in listed(tmp_path)] == ["03.png", "07.png"]


def test_the_first_images_do_not_stop_the_run(source, tmp_path):
    BadImages(tmp_path, source, most=0.1).update(*batch(3, 7, 11))  # 3 of 10, but the source has twenty


def test_when_hardly_an_image_can_be_used_the_first_are_listed(source, tmp_path):
    replaced, ids = batch(3, 7)
    ids[0] = NOTHING_READABLE
    with pytest.raises(ValueError, match=r"64 draws in a row failed; see .*bad_images\.jsonl, for example 07\.png"):
        BadImages(tmp_path, source, most=1.0).update(replaced, ids)
    assert [entry["name"] for entry in listed(tmp_path)] == ["03.png", "07.png"]


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "1"])
def test_a_damaged_list_is_named(source, tmp_path, text):
    (tmp_path / "bad_images.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match=r"bad_images\.jsonl is damaged: delete it"):
        BadImages(tmp_path, source, most=1.0)


def test_other_processes_write_their_own_file(source, tmp_path):
    BadImages(tmp_path, source, most=1.0, process_index=2).update(*batch(3))
    assert (tmp_path / "bad_images_2.jsonl").exists()
