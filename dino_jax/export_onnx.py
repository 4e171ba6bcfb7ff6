"""ONNX files of networks with their weights, for `python -m dino_jax.export`."""

import logging
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import Array

Features = Callable[[Array], dict[str, Array]]


def convert(features: Features, shape: tuple[int, int, int]) -> bytes:
    """Returns an ONNX model of a function, for any batch size.

    Args:
      features: of images, float32 `(batch, *shape)`.
      shape: height, width and channels of an image.

    Raises:
      ValueError: if jax2onnx is missing, or cannot convert the function.
    """
    try:
        import jax2onnx
    except ImportError:
        raise ValueError("export to ONNX needs jax2onnx: pip install -e '.[onnx]'") from None
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # types of values that no output needs
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    names = list(jax.eval_shape(features, images))
    # The converter knows JAX's primitives, but not Flax's scan over blocks: it is shown the former alone.
    function = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(features)(images))
    try:
        model = jax2onnx.to_onnx(function, [images], input_names=["images"], output_names=names)
    except Exception as error:  # whatever its plug-ins raise for a primitive they do not know
        raise ValueError(f"jax2onnx cannot convert this network: {' '.join(str(error).split())[:300]}") from error
    return model.SerializeToString()


def run(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of an ONNX model by name, computed by ONNX Runtime on the CPU.

    Raises:
      ValueError: if it cannot be run, as the converted pooling of ResNet-50 cannot.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"images": images}), strict=True))
    except Exception as error:  # its own classes, of which most derive from nothing else
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"ONNX Runtime cannot run what jax2onnx made of this network: {words}") from error
