"""The layouts of the papers' own PyTorch code: DINO, DINOv2, DINOv3 and its ConvNeXt, as tables (see `rules`)."""

from dino_jax.weights.rules import table
from dino_jax.weights.torch_names import BLOCKS, CLS_AND_POSITIONS, EMBEDDING, FINAL_NORM, LAYER_SCALE, QKV_BIAS

V1 = table(CLS_AND_POSITIONS + EMBEDDING + BLOCKS + QKV_BIAS + FINAL_NORM)
V2 = table(
    CLS_AND_POSITIONS
    + """
    registers               = register_tokens              : tokens
    mask_token              = ?mask_token                  : row
    blocks/mlp/w1/kernel + blocks/mlp/w2/kernel = blocks.{i}.mlp.w12.weight : linear
    blocks/mlp/w1/bias + blocks/mlp/w2/bias     = blocks.{i}.mlp.w12.bias   : vector
    blocks/mlp/w3/kernel    = blocks.{i}.mlp.w3.weight     : linear
    blocks/mlp/w3/bias      = blocks.{i}.mlp.w3.bias       : vector
    """
    + EMBEDDING
    + BLOCKS
    + QKV_BIAS
    + LAYER_SCALE
    + FINAL_NORM
)
V3 = table(
    """
    cls_token               = cls_token                    : token
    registers               = storage_tokens               : tokens
    mask_token              = ?mask_token                  : row
    blocks/mlp/w1/kernel    = blocks.{i}.mlp.w1.weight     : linear
    blocks/mlp/w1/bias      = blocks.{i}.mlp.w1.bias       : vector
    blocks/mlp/w2/kernel    = blocks.{i}.mlp.w2.weight     : linear
    blocks/mlp/w2/bias      = blocks.{i}.mlp.w2.bias       : vector
    blocks/mlp/w3/kernel    = blocks.{i}.mlp.w3.weight     : linear
    blocks/mlp/w3/bias      = blocks.{i}.mlp.w3.bias       : vector
    cls_norm/scale          = cls_norm.weight              : vector
    cls_norm/bias           = cls_norm.bias                : vector
    local_cls_norm/scale    = local_cls_norm.weight        : vector
    local_cls_norm/bias     = local_cls_norm.bias          : vector
    """
    + EMBEDDING
    + BLOCKS
    + QKV_BIAS
    + LAYER_SCALE
    + FINAL_NORM
)
CONVNEXT = table(
    """
    stages_0/downsample/conv/kernel   = downsample_layers.0.0.weight    : conv
    stages_0/downsample/conv/bias     = downsample_layers.0.0.bias      : vector
    stages_0/downsample/norm/scale    = downsample_layers.0.1.weight    : vector
    stages_0/downsample/norm/bias     = downsample_layers.0.1.bias      : vector
    stages_{s}/downsample/norm/scale  = downsample_layers.{s}.0.weight  : vector
    stages_{s}/downsample/norm/bias   = downsample_layers.{s}.0.bias    : vector
    stages_{s}/downsample/conv/kernel = downsample_layers.{s}.1.weight  : conv
    stages_{s}/downsample/conv/bias   = downsample_layers.{s}.1.bias    : vector
    stages_{s}/blocks/depthwise/kernel = stages.{s}.{i}.dwconv.weight   : conv
    stages_{s}/blocks/depthwise/bias  = stages.{s}.{i}.dwconv.bias      : vector
    stages_{s}/blocks/norm/scale      = stages.{s}.{i}.norm.weight      : vector
    stages_{s}/blocks/norm/bias       = stages.{s}.{i}.norm.bias        : vector
    stages_{s}/blocks/mlp/fc1/kernel  = stages.{s}.{i}.pwconv1.weight   : linear
    stages_{s}/blocks/mlp/fc1/bias    = stages.{s}.{i}.pwconv1.bias     : vector
    stages_{s}/blocks/mlp/fc2/kernel  = stages.{s}.{i}.pwconv2.weight   : linear
    stages_{s}/blocks/mlp/fc2/bias    = stages.{s}.{i}.pwconv2.bias     : vector
    stages_{s}/blocks/ls/gamma        = stages.{s}.{i}.gamma            : vector
    norm/scale                        = norm.weight                     : vector
    norm/bias                         = norm.bias                       : vector
    same norm/scale                   = norms.3.weight                  : vector
    same norm/bias                    = norms.3.bias                    : vector
    """
)

# torchvision's ResNet, which DINO's is; the running statistics are a collection of their own here.
RESNET = table(
    """
    stem/conv/kernel                          = conv1.weight                             : conv
    stem/norm/scale                           = bn1.weight                               : vector
    stem/norm/bias                            = bn1.bias                                 : vector
    batch_stats/stem/norm/mean                = bn1.running_mean                         : vector
    batch_stats/stem/norm/var                 = bn1.running_var                          : vector
    stages_{s}_{b}/conv1/kernel               = layer{l}.{b}.conv1.weight                : conv
    stages_{s}_{b}/norm1/scale                = layer{l}.{b}.bn1.weight                  : vector
    stages_{s}_{b}/norm1/bias                 = layer{l}.{b}.bn1.bias                    : vector
    batch_stats/stages_{s}_{b}/norm1/mean     = layer{l}.{b}.bn1.running_mean            : vector
    batch_stats/stages_{s}_{b}/norm1/var      = layer{l}.{b}.bn1.running_var             : vector
    stages_{s}_{b}/conv2/kernel               = layer{l}.{b}.conv2.weight                : conv
    stages_{s}_{b}/norm2/scale                = layer{l}.{b}.bn2.weight                  : vector
    stages_{s}_{b}/norm2/bias                 = layer{l}.{b}.bn2.bias                    : vector
    batch_stats/stages_{s}_{b}/norm2/mean     = layer{l}.{b}.bn2.running_mean            : vector
    batch_stats/stages_{s}_{b}/norm2/var      = layer{l}.{b}.bn2.running_var             : vector
    stages_{s}_{b}/conv3/kernel               = layer{l}.{b}.conv3.weight                : conv
    stages_{s}_{b}/norm3/scale                = layer{l}.{b}.bn3.weight                  : vector
    stages_{s}_{b}/norm3/bias                 = layer{l}.{b}.bn3.bias                    : vector
    batch_stats/stages_{s}_{b}/norm3/mean     = layer{l}.{b}.bn3.running_mean            : vector
    batch_stats/stages_{s}_{b}/norm3/var      = layer{l}.{b}.bn3.running_var             : vector
    stages_{s}_{b}/shortcut_conv/kernel       = layer{l}.{b}.downsample.0.weight         : conv
    stages_{s}_{b}/shortcut_norm/scale        = layer{l}.{b}.downsample.1.weight         : vector
    stages_{s}_{b}/shortcut_norm/bias         = layer{l}.{b}.downsample.1.bias           : vector
    batch_stats/stages_{s}_{b}/shortcut_norm/mean = layer{l}.{b}.downsample.1.running_mean   : vector
    batch_stats/stages_{s}_{b}/shortcut_norm/var = layer{l}.{b}.downsample.1.running_var    : vector
    """
)
