import numpy as np
import pytest
from PIL import Image

from dino_jax.pictures import colors, film, page
from tests.data.images import photograph

RGB = {"right": (0x00, 0x9E, 0x73), "wrong": (0xD5, 0x5E, 0x00)}


def test_pixels_of_a_panel_are_kept():
    image = photograph(48, 64)
    sheet = page.page([[("", image), ("", image[:, ::-1])]])
    gap = page.GAP
    np.testing.assert_array_equal(sheet[gap : gap + 48, gap : gap + 64], image)
    np.testing.assert_array_equal(sheet[gap : gap + 48, 2 * gap + 64 : 2 * gap + 128], image[:, ::-1])


def test_rows_and_captions_make_room():
    image = photograph(48, 64)
    plain, named, long = (
        page.page(page.in_rows([(text, image)] * 5, 3)) for text in ("", "short", "a caption that is long")
    )
    assert plain.shape == (2 * 48 + 3 * page.GAP, 3 * 64 + 4 * page.GAP, 3)
    assert named.shape[0] > plain.shape[0]
    assert named.shape[1] == plain.shape[1]
    assert long.shape[0] < named.shape[0]  # in smaller letters
    assert long.shape[1] > named.shape[1]  # and further apart
    assert (long[-page.GAP - 48 : -page.GAP, page.GAP : page.GAP + 64] == image).all()


def test_a_caption_runs_on_above_pictures_without():
    image = photograph(48, 64)
    rows = [[("a caption that is long", image), ("", image), ("", image)], [("", image)]]
    assert page.page(rows).shape[1] == 3 * 64 + 4 * page.GAP


def test_a_title_or_legend_is_never_cut():
    image = photograph(48, 64)
    plain, titled = page.page([[("", image)]]), page.page([[("", image)]], title="longer than one image is wide")
    assert titled.shape[0] > plain.shape[0] and titled.shape[1] > plain.shape[1]
    assert (titled[-page.GAP - 48 : -page.GAP, page.GAP : page.GAP + 64] == image).all()
    entries = [((200, 0, number), f"class number {number}") for number in range(3)]
    sheet = page.page([[("", image)]], legend=entries)
    for color, _ in entries:
        assert (sheet == color).all(-1).any()
    assert sheet.shape[1] > plain.shape[1] and (sheet[-32:, -page.GAP :] == 255).all()


def test_a_page_without_pictures_is_one_line():
    with pytest.raises(ValueError, match="no picture"):
        page.page([[]], title="Nothing")


@pytest.mark.parametrize("right", [True, False])
def test_frames_are_right_or_wrong(right):
    framed = page.framed(np.full((20, 30, 3), 128, np.uint8), right=right)
    assert (framed[[0, -1]] == RGB["right" if right else "wrong"]).all()
    assert (framed[:, [0, -1]] == RGB["right" if right else "wrong"]).all()
    assert (framed[10, 15] == 128).all()


def test_heat_is_dark_at_zero_and_bright_at_the_top():
    values = np.zeros((4, 4))
    values[:, 2:] = 1
    drawn = colors.heat(values, high=1.0, height=32, width=32)
    assert drawn[16, 2].sum() < 20
    assert drawn[16, 30].sum() > 550


def test_glow_keeps_the_light_and_dims_the_rest():
    image = np.full((32, 32, 3), 200, np.uint8)
    values = np.zeros((4, 4))
    values[:, 2:] = 1
    drawn = colors.glow(image, values, high=1.0).astype(int)
    assert drawn[16, 30].mean() > 2 * drawn[16, 2].mean()


def test_background_of_components_is_dark():
    foreground = np.zeros((4, 4), bool)
    foreground[:, 2:] = True
    drawn = colors.paint_components(np.full((4, 4, 3), 0.8), foreground, height=64, width=64)
    np.testing.assert_array_equal(drawn[30, 4], colors.DARK)
    np.testing.assert_array_equal(drawn[30, 60], (204, 204, 204))


def test_overview_holds_images_of_all_shapes(tmp_path):
    rows = [("wide", [photograph(30, 90)] * 2), ("high", [photograph(90, 30)] * 2), ("square", [photograph(30, 30)])]
    sheet = page.overview(rows)
    assert sheet.shape[1] == 2 * 4 * page.PANEL + 3 * page.GAP  # of a pair of pictures two panels wide each
    path = page.save(sheet, tmp_path / "a" / "sheet.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), sheet)


def test_gif_has_all_frames_and_their_time(tmp_path):
    frames = [photograph(40, 60, seed=seed) for seed in range(5)]
    with Image.open(film.gif(frames, tmp_path / "film.gif", per_second=10)) as written:
        assert (written.n_frames, written.size, written.info["duration"]) == (5, (60, 40), 100)
        written.seek(4)
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - frames[4]).mean() < 20
    with pytest.raises(ValueError, match="at least one frame"):
        film.gif([], tmp_path / "none.gif", per_second=10)


def test_mp4_plays_back(tmp_path):
    cv2 = pytest.importorskip("cv2")
    frames = [photograph(41, 61, seed=seed) for seed in range(5)]
    path = film.mp4(frames, tmp_path / "film.mp4", per_second=10)
    if path is None:
        pytest.skip("no encoder")
    played = cv2.VideoCapture(str(path))
    found = [played.read() for _ in range(6)]
    assert [ok for ok, _ in found] == [True] * 5 + [False]
    assert found[0][1].shape == (40, 60, 3)
    assert np.abs(found[2][1][..., ::-1].astype(int) - frames[2][:40, :60]).mean() < 20
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]
