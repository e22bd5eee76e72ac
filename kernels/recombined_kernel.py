"""Device code of `recombined_attention`; what it computes and why so: recombined_attention.py."""

# ruff: noqa: RUF005 - device code grows tuples by adding: Triton has no unpacking in displays
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E

LOWEST = tl.constexpr(-3.4028234663852886e38)
SOURCES = "qkv"


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
    MASKED: tl.constexpr,
):
    """[ROWS, COLUMNS] from column FIRST on; zero outside. MASKED: rows may end inside the tile."""
    d = FIRST + tl.arange(0, COLUMNS)
    offset = (tl.arange(0, ROWS) * token_stride)[:, None] + d[None, :]
    if FIRST + COLUMNS > HEAD_DIM:
        mask = inside[:, None] & (d < HEAD_DIM)[None, :] if MASKED else (d < HEAD_DIM)[None, :]
        tile = tl.load(base + offset, mask=mask, other=0.0)
    elif MASKED:
        tile = tl.load(base + offset, mask=inside[:, None], other=0.0)
    else:
        tile = tl.load(base + offset)
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
    MASKED: tl.constexpr,
):
    """The pair [ROWS, MAIN], [ROWS, REST]; the second repeats the first, unused, where REST is 0."""
    main = _load_columns(base, token_stride, inside, ROWS, 0, MAIN, HEAD_DIM, UPCAST, MASKED)
    rest = main
    if REST > 0:
        rest = _load_columns(base, token_stride, inside, ROWS, MAIN, REST, HEAD_DIM, UPCAST, MASKED)
    return main, rest


@triton.jit
def _step(
    x,
    y,
    state,
    shift,
    inside,
    scale_log2e,
    RIGHT: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    REST: tl.constexpr,
    APART: tl.constexpr,
    TAIL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """State (maxima, sums, accumulators of MAIN and REST channels) after one more tile of keys.

    APART: the scale, not below 0, is part of the exponent, where it costs nothing: the largest product has the largest
    score. TAIL: keys beyond `inside` count nothing, also where the scale is 0. Else `shift` is -inf for them.
    """
    row_max, row_sum, main, rest = state
    new_max = ()
    new_sum = ()
    new_main = ()
    new_rest = ()
    for t in tl.static_range(TERMS):
        score = tl.dot(x[t][0], tl.trans(y[(RIGHT >> 2 * t) & 3][0]), input_precision="ieee")
        if REST > 0:
            score = tl.dot(x[t][1], tl.trans(y[(RIGHT >> 2 * t) & 3][1]), score, input_precision="ieee")
        if APART:
            if TAIL:
                score = tl.where(inside[None, :], score, LOWEST)
            highest = tl.maximum(row_max[t], tl.max(score, 1) * scale_log2e)
            decay = tl.exp2(row_max[t] - highest)
            p = tl.exp2(tl.fma(score, scale_log2e, -highest[:, None]))
            if TAIL:
                p = tl.where(inside[None, :], p, 0.0)
        else:
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
    return new_max, new_sum, new_main, new_rest


@triton.jit
def _attend(
    bases,
    token_strides,
    bias,
    bias_stride,
    output,
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
    APART: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The weighted sum of the terms for one tile of rows, written to `output`, the rows of one head.

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
        x = x + (_load_tile(base, stride, live, BLOCK_M, MAIN, REST, HEAD_DIM, UPCAST, True),)
        # A finite start: a row whose first keys are all -inf stays 0 until a finite score comes, and 0/0 if none does.
        row_max = row_max + (tl.full([BLOCK_M], LOWEST, tl.float32),)
        row_sum = row_sum + (tl.zeros([BLOCK_M], tl.float32),)
        main = main + (tl.zeros([BLOCK_M, MAIN], tl.float32),)
        rest = rest + (tl.zeros([BLOCK_M, REST if REST > 0 else 1], tl.float32),)
    base_0, base_1, base_2 = bases
    bias_rows = bias + start_m.to(tl.int64) * bias_stride
    # Where APART the last tile, if it is not full, is a step of its own, and the loop has no mask.
    whole = tokens // BLOCK_N * BLOCK_N
    for start_n in range(0, tokens // BLOCK_N * BLOCK_N if APART else tokens, BLOCK_N):
        inside = start_n + n < tokens
        y = (
            _load_tile(base_0, token_strides[0], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, not APART),
            _load_tile(base_1, token_strides[1], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, not APART),
            _load_tile(base_2, token_strides[2], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, not APART),
        )
        if HAS_BIAS:
            offset = (m * bias_stride)[:, None] + (start_n + n)[None, :]
            shift = tl.load(bias_rows + offset, mask=live[:, None] & inside[None, :], other=float("-inf"))
            shift = shift.to(tl.float32) * LOG2E
        else:
            shift = tl.where(inside, 0.0, float("-inf"))[None, :]
        row_max, row_sum, main, rest = _step(
            *(x, y, (row_max, row_sum, main, rest), shift, inside, scale_log2e),
            *(RIGHT, TERMS, DTYPE, REST, APART, False, UPCAST),
        )
        base_0 += BLOCK_N * token_strides[0]
        base_1 += BLOCK_N * token_strides[1]
        base_2 += BLOCK_N * token_strides[2]
    if APART and whole < tokens:
        inside = whole + n < tokens
        y = (
            _load_tile(base_0, token_strides[0], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, True),
            _load_tile(base_1, token_strides[1], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, True),
            _load_tile(base_2, token_strides[2], inside, BLOCK_N, MAIN, REST, HEAD_DIM, UPCAST, True),
        )
        row_max, row_sum, main, rest = _step(
            *(x, y, (row_max, row_sum, main, rest), 0.0, inside, scale_log2e),
            *(RIGHT, TERMS, DTYPE, REST, APART, True, UPCAST),
        )

    total_main = main[0] * (weights[0] / row_sum[0])[:, None]
    total_rest = rest[0] * (weights[0] / row_sum[0])[:, None]
    for t in tl.static_range(1, TERMS):
        total_main += main[t] * (weights[t] / row_sum[t])[:, None]
        total_rest += rest[t] * (weights[t] / row_sum[t])[:, None]
    d = tl.arange(0, MAIN)
    rows = output + start_m.to(tl.int64) * HEAD_DIM + (m * HEAD_DIM)[:, None]
    tl.store(rows + d[None, :], total_main.to(output.dtype.element_ty), mask=live[:, None] & (d < HEAD_DIM)[None, :])
    if REST > 0:
        d = MAIN + tl.arange(0, REST)
        total_rest = total_rest.to(output.dtype.element_ty)
        tl.store(rows + d[None, :], total_rest, mask=live[:, None] & (d < HEAD_DIM)[None, :])


# Sizes and strides change from image to image: specialising on 1 or on multiples of 16 would compile again and again.
RUN_TIME = ["tokens", "heads", "bias_stride", *(f"{source}_stride_{axis}" for source in SOURCES for axis in "bhn")]


@triton.jit(do_not_specialize=RUN_TIME, do_not_specialize_on_alignment=["bias"])
def recombined_attention_kernel(
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
    APART: tl.constexpr,
    UPCAST: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of rows of one head. FEW: the last tile has at most so many rows, and a path of its own; 0 for none."""
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
    rows = output + (image * heads + head) * tokens * HEAD_DIM
    weights = (weight_0, weight_1, weight_2)
    if (tokens - start_m > FEW) | (FEW == 0):
        _attend(
            *(bases, token_strides, bias, bias_stride, rows, start_m, tokens, scale_log2e, weights),
            *(LEFT, RIGHT, TERMS, value.dtype.element_ty, HEAD_DIM, MAIN, REST, HAS_BIAS, APART, UPCAST),
            *(BLOCK_M, BLOCK_N),
        )
    if FEW > 0:  # noqa: SIM102 - the first is decided where it is compiled
        if tokens - start_m <= FEW:
            _attend(
                *(bases, token_strides, bias, bias_stride, rows, start_m, tokens, scale_log2e, weights),
                *(LEFT, RIGHT, TERMS, value.dtype.element_ty, HEAD_DIM, MAIN, REST, HAS_BIAS, APART, UPCAST),
                *(FEW, BLOCK_N),
            )
