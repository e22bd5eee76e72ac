"""What the ops refuse: argument, what was expected, what was received."""

import re

import pytest
import torch

from s2clip import ops

QUERY = torch.zeros(1, 2, 5, 16)
MAPS = torch.zeros(2, 3, 4, 5)
LABELS = torch.zeros(2, 4, 5, dtype=torch.int32)
MASKS, REGION = torch.zeros(2, 4, 4), torch.tensor([0, 1])
ELSEWHERE = "meta"
NAN = torch.full((2, 3, 4, 5), float("nan"))


def attend(**changed):
    return ops.recombined_attention(**{"query": QUERY, "key": QUERY, "value": QUERY, **changed})


def mix(**changed):
    return ops.affinity_attention(**{"features": MAPS, "value": MAPS, **changed})


def measure(**changed):
    return ops.measure_components(**{"labels": LABELS, "class_map": LABELS, "scores": MAPS, **changed})


def classify(**changed):
    return ops.classify_pixels(**{"logits": MAPS, "size": (6, 7), **changed})


def merge(**changed):
    plain = {"mask_logits": MASKS, "class_index": REGION, "image_index": REGION, "scores": MAPS, "labels": LABELS}
    return ops.merge_masks(**{**plain, "input_size": (6, 8), "padded_size": 8, **changed})


BAD = [
    # call, changed argument, its value, what the message says
    (attend, "query", QUERY[0], "query: expected 4 axes [B,H,N,D], received 3 axes [2, 5, 16]"),
    (attend, "query", None, "query: expected a tensor [B,H,N,D], received NoneType"),
    (attend, "query", QUERY.int(), "query: expected a float tensor, received torch.int32"),
    (attend, "key", QUERY.half(), "key: expected the dtype of query, torch.float32, received torch.float16"),
    (attend, "key", QUERY.to(ELSEWHERE), "key: expected the device of query, cpu, received meta"),
    (attend, "value", QUERY[:, :1], "[B,H,N,D] = [1, 2, 5, 16], received [1, 1, 5, 16]"),
    (attend, "terms", (), "terms: expected 1 to 4 different terms"),
    (attend, "terms", ("qq", "kk", "vv", "qk", "kq"), "terms: expected 1 to 4 different terms"),
    (attend, "terms", ("qq", "qq"), "terms: expected 1 to 4 different terms"),
    (attend, "terms", ("qx",), "received ('qx',)"),
    (attend, "terms", "qq", "received ('q', 'q')"),
    (attend, "weights", (1.0,), "weights: expected 3 numbers, one per term, received [1.0]"),
    (attend, "weights", (1.0, 2.0, float("nan")), "weights: expected a finite number"),
    (attend, "scale", float("inf"), "scale: expected a finite number from -inf to inf, received inf"),
    (attend, "bias", torch.zeros(5, 4), "bias: expected [N,N] = [5, 5], received [5, 4]"),
    (attend, "bias", torch.zeros(5, 5, device=ELSEWHERE), "bias: expected the device of query"),
    (attend, "backend", "cuda", "backend: expected one of 'auto', 'torch', 'triton', received 'cuda'"),
    (mix, "features", MAPS[0], "features[0]: expected 4 axes [B,H,W,C], received 3 axes [3, 4, 5]"),
    (mix, "features", [], "features: expected at least one map [B,H,W,C], received none"),
    (mix, "features", [MAPS, MAPS[:, :2]], "features[0] = [2, 3, 4, 5], received [2, 2, 4, 5]"),
    (mix, "features", MAPS.long(), "features[0]: expected a float tensor"),
    (mix, "features", MAPS.half(), "features[0]: expected the dtype of value"),
    (mix, "value", MAPS[:1], "value: expected [B,h,w,D] with B = 2 as features, received [1, 3, 4, 5]"),
    (mix, "value", MAPS[:, :0], "value: expected h and w of at least 1"),
    (mix, "weights", (0.5, 0.5), "weights: expected 1 numbers"),
    (mix, "weights", (0.9,), "weights: expected numbers that are not negative and sum to 1, received (0.9,)"),
    (mix, "weights", torch.full((2, 1), 0.9), "weights: expected rows that are not negative and sum to 1"),
    (mix, "weights", torch.ones(1, 1), "weights: expected [B,S] = [2, 1], received [1, 1]"),
    (mix, "gamma", 0.0, "gamma: expected a positive number, received 0.0"),
    (mix, "beta", None, "beta: expected a finite number"),
    (mix, "mean", torch.zeros(3), "mean: expected [B] = [2], received [3]"),
    (measure, "labels", LABELS[:1], "class_map: expected the shape of labels [B,H,W] = [1, 4, 5], received [2, 4, 5]"),
    (measure, "labels", LABELS.float(), "labels: expected an integer tensor, received torch.float32"),
    (measure, "labels", LABELS - 1, "labels: expected labels of at least 0, received -1"),
    (measure, "class_map", LABELS.to(ELSEWHERE), "class_map: expected the device of labels"),
    (measure, "scores", MAPS.int(), "scores: expected a float tensor, received torch.int32"),
    (measure, "scores", MAPS[..., :2], "at the size of labels = [2, 3, 4, 5], received [2, 3, 4, 2]"),
    (measure, "count", [0], "count: expected integers [B] = [2], received torch.int64 [1]"),
    (measure, "count", [0.0, 0.0], "count: expected integers [B] = [2], received torch.float32 [2]"),
    (measure, "count", [0, -1], "count: expected numbers of components"),
    (classify, "logits", MAPS[0], "logits: expected 4 axes [B,Q,h,w], received 3 axes"),
    (classify, "logits", MAPS[:, :0], "logits: expected Q, h and w of at least 1, received [2, 0, 4, 5]"),
    (classify, "logits", NAN, "logits: expected finite values, because a label has no NaN, received 120 that are not"),
    (classify, "size", (6,), "size: expected (height, width)"),
    (classify, "size", (0, 6), "size: expected (height, width), integers of at least 1, received (0, 6)"),
    (classify, "size", (6.0, 7.0), "size: expected (height, width), integers of at least 1"),
    (classify, "scale", "40", "scale: expected a finite number"),
    (classify, "class_index", [0, 1], "class_index: expected integers [Q] = [3], received torch.int64 [2]"),
    (classify, "class_index", [0, -1, 1], "class_index: expected class ids of at least 0, received -1"),
    (classify, "class_index", torch.tensor([0, -1, 1]), "class_index: expected class ids of at least 0, received -1"),
    (classify, "class_index", [0, 1.5, 1], "class_index: expected integers [Q] = [3], received torch.float32 [3]"),
    (classify, "class_index", ["a", "b", "c"], "class_index: expected integers [Q]"),
    (classify, "threshold", 1.5, "threshold: expected a finite number from 0.0 to 1.0, received 1.5"),
    (classify, "background", -1, "background: expected an integer class id from 0"),
    (merge, "mask_logits", torch.zeros(2, 4, 5), "mask_logits: expected [R,m,m] = [2, 4, 4], received [2, 4, 5]"),
    (merge, "mask_logits", torch.full((2, 4, 4), float("nan")), "mask_logits: expected finite values"),
    (merge, "mask_logits", MASKS[:, :0, :0], "mask_logits: expected m of at least 1"),
    (merge, "class_index", [0], "class_index: expected integers [R] = [2], received torch.int64 [1]"),
    (merge, "class_index", [0, 3], "class_index: expected indices 0..2, received [0, 3]"),
    (merge, "class_index", [0, -1], "class_index: expected indices 0..2, received [0, -1]"),
    (merge, "image_index", [0, 2], "image_index: expected indices 0..1, received [0, 2]"),
    (merge, "scores", MAPS[:, :0], "scores: expected K, h and w of at least 1, received [2, 0, 4, 5]"),
    (merge, "scores", MAPS.long(), "scores: expected a float tensor"),
    (merge, "scores", NAN, "scores: expected finite values"),
    (merge, "labels", LABELS[:1], "labels: expected [B,H,W] with B = 2 as scores, received [1, 4, 5]"),
    (merge, "labels", LABELS.to(ELSEWHERE), "labels: expected the device of mask_logits, cpu, received meta"),
    (merge, "input_size", (9, 8), "input_size: expected (height, width) of at most 8, received (9, 8)"),
    (merge, "padded_size", 0, "padded_size: expected (height, width), integers of at least 1"),
    (ops.spatial_entropy, "features", MAPS[0], "features: expected 4 axes [B,C,H,W], received 3 axes [3, 4, 5]"),
    (ops.spatial_entropy, "features", MAPS.int(), "features: expected a float tensor"),
    (ops.label_components, "class_map", MAPS[0], "class_map: expected an integer tensor, received torch.float32"),
    (ops.label_components, "class_map", LABELS[0, 0], "class_map: expected 3 axes [B,H,W], received 1 axes [5]"),
    (ops.label_components, "class_map", LABELS - 2, "class_map: expected class ids of at least 0"),
    (ops.get_connected_components, "mask", LABELS, "mask: expected a tensor [N,1,H,W], received 3 axes [2, 4, 5]"),
    (ops.get_connected_components, "mask", MAPS, "mask: expected [N,1,H,W] = [2, 1, 4, 5], received [2, 3, 4, 5]"),
    (ops.connected_components_with_stats, "image", MAPS, "image: expected a tensor [H,W] or [B,H,W], received 4 axes"),
]  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize(("call", "argument", "value", "message"), BAD, ids=lambda value: None)
    def test_names_argument_expected_and_received(self, call, argument, value, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(**{argument: value})

    @pytest.mark.parametrize("size", [8, 15, 129, 256])
    def test_head_size(self, size):
        query = torch.zeros(1, 1, 3, size)
        with pytest.raises(ValueError, match=f"query: expected a head size D from 16 to 128, received D = {size}"):
            ops.recombined_attention(query, query, query)

    def test_the_head_sizes_of_all_models_pass(self):
        for size in (16, 24, 64, 80, 128):
            query = torch.zeros(1, 1, 3, size)
            assert ops.recombined_attention(query, query, query).shape == query.shape

    def test_connectivity_and_ignore_index(self):
        for connectivity in (6, True, None):
            with pytest.raises(ValueError, match="connectivity: expected one of 4, 8, received"):
                ops.label_components(LABELS, connectivity=connectivity)
        with pytest.raises(ValueError, match=r"ignore_index: expected an integer or None, received 0\.5"):
            ops.label_components(LABELS, ignore_index=0.5)
        labels, count = ops.label_components(LABELS - 1, ignore_index=-1)
        assert not labels.any()
        assert not count.any()

    def test_values_of_labels_counts_and_classes(self):
        labels = LABELS + 2
        with pytest.raises(ValueError, match=r"labels: expected labels up to the count, \[1, 2\], received \[2, 2\]"):
            measure(labels=labels, count=[1, 2])
        for wrong in (-1, 3):
            with pytest.raises(ValueError, match=r"class_map: expected class ids 0\.\.2 under every label, for C = 3"):
                measure(labels=labels, class_map=LABELS + wrong)
        measure(labels=LABELS, class_map=LABELS + 255)  # where nothing is labelled any class will do

    def test_threshold_without_a_background(self):
        with pytest.raises(ValueError, match=r"threshold: expected 0, because background is None, received 0\.1"):
            classify(threshold=0.1, background=None)
        classify(threshold=0.0, background=None)
        assert (classify(threshold=0.5, background=255)[0] == 255).all()

    def test_scores_propagate_nan_and_labels_raise(self):
        assert ops.class_scores(NAN, (5, 6)).isnan().all()
        with pytest.raises(ValueError, match="logits"):
            classify(logits=NAN, backend="torch")
