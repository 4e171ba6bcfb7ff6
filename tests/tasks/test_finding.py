"""Retrieval of landmarks and copy detection as commands, on colours that even a drawn network tells apart."""

import pickle
import shutil

import pytest

from tests.data.images import encode
from tests.tasks.conftest import COLORS, tinted

SMALL = ("--size", 16, "--batch-size", 8)


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory):
    """Each colour is a place with one query, two easy images and two hard ones."""
    folder = tmp_path_factory.mktemp("landmarks")
    (folder / "jpg").mkdir()
    names, truth = [], []
    for place, color in enumerate(COLORS.values()):
        names += [f"{place}_{number}" for number in range(4)]
        truth.append({"bbx": [0, 0, 24, 20], "easy": [4 * place, 4 * place + 1], "junk": []})
        truth[-1]["hard"] = [4 * place + 2, 4 * place + 3]
        for number in range(5):
            name = f"{place}_{number}" if number < 4 else f"query_{place}"
            (folder / "jpg" / f"{name}.png").write_bytes(encode(tinted(color, 10 * place + number)))
    content = {"imlist": names, "qimlist": [f"query_{place}" for place in range(3)], "gnd": truth}
    (folder / "gnd_test.pkl").write_bytes(pickle.dumps(content))
    return folder


@pytest.mark.parametrize("words", [("--fit", "squash", "--size", 16), ("--fit", "native")])
def test_retrieval(evaluate, landmarks, words):
    result = evaluate("retrieval", "--data", landmarks, *words, "--batch-size", 8)
    for protocol in ("easy", "medium", "hard"):
        assert result.numbers[f"retrieval/{protocol}/map"] == 1
    assert [row[0] for row in result.rows] == ["protocol", "easy", "medium", "hard"]


@pytest.fixture
def copydays(tmp_path):
    """Each colour is a photograph with two copies."""
    for label, color in enumerate(COLORS.values()):
        for name in (f"original/200{label}00", f"strong/200{label}01", f"strong/200{label}02"):
            (tmp_path / "copydays" / name).parent.mkdir(parents=True, exist_ok=True)
            # What is a copy looks alike but for a little.
            image = encode(tinted(color, label) // 2 + tinted(color, label + len(name)) // 2)
            (tmp_path / "copydays" / f"{name}.png").write_bytes(image)
    return tmp_path / "copydays"


def test_copy_detection(evaluate, colors, copydays):
    more = ("--whitening", colors / "train", "--limit", 6)
    result = evaluate("copy_detection", "--data", copydays, *SMALL, *more)
    assert result.numbers["copy_detection/map"] == 1
    assert result.numbers["copy_detection/distractors"] == 0
    assert "copy_detection/whitened_map" in result.numbers
    # Half of the distractors have the colour of a photograph, so they are found among its copies.
    blurred = evaluate("copy_detection", "--data", copydays, "--distractors", colors / "val", *SMALL)
    assert blurred.numbers["copy_detection/distractors"] == 12
    assert blurred.numbers["copy_detection/micro_ap"] <= 1
    with pytest.raises(ValueError, match="size 17 is not a multiple of the patch"):
        evaluate("copy_detection", "--data", copydays, "--size", 17)


def test_copy_detection_needs_its_own_images_only(evaluate, colors, copydays, tmp_path, capsys):
    shutil.copytree(colors / "val", tmp_path / "others")
    (tmp_path / "others" / "red" / "0.png").write_bytes(b"no image")
    more = ("--distractors", tmp_path / "others", "--whitening", tmp_path / "others")
    result = evaluate("copy_detection", "--data", copydays, *SMALL, *more)
    assert result.numbers["copy_detection/distractors"] == 11
    assert capsys.readouterr().err.count("1 of 12 images cannot be used, such as red/0.png") == 2
    (copydays / "strong" / "200102.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"strong/200102.png cannot be read: replace it"):
        evaluate("copy_detection", "--data", copydays, *SMALL)
