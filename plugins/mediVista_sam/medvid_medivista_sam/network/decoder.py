"""SAM's mask decoder (Kirillov et al., ICCV 2023) with one token for each class, under Meta's parameter names."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_medivista_sam.network.attention import by_head, joined
from medvid_medivista_sam.network.layers import MLP, run
from medvid_medivista_sam.network.stem import Skips
from medvid_medivista_sam.network.up_path import UpPath

HEADS = 8
DEPTH = 2


class TokenAttention(nn.Module):
    """Attention in an inner width D/reduction."""

    def __init__(self, dim: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim // reduction) for _ in range(3))
        self.out_proj = nn.Linear(dim // reduction, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[M,N,D], [M,L,D] and [M,L,D] -> [M,N,D]."""
        q, k, v = (by_head(part, self.heads) for part in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        return cast(Tensor, self.out_proj(joined(F.scaled_dot_product_attention(q, k, v))))


class FeedForward(nn.Module):
    """D -> hidden -> D with ReLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[M,N,D] -> [M,N,D]."""
        return cast(Tensor, self.lin2(F.relu(self.lin1(x))))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, dim: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = TokenAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, heads, reduction=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, heads, reduction=2)

    def forward(self, tokens: Tensor, image: Tensor, token_places: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """[M,N,D] and [M,L,D], with the positions of both -> both."""
        if self.first:  # the tokens are their own positions
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_places
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_places, image + places, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + places, tokens + token_places, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Tokens and image embedding inform one another."""

    def __init__(self, dim: int, mlp: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(dim, heads, mlp, index == 0) for index in range(depth))
        self.final_attn_token_to_image = TokenAttention(dim, heads, reduction=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [M,N,D], image and its positions [M or 1,L,D] -> tokens and image."""
        y = tokens
        for layer in self.layers:
            y, image = layer(y, image, tokens, places)
        return self.norm_final_attn(y + self.final_attn_token_to_image(y + tokens, image + places, image)), image


class MaskDecoder(nn.Module):
    """A token for each class, and the prompt's, go through the transformer; each gives a filter on the pixels.

    Of SAM's outputs, the estimated quality of a mask is left out, since nothing reads it; its token stays, as the
    others attend to it.

    Args:
        masks: tokens K.
        dim: channels D of the image embedding.
        mlp: hidden width of the feed-forward layers.
        up: the way to pixels: `UpPath`, or SAM's transposed convolutions.
        channels: of what that gives.
        heads: attention heads.
        depth: layers of the transformer.
    """

    def __init__(
        self, masks: int, dim: int, mlp: int, up: nn.Module, channels: int, heads: int = HEADS, depth: int = DEPTH
    ) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, mlp, heads, depth)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(masks, dim)
        self.up_path = up if isinstance(up, UpPath) else None
        self.output_upscaling = None if isinstance(up, UpPath) else up
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, channels, 3) for _ in range(masks))

    def attend(self, image: Tensor, places: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Run the transformer.

        Args:
            image: embedding [M,D,h,w].
            places: positions of its cells [1,D,h,w].
            sparse: tokens of a prompt [M or 1,n,D].
            dense: map of a prompt [M or 1,D,h,w].

        Returns:
            Tokens [M,1+K+n,D], the first of them without use here; and the embedding [M,D,h,w].
        """
        frames, grid = len(image), image.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).to(sparse.dtype)
        tokens = torch.cat([own.expand(frames, -1, -1), sparse.expand(frames, -1, -1)], 1)
        flat = (image + dense).flatten(2).transpose(1, 2)
        tokens, flat = self.transformer(tokens, flat, places.flatten(2).transpose(1, 2))
        return tokens, torch.unflatten(flat.transpose(1, 2), 2, grid)

    def forward(
        self,
        image: Tensor,
        places: Tensor,
        sparse: Tensor,
        dense: Tensor,
        skips: Skips | None = None,
        checkpointing: bool = False,
    ) -> Tensor:
        """Logits [M,K,H,W] of the image and prompt of `attend`; `skips` are for `UpPath`."""
        tokens, image = self.attend(image, places, sparse, dense)
        if self.up_path is not None:
            features = self.up_path(image, skips, checkpointing)
        else:
            features = run(cast(nn.Module, self.output_upscaling), checkpointing, image)
        filters = torch.stack([mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        return torch.einsum("mkc,mchw->mkhw", filters, features)
