"""The training step in plain PyTorch, the alternative that `bench step --torch` runs beside ours.

Written for speed as a PyTorch user would: fused attention, fused AdamW, batch-subset stochastic depth, masked patches
gathered before the head. Only shapes and work agree with ours, not the numbers.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A pre-norm block with rotary positions, LayerScale and batch-subset stochastic depth."""

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-5), nn.LayerNorm(width, 1e-5)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((width,), 1e-5)) for _ in range(2))

    def attend(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Attention branch of `(batch, tokens, width)`."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (t * cos + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width)) * self.gamma1

    def feed_forward(self, x: Tensor) -> Tensor:
        """Feed-forward branch of `(batch, tokens, width)`."""
        return self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.gamma2

    def residual(self, branch: Any, x: Tensor, train: bool) -> Tensor:
        """Adds the branch, on a random subset of the batch when training with stochastic depth."""
        if not train or not self.drop_path:
            return x + branch(x)
        kept = max(int(len(x) * (1 - self.drop_path)), 1)
        chosen = torch.randperm(len(x))[:kept]
        return torch.index_add(x, 0, chosen, branch(x[chosen]), alpha=len(x) / kept)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor, train: bool) -> Tensor:
        """Maps `(batch, tokens, width)` to itself."""
        x = self.residual(lambda y: self.attend(y, sin, cos), x, train)
        return self.residual(self.feed_forward, x, train)


class Backbone(nn.Module):
    """Patch embedding, CLS, registers, blocks and the final norm."""

    def __init__(
        self, *, patch: int, width: int, depth: int, heads: int, hidden: int, registers: int, drop_path: float
    ):
        super().__init__()
        self.patch, self.prefix, self.head_dim = patch, 1 + registers, width // heads
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, self.prefix, width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, drop_path) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-5)

    def rope(self, side: int) -> tuple[Tensor, Tensor]:
        """Returns sin and cos tables `(tokens, head_dim)`."""
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2, 1)
        periods = 100 ** (2 * torch.arange(self.head_dim // 4) / (self.head_dim // 2))
        angles = F.pad((2 * math.pi * grid / periods).flatten(1).tile(2), (0, 0, self.prefix, 0))
        return angles.sin(), angles.cos()

    def forward(self, images: Tensor, mask: Tensor | None, train: bool) -> tuple[Tensor, Tensor]:
        """Returns CLS `(batch, width)` and patches `(batch, patches, width)`."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token, x)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        sin, cos = self.rope(images.shape[-1] // self.patch)
        for block in self.blocks:
            x = block(x, sin, cos, train)
        x = self.norm(x)
        return x[:, 0], x[:, self.prefix :]


class Head(nn.Module):
    """The three-layer head onto prototypes."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        layers = [
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        ]
        self.mlp, self.last = nn.Sequential(*layers), nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scores `(rows, width)` against the prototypes."""
        return self.last(F.normalize(self.mlp(x), dim=-1))


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    """Three iterations of Sinkhorn-Knopp on `(rows, prototypes)`."""
    q = (logits / temperature).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Row-wise cross-entropy at the student's temperature."""
    return -(targets * F.log_softmax(logits / 0.1, -1)).sum(-1)


def build_step(
    batch: dict[str, np.ndarray], backbone: dict[str, Any], head: dict[str, int], threads: int
) -> Callable[[], None]:
    """Builds networks and optimizer, and returns a call that trains a step on a batch of ours (`step.random_batch`)."""
    torch.set_num_threads(threads)
    samples = len(batch["global_crops"])

    def network() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "backbone": Backbone(**backbone),
                "dino": Head(backbone["width"], **head),
                "ibot": Head(backbone["width"], **head),
            }
        )

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def crops(name: str) -> Tensor:
        return torch.from_numpy(batch[name]).flatten(0, 1).permute(0, 3, 1, 2).contiguous()

    global_crops, local_crops = crops("global_crops"), crops("local_crops")
    masks = torch.from_numpy(batch["masks"]).flatten(0, 1)
    per_image = (1 / masks.sum(-1).clamp(min=1))[:, None].expand_as(masks)[masks]

    def step() -> None:
        with torch.no_grad():
            cls, patches = teacher["backbone"](global_crops, None, False)
            dino = sinkhorn(teacher["dino"](cls), 0.07).view(samples, 2, -1)
            ibot = sinkhorn(teacher["ibot"](patches[masks]), 0.07)
        cls, patches = student["backbone"](global_crops, masks, True)
        local, _ = student["backbone"](local_crops, None, True)
        logits = student["dino"](torch.cat([cls, local]))
        ours, locals_ = (
            logits[: 2 * samples].view(samples, 2, -1),
            logits[2 * samples :].view(samples, -1, dino.shape[-1]),
        )
        loss = cross_entropy(ours, dino.flip(1)).mean() * 2 / 18
        loss = loss - torch.einsum("bsk,btk->", F.log_softmax(locals_ / 0.1, -1), dino) / samples / 18
        loss = loss + (cross_entropy(student["ibot"](patches[masks]), ibot) * per_image).sum() / (2 * samples)
        for view in F.normalize(cls, dim=-1).view(samples, 2, -1).unbind(1):
            nearest = (view @ view.T - 3 * torch.eye(samples)).argmax(1)
            loss = loss - 0.1 * ((view - view[nearest]).norm(dim=-1) + 1e-8).log().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for module in student.values():
            nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.008)

    return step
