"""Every kind of file a user may have, and every kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from dino_jax.data.decode import BadImage, decode
from tests.data.images import encode, photograph


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_come_back_exactly(kind, tmp_path):
    image = photograph()
    (tmp_path / "file").write_bytes(encode(image, kind))
    np.testing.assert_array_equal(decode(tmp_path / "file"), image)


@pytest.mark.parametrize("options", [{"kind": "JPEG", "quality": 95}, {"kind": "WEBP", "quality": 95}])
def test_lossy_files_come_back_closely(options):
    image = photograph()
    assert np.abs(decode(encode(image, **options)).astype(int) - image).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    levels = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    result = decode(encode(levels, kind))
    np.testing.assert_array_equal(result, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_16_bit_colour_png_is_scaled():
    levels = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(png), (levels >> 8).astype(np.uint8))


def test_16_bit_colour_tiff_is_scaled():
    levels = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype("<u2")
    entries = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 256)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 16), (279, 4, 1, levels.nbytes), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    tiff = (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16)
    np.testing.assert_array_equal(decode(tiff.ljust(256, b"\0") + levels.tobytes()), (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    "layout", ["planes", "white is 0", "grey and alpha", "planes, on its side", "not called RGB", "one more plane"]
)
def test_16_bit_tiff_in_unusual_layouts(layout, compression):
    deep = np.random.default_rng(0).integers(0, 2**16, (24, 32, 3)).astype(np.uint16)
    expected, grey = (deep >> 8).astype(np.uint8), np.repeat(deep[..., :1] >> 8, 3, axis=2).astype(np.uint8)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    if layout == "white is 0":
        deep, expected, options = 65535 - deep[..., 0], grey, {"photometric": "miniswhite"}
    if layout == "grey and alpha":
        deep, expected = np.stack([deep[..., 0], np.full((24, 32), 65535, np.uint16)], -1), grey
        options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    if layout == "not called RGB":
        options = {"photometric": "minisblack", "planarconfig": "contig"}
    if layout == "one more plane":  # infrared, not opacity
        deep, layout = np.concatenate([deep, deep[..., :1] // 8], axis=-1), "planes"
        options["extrasamples"] = ["unspecified"]
    if "planes" in layout:
        deep = np.moveaxis(deep, -1, 0)
    if "side" in layout:
        options["extratags"] = [(274, "H", 1, 6, True)]
        expected = np.rot90(expected, -1)
    file = io.BytesIO()
    tifffile.imwrite(file, deep, compression=compression, **options)
    np.testing.assert_array_equal(decode(file.getvalue()), expected)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((24, 32), np.int16), "int16 samples have no known range"),
        (np.zeros((2, 24, 32), np.uint16), "2 channels that are not labelled as those of a photograph"),
        (np.zeros((4, 24, 32), np.uint16), "4 channels that are not labelled as those of a photograph"),
        (np.zeros((5, 24, 32), np.uint16), "5 channels that are not labelled as those of a photograph"),
    ],
)
def test_16_bit_tiff_that_is_no_photograph(samples, words):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, photometric="minisblack", planarconfig="separate" if samples.ndim == 3 else None)
    with pytest.raises(BadImage, match=words):
        decode(file.getvalue())


def test_a_tiff_that_pillow_does_not_know():
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((24, 32, 3), np.float32), photometric="rgb")
    with pytest.raises(BadImage, match="a TIFF of 3 x 32 bits that cannot be read; save it"):
        decode(file.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "BMP"])
def test_other_modes_become_rgb(mode, kind):
    if (mode, kind) in {("CMYK", "PNG"), ("CMYK", "BMP"), ("P", "JPEG")}:
        pytest.skip("no such files")
    original = Image.fromarray(photograph()).convert(mode)
    result = decode(encode(original, kind))
    assert result.shape == (24, 32, 3) and result.dtype == np.uint8
    assert np.abs(result.astype(int) - np.asarray(original.convert("RGB"))).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_laid_over_white(kind):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (200, 100, 50, 255)
    rgba[8:] = (0, 0, 0, 0)
    result = decode(encode(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (result[:8] == (200, 100, 50)).all() and (result[8:] == 255).all()
    rgba[...] = (0, 0, 0, 51)
    assert (decode(encode(rgba)) == 204).all()


def test_a_transparent_palette_colour_is_white():
    image = Image.fromarray(np.zeros((16, 16), np.uint8), "L").convert("P")
    assert (decode(encode(image, transparency=0)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = photograph(24, 32)
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](upright))
    np.testing.assert_array_equal(decode(encode(stored, "PNG", exif=exif)), upright)
    grey = np.repeat(upright[..., :1], 3, axis=-1)
    stored = np.ascontiguousarray(undo[orientation](upright[..., 0])).astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encode(stored, "PNG", exif=exif)), grey)


@pytest.mark.parametrize("samples", [photograph()[..., 0].astype(np.uint16) * 257, photograph()])
def test_tags_that_pillow_cannot_write_anew_do_no_harm(samples):
    """BigTIFF, and a private tag beyond 32 bits."""
    for options in ({"bigtiff": True}, {"extratags": [(65000, "Q", 1, 2**40, True)], "bigtiff": True}):
        file = io.BytesIO()
        turned = [(0x0112, "H", 1, 6, True)]
        options["extratags"] = options.get("extratags", []) + turned
        tifffile.imwrite(file, samples, photometric="rgb" if samples.ndim == 3 else "minisblack", **options)
        expected = np.rot90(photograph() if samples.ndim == 3 else photograph()[..., :1].repeat(3, 2), -1)
        np.testing.assert_array_equal(decode(file.getvalue()), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_odd_exif_data_keeps_no_image_from_being_used(kind):
    plain = Image.fromarray(photograph())
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    expected = decode(encode(plain, kind, **lossless))
    garbage = encode(plain, kind, exif=b"Exif\0\0XX\0\0\0\0\0\x08", dpi=(72, 72), **lossless)
    np.testing.assert_array_equal(decode(garbage), expected)
    # Orientation 6 beside a resolution unit that is a text instead of a number.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x0128, 2, 2, b"2\0\0\0")
    mistyped = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    np.testing.assert_array_equal(decode(encode(plain, kind, exif=mistyped, **lossless)), np.rot90(expected, -1))


def test_damage_is_named():
    jpeg = encode(photograph(200, 200), "JPEG")
    png = encode(photograph(200, 200), "PNG")
    damaged = {
        "empty": b"",
        "not an image": b"<html>404</html>",
        "truncated": jpeg[: len(jpeg) // 2],
        "Error": png[: len(png) // 2],
        "shorter than 8": encode(photograph(4, 64)),
        "factor of 20": encode(photograph(8, 168)),
        "32-bit": encode(Image.new("F", (16, 16)), "TIFF"),
    }
    for reason, encoded in damaged.items():
        with pytest.raises(BadImage, match=reason) as error:
            decode(encoded)
        assert "\n" not in str(error.value)


def test_a_gif_is_not_read():
    with pytest.raises(BadImage, match="not an image of a known format"):
        decode(encode(photograph(), "GIF"))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    encoded = encode(photograph(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    decode(encoded)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    advice = "64 x 64 pixels exceed the limit of 4095 pixels: cut it into tiles"
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(BadImage, match=advice):
        decode(encoded)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="its pixels exceed the limit of 1000 pixels: cut it into tiles"):
        decode(encoded)


def test_a_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImage, match="FileNotFound"):
        decode(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        encoded = np.frombuffer(encode(photograph(32, 32), kind), np.uint8)
        for _ in range(60):
            broken = encoded.copy()
            broken[rng.integers(len(broken), size=4)] = rng.integers(256, size=4)
            try:
                assert decode(broken.tobytes()).shape[2] == 3
            except BadImage as error:
                assert str(error)
