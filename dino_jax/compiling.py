"""Options for compilers, where the default is not the fastest."""

import functools

import jax

# On CPUs (jax 0.10.2, AVX-512, float32), YNNPACK multiplies matrices a tenth slower than XLA's older way but reduces
# faster, and the older code for fused loops is faster. Both options together save 4 % for ViT-S, 8 % for ViT-B.
CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_use_fusion_emitters": "false",
}


@functools.cache
def inference_options(platform: str) -> dict[str, str] | None:
    """Returns the `compiler_options` of `jax.jit` for inference on a platform, None where the default is best.

    Options come and go with versions of XLA: they are tried once on a sum, and left out if they are unknown.
    """
    if platform != "cpu":
        return None
    device = jax.local_devices(backend="cpu")[0]
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(CPU))(jax.device_put(1.0, device))
    except (RuntimeError, ValueError):  # the compiler's own error is the former
        return None
    return dict(CPU)
