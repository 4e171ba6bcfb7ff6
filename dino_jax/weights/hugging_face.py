"""The layouts of Hugging Face transformers' five classes on disk, as tables (see `rules`)."""

from dino_jax.weights.rules import table

EMBEDDING = """
patch_embed/kernel      = embeddings.patch_embeddings.projection.weight : conv
patch_embed/bias        = embeddings.patch_embeddings.projection.bias   : vector
cls_token               = embeddings.cls_token                          : token
pos_embed               = embeddings.position_embeddings                : tokens
"""
ATTENTION = """
blocks/attn/qkv/kernel  = encoder.layer.{i}.attention.attention.query.weight + \
encoder.layer.{i}.attention.attention.key.weight + encoder.layer.{i}.attention.attention.value.weight : linear
blocks/attn/qkv/bias    = encoder.layer.{i}.attention.attention.query.bias + \
encoder.layer.{i}.attention.attention.key.bias + encoder.layer.{i}.attention.attention.value.bias : vector
blocks/attn/proj/kernel = encoder.layer.{i}.attention.output.dense.weight : linear
blocks/attn/proj/bias   = encoder.layer.{i}.attention.output.dense.bias   : vector
norm/scale              = layernorm.weight                                : vector
norm/bias               = layernorm.bias                                  : vector
"""
DINO = table(
    EMBEDDING
    + ATTENTION
    + """
    blocks/norm1/scale      = encoder.layer.{i}.layernorm_before.weight   : vector
    blocks/norm1/bias       = encoder.layer.{i}.layernorm_before.bias     : vector
    blocks/norm2/scale      = encoder.layer.{i}.layernorm_after.weight    : vector
    blocks/norm2/bias       = encoder.layer.{i}.layernorm_after.bias      : vector
    blocks/mlp/fc1/kernel   = encoder.layer.{i}.intermediate.dense.weight : linear
    blocks/mlp/fc1/bias     = encoder.layer.{i}.intermediate.dense.bias   : vector
    blocks/mlp/fc2/kernel   = encoder.layer.{i}.output.dense.weight       : linear
    blocks/mlp/fc2/bias     = encoder.layer.{i}.output.dense.bias         : vector
    """
)
DINOV2 = table(
    EMBEDDING
    + ATTENTION
    + """
    mask_token              = ?embeddings.mask_token                      : row
    registers               = embeddings.register_tokens                  : tokens
    blocks/norm1/scale      = encoder.layer.{i}.norm1.weight              : vector
    blocks/norm1/bias       = encoder.layer.{i}.norm1.bias                : vector
    blocks/norm2/scale      = encoder.layer.{i}.norm2.weight              : vector
    blocks/norm2/bias       = encoder.layer.{i}.norm2.bias                : vector
    blocks/ls1/gamma        = encoder.layer.{i}.layer_scale1.lambda1      : vector
    blocks/ls2/gamma        = encoder.layer.{i}.layer_scale2.lambda1      : vector
    blocks/mlp/fc1/kernel   = encoder.layer.{i}.mlp.fc1.weight            : linear
    blocks/mlp/fc1/bias     = encoder.layer.{i}.mlp.fc1.bias              : vector
    blocks/mlp/fc2/kernel   = encoder.layer.{i}.mlp.fc2.weight            : linear
    blocks/mlp/fc2/bias     = encoder.layer.{i}.mlp.fc2.bias              : vector
    blocks/mlp/w1/kernel + blocks/mlp/w2/kernel = encoder.layer.{i}.mlp.weights_in.weight : linear
    blocks/mlp/w1/bias + blocks/mlp/w2/bias     = encoder.layer.{i}.mlp.weights_in.bias   : vector
    blocks/mlp/w3/kernel    = encoder.layer.{i}.mlp.weights_out.weight    : linear
    blocks/mlp/w3/bias      = encoder.layer.{i}.mlp.weights_out.bias      : vector
    """
)
DINOV3_COMMON = """
cls_token               = embeddings.cls_token                    : token
mask_token              = ?embeddings.mask_token                  : token
registers               = embeddings.register_tokens              : tokens
patch_embed/kernel      = embeddings.patch_embeddings.weight      : conv
patch_embed/bias        = embeddings.patch_embeddings.bias        : vector
blocks/norm1/scale      = layer.{i}.norm1.weight                  : vector
blocks/norm1/bias       = layer.{i}.norm1.bias                    : vector
blocks/attn/qkv/kernel  = layer.{i}.attention.q_proj.weight + layer.{i}.attention.k_proj.weight + \
layer.{i}.attention.v_proj.weight : linear
blocks/attn/qkv/bias    = layer.{i}.attention.q_proj.bias + ?layer.{i}.attention.k_proj.bias + \
layer.{i}.attention.v_proj.bias : vector
blocks/attn/proj/kernel = layer.{i}.attention.o_proj.weight       : linear
blocks/attn/proj/bias   = layer.{i}.attention.o_proj.bias         : vector
blocks/ls1/gamma        = layer.{i}.layer_scale1.lambda1          : vector
blocks/norm2/scale      = layer.{i}.norm2.weight                  : vector
blocks/norm2/bias       = layer.{i}.norm2.bias                    : vector
blocks/ls2/gamma        = layer.{i}.layer_scale2.lambda1          : vector
norm/scale              = norm.weight                             : vector
norm/bias               = norm.bias                               : vector
"""
DINOV3 = table(
    DINOV3_COMMON
    + """
    blocks/mlp/fc1/kernel   = layer.{i}.mlp.up_proj.weight            : linear
    blocks/mlp/fc1/bias     = layer.{i}.mlp.up_proj.bias              : vector
    blocks/mlp/fc2/kernel   = layer.{i}.mlp.down_proj.weight          : linear
    blocks/mlp/fc2/bias     = layer.{i}.mlp.down_proj.bias            : vector
    blocks/mlp/w1/kernel    = layer.{i}.mlp.gate_proj.weight          : linear
    blocks/mlp/w1/bias      = layer.{i}.mlp.gate_proj.bias            : vector
    blocks/mlp/w2/kernel    = layer.{i}.mlp.up_proj.weight            : linear
    blocks/mlp/w2/bias      = layer.{i}.mlp.up_proj.bias              : vector
    blocks/mlp/w3/kernel    = layer.{i}.mlp.down_proj.weight          : linear
    blocks/mlp/w3/bias      = layer.{i}.mlp.down_proj.bias            : vector
    """
)
CONVNEXT = table(
    """
    stages_0/downsample/conv/kernel   = stages.0.downsample_layers.0.weight    : conv
    stages_0/downsample/conv/bias     = stages.0.downsample_layers.0.bias      : vector
    stages_0/downsample/norm/scale    = stages.0.downsample_layers.1.weight    : vector
    stages_0/downsample/norm/bias     = stages.0.downsample_layers.1.bias      : vector
    stages_{s}/downsample/norm/scale  = stages.{s}.downsample_layers.0.weight  : vector
    stages_{s}/downsample/norm/bias   = stages.{s}.downsample_layers.0.bias    : vector
    stages_{s}/downsample/conv/kernel = stages.{s}.downsample_layers.1.weight  : conv
    stages_{s}/downsample/conv/bias   = stages.{s}.downsample_layers.1.bias    : vector
    stages_{s}/blocks/depthwise/kernel = stages.{s}.layers.{i}.depthwise_conv.weight : conv
    stages_{s}/blocks/depthwise/bias  = stages.{s}.layers.{i}.depthwise_conv.bias    : vector
    stages_{s}/blocks/norm/scale      = stages.{s}.layers.{i}.layer_norm.weight      : vector
    stages_{s}/blocks/norm/bias       = stages.{s}.layers.{i}.layer_norm.bias        : vector
    stages_{s}/blocks/mlp/fc1/kernel  = stages.{s}.layers.{i}.pointwise_conv1.weight : linear
    stages_{s}/blocks/mlp/fc1/bias    = stages.{s}.layers.{i}.pointwise_conv1.bias   : vector
    stages_{s}/blocks/mlp/fc2/kernel  = stages.{s}.layers.{i}.pointwise_conv2.weight : linear
    stages_{s}/blocks/mlp/fc2/bias    = stages.{s}.layers.{i}.pointwise_conv2.bias   : vector
    stages_{s}/blocks/ls/gamma        = stages.{s}.layers.{i}.gamma                  : vector
    norm/scale                        = layer_norm.weight                            : vector
    norm/bias                         = layer_norm.bias                              : vector
    """
)
