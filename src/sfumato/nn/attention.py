"""Multi-head attention over already projected queries, keys and values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool = False, upcast: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v for each head (Vaswani et al. 2017, eq. 1).

    q is (B, N, heads·d), k and v are (B, M, heads·d); returns (B, N, heads·d). `causal` hides later positions (then
    N = M). `upcast` computes the product in float32 whatever the input's dtype (Stable Diffusion 2.1 overflows
    float16 without it).
    """
    batch, n, width = q.shape
    dtype = q.dtype
    if upcast:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))  # (B, heads, ·, d)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(batch, n, width).to(dtype)
