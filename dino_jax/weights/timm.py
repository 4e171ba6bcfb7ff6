"""The layouts of timm's models, as tables (see `rules`)."""

from dino_jax.weights.rules import table
from dino_jax.weights.torch_names import BLOCKS, CLS_AND_POSITIONS, EMBEDDING, FINAL_NORM, LAYER_SCALE, QKV_BIAS

DINO = table(CLS_AND_POSITIONS + EMBEDDING + BLOCKS + QKV_BIAS + FINAL_NORM)
SWIGLU = """
blocks/mlp/w1/kernel + blocks/mlp/w2/kernel = blocks.{i}.mlp.fc1.weight : linear
blocks/mlp/w1/bias + blocks/mlp/w2/bias     = blocks.{i}.mlp.fc1.bias   : vector
blocks/mlp/w3/kernel    = blocks.{i}.mlp.fc2.weight    : linear
blocks/mlp/w3/bias      = blocks.{i}.mlp.fc2.bias      : vector
"""
DINOV2_COMMON = EMBEDDING + BLOCKS + QKV_BIAS + LAYER_SCALE + SWIGLU + FINAL_NORM
DINOV2 = table(CLS_AND_POSITIONS + DINOV2_COMMON)
DINOV2_REGISTERS = table(
    """
    registers               = reg_token                    : tokens
    cls_token + pos_embed   = cls_token + pos_embed        : position_fold
    """
    + DINOV2_COMMON
)
DINOV3 = table(
    """
    cls_token               = cls_token                    : token
    registers               = reg_token                    : tokens
    blocks/attn/qkv/bias    = ?blocks.{i}.attn.q_bias + - + ?blocks.{i}.attn.v_bias : vector
    blocks/ls1/gamma        = blocks.{i}.gamma_1           : vector
    blocks/ls2/gamma        = blocks.{i}.gamma_2           : vector
    blocks/mlp/w1/kernel    = blocks.{i}.mlp.fc1_g.weight  : linear
    blocks/mlp/w1/bias      = blocks.{i}.mlp.fc1_g.bias    : vector
    blocks/mlp/w2/kernel    = blocks.{i}.mlp.fc1_x.weight  : linear
    blocks/mlp/w2/bias      = blocks.{i}.mlp.fc1_x.bias    : vector
    blocks/mlp/w3/kernel    = blocks.{i}.mlp.fc2.weight    : linear
    blocks/mlp/w3/bias      = blocks.{i}.mlp.fc2.bias      : vector
    """
    + EMBEDDING
    + BLOCKS
    + FINAL_NORM
)
CONVNEXT = table(
    """
    stages_0/downsample/conv/kernel   = stem.0.weight                          : conv
    stages_0/downsample/conv/bias     = stem.0.bias                            : vector
    stages_0/downsample/norm/scale    = stem.1.weight                          : vector
    stages_0/downsample/norm/bias     = stem.1.bias                            : vector
    stages_{s}/downsample/norm/scale  = stages.{s}.downsample.0.weight         : vector
    stages_{s}/downsample/norm/bias   = stages.{s}.downsample.0.bias           : vector
    stages_{s}/downsample/conv/kernel = stages.{s}.downsample.1.weight         : conv
    stages_{s}/downsample/conv/bias   = stages.{s}.downsample.1.bias           : vector
    stages_{s}/blocks/depthwise/kernel = stages.{s}.blocks.{i}.conv_dw.weight  : conv
    stages_{s}/blocks/depthwise/bias  = stages.{s}.blocks.{i}.conv_dw.bias     : vector
    stages_{s}/blocks/norm/scale      = stages.{s}.blocks.{i}.norm.weight      : vector
    stages_{s}/blocks/norm/bias       = stages.{s}.blocks.{i}.norm.bias        : vector
    stages_{s}/blocks/mlp/fc1/kernel  = stages.{s}.blocks.{i}.mlp.fc1.weight   : linear
    stages_{s}/blocks/mlp/fc1/bias    = stages.{s}.blocks.{i}.mlp.fc1.bias     : vector
    stages_{s}/blocks/mlp/fc2/kernel  = stages.{s}.blocks.{i}.mlp.fc2.weight   : linear
    stages_{s}/blocks/mlp/fc2/bias    = stages.{s}.blocks.{i}.mlp.fc2.bias     : vector
    stages_{s}/blocks/ls/gamma        = stages.{s}.blocks.{i}.gamma            : vector
    norm/scale                        = head.norm.weight                       : vector
    norm/bias                         = head.norm.bias                         : vector
    """
)
