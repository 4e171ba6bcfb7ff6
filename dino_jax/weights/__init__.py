"""Weights in and out: PyTorch, Hugging Face and timm checkpoints to our parameter trees and back, tensor by tensor."""
