"""Every op on the GPU at pipeline shapes: against its reference in fp64, repeatable, independent of the batch.

This is what the interpreter cannot show: tensor-core products of half precision, and programs that run side by side.
"""

import sys
from pathlib import Path

import pytest
import torch

from s2clip import ops
from s2clip.kernels import reference
from s2clip.testing import assert_within_budget, comb, integers, normal, probabilities, snake, spiral

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import cases
import providers

pytestmark = pytest.mark.gpu
OURS = {op: table[providers.OURS].run for op, table in providers.PROVIDERS.items()}
DEVICE = torch.device("cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RUNS = [pytest.param(case, id=f"{case.op}-{case.shape}".replace(" ", "_")) for case in cases.CASES]


def tensors(output):
    return [output] if isinstance(output, torch.Tensor) else [part for part in output if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "heads", "tokens", "width"), [(2, 12, 442, 64), (2, 16, 577, 80), (1, 2, 4097, 64)])
@pytest.mark.parametrize("terms", [("qk",), ("qq", "kk"), ("qq", "kk", "vv"), ("qq", "kk", "vv", "qk")], ids=len)
def test_recombined_attention(batch, heads, tokens, width, terms, dtype):
    query, key, value = (normal(batch, heads, tokens, width, seed=s, dtype=dtype, device=DEVICE) for s in range(3))
    arguments = (query, key, value, terms, (1 / len(terms),) * len(terms), width**-0.5, None)
    actual = ops.recombined_attention(query, key, value, terms=terms)
    assert_within_budget(actual, reference.recombined_attention, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "value_grid"), [((21, 21), (21, 21)), ((42, 42), (21, 21)), ((64, 64), (64, 64))])
def test_affinity_attention(grid, value_grid, dtype):
    # Three directions and a little noise: no cosine is near the threshold, where one rounding changes the result.
    member = integers(3, 2, *grid, device=DEVICE)
    centres = torch.linalg.qr(normal(768, 3)).Q.T.to(DEVICE) * 5
    features = (centres[member] + 0.002 * normal(2, *grid, 768, device=DEVICE)).to(dtype)
    value = normal(2, *value_grid, 768, seed=1, dtype=dtype, device=DEVICE)
    weights = torch.ones(2, 1, device=DEVICE)
    actual = ops.affinity_attention(features, value)
    assert_within_budget(actual, reference.affinity_attention, [features], value, weights, 1.2, 3.0, None)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("size", [(1, 4096), (4097, 1), (187, 250), (1024, 2048)])
def test_label_and_measure_components(size, connectivity):
    maps = {
        "noise": integers(3, *size),
        "one colour": torch.zeros(size, dtype=torch.int64),
        "blobs": cases.blobs(size, 19)[0],
        "comb": comb(*size),
        "snake": snake(*size),
    }
    if min(size) > 4:
        maps["spiral"] = spiral(*size)
    for name, class_map in maps.items():
        labels, count = ops.label_components(class_map.to(DEVICE), connectivity=connectivity)
        expected, expected_count = ops.label_components(class_map, connectivity=connectivity)
        assert torch.equal(labels.cpu(), expected), name
        assert torch.equal(count.cpu(), expected_count), name
        scores = probabilities(1, 19, *size)
        measured = ops.measure_components(labels[None], class_map.to(DEVICE)[None], scores.to(DEVICE), count=count)
        truth = ops.measure_components(expected[None], class_map[None], scores, count=expected_count)
        for field, actual, wanted in zip(ops.Components._fields, measured, truth, strict=True):
            if field == "score":
                torch.testing.assert_close(actual.cpu(), wanted, atol=1e-6, rtol=1e-6)
            else:
                assert torch.equal(actual.cpu(), wanted), f"{name}: {field}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [run_ for run_ in RUNS if run_.values[0].op == "classify_pixels"])
def test_classify_pixels(case, dtype):
    (logits, size), keywords = case.make(DEVICE, dtype)
    words, classes = keywords["class_index"], len(keywords["sizes"])
    _, confidence = OURS[case.op](logits, size, **keywords)
    assert_within_budget(confidence, reference.classify_pixels, logits, size, 40.0, words, classes, 0.0, 0, output=1)
    scores = ops.class_scores(logits, size, scale=40.0, class_index=words)
    assert_within_budget(scores, reference.class_scores, logits, size, 40.0, words, classes)


@pytest.mark.parametrize("case", [run_ for run_ in RUNS if run_.values[0].op in ("merge_masks", "spatial_entropy")])
def test_masks_and_entropy_equal_the_reference(case):
    arguments, keywords = case.make(DEVICE, torch.float32)
    ours, theirs = (OURS[case.op](*arguments, **keywords, backend=backend) for backend in ("triton", "torch"))
    assert not providers.disagreement(case.op, (arguments, keywords), ours, theirs)


@pytest.mark.parametrize("case", RUNS)
def test_a_hundred_runs_are_bitwise_the_same(case):
    arguments, keywords = case.make(DEVICE, torch.float16)
    first = tensors(OURS[case.op](*arguments, **keywords))
    for _ in range(100):
        for a, b in zip(first, tensors(OURS[case.op](*arguments, **keywords)), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("case", [run_ for run_ in RUNS if "attention" in run_.values[0].op])
def test_an_image_does_not_depend_on_its_batch(case):
    arguments, keywords = case.make(DEVICE, torch.float16)
    whole = OURS[case.op](*arguments, **keywords)
    alone = OURS[case.op](*(argument[:1] for argument in arguments), **keywords)
    assert torch.equal(whole[:1], alone)


def test_tensors_past_two_to_the_31_elements():
    """13 GB: the last image of the batch is right, so that offsets did not wrap."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    batch = 2**31 // (12 * 442 * 64) + 2
    query, key, value = torch.randn(3, 1, 12, 442, 64, device=DEVICE, dtype=torch.float16)
    expected = ops.recombined_attention(query, key, value)
    large = [tensor.expand(batch, -1, -1, -1).contiguous() for tensor in (query, key, value)]
    assert large[0].numel() > 2**31
    assert torch.equal(ops.recombined_attention(*large)[-1:], expected)
