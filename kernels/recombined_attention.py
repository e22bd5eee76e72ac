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

# ruff: noqa: RUF005 - device code grows tuples by adding: Triton has no unpacking in displays
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from s2clip.kernels.inspect import Case
from s2clip.kernels.tiles import architecture, launcher

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
SOURCES = "qkv"
MAX_BLOCK = 128


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
    block_n = 64 if terms == 1 and not (arch == 80 and has_bias) else 32  # 64 spills 8 bytes there
    if terms == 2 and head_dim > 64 and arch in (86, 89):
        block_n = 16  # Triton 3.6 spills 24 bytes at 32
    # Eight warps share a tile of keys; with fewer tokens the blocks would be too few for 132 SMs.
    wide = arch == 90 and (tokens > 1024 or has_bias)
    return Configuration(128 if wide else 64, block_n, 8 if wide else 4, 2)


def split_head(head_dim: int) -> tuple[int, int]:
    """(MAIN, REST): powers of two that cover head_dim; REST is 0 or at least 16, and less than MAIN."""
    main = 1 << (head_dim.bit_length() - 1)
    rest = head_dim - main
    rest = max(16, 1 << (rest - 1).bit_length()) if rest else 0
    return (main, rest) if rest < main else (2 * main, 0)


@triton.jit
def _load_columns(
    base,
    token_stride,
    inside,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """[ROWS, COLUMNS] from column FIRST on; zero outside."""
    d = FIRST + tl.arange(0, COLUMNS)
    offset = (tl.arange(0, ROWS) * token_stride)[:, None] + d[None, :]
    mask = inside[:, None]
    if FIRST + COLUMNS > HEAD_DIM:
        mask = mask & (d < HEAD_DIM)[None, :]
    tile = tl.load(base + offset, mask=mask, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _load_tile(
    base,
    token_stride,
    inside,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The pair [ROWS, MAIN], [ROWS, REST]; the second repeats the first, unused, where REST is 0."""
    main = _load_columns(base, token_stride, inside, ROWS, 0, MAIN, HEAD_DIM, UPCAST)
    rest = main
    if REST > 0:
        rest = _load_columns(base, token_stride, inside, ROWS, MAIN, REST, HEAD_DIM, UPCAST)
    return main, rest


@triton.jit
def _attend(
    bases,
    token_strides,
    bias,
    bias_stride,
    start_m,
    tokens,
    scale_log2e,
    weights,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The weighted sum of the terms for one tile of rows: [BLOCK_M, MAIN] and [BLOCK_M, REST].

    LEFT and RIGHT hold two bits per term: which of the bases is X and which is Y; V is the last.
    """
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    live = start_m + m < tokens
    x = ()
    row_max = ()
    row_sum = ()
    main = ()
    rest = ()
    for t in tl.static_range(TERMS):
        stride = token_strides[(LEFT >> 2 * t) & 3]
        base = bases[(LEFT >> 2 * t) & 3] + start_m.to(tl.int64) * stride
        x = x + (_load_tile(base, stride, live, BLOCK_M, MAIN, REST, HEAD_DIM, UPCAST),)
        # A finite start: a row whose first keys are all -inf stays 0 until a finite score comes, and 0/0 if none does.
        row_max = row_max + (tl.full([BLOCK_M], LOWEST, tl.float32),)
        row_sum = row_sum + (tl.zeros([BLOCK_M], tl.float32),)
        main = main + (tl.zeros([BLOCK_M, MAIN], tl.float32),)
        rest = rest + (tl.zeros([BLOCK_M, REST if REST > 0 else 1], tl.float32),)
    base_0, base_1, base_2 = bases
    bias_rows = bias + start_m.to(tl.int64) * bias_stride

    for start_n in range(0, tokens, BLOCK_N):
        inside = start_n + n < tokens
        y = (
            _load_tile(base_0, token_strides[0], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST),
            _load_tile(base_1, token_strides[1], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST),
            _load_tile(base_2, token_strides[2], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST),
        )
        if HAS_BIAS:
            offset = (m * bias_stride)[:, None] + (start_n + n)[None, :]
            shift = tl.load(bias_rows + offset, mask=live[:, None] & inside[None, :], other=float("-inf"))
            shift = shift.to(tl.float32) * LOG2E
        else:
            shift = tl.where(inside, 0.0, float("-inf"))[None, :]
        new_max = ()
        new_sum = ()
        new_main = ()
        new_rest = ()
        for t in tl.static_range(TERMS):
            score = tl.dot(x[t][0], tl.trans(y[(RIGHT >> 2 * t) & 3][0]), input_precision="ieee")
            if REST > 0:
                score = tl.dot(x[t][1], tl.trans(y[(RIGHT >> 2 * t) & 3][1]), score, input_precision="ieee")
            # Adding the mask costs nothing beside the scale; a select would hold 8 predicates and spill at T = 3.
            score = tl.fma(score, scale_log2e, shift)
            highest = tl.maximum(row_max[t], tl.max(score, 1))
            decay = tl.exp2(row_max[t] - highest)
            p = tl.exp2(score - highest[:, None])
            new_max = new_max + (highest,)
            new_sum = new_sum + (tl.fma(row_sum[t], decay, tl.sum(p, 1)),)
            p = p.to(DTYPE)
            if UPCAST:
                p = p.to(tl.float32)
            new_main = new_main + (tl.dot(p, y[2][0], main[t] * decay[:, None], input_precision="ieee"),)
            if REST > 0:
                new_rest = new_rest + (tl.dot(p, y[2][1], rest[t] * decay[:, None], input_precision="ieee"),)
            else:
                new_rest = new_rest + (rest[t],)
        row_max = new_max
        row_sum = new_sum
        main = new_main
        rest = new_rest
        base_0 += BLOCK_N * token_strides[0]
        base_1 += BLOCK_N * token_strides[1]
        base_2 += BLOCK_N * token_strides[2]

    total_main = main[0] * (weights[0] / row_sum[0])[:, None]
    total_rest = rest[0] * (weights[0] / row_sum[0])[:, None]
    for t in tl.static_range(1, TERMS):
        total_main += main[t] * (weights[t] / row_sum[t])[:, None]
        total_rest += rest[t] * (weights[t] / row_sum[t])[:, None]
    return total_main, total_rest


# Sizes and strides change from image to image: specialising on 1 or on multiples of 16 would compile again and again.
RUN_TIME = ["tokens", "heads", "bias_stride", *(f"{source}_stride_{axis}" for source in SOURCES for axis in "bhn")]


@triton.jit(do_not_specialize=RUN_TIME, do_not_specialize_on_alignment=["bias"])
def _recombined_attention_kernel(
    query,
    key,
    value,
    bias,
    output,
    tokens,
    heads,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    bias_stride,
    scale_log2e,
    weight_0,
    weight_1,
    weight_2,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TERMS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of rows of one head."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    program = tl.program_id(0)
    start_m = program % blocks * BLOCK_M
    head = (program // blocks % heads).to(tl.int64)
    image = (program // blocks // heads).to(tl.int64)
    # Strides come in units of 16 bytes: the compiler sees that every row is aligned without compiling for its value.
    UNIT: tl.constexpr = 128 // value.dtype.element_ty.primitive_bitwidth
    bases = (
        query + (image * q_stride_b + head * q_stride_h) * UNIT,
        key + (image * k_stride_b + head * k_stride_h) * UNIT,
        value + (image * v_stride_b + head * v_stride_h) * UNIT,
    )
    token_strides = (q_stride_n * UNIT, k_stride_n * UNIT, v_stride_n * UNIT)
    main, rest = _attend(
        bases,
        token_strides,
        bias,
        bias_stride,
        start_m,
        tokens,
        scale_log2e,
        (weight_0, weight_1, weight_2),
        LEFT,
        RIGHT,
        TERMS,
        value.dtype.element_ty,
        HEAD_DIM,
        MAIN,
        REST,
        HAS_BIAS,
        UPCAST,
        BLOCK_M,
        BLOCK_N,
    )

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, MAIN)
    live = (start_m + m < tokens)[:, None]
    rows = output + ((image * heads + head) * tokens + start_m) * HEAD_DIM + (m * HEAD_DIM)[:, None]
    tl.store(rows + d[None, :], main.to(output.dtype.element_ty), mask=live & (d < HEAD_DIM)[None, :])
    if REST > 0:
        d = MAIN + tl.arange(0, REST)
        tl.store(rows + d[None, :], rest.to(output.dtype.element_ty), mask=live & (d < HEAD_DIM)[None, :])


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
    inputs = [
        tensor if readable(tensor) else tensor.clone(memory_format=torch.contiguous_format)
        for tensor in (query, key, value)
    ]
    if bias is not None and (bias.stride(1) != 1 or MAX_BLOCK * bias.stride(0) >= 1 << 31):
        bias = bias.contiguous()
    given = (*inputs, scale, bias)
    if together(architecture(value.device), len(terms), head_dim, value.dtype, bias is not None):
        return _launch(*given, terms, weights, value.dtype)
    parts = [_launch(*given, [term], [weight], torch.float32) for term, weight in zip(terms, weights, strict=True)]
    return sum(parts[1:], start=parts[0]).to(value.dtype)


def _launch(query, key, value, scale, bias, terms, weights, dtype: torch.dtype) -> torch.Tensor:
    """One pass over the keys for all terms, on readable inputs."""
    batch, heads, tokens, head_dim = value.shape
    arch = architecture(value.device)
    tiles = configuration(arch, len(terms), head_dim, value.dtype, tokens, bias is not None)
    main, rest = split_head(head_dim)
    unit = 16 // value.element_size()
    output = torch.empty(value.shape, dtype=dtype, device=value.device)
    _recombined_attention_kernel[(triton.cdiv(tokens, tiles.block_m) * heads * batch,)](
        query,
        key,
        value,
        output if bias is None else bias,
        output,
        tokens,
        heads,
        *(stride // unit for tensor in (query, key, value) for stride in _strides(tensor)),
        0 if bias is None else bias.stride(0),
        scale * LOG2E.value,
        *(float(weight) for weight in [*weights, 0, 0][:3]),
        LEFT=digits(term[0] for term in terms),
        RIGHT=digits(term[1] for term in terms),
        TERMS=len(terms),
        HEAD_DIM=head_dim,
        MAIN=main,
        REST=rest,
        HAS_BIAS=bias is not None,
        UPCAST=arch == 0,  # the interpreter multiplies the bit patterns of bf16
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        enable_fp_fusion=True,
    )
    return output


def readable(tensor: torch.Tensor) -> bool:
    """Whether every row starts at a multiple of 16 bytes, channels are adjacent and a tile spans less than 2^31."""
    unit = 16 // tensor.element_size()
    strides = _strides(tensor)
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in strides)
    return aligned and tensor.stride(3) == 1 and MAX_BLOCK * strides[2] < 1 << 31


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides over images, heads and tokens; an axis of one element has none, whatever torch says."""
    return tuple(tensor.stride(axis) if tensor.shape[axis] > 1 else 0 for axis in range(3))


def digits(sources: Iterable[str]) -> int:
    """Two bits per term, the first lowest: 0 query, 1 key, 2 value."""
    return sum(SOURCES.index(source) << 2 * term for term, source in enumerate(sources))


COMPILED_TERMS = ("qq", "kk", "vv")
TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def compile_cases(arch: int) -> Iterator[Case]:
    """Every pass that `launch` chooses at the head sizes that fill the table (64; 80 of ViT-H; 128).

    Smaller heads need no more registers than these. Tests marked slow compile the others.
    """
    half = torch.float16
    for head_dim in (64, 80, 128):
        rows = [(terms, half, False) for terms in (1, 2, 3)] + [(1, half, True), (1, torch.float32, True)]
        rows += [(3, torch.bfloat16, False)] if head_dim == 64 else []
        for terms, dtype, has_bias in rows:
            if together(arch, terms, head_dim, dtype, has_bias):
                buckets = [configuration(arch, terms, head_dim, dtype, tokens, has_bias) for tokens in (577, 4097)]
                for tiles in dict.fromkeys(buckets):
                    yield compile_case(terms, head_dim, dtype, has_bias, tiles)
                    if terms == 1 and dtype == half:
                        yield compile_case(terms, head_dim, dtype, has_bias, tiles, torch.float32)


def compile_case(
    terms: int,
    head_dim: int,
    dtype: torch.dtype,
    has_bias: bool,
    tiles: Configuration,
    output: torch.dtype | None = None,
) -> Case:
    """What `launch` compiles for aligned inputs."""
    main, rest = split_head(head_dim)
    element, written = TRITON_TYPES[dtype], TRITON_TYPES[output or dtype]
    pointers = dict.fromkeys(("query", "key", "value"), f"*{element}") | dict.fromkeys(
        ("bias", "output"), f"*{written}"
    )
    scalars = dict.fromkeys(("scale_log2e", "weight_0", "weight_1", "weight_2"), "fp32")
    shape = f"{tiles.block_m}x{tiles.block_n}"
    names = (f"T{terms} D{head_dim} {element}", "bias" * has_bias, shape, f"to {written}" * (written != element))
    return Case(
        kernel=_recombined_attention_kernel,
        name=" ".join(words for words in names if words),
        signature={**pointers, **({"bias": "*fp32"} if has_bias else {}), **dict.fromkeys(RUN_TIME, "i32"), **scalars},
        constants={
            "LEFT": digits(term[0] for term in COMPILED_TERMS[:terms]),
            "RIGHT": digits(term[1] for term in COMPILED_TERMS[:terms]),
            "TERMS": terms,
            "HEAD_DIM": head_dim,
            "MAIN": main,
            "REST": rest,
            "HAS_BIAS": has_bias,
            "UPCAST": False,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        aligned=("query", "key", "value", "output"),
    )
