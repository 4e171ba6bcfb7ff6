import jax
import numpy as np

from dino_jax import compiling


def test_options_do_not_change_results():
    x = jax.random.normal(jax.random.key(0), (64, 96))

    def softmax_of_products(x):
        return jax.nn.softmax(jax.nn.gelu(x @ x.T), axis=-1)

    found = jax.jit(softmax_of_products, compiler_options=compiling.inference_options("cpu"))(x)
    np.testing.assert_allclose(found, jax.jit(softmax_of_products)(x), rtol=1e-4, atol=1e-6)


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setattr(compiling, "CPU", {"xla_cpu_no_such_option": "1"})
    assert compiling.inference_options.__wrapped__("cpu") is None


def test_other_platforms_have_none():
    assert compiling.inference_options("tpu") is None
