"""The DINO loss: the student's views predict the teacher's views of the same image."""

import jax
import jax.numpy as jnp
import numpy as np


def dino_loss(
    student_logits: jax.Array,
    teacher_probs: jax.Array,
    *,
    student_temperature: float,
    ignore_diagonal: bool = False,
) -> jax.Array:
    """Averages the cross-entropy over all pairs of a student view and a teacher view (DINO, equation 3).

        mean over samples and pairs (s, t) of  - sum_k  teacher[t, k] * log_softmax(student[s] / temperature)[k]

    Args:
      student_logits: `(batch, student_views, prototypes)`, any float dtype.
      teacher_probs: `(batch, teacher_views, prototypes)`; constants, no gradient flows into them.
      student_temperature: softmax temperature of the student.
      ignore_diagonal: leaves out the pairs with s = t, for views that are the same crops on both sides.

    Returns:
      float32 scalar.

    Raises:
      ValueError: when `ignore_diagonal` leaves no pair.
    """
    student_views, teacher_views = student_logits.shape[1], teacher_probs.shape[1]
    pairs = np.ones((student_views, teacher_views), np.float32)
    if ignore_diagonal:
        np.fill_diagonal(pairs, 0.0)
    if not pairs.any():
        raise ValueError("dino_loss: one student and one teacher view without the diagonal leave no pair; add a view.")
    logits = student_logits.astype(jnp.float32)
    logits = (logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))) / student_temperature
    targets = jax.lax.stop_gradient(teacher_probs).astype(jnp.float32)
    # Equals the sum of the formula without keeping log_softmax, which is as large as the scores, for the gradient.
    products = jnp.einsum("bsk,btk->bst", logits, targets, precision=jax.lax.Precision.HIGHEST)
    cross_entropy = jax.nn.logsumexp(logits, axis=-1)[..., None] * targets.sum(axis=-1)[:, None] - products
    return jnp.mean(jnp.sum(cross_entropy * pairs, axis=(1, 2))) / pairs.sum()


def crop_weights(*, global_crops: int, local_crops: int, ignore_diagonal: bool) -> tuple[float, float]:
    """Gives the published weights of the DINO terms on global and on local crops (DINOv2 and DINOv3 code).

    Each term is a mean over its pairs of views; weighting it by its share of all pairs makes the sum the mean over
    all pairs. The other terms have the weights of the recipe, except that KoLeo, the mean over the global crops, is
    also multiplied by their number.

    Args:
      global_crops: number of global crops of an image, the teacher's views.
      local_crops: number of local crops.
      ignore_diagonal: whether the global term leaves out pairs of a crop with itself.

    Returns:
      `(global_weight, local_weight)`, which sum to 1.

    Raises:
      ValueError: when no pair is left.
    """
    global_pairs = global_crops * (global_crops - 1 if ignore_diagonal else global_crops)
    local_pairs = global_crops * local_crops
    pairs = global_pairs + local_pairs
    if pairs < 1:
        raise ValueError(
            f"crop_weights: {global_crops} global and {local_crops} local crops leave no pair of views; add crops."
        )
    return global_pairs / pairs, local_pairs / pairs
