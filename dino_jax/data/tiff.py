"""Reads the samples of a TIFF page whole: 16 bits, any number of channels, together or in planes."""

import io
from typing import Any

import numpy as np

ORIENTATION = 274  # the tag
HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Page:
    """The first page of a TIFF file.

    Attributes:
      width, height: in pixels.
      bits: of a sample.
      channels: of a pixel.
      plain: unsigned grey, RGB, RGBA or CMYK, black being 0, all channels of a pixel side by side, and labelled so.
      colour: its first three channels are red, green and blue, as it says, or as is usual for three.
      alpha: its last channel is opacity.
      palette: its samples are numbers of colours.
      inks: its samples are amounts of ink (CMYK).
      converted: its colours are others than red, green and blue (YCbCr, Lab).
      orientation: as EXIF has it, 1 upright.
    """

    def __init__(self, encoded: bytes):
        """Reads the header alone."""
        import tifffile

        self._kinds = tifffile
        self._file = tifffile.TiffFile(io.BytesIO(encoded))
        page: Any = self._file.pages[0]
        self._page = page
        self.width, self.height = page.imagewidth, page.imagelength
        self.bits, self.channels = page.bitspersample, page.samplesperpixel
        kinds = tifffile.PHOTOMETRIC
        together = page.planarconfig == tifffile.PLANARCONFIG.CONTIG or page.samplesperpixel == 1
        usual = {kinds.MINISBLACK: (1,), kinds.RGB: (3, 4), kinds.SEPARATED: (4,)}.get(page.photometric, ())
        self.plain = together and self.channels in usual and page.sampleformat == tifffile.SAMPLEFORMAT.UINT
        self.converted = page.photometric in (kinds.YCBCR, kinds.CIELAB, kinds.ICCLAB, kinds.ITULAB)
        self.colour = (page.photometric == kinds.RGB or self.channels == 3) and not self.converted
        opacity = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
        self.alpha = bool(page.extrasamples) and page.extrasamples[-1] in opacity
        self.palette = page.photometric == kinds.PALETTE
        self.inks = page.photometric == kinds.SEPARATED
        orientation: Any = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
        self.orientation = orientation if orientation in range(1, 9) else 1

    def samples(self, *, pages: int = 1) -> np.ndarray:
        """Decodes the page to `(height, width, channels)` in the type of the file; white is always the largest value.

        Args:
          pages: if the file has exactly this many, all of one channel and one size, each is a channel.

        Raises:
          ValueError: for a volume, or a compression that needs more than is installed.
        """
        everything: list[Any] = list(self._file.pages)
        paged = len(everything) == pages > 1 and {page.shape for page in everything} == {(self.height, self.width)}
        samples = np.stack([page.asarray() for page in everything], axis=-1) if paged else self._page.asarray()
        if self._page.photometric == self._kinds.PHOTOMETRIC.MINISWHITE:
            samples = np.iinfo(samples.dtype).max - samples
        planes = samples.ndim == 3 and self._page.planarconfig == self._kinds.PLANARCONFIG.SEPARATE and not paged
        if samples.ndim == 2:
            return samples[..., None]
        if samples.ndim != 3:
            raise ValueError(f"a TIFF page of shape {samples.shape}")
        return np.moveaxis(samples, 0, -1) if planes else samples


def upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turns `(height, width, channels)` upright, see tag 274 of TIFF."""
    if orientation in (2, 3, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7):
        samples = samples[::-1]
    if orientation in (5, 7):
        return samples.swapaxes(0, 1)
    return np.rot90(samples, {6: -1, 8: 1}.get(orientation, 0))
