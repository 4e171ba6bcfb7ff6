"""The lines of the tables (see `rules`) that the PyTorch repositories and timm have in common."""

# The transformer blocks that all PyTorch repositories have in common.
BLOCKS = """
blocks/norm1/scale      = blocks.{i}.norm1.weight      : vector
blocks/norm1/bias       = blocks.{i}.norm1.bias        : vector
blocks/attn/qkv/kernel  = blocks.{i}.attn.qkv.weight   : linear
blocks/attn/proj/kernel = blocks.{i}.attn.proj.weight  : linear
blocks/attn/proj/bias   = blocks.{i}.attn.proj.bias    : vector
blocks/norm2/scale      = blocks.{i}.norm2.weight      : vector
blocks/norm2/bias       = blocks.{i}.norm2.bias        : vector
blocks/mlp/fc1/kernel   = blocks.{i}.mlp.fc1.weight    : linear
blocks/mlp/fc1/bias     = blocks.{i}.mlp.fc1.bias      : vector
blocks/mlp/fc2/kernel   = blocks.{i}.mlp.fc2.weight    : linear
blocks/mlp/fc2/bias     = blocks.{i}.mlp.fc2.bias      : vector
"""
QKV_BIAS = "blocks/attn/qkv/bias = blocks.{i}.attn.qkv.bias : vector"
LAYER_SCALE = """
blocks/ls1/gamma        = blocks.{i}.ls1.gamma         : vector
blocks/ls2/gamma        = blocks.{i}.ls2.gamma         : vector
"""
EMBEDDING = """
patch_embed/kernel      = patch_embed.proj.weight      : conv
patch_embed/bias        = patch_embed.proj.bias        : vector
"""
FINAL_NORM = """
norm/scale              = norm.weight                  : vector
norm/bias               = norm.bias                    : vector
"""
CLS_AND_POSITIONS = """
cls_token               = cls_token                    : token
pos_embed               = pos_embed                    : tokens
"""
