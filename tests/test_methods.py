"""Every method against a dense re-statement of its paper's mathematics: no ops, one head and one picture at a time."""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from dense import DenseBlock, as_columns, cosine_matrix, mean_shift, softmaxed, token_states
from small_models import LAYERS, picture, small_clip, small_vfm

from s2clip.encoding.features import patch_features
from s2clip.methods.method import Method
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import METHODS, get_method

TOLERANCE = 8 * torch.finfo(torch.float32).eps
"""The models run in fp64; the Gaussian bias and the levels' weights are fp32 on both sides."""
GRID = (6, 10)
NAMES = ("clip", "maskclip", "sclip", "clearclip", "naclip", "proxyclip", "s2clip", "s2clip-source")


@pytest.fixture(scope="module")
def clip():
    return small_clip().double()


@pytest.fixture(scope="module")
def vfm():
    return small_vfm().double()


@pytest.fixture(scope="module")
def images():
    return torch.stack([picture(48, 80, seed) for seed in (3, 4)]).double() / 255


def dense_clip(clip, image, vfm):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    return block.standard(x)[1:]


def dense_maskclip(clip, image, vfm):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    return block.output(block.heads(x, "v"))[1:]


def dense_sclip(clip, image, vfm):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    attention = [a + b for a, b in zip(softmaxed(block, x, "qq"), softmaxed(block, x, "kk"), strict=True)]
    x = x + block.mix(x, attention)
    return (x + block.ffn(x))[1:]


def dense_clearclip(clip, image, vfm):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    return block.mix(x, softmaxed(block, x, "qq"))[1:]


def dense_naclip(clip, image, vfm, sigma=5.0):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    cells = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    bias = torch.zeros(1 + len(cells), 1 + len(cells))
    for i, (row, column) in enumerate(cells, start=1):
        for j, (other_row, other_column) in enumerate(cells, start=1):
            distance = (row - other_row) ** 2 + (column - other_column) ** 2
            bias[i, j] = math.exp(-distance / (2 * sigma**2))
    return block.mix(x, [torch.softmax(scores + bias, -1) for scores in block.scores(x, "k", "k")])[1:]


def dense_proxyclip(clip, image, vfm):
    x, block = token_states(clip, image)[-1], DenseBlock(clip.blocks[-1])
    features = vfm.features(image[None])[0]
    size = tuple(features.shape[:2])
    attention = mean_shift(cosine_matrix(features.flatten(0, 1)))
    values = [as_columns(value[1:], GRID, size) for value in block.heads(x, "v")]
    return block.output([attention @ value for value in values])


def entropy(patches):
    mean, deviation = patches.mean(0), patches.std(0, correction=0)
    epsilon = max(float(deviation.min()) * 1e-2, 1e-6)
    power = ((patches - mean) / (deviation + epsilon)).T
    power = torch.exp(power - power.max(1, keepdim=True).values)
    p = (power / (power.sum(1, keepdim=True) + epsilon)).clamp(min=epsilon)
    p = p / p.sum(1, keepdim=True)
    return float(-(p * p.log()).sum(1).mean())


def dense_levels(clip, image, vfm, method):
    """s2clip and s2clip-source, by the method's λ, μ and `progressive`."""
    states, block = token_states(clip, image), DenseBlock(clip.blocks[-1])
    levels = [states[l] for l in range(math.ceil(LAYERS / 3), LAYERS - 1)]  # noqa: E741
    patches = [level[1:] for level in levels]
    omega = torch.softmax(torch.tensor([-entropy(p) for p in patches]), 0)

    hierarchy = 0
    for l, (level, weight) in enumerate(zip(levels, omega, strict=True)):  # noqa: E741
        known = omega[: l + 1] / omega[: l + 1].sum()
        smoothing = mean_shift(sum(w * cosine_matrix(p) for w, p in zip(known, patches[: l + 1], strict=True)))
        smoothed = smoothing @ level[1:] if method.progressive else level[1:]
        hierarchy = hierarchy + weight * torch.cat([level[:1], smoothed])

    def recombined(tokens):
        terms = [softmaxed(block, tokens, term) for term in ("kk", "vv")]
        return block.mix(tokens, [sum(per_head) / 2 for per_head in zip(*terms, strict=True)])[1:]

    value = recombined(states[-1]) + method.mu * recombined(hierarchy)
    features = vfm.features(image[None])[0]
    size, share = tuple(features.shape[:2]), method.vfm_weight
    similarity = share * cosine_matrix(features.flatten(0, 1))
    for weight, p in zip(omega, patches, strict=True):
        similarity = similarity + (1 - share) * weight * cosine_matrix(as_columns(p, GRID, size))
    return mean_shift(similarity) @ as_columns(value, GRID, size)


DENSE = {name: globals().get(f"dense_{name}") for name in NAMES}
DENSE |= {name: functools.partial(dense_levels, method=METHODS[name]) for name in ("s2clip", "s2clip-source")}


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_dense_restatement(name, clip, vfm, images):
    method = METHODS[name]
    with torch.inference_mode():
        features = patch_features(images, method, clip, vfm if method.uses_vfm else None)
        expected = torch.stack([DENSE[name](clip, image, vfm) for image in images])
        actual = features.flatten(2).mT
        assert actual.shape == expected.shape
        assert features.shape[2:] == ((12, 20) if method.uses_vfm else GRID)
        scale = expected.abs().max()
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=TOLERANCE)
        unit, expected_unit = (F.normalize(clip.head(tokens), dim=-1) for tokens in (actual, expected))
        torch.testing.assert_close(unit, expected_unit, rtol=0, atol=TOLERANCE)


def test_methods_differ(clip, vfm, images):
    """The parity above would be hollow if the small model gave all methods the same features."""
    with torch.inference_mode():
        units = [
            F.normalize(clip.head(patch_features(images, METHODS[n], clip, vfm).mean((2, 3))), dim=-1) for n in NAMES
        ]
    for i, first in enumerate(units):
        for second in units[i + 1 :]:
            assert (first - second).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_window_does_not_depend_on_its_batch(name, clip, vfm, images):
    with torch.inference_mode():
        together = patch_features(images, METHODS[name], clip, vfm)
        alone = torch.cat([patch_features(image[None], METHODS[name], clip, vfm) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE * float(alone.abs().max()))


def test_vfm_folding_is_the_papers_order(clip, vfm, images):
    """ProxyCLIP mixes v, then applies W_o; ours applies W_o first: equal, as affinity and resize have rows of sum 1."""
    with torch.inference_mode():
        block = DenseBlock(clip.blocks[-1])
        x = token_states(clip, images[0])[-1]
        features = vfm.features(images[:1])[0]
        attention, size = mean_shift(cosine_matrix(features.flatten(0, 1))), tuple(features.shape[:2])
        late = block.output([attention @ as_columns(value[1:], GRID, size) for value in block.heads(x, "v")])
        early = attention @ as_columns(block.output(block.heads(x, "v"))[1:], GRID, size)
    torch.testing.assert_close(late, early, rtol=0, atol=TOLERANCE * float(late.abs().max()))


@pytest.mark.parametrize(
    "fields",
    [
        {"tau": 0.1},
        {"mu": 0.0},
        {"mu": 0.3},
        {"progressive": False},
        {"levels": (1, 5)},
        {"levels": (), "vfm_weight": 1.0},
        {"vfm_weight": None},
        {"vfm_weight": 0.0},
        {"vfm_weight": 1.0},
        {"terms": ("qq",)},
        {"weights": (1.0, 0.25)},
        {"cls_token": False},
        {"gaussian_sigma": 2.0},
        {"residual": True},
        {"feed_forward": True},
        {"beta": 0.5},
        {"gamma": 9.0},
    ],
    ids=str,
)
def test_every_choice_of_s2clip_can_be_changed_and_matters(fields, clip, vfm, images):
    method = get_method("s2clip-source", **fields)
    with torch.inference_mode():
        plain = patch_features(images, METHODS["s2clip-source"], clip, vfm)
        other = patch_features(images, method, clip, vfm if method.uses_vfm else None)
    assert other.shape[2:] == ((12, 20) if method.uses_vfm else GRID)
    assert other.isfinite().all()
    if other.shape == plain.shape:
        assert (other - plain).abs().max() > 1e-4 * plain.abs().max()


def test_the_vfm_sees_windows_enlarged_by_its_scale(clip, vfm, images):
    class Enlarged:
        def features(self, images):
            size = [2 * side for side in images.shape[-2:]]
            return vfm.features(F.interpolate(images, size, mode="bilinear", align_corners=False))

    with torch.inference_mode():
        scaled = patch_features(images, get_method("s2clip", vfm_scale=2.0), clip, vfm)
        expected = patch_features(images, METHODS["s2clip"], clip, Enlarged())
    assert scaled.shape[2:] == (24, 40)
    assert torch.equal(scaled, expected)


def test_a_method_with_vfm_says_so_when_none_is_given(clip, images):
    with pytest.raises(ValueError, match="vfm: expected a vision foundation model for method proxyclip"):
        patch_features(images, METHODS["proxyclip"], clip)


def test_middle_levels():
    method = METHODS["s2clip"]
    assert method.resolve_levels(12) == (4, 5, 6, 7, 8, 9, 10)
    assert method.resolve_levels(24) == tuple(range(8, 23))
    assert method.resolve_levels(6) == (2, 3, 4)
    assert method.resolve_levels(2) == (1,)


def test_levels_beyond_the_model_are_refused():
    with pytest.raises(ValueError, match=r"levels: expected blocks 1\.\.5 of a model with 6, received \(3, 6\)"):
        dataclasses.replace(METHODS["s2clip"], levels=(3, 6)).resolve_levels(6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("terms", value) for value in (("qx",), ("qq", "qq"), ("qq", "kk", "vv", "qk", "kq"), "qq", None)],
        *[("vfm_scale", value) for value in (0, -1.0, float("inf"), True, None)],
        *[("weights", value) for value in ((1.0,), (1.0, 1.0, float("nan")), (True, True, True), 1.0)],
        *[("residual", value) for value in (1, None)],
        *[("gaussian_sigma", value) for value in (0, -1.0, "5")],
        *[("levels", value) for value in ("all", (3, 2), (2, 2), (1.5,))],
        *[("tau", value) for value in (0, -1, float("inf"), None)],
        ("mu", -0.1),
        *[("vfm_weight", value) for value in (-0.1, 1.1, True)],
        ("gamma", 0),
        *[("short_side", value) for value in (0, 12.5, True)],
        *[("stride", value) for value in (0, 337, None)],
        ("merge", "mean"),
        *[("templates", value) for value in ("none", (), ("no place",), ("{}", 3))],
        *[("logit_scale", value) for value in (0, float("nan"))],
        *[("threshold", value) for value in (-0.1, 1.5, None)],
        ("area_threshold", 2),
    ],
)
def test_wrong_values_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"Method\.{field}: expected .*, received ") as caught:
        get_method("s2clip", **{field: value})
    assert repr(value) in str(caught.value)


def test_affinity_of_levels_needs_levels():
    with pytest.raises(ValueError, match=r"Method\.vfm_weight"):
        get_method("proxyclip", vfm_weight=0.5)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=rf"method: expected one of {', '.join(METHODS)}, received 'slip'"):
        get_method("slip")
    with pytest.raises(ValueError, match=r"terms, weights, .*received 'sigma'"):
        get_method("naclip", sigma=3)


def test_methods_are_values():
    assert tuple(METHODS) == tuple(method.name for method in METHODS.values())
    assert {name for name, method in METHODS.items() if method.extension is None} == set(NAMES)
    changed = dataclasses.replace(METHODS["naclip"], gaussian_sigma=3.0)
    assert changed != METHODS["naclip"]
    assert METHODS["naclip"].gaussian_sigma == 5.0
    assert get_method("sclip", terms=["qq", "kk"]) == METHODS["sclip"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.tau = 2.0
    assert hash(METHODS["clip"]) != hash(METHODS["sclip"])


def test_the_papers_windows():
    """Crop, stride and logit scale of the published code's general settings; SCLIP's rows sum to 2."""
    published = {
        "sclip": (336, 224, 112, 40),
        "clearclip": (448, 448, 224, 50),
        "naclip": (336, 224, 112, 40),
        "proxyclip": (336, 336, 112, 40),
    }
    for name, values in published.items():
        method = METHODS[name]
        assert (method.short_side, method.crop, method.stride, method.logit_scale) == values
    assert METHODS["sclip"].weights == (1.0, 1.0)


def test_a_recipe_replaces_its_own_fields_only():
    recipe = dataclasses.asdict(RECIPES["tiny"])
    adapted, published = RECIPES["tiny"].adapt(METHODS["clearclip"]), METHODS["clearclip"]
    for field in dataclasses.fields(Method):
        expected = recipe.get(field.name, getattr(published, field.name))
        assert getattr(adapted, field.name) == expected, field.name
