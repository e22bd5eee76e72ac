"""Recombined attention: sum_t w_t softmax(scale * X_t Y_t^T + bias) V, where X_t and Y_t are each query, key or value.

B images, H heads, N tokens, D channels per head, T terms (1 to 4), M and N tiles of BLOCK_M and BLOCK_N tokens.

One launch, one pass over the keys for all terms: each keeps its own running maximum, sum and accumulator (online
softmax), and the tiles q_j, k_j, v_j are loaded once and serve every term as Y and as V. Two passes (maxima first, then
one weighted product with V) would cost (2T + 1) / 2T of the matrix products and as many exponentials again. Where T
accumulators do not fit 255 registers, each term is a launch of its own into fp32, and torch adds them up: what no
published method asks for (four terms, several with a bias) or no released model has (several terms of heads above 80).

Never written: T matrices [N,N] and T results [B,H,N,D]. At B = 2, H = 12, N = 442, D = 64 and three terms in fp16 that
is 28 MB of matrices and 8 MB of results, against 5.4 MB of compulsory traffic.

D runs as D = MAIN + REST, powers of two, REST = 0 or at least 16: 80 = 64 + 16 takes 80 lanes where padding takes 128.

fp16 and bf16 (probabilities rounded to the dtype of value before they meet V), fp32 (products at "ieee" precision);
softmax and sums in fp32. A row's result depends on its own image and head alone: tiles follow from N, never from B.
Sources: Dao et al., FlashAttention (2022); Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from s2clip.kernels.recombined_kernel import SOURCES, recombined_attention_kernel
from s2clip.kernels.tiles import LOG2E, architecture, launcher

MAX_BLOCK = 128
FEW = 16  # rows that a matrix product takes at least


class Configuration(NamedTuple):
    """Tiles of one architecture, term count, head size, dtype and token bucket."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def together(arch: int, terms: int, head_dim: int, dtype: torch.dtype, has_bias: bool) -> bool:
    """Whether all terms go in one pass: T accumulators beside X fit 255 registers."""
    if terms == 1 or arch == 0:
        return terms < 4 and (terms == 1 or not has_bias)
    if has_bias or dtype == torch.float32:
        return False
    return terms <= (3 if head_dim <= 64 else 2 if head_dim <= 80 and arch != 120 else 1)


def apart(arch: int, dtype: torch.dtype, has_bias: bool) -> bool:
    """Whether the last tile of keys is a step of its own, so that the loop needs no mask: 10 % fewer instructions.

    On sm_90, where issue binds. Elsewhere tensor cores do, and two copies of the step spill 56 bytes at three terms.
    """
    return not has_bias and (arch == 0 or (arch == 90 and dtype != torch.float32))


def configuration(
    arch: int, terms: int, head_dim: int, dtype: torch.dtype, tokens: int, has_bias: bool
) -> Configuration:
    """Tiles by architecture (80, 86, 89, 90, 120; 0 is the interpreter) of a pass over `terms` terms.

    BLOCK_M >= max(BLOCK_N, MAIN) and 16 rows per warp: then Triton lays all warps along the rows, and no row maximum or
    sum crosses a warp. All choices are what fits 255 registers without a spill; none is measured yet.
    """
    if arch == 0:
        return Configuration(64, 64, 1, 1)
    if dtype == torch.float32:  # no tensor cores at "ieee": operands sit in registers, so tiles are small
        return Configuration(32, 32 if head_dim <= 64 else 16, 8, 1)
    if head_dim > 80:
        whole = head_dim & (head_dim - 1) == 0  # a head that ends inside a tile pays for masks with registers
        return Configuration(128, 32, 8, 1 if has_bias and not whole else 2)
    # 64 keys beside a bias spill 8 to 16 bytes on sm_80, on sm_86 and 89 under Triton 3.7, small heads on sm_120; wide
    # heads on sm_80.
    narrow = has_bias and (arch in (80, 86, 89) or (head_dim < 64 and arch == 120))
    narrow = narrow or (head_dim > 64 and arch == 80)
    block_n = 64 if terms == 1 and not narrow else 32
    if terms == 2 and head_dim > 64 and arch in (86, 89):
        block_n = 16  # Triton 3.6 spills 24 bytes at 32
    if has_bias and head_dim == 72 and arch in (86, 89):
        block_n = 16  # its second tile of channels is half empty: 8 bytes at 32
    # Eight warps share a tile of keys; with fewer tokens the blocks would be too few for 132 SMs.
    wide = arch == 90 and (tokens > 1024 or has_bias)
    if arch == 90 and terms == 2 and head_dim <= 64:  # sums are rescaled half as often; three terms would spill
        wide, block_n = True, 64  # 64 rows a block would wait for L2
    return Configuration(128 if wide else 64, block_n, 8 if wide else 4, 2)


def few(arch: int, head_dim: int, dtype: torch.dtype, tokens: int, block_m: int, has_bias: bool) -> int:
    """Rows of the last tile where it has its own path, else 0: a grid and CLS end one row beyond whole tiles.

    577 tokens are nine tiles and a sixteenth, not ten: the last costs a quarter. 4097 on 128 SMs are six rounds, not
    seven. On sm_90 products take at least 64 rows. Wider heads and a bias leave no registers for a second path, nor
    does sm_80 under Triton 3.6, where one term in fp32 spilled 16 bytes; smaller heads, which no released model has,
    spilled 8 on sm_86 and 89.
    """
    known = head_dim == 64 or (arch == 0 and head_dim < 64)
    fits = known and arch not in (80, 90) and dtype != torch.float32 and not has_bias
    return FEW if fits and 1 <= tokens % block_m <= FEW < block_m < tokens else 0


def split_head(head_dim: int) -> tuple[int, int]:
    """(MAIN, REST): powers of two that cover head_dim; REST is 0 or at least 16, and less than MAIN."""
    main = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - main
    rest = max(16, 1 << (rest - 1).bit_length()) if rest else 0
    return (main, rest) if rest < main else (2 * main, 0)


@launcher
def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    terms: Sequence[str],
    weights: Sequence[float],
    scale: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """As `reference.recombined_attention`; views with aligned rows (a packed qkv) are read in place."""
    head_dim = value.shape[3]
    if value.numel() == 0:
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    unit = 16 // value.element_size()
    padding = -head_dim % unit
    if padding:  # channels of zeros change no product; no published model has such a head size
        inputs = [F.pad(tensor, (0, padding)) for tensor in (query, key, value)]
        return launch(*inputs, terms, weights, scale, bias)[..., :head_dim].contiguous()
    inputs = [_with_rows(tensor) for tensor in (query, key, value)]
    if scale < 0 and bias is None:  # the largest product has the smallest score: a form that no method uses
        bias = torch.zeros(value.shape[2], device=value.device).expand(value.shape[2], -1)
    if bias is not None and (bias.stride(1) != 1 or MAX_BLOCK * bias.stride(0) >= 1 << 31):
        bias = bias.contiguous()
    given = (*inputs, scale, bias)
    if together(architecture(value.device), len(terms), head_dim, value.dtype, bias is not None):
        return _launch(*given, terms, weights, value.dtype)
    parts = [_launch(*given, [term], [weight], torch.float32) for term, weight in zip(terms, weights, strict=True)]
    return sum(parts[1:], start=parts[0]).to(value.dtype)


def _launch(query, key, value, scale, bias, terms, weights, dtype: torch.dtype) -> torch.Tensor:
    """One pass over the keys for all terms; query, key and value are (tensor, its strides in units of 16 bytes)."""
    (query, query_strides), (key, key_strides), (value, value_strides) = query, key, value
    batch, heads, tokens, head_dim = value.shape
    arch = architecture(value.device)
    has_bias = bias is not None
    sizes = (arch, tuple(terms), head_dim, value.dtype, tokens, has_bias)
    block_m, constants = _constants(*sizes, apart(arch, value.dtype, has_bias))
    output = torch.empty(value.shape, dtype=dtype, device=value.device)
    recombined_attention_kernel[(-(-tokens // block_m) * heads * batch,)](
        query,
        key,
        value,
        output if bias is None else bias,
        output,
        tokens,
        heads,
        *query_strides,
        *key_strides,
        *value_strides,
        0 if bias is None else bias.stride(0),
        scale * LOG2E.value,
        *(float(weight) for weight in [*weights, 0, 0][:3]),
        **constants,
    )
    return output


@functools.lru_cache(maxsize=1024)
def _constants(
    arch: int, terms: tuple[str, ...], head_dim: int, dtype: torch.dtype, tokens: int, has_bias: bool, is_apart: bool
) -> tuple[int, dict[str, int | bool]]:
    """(BLOCK_M, what the kernel is compiled for): the same for every picture of a size, so worked out once."""
    tiles = configuration(arch, len(terms), head_dim, dtype, tokens, has_bias)
    main, rest = split_head(head_dim)
    return tiles.block_m, {
        "LEFT": digits(term[0] for term in terms),
        "RIGHT": digits(term[1] for term in terms),
        "TERMS": len(terms),
        "HEAD_DIM": head_dim,
        "MAIN": main,
        "REST": rest,
        "HAS_BIAS": has_bias,
        "APART": is_apart,
        "UPCAST": arch == 0,  # the interpreter multiplies the bit patterns of bf16
        "FEW": few(arch, head_dim, dtype, tokens, tiles.block_m, has_bias),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "enable_fp_fusion": True,
    }


def _with_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """The tensor, or a copy where the kernel cannot read it in place, and its strides in units of 16 bytes."""
    strides = _units(tensor)
    if strides is None:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        strides = _units(tensor)
        assert strides is not None
    return tensor, strides


def readable(tensor: torch.Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes, channels are adjacent and a tile spans less than 2^31."""
    return _units(tensor) is not None


def _units(tensor: torch.Tensor) -> tuple[int, int, int] | None:
    """Strides over images, heads and tokens in units of 16 bytes; None for what is not `readable`.

    An axis of one element has none, whatever torch says.
    """
    (batch, heads, tokens, _), (image, head, token, channel) = tensor.shape, tensor.stride()
    image, head, token = image if batch > 1 else 0, head if heads > 1 else 0, token if tokens > 1 else 0
    unit = 16 // tensor.element_size()
    if channel != 1 or (image | head | token) % unit or tensor.data_ptr() % 16 or MAX_BLOCK * token >= 1 << 31:
        return None
    return image // unit, head // unit, token // unit


def digits(sources: Iterable[str]) -> int:
    """Two bits per term, the first lowest: 0 query, 1 key, 2 value."""
    return sum(SOURCES.index(source) << 2 * term for term, source in enumerate(sources))
