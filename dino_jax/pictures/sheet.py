"""Pages of image panels, and how a figure becomes a file."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from dino_jax.data.shards import write_whole

DPI = 150
PANEL = 2.0  # inches, the longer side of an image panel
GAP = 0.06
BLOCK_GAP = 0.3
TITLE = 0.42
LABEL = 0.24


class Sheet:
    """A page of image panels: rows of blocks, a block being the panels of one image side by side."""

    def __init__(
        self,
        images: np.ndarray,
        *,
        panels: int,
        blocks: int,
        title: str,
        names: Sequence[str] | None,
        columns: Sequence[str] | None = None,
        panel: float = PANEL,
        colorbar: bool = False,
    ):
        height, width = images.shape[1:3]
        self._extent = (0, width, height, 0)
        scale = panel / max(height, width)
        self._width, self._height = width * scale, height * scale
        self._panels, self._blocks, self._names, self._columns = panels, blocks, names, columns
        self._block_width = panels * self._width + (panels - 1) * GAP
        rows = -(-len(images) // blocks)
        self._row_height = self._height + (LABEL if names else GAP)
        # Column headings share the line of the first row's name.
        self._top = TITLE + (LABEL if columns and not names else 0)
        width = 2 * GAP + blocks * self._block_width + (blocks - 1) * BLOCK_GAP + (0.75 if colorbar else 0)
        # A single small panel must still leave room for the title, about 0.095 inches a letter.
        self._inches = max(width, 0.095 * len(title)), self._top + rows * self._row_height + GAP
        self._figure = Figure(figsize=self._inches, dpi=DPI)
        self._text(GAP, 0.17, title, size=11, weight="bold")

    def _text(self, left: float, top: float, text: str, **style: object) -> None:
        width, height = self._inches
        self._figure.text(left / width, 1 - top / height, text, va="center", **style)  # type: ignore[arg-type]

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Adds axes at inches from the upper left corner."""
        across, down = self._inches
        return self._figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    def _panel(self, index: int, panel: int) -> Axes:
        """Adds the axes of one panel of image `index`, and the words that belong to it."""
        row, block = divmod(index, self._blocks)
        left = GAP + block * (self._block_width + BLOCK_GAP) + panel * (self._width + GAP)
        label = LABEL if self._names else 0
        top = self._top + row * self._row_height + label
        if self._names and panel == 0:
            self._text(left, top - LABEL / 2, self._names[index], size=9)
        if self._columns and row == 0 and panel > 0:
            self._text(left + self._width / 2, TITLE + LABEL / 2, self._columns[panel], size=9, ha="center")
        axes = self._axes(left, top, self._width, self._height)
        axes.set_axis_off()
        return axes

    def image(self, index: int, panel: int, image: np.ndarray) -> Axes:
        """Draws a photograph (uint8) or a grid of colours in [0, 1], filling the panel."""
        axes = self._panel(index, panel)
        channels = [self._enlarged(channel) for channel in np.moveaxis(np.asarray(image, np.float32), -1, 0)]
        limit = 255.0 if image.dtype == np.uint8 else 1.0
        pixels = np.clip(np.stack(channels, axis=-1) / limit, 0, 1)
        axes.imshow(pixels, extent=self._extent, interpolation="nearest", aspect="auto")
        return axes

    def map(self, index: int, panel: int, values: np.ndarray, *, low: float, high: float, colors: str) -> Axes:
        """Draws a grid of values as colours, interpolated to fill the panel."""
        axes = self._panel(index, panel)
        pixels = self._enlarged(np.asarray(values, np.float32))
        axes.imshow(
            pixels, extent=self._extent, interpolation="nearest", aspect="auto", vmin=low, vmax=high, cmap=colors
        )
        return axes

    def _enlarged(self, values: np.ndarray) -> np.ndarray:
        """Resizes a float32 grid to the panel's pixels; Pillow's filters, unlike Matplotlib's, keep the peak values."""
        size = (round(self._width * DPI), round(self._height * DPI))
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))

    def mark(self, axes: Axes, image: Sequence[int], grid: Sequence[int]) -> None:
        """Outlines the middle patch."""
        row, column = middle(grid)
        height, width = image[0] / grid[0], image[1] / grid[1]
        for color, line in (("black", 2.6), ("white", 1.2)):
            box = Rectangle((column * width, row * height), width, height, fill=False, edgecolor=color, linewidth=line)
            axes.add_patch(box)

    def bar(self, low: float, high: float, colors: str) -> None:
        """Draws the colour scale of the maps at the right, as high as the first row."""
        left = self._inches[0] - 0.62
        axes = self._axes(left, self._top + (LABEL if self._names else 0), 0.12, self._height)
        scale = ScalarMappable(Normalize(low, high), colors)
        self._figure.colorbar(scale, cax=axes)
        axes.tick_params(labelsize=8)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the page."""
        return save(self._figure, path)


def middle(grid: Sequence[int]) -> tuple[int, int]:
    """Returns the row and column of the patch that covers the middle of the image."""
    return grid[0] // 2, grid[1] // 2


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure as PNG, whole or not at all, and returns the path."""
    path = Path(path)
    # The figure never meets pyplot, whose global state would keep it alive and might ask for a display.
    canvas = FigureCanvasAgg(figure)
    write_whole(path, lambda file: canvas.print_figure(file, format="png", dpi=DPI))
    return path
