import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses.gram import gram_loss, gram_matrix
from tests.torch_weights import assert_close

# A difference of similarities that nearly cancel: 2.3e-6 of the largest was the most in nine files.
GOLDEN = 8e-6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_gradient(student, teacher, **options):
    return jax.jit(jax.value_and_grad(lambda x: gram_loss(x, teacher, **options)))(student)


def reference(student, teacher, *, normalize=True, image_level=True, remove_negatives="none"):
    """The loss in float64, entry by entry."""
    terms = []
    student, teacher = (np.asarray(x, np.float64) for x in (student, teacher))
    if normalize:
        student, teacher = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (student, teacher))
    pairs = list(zip(student, teacher, strict=True))
    if not image_level:
        pairs = [(np.concatenate(student), np.concatenate(teacher))]
    for ours, theirs in pairs:
        for i in range(len(ours)):
            for j in range(len(ours)):
                s, t = ours[i] @ ours[j], theirs[i] @ theirs[j]
                if remove_negatives == "both":
                    s, t = max(s, 0), max(t, 0)
                if remove_negatives == "teacher" and t < 0:
                    s, t = max(s, 0), 0
                terms.append((s - t) ** 2)
    return np.mean(terms)


def test_by_hand():
    # Cosine 0 in the student, 1 in the teacher; the diagonal agrees: 2 of 4 entries differ by 1.
    student = np.array([[[2.0, 0.0], [0.0, 5.0]]], np.float32)
    teacher = np.array([[[1.0, 0.0], [3.0, 0.0]]], np.float32)
    np.testing.assert_allclose(value_and_gradient(student, teacher)[0], 0.5, rtol=1e-6)


@pytest.mark.parametrize("remove_negatives", ["none", "both", "teacher"])
@pytest.mark.parametrize("image_level", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_against_numpy(normalize, image_level, remove_negatives):
    options = {"normalize": normalize, "image_level": image_level, "remove_negatives": remove_negatives}
    student, teacher = normal(2, 5, 4), normal(2, 5, 3, seed=1)
    value, _ = value_and_gradient(student, teacher, **options)
    np.testing.assert_allclose(value, reference(student, teacher, **options), rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_as_one_set_needs_no_matrix_of_all_pairs(normalize, masked):
    student = normal(3, 6, 4)
    teacher = student + 1e-3 * normal(3, 6, 4, seed=1)  # what nearly agrees is where precision could be lost
    mask = normal(3, 6, seed=2) > 0 if masked else np.ones((3, 6), bool)
    expected = reference(student[mask][None], teacher[mask][None], normalize=normalize)
    options = {"normalize": normalize, "image_level": False}
    value, _ = value_and_gradient(student, teacher, token_mask=mask if masked else None, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-4)  # float32 tokens differ by 1e-3, to 1e-7
    sizes = jax.make_jaxpr(lambda x: gram_loss(x, teacher, **options))(student)
    assert "18,18" not in str(sizes)


@pytest.mark.parametrize("image_level", [True, False])
def test_selected_tokens_are_a_loss_of_their_own(image_level):
    student, teacher = normal(1, 6, 4), normal(1, 6, 4, seed=1)
    mask = np.array([[True, False, True, True, False, True]])
    expected = reference(student[:, mask[0]], teacher[:, mask[0]])
    student[~mask], teacher[~mask] = 1e6, 1e6
    value, gradient = value_and_gradient(student, teacher, image_level=image_level, token_mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert (np.asarray(gradient)[~mask] == 0).all()
    none, gradient = value_and_gradient(student, teacher, token_mask=np.zeros_like(mask))
    assert none == 0
    assert (np.asarray(gradient) == 0).all()


def test_zero_for_a_rotated_teacher_and_no_gradient_to_it():
    student = normal(2, 5, 4)
    rotation, _ = np.linalg.qr(normal(4, 4))
    np.testing.assert_allclose(value_and_gradient(student, student @ rotation)[0], 0, atol=1e-12)
    to_teacher = jax.grad(gram_loss, argnums=1)(jnp.array(student), jnp.array(normal(2, 5, 4, seed=1)))
    assert (np.asarray(to_teacher) == 0).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="use resize_patches"):
        gram_loss(jnp.ones((1, 4, 2)), jnp.ones((1, 9, 2)))
    with pytest.raises(ValueError, match="choose 'none', 'both' or 'teacher'"):
        gram_loss(jnp.ones((1, 4, 2)), jnp.ones((1, 4, 2)), remove_negatives="all")


@pytest.mark.golden
@pytest.mark.parametrize("case", ["plain", "remove_neg"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("image_level", [True, False])
def test_golden(golden, image_level, normalize, case):
    file = golden("v3_gramloss.npz")
    value, gradient = value_and_gradient(
        file["in/student"],
        file["in/teacher"],
        normalize=normalize,
        image_level=image_level,
        remove_negatives="both" if case == "remove_neg" else "none",
    )
    name = f"img_level_{image_level}/normalized_{normalize}/{case}"
    assert_close(value, file[f"out/{name}"], relative=GOLDEN)
    assert_close(gradient, file[f"grad_input/{name}"], relative=GOLDEN)


@pytest.mark.golden
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("image_level", [True, False])
def test_golden_of_the_references_teacher_negatives(golden, image_level, normalize):
    """The reference zeroes only the teacher's negatives; ours also the student's beneath them, so it is no larger."""
    file = golden("v3_gramloss.npz")
    name = f"img_level_{image_level}/normalized_{normalize}/remove_only_teacher_neg"
    options = {"normalize": normalize, "image_level": image_level}
    targets = jnp.maximum(gram_matrix(file["in/teacher"], **options), 0)

    @jax.jit
    @jax.value_and_grad
    def as_the_reference(student):
        return jnp.mean((gram_matrix(student, **options) - targets) ** 2)

    value, gradient = as_the_reference(file["in/student"])
    assert_close(value, file[f"out/{name}"], relative=GOLDEN)
    assert_close(gradient, file[f"grad_input/{name}"], relative=GOLDEN)
    ours, _ = value_and_gradient(file["in/student"], file["in/teacher"], remove_negatives="teacher", **options)
    assert ours < value


@pytest.mark.golden
@pytest.mark.parametrize("tokens", ["masked", "unmasked"])
def test_golden_of_selected_tokens(golden, tokens):
    file = golden("v3_gramloss.npz")
    mask = file["in/token_mask"] if tokens == "masked" else ~file["in/token_mask"]
    value, gradient = value_and_gradient(file["in/student"], file["in/teacher"], image_level=False, token_mask=mask)
    assert_close(value, file[f"out/tokens_{tokens}"], relative=GOLDEN)
    assert_close(gradient, file[f"grad_input/tokens_{tokens}"], relative=GOLDEN)


@pytest.mark.golden
def test_golden_of_dinotxt(golden):
    file = golden("v3_gramloss.npz")
    value, gradient = value_and_gradient(file["in/student"], file["in/teacher"])
    assert_close(value, file["out/dinotxt_gram_normalized"], relative=GOLDEN)
    assert_close(gradient, file["grad_input/dinotxt_gram_normalized"], relative=GOLDEN)
