import json
import re
import shutil

import numpy as np
import pytest

from dino_jax.pictures.similarity import MOST_DIMENSIONS, compressed, similarity_page
from tests.data.images import photograph

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def cosines(grids, image, row, column):
    unit = [grid / np.linalg.norm(grid, axis=-1, keepdims=True) for grid in grids]
    return [grid @ unit[image][row, column] for grid in unit]


@pytest.fixture
def grids():
    rng = np.random.default_rng(0)
    grids = [rng.standard_normal((6, 8, 160)), rng.standard_normal((5, 4, 160))]
    grids[1][3, 2] = 7 * grids[0][1, 5]  # the most alike of another image, whatever its length
    return grids


@pytest.fixture
def page(grids, tmp_path):
    images = [photograph(96, 128), photograph(80, 64, seed=1)]
    names = ["first </script>.jpg", "second.jpg"]
    return similarity_page(images, grids, tmp_path / "page.html", names=names, title="Patches <b>")


def test_cosines_survive_the_compression(grids):
    few = [grid[..., :MOST_DIMENSIONS] for grid in grids]
    whole = compressed(few)
    assert all(grid.dtype == np.int8 for grid in whole)
    for found, expected in zip(cosines([g.astype(float) for g in whole], 0, 1, 5), cosines(few, 0, 1, 5), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.02)
    smooth = [grid @ np.diag(0.97 ** np.arange(160)) for grid in grids]  # as of a network: few directions matter
    small = compressed(smooth)
    assert small[0].shape == (6, 8, MOST_DIMENSIONS)
    found = cosines([g.astype(float) for g in small], 0, 1, 5)
    np.testing.assert_allclose(found[1], cosines(smooth, 0, 1, 5)[1], atol=0.03)


def test_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert "http" not in text
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert [entry["name"] for entry in data["images"]] == ["first </script>.jpg", "second.jpg"]
    assert (data["images"][1]["rows"], data["images"][1]["columns"]) == (5, 4)


def test_clicks_in_a_browser(page, grids):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    asked, errors = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(page.as_uri())
        assert view.inner_text("#title") == "Patches <b>"
        assert view.inner_text("#cosine").startswith("first </script>.jpg, row 3, column 4")
        canvas = view.locator("canvas.view").nth(0)
        canvas.click(position={"x": 5.5 * 16, "y": 1.5 * 16})
        assert "row 1, column 5; most alike: second.jpg, row 3, column 2, cosine 1.00" in view.inner_text("#cosine")
        found = view.evaluate("images.map(image => Array.from(image.cosines))")
        view.locator("body").press("ArrowDown")
        assert view.evaluate("document.body.dataset.chosen") == "0,2,5"
        before = view.evaluate("images[1].view.toDataURL()")
        view.locator("#low").fill("-1")
        assert view.evaluate("images[1].view.toDataURL()") != before
        view.goto(page.as_uri() + "#1,4,3")
        view.reload()
        assert view.inner_text("#cosine").startswith("second.jpg, row 4, column 3")
        browser.close()
    for cosine, expected in zip(found, cosines(grids, 0, 1, 5), strict=True):
        np.testing.assert_allclose(np.reshape(cosine, expected.shape), expected, atol=0.15)  # 128 of 160 directions
    assert not errors
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="0 images"):
        similarity_page([], [], tmp_path / "page.html", names=[], title="")
    with pytest.raises(ValueError, match="not all finite"):
        nan = np.full((2, 2, 3), np.nan)
        similarity_page([photograph()], [nan], tmp_path / "page.html", names=["a"], title="")
    assert not list(tmp_path.iterdir())
