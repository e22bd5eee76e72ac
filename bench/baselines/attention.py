"""`recombined_attention` as peers and careful users run it."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def published(query, key, value, *, terms):
    """SCLIP: one softmax(bmm) per term, added, one product with the values."""
    tokens = {"q": query, "k": key, "v": value}
    scale = query.shape[-1] ** -0.5
    attention = sum((tokens[x] @ tokens[y].mT * scale).softmax(-1) for x, y in terms)
    return attention @ value / len(terms)


def one_call_per_term(query, key, value, *, terms):
    """One scaled_dot_product_attention per term, with torch's own choice of backend, and additions."""
    tokens = {"q": query, "k": key, "v": value}
    return sum(F.scaled_dot_product_attention(tokens[x], tokens[y], value) for x, y in terms) / len(terms)


def head_stacked(query, key, value, *, terms):
    """All terms as heads of one scaled_dot_product_attention, which needs the values once per term."""
    tokens = {"q": query, "k": key, "v": value}
    left = torch.cat([tokens[x] for x, _ in terms], 1)
    right = torch.cat([tokens[y] for _, y in terms], 1)
    with _fastest_first(query):
        output = F.scaled_dot_product_attention(left, right, value.repeat(1, len(terms), 1, 1))
    return output.unflatten(1, (len(terms), -1)).mean(1)


def _fastest_first(query):
    """cuDNN is allowed, and comes first on Hopper, where it is about twice as fast as torch's default choice."""
    if not query.is_cuda:
        return nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if torch.cuda.get_device_capability(query.device)[0] >= 9:
        order[:2] = reversed(order[:2])
    return sdpa_kernel(order, set_priority=True)
