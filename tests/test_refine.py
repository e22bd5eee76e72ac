"""SAM refinement on small random weights: equal to the published way, any number of pictures, bad input, memory."""

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from small_models import coarse_map, exact_sam, picture, small_sam
from torch._dynamo.utils import counters

from s2clip import ops
from s2clip.backbones.sam import Embedding, input_size
from s2clip.decision import scores
from s2clip.decision.scores import DenseScores, LogitScores, half_size
from s2clip.errors import MissingExtraError
from s2clip.refinement import decoder, prompts, sam
from s2clip.refinement.prompts import Prompts, find_regions, make_prompts
from s2clip.refinement.refiner import Refiner, load_refiner
from s2clip.refinement.settings import Refinement, resolve_settings
from s2clip.testing import assert_same_formula, normal

CLASSES = 6
SIZES = [(50, 71), (64, 64), (37, 20), (91, 60)]


@pytest.fixture(scope="module")
def model():
    return exact_sam()


def embedding(size, seed, frame=64):
    return Embedding(normal(1, 16, 8, 8, seed=seed).double(), input_size(size, frame))


def run(model, pictures, refine="sam", **options):
    """Refine [(embedding, labels, scores), ...]."""
    refiner = Refiner(model, Refinement(**{"minimal_area": 6, **options}), refine=refine)
    embeddings, labels, maps = zip(*pictures, strict=True)
    return refiner(embeddings, labels, [DenseScores(one) if isinstance(one, torch.Tensor) else one for one in maps])


def assert_equal(ours, published):
    """Regions to the bit, their mean score to the rounding of a sum; labels but for ties."""
    for name in ("class_index", "area", "box", "point"):
        assert torch.equal(getattr(ours.regions, name), getattr(published.regions, name)), name
    torch.testing.assert_close(ours.regions.score, published.regions.score, atol=1e-6, rtol=0)
    assert_same_formula(ours.predicted_iou, published.predicted_iou)
    assert torch.equal(ours.accepted, published.accepted)
    torch.testing.assert_close(ours.score, published.score, atol=1e-4, rtol=0)
    assert ((ours.labels == published.labels) | ((ours.score - published.score).abs() < 1e-4)).all()
    assert (ours.labels != published.labels).float().mean() < 2e-3


VARIANTS = {
    "default": {},
    "faithful": {"faithful": True},
    "no coarse threshold": {"coarse_threshold": 0.0},
    "high coarse threshold": {"coarse_threshold": 0.6},
    "without components": {"use_components": False},
    "without box": {"use_box": False},
    "without point": {"use_point": False},
    "without mask": {"use_mask": False},
    "mask alone": {"use_box": False, "use_point": False},
    "last class not split": {"split_last": False},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_all_at_once_is_the_published_way(options):
    """Over random scenes and random decoders, with half of the regions accepted."""
    changed, failed = 0, 0
    for seed, size in enumerate(SIZES):
        model = exact_sam(seed=seed)
        one = (embedding(size, seed), *coarse_map(size, seed))
        threshold = float(run(model, [one], sam_iou_threshold=-1e6, **options)[0].predicted_iou.median())
        threshold -= 1e-3  # no region's estimate is so near that rounding decides
        (ours,), (published,) = (
            run(model, [one], name, sam_iou_threshold=threshold, **options) for name in ("sam", "trident")
        )
        assert_equal(ours, published)
        changed += int((ours.labels != one[1]).sum())
        failed += int((~ours.accepted).sum())
    if options != VARIANTS["mask alone"]:  # where regions of one class have one prompt, and one estimate
        assert changed
        assert failed


def test_from_cosines_as_from_the_same_scores_published(model):
    """Synonyms, and scores made plane by plane: the same regions and labels."""
    cosines, size, words = normal(8, 6, 7, seed=3) / 9, (50, 71), (0, 1, 1, 2, 3, 3, 4, 5)
    maps = LogitScores(cosines, 40.0, words, size)
    labels = ops.classify_pixels(cosines[None], size, class_index=words)[0][0].long()
    one = (embedding(size, 1), labels, maps)
    ours, published = (run(model, [one], name, sam_iou_threshold=-1e6)[0] for name in ("sam", "trident"))
    assert_equal(ours, published)
    assert len(ours.accepted)


def test_several_pictures_are_each_alone(model):
    pictures = [(embedding(size, seed), *coarse_map(size, seed)) for seed, size in enumerate(SIZES)]
    pictures.insert(1, (embedding((30, 40), 9), torch.full((30, 40), 255), coarse_map((30, 40), 9)[1]))
    for together, one in zip(run(model, pictures, sam_iou_threshold=-1e6), pictures, strict=True):
        alone = run(model, [one], sam_iou_threshold=-1e6)[0]
        assert_equal(together, alone)


class TestScores:
    @pytest.mark.parametrize("chunk", [1, 1 << 22])
    def test_planes_from_cosines_are_class_scores(self, chunk, monkeypatch):
        monkeypatch.setattr(scores, "CHUNK", chunk)
        cosines, words = normal(7, 5, 6) / 5, (2, 0, 1, 1, 3, 0, 4)
        maps = LogitScores(cosines, 40.0, words, (40, 48))
        expected = ops.class_scores(cosines[None], (20, 24), scale=40.0, class_index=words)[0]
        torch.testing.assert_close(maps.planes(range(5), (20, 24)), expected)
        torch.testing.assert_close(maps.planes([3, 1], (20, 24)), expected[[3, 1]])
        ((group, planes),) = maps.fine([4])
        assert list(group) == [4]
        torch.testing.assert_close(planes, expected[[4]])

    @pytest.mark.parametrize("kind", ["dense", "cosines"])
    def test_grouping_of_classes_changes_only_rounding(self, kind, monkeypatch):
        cosines = normal(6, 5, 6) / 5
        make = {
            "dense": lambda: DenseScores(coarse_map((40, 48), 0)[1]),
            "cosines": lambda: LogitScores(cosines, 40.0, range(6), (40, 48)),
        }[kind]
        class_map = torch.randint(-1, 8, (20, 24), generator=torch.Generator().manual_seed(0))
        whole = make().summary(class_map)
        monkeypatch.setattr(scores, "CHUNK", 1)
        for one, other in zip(whole, make().summary(class_map), strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
        planes = make().planes(range(6), (20, 24))
        torch.testing.assert_close(whole.best, planes.amax(0), atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(whole.peak, planes.flatten(1).amax(1), atol=1e-7, rtol=1e-5)
        known = (class_map >= 0) & (class_map < 6)
        own = planes.gather(0, class_map.clamp(0, 5)[None])[0].where(known, 0)
        torch.testing.assert_close(whole.own, own, atol=1e-7, rtol=1e-5)


class TestDecoder:
    def prompts(self, **without):
        box = torch.tensor([[1.0, 2, 30, 40], [5, 5, 9, 60], [0, 0, 63, 63]])
        given = {"boxes": box, "points": box[:, :2] + 3, "masks": normal(2, 32, 32)}
        index = torch.tensor([0, 1, 1])
        return Prompts(**{**given, **without}, mask_index=index, image_index=torch.tensor([1, 0, 1]))

    @pytest.mark.parametrize("without", [(), ("boxes",), ("points",), ("masks",), ("boxes", "points")], ids=str)
    def test_is_segment_anythings_own(self, model, without):
        """Prompts of two pictures in one batch, as its forward gives them one by one."""
        given = self.prompts(**dict.fromkeys(without))
        features = normal(2, 16, 8, 8).double()
        logits, iou = decoder.decode(model, features, given)
        for row in range(3):
            points = None if given.points is None else (given.points[row, None, None], torch.ones(1, 1))
            boxes = None if given.boxes is None else given.boxes[row, None]
            masks = None if given.masks is None else given.masks[given.mask_index[row]][None, None]
            sparse, dense = model.prompt_encoder(points, boxes, masks)
            expected = model.mask_decoder(
                features[given.image_index[row], None], model.prompt_encoder.get_dense_pe(), sparse, dense, False
            )
            assert_same_formula(logits[row], expected[0][0, 0])
            assert_same_formula(iou[row], expected[1][0, 0])

    def test_halves_the_batch_when_memory_runs_out(self, model, monkeypatch, caplog):
        given, features, sizes = self.prompts(), normal(2, 16, 8, 8).double(), []
        expected = decoder.decode(model, features, given)
        whole = decoder._decode_batch

        def small_memory(mask_decoder, source, *rest):
            sizes.append(len(source))
            if len(source) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(mask_decoder, source, *rest)

        monkeypatch.setattr(decoder, "_decode_batch", small_memory)
        monkeypatch.setattr(decoder, "batch_size", lambda embeddings: 3)
        for one, other in zip(decoder.decode(model, features, given), expected, strict=True):
            assert_same_formula(one, other)
        assert sizes == [3, 1, 1, 1]
        assert "out of memory" in caplog.text
        monkeypatch.setattr(decoder, "_decode_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        with pytest.raises(torch.OutOfMemoryError):
            decoder.decode(model, features, given)


def two_halves(size=(32, 48)):
    """A map of two classes side by side, the left one surer of everything than the right."""
    labels = torch.zeros(size, dtype=torch.int64)
    labels[:, size[1] // 2 :] = 1
    probability = torch.tensor([0.8, 0.2])[:, None, None].expand(2, *size).clone()
    probability[:, :, size[1] // 2 :] = torch.tensor([0.4, 0.6])[:, None, None]
    return labels, probability


@pytest.mark.parametrize("refine", ["sam", "trident"])
def test_failed_regions_go_back_to_the_coarse_map_unless_faithful(model, refine, monkeypatch):
    """The left region's mask is accepted and covers all; the right region failed."""
    logits, iou = torch.full((2, 32, 32), 5.0), torch.tensor([0.9, 0.1])
    monkeypatch.setattr(sam, "decode", lambda *_, **__: (logits.clone(), iou))
    answers = iter([0, 1, 0, 1])
    monkeypatch.setattr(
        model.mask_decoder, "forward", lambda *_, **__: (logits[None, :1], iou[next(answers), None, None])
    )
    labels, probability = two_halves()
    one = (embedding((32, 48), 0), labels, probability)
    assert torch.equal(run(model, [one], refine)[0].labels, labels)
    assert not run(model, [one], refine, faithful=True)[0].labels.any() if refine == "sam" else True


class TestRoundedPicture:
    """SAM saw a picture of 37x20 resized to 48x32, as Trident makes it."""

    size, rounded = (37, 20), (48, 32)

    def refined(self, refine, **options):
        one = (embedding(self.rounded, 2)._replace(made_from=self.rounded), *coarse_map(self.size, 2))
        return run(exact_sam(seed=2), [one], refine, sam_iou_threshold=-1e6, **options)[0]

    @pytest.mark.parametrize("faithful", [False, True])
    def test_all_at_once_is_the_published_way(self, faithful):
        ours, published = (self.refined(name, faithful=faithful) for name in ("sam", "trident"))
        assert len(ours.accepted)
        assert_equal(ours, published)

    @pytest.mark.parametrize("faithful", [False, True])
    def test_the_mask_prompt_is_sized_by_the_picture_itself_where_faithful(self, faithful, monkeypatch):
        seen, original = [], sam.make_prompts
        monkeypatch.setattr(sam, "make_prompts", lambda *args, **more: seen.append(original(*args, **more)) or seen[-1])
        self.refined("sam", faithful=faithful)
        side = 32
        columns = seen[0].masks.amax((0, 1)).nonzero().amax() + 1
        assert columns == input_size(self.size if faithful else self.rounded, side)[1]

    def test_masks_are_resized_to_the_rounded_size_and_then_to_the_picture(self):
        logits, frame = normal(3, 32, 32, seed=4), 64
        inner = input_size(self.rounded, frame)
        largest = sam.largest_at_size(logits, [2, 1], inner, frame, self.rounded, self.size)
        assert largest.shape == (2, 37, 37)
        assert (largest[..., 20:] == sam.NEVER).all()
        for row, some in zip(largest, (logits[:2], logits[2:]), strict=True):
            full = F.interpolate(some[None], (frame, frame), mode="bilinear")[..., : inner[0], : inner[1]]
            twice = F.interpolate(F.interpolate(full, self.rounded, mode="bilinear"), self.size, mode="bilinear")
            torch.testing.assert_close(row[:, :20], twice[0].amax(0))


def test_nothing_accepted_keeps_the_coarse_map(model):
    one = (embedding((50, 71), 0), *coarse_map((50, 71), 0))
    refined = run(model, [one], sam_iou_threshold=1e6)[0]
    assert torch.equal(refined.labels, one[1])
    assert not refined.score.any()
    assert len(refined.accepted)


class TestBadInput:
    def refined(self, model, labels, probability, **options):
        size = tuple(labels.shape)
        return run(model, [(embedding(size, 0), labels, probability)], sam_iou_threshold=-1e6, **options)[0]

    def test_no_region(self, model):
        labels, probability = coarse_map((50, 71), 0)
        for options in ({"minimal_area": 10**6}, {"coarse_threshold": 1.0}):
            refined = self.refined(model, labels, probability, **options)
            assert torch.equal(refined.labels, labels)
            assert len(refined.accepted) == 0
        void = torch.full_like(labels, 255)
        assert torch.equal(self.refined(model, void, probability).labels, void)

    def test_one_region_over_everything(self, model):
        labels = torch.zeros(40, 30, dtype=torch.int64)  # only background, if that is class 0
        refined = self.refined(model, labels, torch.ones(1, 40, 30))
        assert refined.regions.box.tolist() == [[0, 0, 14, 19]]
        assert refined.regions.point.tolist() == [[0, 0]]
        assert torch.equal(refined.labels, labels)

    def test_thousands_of_tiny_regions(self, model, monkeypatch):
        """Each pixel differs from its neighbours: dropped without asking SAM, or 5,000 prompts if wanted."""
        rows, columns = torch.meshgrid(torch.arange(100), torch.arange(200), indexing="ij")
        labels = (rows // 2 % 2) * 2 + columns // 2 % 2
        probability = F.one_hot(labels, 4).permute(2, 0, 1).float()
        assert len(self.refined(model, labels, probability, minimal_area=2).accepted) == 0
        asked = []
        monkeypatch.setattr(
            sam,
            "decode",
            lambda model, features, given, **_: (
                asked.append(len(given)) or (torch.full((len(given), 4, 4), -1.0), torch.zeros(len(given)))
            ),
        )
        refined = self.refined(model, labels, probability, minimal_area=1)
        assert asked == [5000]
        assert torch.equal(refined.labels, labels)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 1)])
    def test_pictures_smaller_than_a_patch(self, size):
        refiner = Refiner(small_sam(), Refinement(minimal_area=1, coarse_threshold=0.0, sam_iou_threshold=-1e6))
        labels, probability = coarse_map(size, 1)
        refined = refiner([refiner.embed(picture(*size))], [labels], [DenseScores(probability)])[0]
        assert refined.labels.shape == size
        assert len(refined.accepted)

    @pytest.mark.parametrize("refine", ["sam", "trident"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_scores_that_are_not_finite_are_one_error(self, model, refine, value):
        labels, probability = coarse_map((50, 71), 0)
        probability[2, 20, 30] = value
        with pytest.raises(ValueError, match=r"^scores: expected finite class scores, received NaN or infinity$"):
            run(model, [(embedding((50, 71), 0), labels, probability)], refine)

    def test_masks_that_are_not_finite_failed(self, model, monkeypatch):
        labels, probability = coarse_map((50, 71), 0)
        monkeypatch.setattr(
            sam,
            "decode",
            lambda model, features, given, **_: (torch.full((len(given), 4, 4), float("nan")), torch.ones(len(given))),
        )
        assert torch.equal(self.refined(model, labels, probability).labels, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimal_area": -1}, r"Refinement\.minimal_area: expected a number of at least 0, received -1"),
        ({"coarse_threshold": 1.5}, r"Refinement\.coarse_threshold: expected 0 to 1"),
        ({"use_box": 1}, r"Refinement\.use_box: expected True or False"),
        ({"sam_iou_threshold": float("nan")}, r"Refinement\.sam_iou_threshold: expected a finite number"),
        ({"use_box": False, "use_point": False, "use_mask": False}, "at least one of use_box"),
        ({"iou": 0.5}, "refine_options: expected the fields coarse_threshold, .*, received 'iou'"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings("sam-vit-b", options)


def test_the_tiny_sam_has_smaller_regions():
    assert (
        resolve_settings("sam-tiny", {"use_box": False}).minimal_area < resolve_settings("sam-vit-b", None).minimal_area
    )


def test_trident_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(MissingExtraError, match=r"s2clip\[trident\]"):
        load_refiner("sam-vit-b", Refinement(), refine="trident")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_encoder_is_used_and_announced(backend, caplog):
    """One graph for pictures of any size, because all become one frame; the same embedding."""
    model = small_sam()
    expected = [Refiner(model, Refinement()).embed(picture(*size)).features for size in SIZES]
    encoder, compile = model.image_encoder, model.image_encoder.compile
    encoder.compile = lambda **options: compile(backend=backend, **options)
    torch.compiler.reset()
    counters.clear()
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        refiner = Refiner(model, Refinement(), compile=True)
    assert "the first picture waits one to several minutes" in caplog.text
    assert not counters["stats"]
    for size, features in zip(SIZES, expected, strict=True):
        torch.testing.assert_close(refiner.embed(picture(*size)).features, features, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


def test_prompts_by_hand():
    """The right half of a 40x80 picture, in SAM's frame of 160: factor 160/40 on half-resolution pixels."""
    labels, probability = two_halves((40, 80))
    probability[1, 20, 60] = 0.9
    maps, settings = DenseScores(probability), Refinement(minimal_area=1, coarse_threshold=0.5)
    regions = find_regions(labels, maps, settings)
    assert half_size((40, 80)) == (20, 40)
    assert regions.classes == (0, 1)
    made = make_prompts(regions, maps, (40, 80), 160, 32, settings)
    assert made.boxes.tolist() == [[0, 0, 19 * 4, 19 * 4], [20 * 4, 0, 39 * 4, 19 * 4]]
    assert made.points.tolist() == [[0, 0], [30 * 4, 10 * 4]]
    assert regions.components.score.tolist() == pytest.approx([0.8, 0.6 + 0.3 / 4 / 400], abs=1e-6)
    assert made.masks.shape == (2, 32, 32)
    torch.testing.assert_close(made.masks[0, :16, :15], torch.full((16, 15), 0.8 * 0.005))
    assert not made.masks[0, :, 17:].any()  # 0.4 is under the threshold
    assert not made.masks[:, 16:].any()  # below the picture


def test_nearest_takes_the_floor():
    assert prompts.nearest(torch.arange(35).view(5, 7), (2, 3)).tolist() == [[0, 2, 4], [14, 16, 18]]
