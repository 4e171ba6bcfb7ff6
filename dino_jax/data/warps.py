"""Pairs of a photograph and a distorted copy in which the place of every point is known."""

import math

import numpy as np
from PIL import Image

ROTATION = 25.0  # degrees, either way
ZOOM = (0.75, 1.33)
SHIFT = 0.12  # of the side
PERSPECTIVE = 0.08  # how far a corner moves, of the side
BRIGHTNESS = (0.8, 1.25)
CONTRAST = (0.8, 1.25)


def warp(image: np.ndarray, *, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotates, zooms, shifts and tilts a photograph, and changes brightness and contrast.

    What comes from outside the photograph repeats its mirror image.

    Args:
      image: uint8 `(height, width, 3)`.
      random: draws the distortion.

    Returns:
      The distorted image, of the same size, and the homography `(3, 3)` from points `(x, y, 1)` of the photograph to
      the copy, both as shares of width and height; see `moved`.
    """
    height, width = image.shape[:2]
    matrix = random_homography(width / height, random)
    # A mirrored border three times the size holds every point that may come into sight.
    wide = np.pad(image, ((height, height), (width, width), (0, 0)), mode="symmetric")
    to_shares, to_pixels = np.diag([1 / width, 1 / height, 1]), np.diag([width, height, 1])
    shift = np.array([[1, 0, width], [0, 1, height], [0, 0, 1]])
    back = shift @ to_pixels @ np.linalg.inv(matrix) @ to_shares
    coefficients = (back / back[2, 2]).ravel()[:8].tolist()
    copy = Image.fromarray(wide).transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    light = np.asarray(copy, np.float32)
    light = light.mean() + (light - light.mean()) * random.uniform(*CONTRAST)
    return np.clip(light * random.uniform(*BRIGHTNESS), 0, 255).round().astype(np.uint8), matrix


def random_homography(aspect: float, random: np.random.Generator) -> np.ndarray:
    """Draws a homography of shares of width and height, for images of `aspect` = width / height."""
    angle = math.radians(random.uniform(-ROTATION, ROTATION))
    zoom = math.exp(random.uniform(*np.log(ZOOM)))
    turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    stretch = np.array([aspect, 1.0])  # a rotation is one only in units that are alike in x and y
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    moved_corners = ((corners - 0.5) * stretch) @ turn.T / stretch + 0.5 + random.uniform(-SHIFT, SHIFT, 2)
    return homography(corners, moved_corners + random.uniform(-PERSPECTIVE, PERSPECTIVE, (4, 2)))


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the homography `(3, 3)` that takes four points `(4, 2)` to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Applies a homography to points `(points, 2)`."""
    found = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T
    return found[:, :2] / found[:, 2:]
