"""The Gram loss: the student's patch similarities stay those of an earlier, better teacher."""

from typing import Literal

import jax
import jax.numpy as jnp

from dino_jax.losses.normalize import l2_normalize

Negatives = Literal["none", "both", "teacher"]


def gram_matrix(tokens: jax.Array, *, normalize: bool, image_level: bool) -> jax.Array:
    """Computes the similarities of all pairs of patches, within images or over the whole batch.

    Args:
      tokens: `(batch, patches, dim)`, any float dtype.
      normalize: takes cosines instead of dot products.
      image_level: compares the patches of one image; otherwise those of all images, as one large set.

    Returns:
      float32 `(batch, patches, patches)`, or `(1, batch * patches, batch * patches)`.
    """
    tokens = _tokens(tokens, normalize)
    if not image_level:
        tokens = tokens.reshape(1, -1, tokens.shape[-1])
    return jnp.einsum("bid,bjd->bij", tokens, tokens, precision=jax.lax.Precision.HIGHEST)


def _tokens(tokens: jax.Array, normalize: bool) -> jax.Array:
    return l2_normalize(tokens, eps=1e-12) if normalize else tokens.astype(jnp.float32)


def _drop_negatives(student: jax.Array, teacher: jax.Array, negatives: Negatives) -> tuple[jax.Array, jax.Array]:
    match negatives:
        case "none":
            return student, teacher
        case "both":
            return jnp.where(student < 0, 0.0, student), jnp.where(teacher < 0, 0.0, teacher)
        case "teacher":
            # The reference zeroes the teacher before it looks for pairs negative in both, finds none and so leaves
            # the student alone. Its evident intention is computed here.
            return jnp.where((student < 0) & (teacher < 0), 0.0, student), jnp.where(teacher < 0, 0.0, teacher)
        case _:
            raise ValueError(f"gram_loss: remove_negatives is {negatives!r}; choose 'none', 'both' or 'teacher'.")


def gram_loss(
    student: jax.Array,
    teacher: jax.Array,
    *,
    normalize: bool = True,
    image_level: bool = True,
    remove_negatives: Negatives = "none",
    token_mask: jax.Array | None = None,
) -> jax.Array:
    """Averages the squared difference of the two Gram matrices over their entries (DINOv3, equation 2).

    The paper writes the squared Frobenius norm, which is this mean times the number of entries.

    Args:
      student: `(batch, patches, dim)`, any float dtype.
      teacher: `(batch, patches, teacher_dim)` on the student's grid (see `resize_patches`); constants.
      normalize: compares cosines instead of dot products.
      image_level: one matrix per image instead of one over the whole batch.
      remove_negatives: "none"; "both" sets the negative similarities of each side to 0; "teacher" sets the teacher's
        negative similarities to 0, and the student's where both are negative (so a student that is negative where
        the teacher is costs nothing, and one that is negative elsewhere is still pulled up).
      token_mask: bool `(batch, patches)`; only pairs of selected patches count, 0 when none is selected.

    Returns:
      float32 scalar.

    Raises:
      ValueError: when the two grids differ or `remove_negatives` is not one of the three.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"gram_loss: {student.shape[:2]} student and {teacher.shape[:2]} teacher patches; use resize_patches first."
        )
    teacher = jax.lax.stop_gradient(teacher)
    if token_mask is not None:
        # Zero vectors have similarity 0 to all others on both sides, so their entries cost nothing.
        student, teacher = (jnp.where(token_mask[..., None], tokens, 0.0) for tokens in (student, teacher))
    if not image_level and remove_negatives == "none" and student.shape == teacher.shape:
        squares = _sum_of_squares(student, teacher, normalize=normalize)
        pairs = student.shape[0] * student.shape[1] if token_mask is None else jnp.sum(token_mask, dtype=jnp.float32)
        return squares / jnp.maximum(jnp.square(jnp.float32(pairs)), 1.0)
    ours = gram_matrix(student, normalize=normalize, image_level=image_level)
    theirs = gram_matrix(teacher, normalize=normalize, image_level=image_level)
    ours, theirs = _drop_negatives(ours, theirs, remove_negatives)
    squared = jnp.square(ours - theirs)
    if token_mask is None:
        return jnp.mean(squared)
    selected = jnp.sum(token_mask, axis=1 if image_level else None, dtype=jnp.float32)
    return jnp.sum(squared) / jnp.maximum(jnp.sum(jnp.square(selected)), 1.0)


def _sum_of_squares(student: jax.Array, teacher: jax.Array, *, normalize: bool) -> jax.Array:
    """Sums the squared difference of two Gram matrices of a batch without forming them, which it could not hold.

    With D the difference of the tokens and S their sum, X X' - Y Y' = (D S' + S D') / 2, whose squared norm is
    (<D' D, S' S> + <S' D, D' S>) / 2, of matrices of the tokens' width. Nothing large cancels where X is near Y.
    """
    x, y = (_tokens(tokens, normalize).reshape(-1, tokens.shape[-1]) for tokens in (student, teacher))
    difference, total = x - y, x + y

    def inner(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)

    mixed = inner(total, difference)
    return 0.5 * (jnp.sum(inner(difference, difference) * inner(total, total)) + jnp.sum(mixed * mixed.T))
