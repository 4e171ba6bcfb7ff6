"""Films of frames that were drawn: GIF everywhere, MP4 where an encoder is installed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dino_jax.data.whole import write_whole

COLORS = 256


def gif(frames: Sequence[np.ndarray], path: str | os.PathLike, *, per_second: float) -> Path:
    """Writes frames, uint8 `(height, width, 3)`, as an endless GIF with one palette, so that nothing flickers.

    Raises:
      ValueError: if there are no frames.
    """
    if not len(frames):
        raise ValueError("a film needs at least one frame")
    path = Path(path)
    shown = np.concatenate(frames[:: max(1, len(frames) // 8)])
    palette = Image.fromarray(shown).quantize(COLORS, method=Image.Quantize.MEDIANCUT)
    drawn = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    milliseconds = max(20, round(1000 / per_second))
    write_whole(
        path,
        lambda file: drawn[0].save(
            file, "GIF", save_all=True, append_images=drawn[1:], duration=milliseconds, loop=0, optimize=False
        ),
    )
    return path


def mp4(frames: Sequence[np.ndarray], path: str | os.PathLike, *, per_second: float) -> Path | None:
    """Writes frames as MP4 by imageio-ffmpeg (H.264) or OpenCV; returns None where neither is installed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.mp4")  # encoders go by the extension
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]  # H.264 halves the colours
    try:
        if not (_by_ffmpeg(even, temporary, per_second) or _by_opencv(even, temporary, per_second)):
            return None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _by_ffmpeg(frames: Sequence[np.ndarray], path: Path, per_second: float) -> bool:
    try:
        import imageio_ffmpeg
    except ImportError:
        return False
    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=per_second, quality=8, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return True


def _by_opencv(frames: Sequence[np.ndarray], path: Path, per_second: float) -> bool:
    try:
        import cv2
    except ImportError:
        return False
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), per_second, (width, height))
    if not writer.isOpened():
        return False
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return True
