"""The recombination kernel against its reference.

The interpreter runs programs one after another in fp32: it shows the arithmetic, the masks, the tails and the strides.
It cannot show the tensor cores' products of half precision (tiles are cast to fp32 here, probabilities are rounded as
on the GPU), the hardware's exp2, offsets past 2^31 elements, or the tiles of a real architecture: it runs those of
arch = 0. tests/gpu holds what is missing.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from specialisations import compiled, recorded

from s2clip.kernels import recombined_attention, reference
from s2clip.kernels.recombined_attention import configuration, launch, readable, split_head
from s2clip.testing import assert_within_budget, layouts, normal

# Padded rows divide 0 by 0 and rows of NaN have no maximum, on purpose; numpy warns of both, a GPU of neither.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEFAULT = ("qq", "kk", "vv")

# (batch, heads, tokens, head size, terms, weights, bias): what the row is there for
SHAPES = {
    "one token": (2, 3, 1, 16, ("qk",), (1.0,), False),
    "a padded head, two terms": (1, 2, 17, 24, ("qq", "kk"), (0.5, 0.5), False),
    "odd head size": (2, 1, 17, 17, ("vk", "qv"), (0.3, 0.7), True),
    "one short tile, the default terms": (1, 2, 63, 64, DEFAULT, (1 / 3, 1 / 3, 1 / 3), False),
    "ViT-B/16 at 224: a tail of 5, cross terms": (1, 1, 197, 64, ("qk", "kv", "vq"), (1.0, -0.5, 0.25), False),
    "ViT-H: 64 + 16": (1, 1, 197, 80, ("qq", "kk"), (0.5, 0.5), True),
    "the second part of the head is masked": (1, 1, 63, 72, ("qq", "kk", "vv"), (0.2, 0.3, 0.5), False),
    "one pass per term": (1, 1, 70, 64, ("qq", "kk", "vv", "qk"), (0.4, -0.3, 0.2, 0.1), True),
    "one pass per term, 64 + 16": (1, 2, 63, 80, ("vq", "kk", "vk", "qv"), (0.25, 0.25, 0.25, 0.25), True),
    "the widest head": (1, 2, 63, 128, ("qq", "vv", "kq"), (2.0, 0.0, -1.0), False),
}


def arguments(shape, dtype, device, seed=0):
    batch, heads, tokens, head_dim, terms, weights, has_bias = shape
    query, key, value = (
        normal(batch, heads, tokens, head_dim, seed=seed + part, dtype=dtype, device=device) for part in range(3)
    )
    bias = normal(tokens, tokens, seed=seed + 3, device=device) if has_bias else None
    return query, key, value, terms, weights, head_dim**-0.5, bias


def check(*given, factor=2.0):
    assert_within_budget(launch(*given), reference.recombined_attention, *given, factor=factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_agrees_with_the_reference_in_double(shape, dtype, device):
    check(*arguments(shape, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bias_may_have_the_dtype_of_the_tokens(dtype, device):
    query, key, value, terms, weights, scale, bias = arguments((1, 1, 20, 16, DEFAULT, (1, 1, 1), True), dtype, device)
    check(query, key, value, terms, weights, scale, bias.to(dtype))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("terms", list(itertools.permutations(("qq", "kv", "vq"))), ids=str)
def test_both_passes_give_every_order_of_terms(terms, fused, device, monkeypatch):
    monkeypatch.setattr(recombined_attention, "together", lambda *sizes: fused)
    check(*arguments((1, 1, 40, 16, terms, (0.7, -0.4, 0.1), False), torch.float32, device))


def test_one_term_of_query_and_key_is_attention(device):
    query, key, value, *_, bias = arguments((2, 2, 63, 64, ("qk",), (1.0,), True), torch.float32, device)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.2)
    torch.testing.assert_close(launch(query, key, value, ("qk",), (1.0,), 0.2, bias), expected, rtol=1e-5, atol=1e-5)


def test_rows_of_every_term_sum_to_its_weight(device):
    query, key, _, terms, weights, scale, bias = arguments(SHAPES["one pass per term"], torch.float32, device)
    ones = torch.ones_like(query)
    result = launch(query, key, ones, terms, weights, scale, bias)
    torch.testing.assert_close(result, torch.full_like(ones, sum(weights)), rtol=1e-6, atol=1e-6)


def test_a_weight_of_zero_removes_its_term(device):
    query, key, value, *_ = arguments((1, 1, 30, 16, DEFAULT, (1, 1, 1), False), torch.float32, device)
    both = launch(query, key, value, ("qq", "kk"), (0.6, 0.0), 0.25, None)
    assert torch.equal(both, launch(query, key, value, ("qq",), (0.6,), 0.25, None))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("tokens", [64, 70])
def test_the_last_tile_may_be_a_step_of_its_own(tokens, apart, device, monkeypatch):
    monkeypatch.setattr(recombined_attention, "apart", lambda *sizes: apart)
    for scale in (0.25, 0.0):
        given = arguments((1, 1, tokens, 16, ("qk", "vv"), (0.7, -0.4), False), torch.float32, device)
        check(*given[:5], scale, None)
    key = normal(1, 1, tokens, 16, seed=1, device=device).abs() + 3
    check(-key, key, key, ("qk",), (1.0,), 1.0, None)


@pytest.mark.parametrize("tokens", [65, 80, 81])
def test_a_last_tile_of_few_rows_has_tiles_of_its_own(tokens, device, monkeypatch):
    """A grid and CLS are whole tiles and one row: as good as a whole tile, and what is not finite spreads as far."""
    given = arguments((1, 2, tokens, 24, ("qk", "vv"), (0.7, -0.4), False), torch.float16, device)
    assert recombined_attention.few(0, 24, torch.float16, tokens, 64, False) == (16 if tokens <= 80 else 0)
    check(*given)
    given[1][0, 1, 3, 2] = float("nan")
    check(*given)
    short = launch(*given)
    monkeypatch.setattr(recombined_attention, "FEW", 0)
    recombined_attention._constants.cache_clear()
    torch.testing.assert_close(launch(*given), short, rtol=2e-3, atol=2e-3, equal_nan=True)
    recombined_attention._constants.cache_clear()


@pytest.mark.parametrize("scale", [0.0, -0.3, 50.0])
def test_any_scale(scale, device):
    query, key, value, terms, weights, _, bias = arguments(
        (1, 1, 70, 16, DEFAULT, (1, 1, 1), True), torch.float32, device
    )
    check(query, key, value, terms, weights, scale, bias)
    check(query, key, value, terms, weights, scale, None)


def test_padded_keys_take_no_part_when_all_scores_are_very_negative(device):
    key = normal(1, 1, 70, 16, seed=1, device=device).abs() + 3
    value = normal(1, 1, 70, 16, seed=2, device=device)
    check(-key, key, value, ("qk",), (1.0,), 1.0, None)


def test_equal_tokens_share_their_attention_equally(device):
    token = normal(1, 1, 1, 16, device=device)
    same = token.expand(1, 1, 65, 16)
    value = normal(1, 1, 65, 16, seed=2, device=device)
    result = launch(same, same, value, ("qq", "kk"), (0.5, 0.5), 0.25, None)
    torch.testing.assert_close(result, value.mean(2, keepdim=True).expand_as(result), rtol=1e-5, atol=1e-6)


NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", NOT_FINITE, ids=str)
@pytest.mark.parametrize("place", range(3), ids=["query", "key", "value"])
def test_what_is_not_finite_spreads_as_in_the_reference(place, bad, fused, device, monkeypatch):
    monkeypatch.setattr(recombined_attention, "together", lambda *sizes: fused)
    given = arguments((1, 2, 70, 16, ("qk", "kk"), (0.5, 0.5), False), torch.float32, device)
    given[place][0, 1, 66, 3] = bad
    check(*given)


def test_a_nan_key_reaches_every_token_of_its_head_and_no_other_head(device):
    given = arguments((2, 2, 70, 16, DEFAULT, (1, 1, 1), False), torch.float16, device)
    given[1][1, 0, 5] = float("nan")
    bad = launch(*given).isnan().all(-1).all(-1)
    assert bad.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("tokens", [20, 70])
def test_a_bias_of_minus_infinity_hides_keys_and_a_row_without_keys_is_nan(tokens, device):
    given = arguments((1, 1, tokens, 16, ("qq", "kk"), (0.5, 0.5), True), torch.float32, device)
    bias = given[-1]
    bias[:, : tokens - 3] = float("-inf")  # the first tile of keys is hidden altogether
    bias[7] = float("-inf")
    check(*given)
    assert launch(*given)[0, 0, 7].isnan().all()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "strided", "offset"])
def test_memory_layout_changes_no_bit(layout, device):
    query, key, value, *rest, bias = arguments((2, 3, 21, 16, DEFAULT, (0.5, 0.3, 0.2), True), torch.float16, device)
    expected = launch(query, key, value, *rest, bias)
    views = [layouts(tensor)[layout] for tensor in (query, key, value, bias)]
    assert torch.equal(launch(*views[:3], *rest, views[3]), expected)


@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(16, torch.float32), (64, torch.float16), (80, torch.bfloat16)], ids=str
)
def test_a_packed_projection_is_read_in_place(head_dim, dtype, device):
    packed = normal(2, 21, 3, 2, head_dim, dtype=dtype, device=device)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    assert all(readable(tensor) for tensor in (query, key, value))
    rest = (("qq", "vk"), (0.5, 0.5), 0.2, None)
    copies = [tensor.contiguous() for tensor in (query, key, value)]
    assert torch.equal(launch(query, key, value, *rest), launch(*copies, *rest))


def test_tiles_that_span_two_to_the_31_elements_are_copied_first():
    wide = torch.empty(2, device="meta").as_strided((1, 1, 4, 64), (0, 0, 1 << 25, 1))
    assert not readable(wide)
    assert readable(wide[:, :, :1])


def test_an_image_has_the_same_bits_in_any_batch(device):
    given = arguments((3, 2, 70, 24, DEFAULT, (0.5, 0.3, 0.2), True), torch.float16, device)
    together = launch(*given)
    for image in range(3):
        alone = launch(*(tensor[image : image + 1] for tensor in given[:3]), *given[3:])
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize("empty", [(0, 2, 5, 16), (2, 0, 5, 16), (2, 2, 0, 16)])
def test_nothing_in_nothing_out(empty, device):
    tensor = torch.empty(empty, device=device)
    bias = torch.empty(empty[2], empty[2], device=device)
    assert launch(tensor, tensor, tensor, DEFAULT, (1, 1, 1), 1.0, bias).shape == empty


# Configurations


@pytest.mark.parametrize(
    ("head_dim", "parts"),
    [(16, (16, 0)), (24, (32, 0)), (48, (32, 16)), (64, (64, 0)), (72, (64, 16)), (80, (64, 16)), (88, (64, 32)),
     (96, (64, 32)), (104, (128, 0)), (128, (128, 0))],
)  # fmt: skip
def test_heads_are_split_into_powers_of_two(head_dim, parts):
    assert split_head(head_dim) == parts


@pytest.mark.parametrize("head_dim", range(16, 129))
def test_both_parts_cover_the_head_with_no_more_lanes_than_padding(head_dim):
    main, rest = split_head(head_dim)
    assert head_dim <= main + rest <= 1 << (head_dim - 1).bit_length()
    assert rest == 0 or 16 <= rest < main


SIZES = list(itertools.product((80, 86, 89, 90, 120), (1, 2, 3, 4), (16, 64, 80, 128), DTYPES, (False, True)))


def test_tiles_keep_rows_within_one_warp_and_follow_from_tokens_in_two_buckets():
    for arch, terms, head_dim, dtype, has_bias in SIZES:
        buckets = {configuration(arch, terms, head_dim, dtype, tokens, has_bias) for tokens in range(1, 5000, 7)}
        assert len(buckets) <= 2
        for tiles in buckets:
            if dtype != torch.float32:
                assert tiles.block_m >= max(tiles.block_n, split_head(head_dim)[0])
                assert tiles.block_m == 16 * tiles.num_warps


@pytest.mark.parametrize("arch", [89, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("terms", "head_dim", "has_bias"), [(("qq", "kk", "vv"), 64, False), (("qk", "vv"), 80, True)])
def test_500_token_counts_compile_at_most_three_times(arch, dtype, terms, head_dim, has_bias):
    weights = [1.0, 0.0, 0.25][: len(terms)]
    with recorded(recombined_attention, arch) as launches:
        for tokens in range(1, 2001, 4):
            batch = 1 + tokens % 3
            packed = torch.empty(batch, tokens, 3, 1, head_dim, dtype=dtype)
            bias = torch.empty(tokens, tokens, device="meta") if has_bias else None
            launch(*packed.permute(2, 0, 3, 1, 4), terms, weights, 0.125, bias)
    assert 1 <= len(launches) <= 3


@pytest.mark.parametrize("arch", [80, 90])
def test_the_compile_gate_compiles_what_is_launched(arch):
    with recorded(recombined_attention, arch) as launches:
        for terms, head_dim, tokens in itertools.product((1, 2, 3, 4), (64, 80, 128), (577, 4097)):
            tensor = torch.empty(1, 1, tokens, head_dim, dtype=torch.float16)
            launch(tensor, tensor, tensor, ("qq", "kk", "vv", "qk")[:terms], [1.0] * terms, 0.125, None)

    def with_any_terms(launch):  # which of query, key and value a term takes changes no register
        return launch._replace(constants=tuple(pair for pair in launch.constants if pair[0] not in ("LEFT", "RIGHT")))

    gate = {with_any_terms(launch) for launch in compiled("recombined_attention", arch)}
    assert {with_any_terms(launch) for launch in launches} <= gate
