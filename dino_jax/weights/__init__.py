"""Weights in and out: PyTorch, Hugging Face and timm checkpoints to our parameter trees and back, tensor by tensor.

Reading goes through `store.read`: `source` opens what is there (`pth`, `safetensors`, `orbax`), `layouts` recognises it
by its names, `infer` finds the architecture (`network`), `mapping` runs the layout's table and fills the `manifest`.
The tables are in `official`, `hugging_face` and `timm` (with `torch_names` in common), their language in `rules` and
`codecs`. Writing is the same backwards, with `configs` for the files beside the tensors and `pth_writer`; `reference`
runs the PyTorch networks beside ours.
"""
