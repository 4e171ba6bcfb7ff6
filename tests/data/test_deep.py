import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dino_jax.data.decode import BadImage, decode
from dino_jax.data.deep import decode_deep
from dino_jax.data.fit import fit, resize
from dino_jax.data.reading import darkness
from dino_jax.data.sources import open_path
from tests.data.images import encode, photograph


def deep(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**16, shape, np.uint16)


def tiff(samples: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_of_any_channels_is_undamaged(channels, planar, byteorder):
    samples = deep(12, 10, channels)
    stored = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    if channels == 1:
        stored, planar = samples[..., 0], None
    encoded = tiff(stored, photometric="minisblack", planarconfig=planar, byteorder=byteorder)
    found = decode_deep(encoded, channels=channels)
    assert found.dtype == np.uint16
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, samples)


def test_grey_png_keeps_all_16_bits_and_is_repeated_for_rgb():
    samples = deep(9, 11)
    encoded = encode(Image.fromarray(samples))
    np.testing.assert_array_equal(decode_deep(encoded, channels=1), samples[..., None])
    np.testing.assert_array_equal(decode_deep(encoded, channels=3), np.repeat(samples[..., None], 3, axis=2))


def test_grey_png_with_transparency_keeps_all_16_bits():
    pytest.importorskip("cv2")
    grey = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32, 1) * 85 + 3
    rows = np.concatenate([grey, np.full_like(grey, 2**15)], axis=2).astype(">u2")
    encoded = png(rows, bits=16, kind=4)
    np.testing.assert_array_equal(decode_deep(encoded, channels=1), grey)
    np.testing.assert_array_equal(decode_deep(encoded, channels=3), np.repeat(grey, 3, axis=2))


def png(rows, *, bits, kind):
    """Encodes big-endian samples `(height, width, channels)` as a PNG of a type that no encoder here writes."""
    height, width = rows.shape[:2]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_colour_png_keeps_all_16_bits():
    cv2 = pytest.importorskip("cv2")
    samples = deep(9, 11, 3)
    encoded = cv2.imencode(".png", samples[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_deep(encoded, channels=3), samples)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colours_become_rgb(mode):
    image = Image.fromarray(photograph())
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    file = io.BytesIO()
    image.convert(mode).save(file, "TIFF")
    found = decode_deep(file.getvalue(), channels=3)
    np.testing.assert_array_equal(found, decode(file.getvalue()).astype(np.uint16) * 257)
    assert np.abs(found / 257 - photograph()).mean() < 10
    with pytest.raises(BadImage, match="its colours, of 16 bits, are YCbCr or Lab: save it as RGB"):
        decode_deep(tiff(deep(9, 11, 3), photometric="cielab"), channels=3)
    with pytest.raises(BadImage, match="not labelled as those of a photograph"):
        decode(tiff(deep(9, 11, 3), photometric="cielab"))


def test_eight_bits_fill_the_range():
    image = photograph()
    found = decode_deep(encode(image), channels=3)
    np.testing.assert_array_equal(found / 65535, image / 255)
    assert decode_deep(encode(image[..., 0]), channels=1).shape == (24, 32, 1)


@pytest.mark.parametrize(
    ("encoded", "channels", "message"),
    [
        (b"", 3, "empty"),
        (b"nothing", 3, "not an image"),
        (tiff(np.zeros((9, 9), np.float32)), 1, "float32 samples have no known range"),
        (tiff(np.zeros((9, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig"), 4, "5 channels"),
        (encode(photograph()), 2, "3 channels, where the network takes 2"),
        (tiff(np.zeros((9, 9), np.uint16))[:100], 1, "."),
        (tiff(np.zeros((9, 900), np.uint16)), 1, "factor"),
    ],
)
def test_bad_images_say_why(encoded, channels, message):
    with pytest.raises(BadImage, match=message):
        decode_deep(encoded, channels=channels)


def test_resizing_keeps_16_bits_and_agrees_with_pillow_on_8():
    image = photograph(40, 30)
    both = [resize(part, (20, 15)) for part in (image, np.concatenate([image, image[..., :1]], -1))]
    np.testing.assert_allclose(both[0], both[1][..., :3], atol=1)
    flat = np.full((40, 30, 4), 40_001, np.uint16)
    assert (fit(flat, size=16) == 40_001).all()
    assert fit(flat, size=16).dtype == np.uint16
    edge = np.zeros((32, 32, 1), np.uint16)
    edge[:, 16:] = 65535
    assert fit(edge, size=24).max() == 65535  # overshoot of the cubic filter does not wrap around


def test_fit_modes():
    image = deep(30, 50, 2)
    assert fit(image, size=16).shape == (16, 16, 2)
    assert fit(image, size=16, how="squash").shape == (16, 16, 2)
    np.testing.assert_array_equal(fit(image, size=0, how="native", multiple=8), image[3:27, 1:49])
    with pytest.raises(BadImage, match="smaller than a patch of 32"):
        fit(image, size=0, how="native", multiple=32)
    with pytest.raises(ValueError, match="fit must be one of"):
        fit(image, size=16, how="stretch")


def test_open_path_finds_the_kind(tmp_path):
    (tmp_path / "one.png").write_bytes(encode(photograph()))
    assert open_path(str(tmp_path)).name(0) == "one.png"
    assert len(open_path(str(tmp_path / "one.png"))) == 1
    np.testing.assert_array_equal(open_path(str(tmp_path / "one.png"))[0]["image"], photograph())
    assert len(open_path("packaged")) > 1
    with pytest.raises(ValueError, match="does not exist"):
        open_path(str(tmp_path / "two"))
    (tmp_path / "text.txt").write_text("no archive")
    with pytest.raises(ValueError, match="nor a tar or tar"):
        open_path(str(tmp_path / "text.txt"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_to_8_bits(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey, colour = deep(16, 24), deep(16, 24, 3)
    extra = [(0x0112, "H", 1, orientation, True)]
    stored = [
        encode(grey, "PNG", exif=exif),
        tiff(grey, photometric="minisblack", extratags=extra),
        tiff(colour, photometric="rgb", extratags=extra),
        encode((colour >> 8).astype(np.uint8), "PNG", exif=exif),
        encode((colour >> 8).astype(np.uint8), "TIFF", exif=exif),
    ]
    for encoded in stored:
        np.testing.assert_array_equal(decode_deep(encoded, channels=3) >> 8, decode(encoded))


def test_pages_are_channels_where_there_are_as_many():
    samples = deep(5, 12, 10)
    encoded = tiff(samples)
    np.testing.assert_array_equal(decode_deep(encoded, channels=5), np.moveaxis(samples, 0, -1))
    np.testing.assert_array_equal(decode_deep(encoded, channels=1)[..., 0], samples[0])


def test_inks_are_no_colours():
    encoded = encode(Image.fromarray(photograph()).convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(decode_deep(encoded, channels=3) >> 8, decode(encoded))


@pytest.mark.parametrize("image", [photograph(), photograph()[..., 0], (photograph()[..., 0].astype(np.uint16) * 257)])
def test_a_compression_that_only_pillow_knows(image):
    encoded = encode(image, "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode_deep(encoded, channels=3) >> 8, decode(encoded))


@pytest.mark.parametrize(("bits", "said"), [(8, False), (12, True), (16, False)])
def test_twelve_bits_in_sixteen_are_noticed(tmp_path, bits, said):
    for number in range(3):
        samples = deep(16, 16, 3, seed=number) >> (16 - bits)
        (tmp_path / f"{number}.tif").write_bytes(
            tiff(samples.astype(np.uint8 if bits == 8 else np.uint16), photometric="rgb")
        )
    for source in (open_path(str(tmp_path)), open_path(str(tmp_path), decode=partial(decode_deep, channels=3))):
        assert ("if the files hold 12 bits in 16, scale them up" in darkness(source, (0.485, 0.456, 0.406))) == said
        assert darkness(source, (0.01,) * 3) == ""  # as dark as its statistics say


@pytest.mark.parametrize("channels", [0xFFF, 0xFFFF])
def test_a_damaged_number_of_channels_is_a_bad_image(channels):
    """Not an error of memory, which would stop a run."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64), np.uint16), photometric="minisblack", tile=(16, 16))
    encoded = bytearray(file.getvalue())
    for tag, value in ((0x0100, 8000), (0x0101, 8000), (0x0115, channels)):
        place = encoded.index(struct.pack("<H", tag), 8)
        kind = struct.unpack_from("<H", encoded, place + 2)[0]
        struct.pack_into("<H" if kind == 3 else "<I", encoded, place + 8, value)
    for read in (decode, partial(decode_deep, channels=3)):
        with pytest.raises(BadImage):
            read(bytes(encoded))
