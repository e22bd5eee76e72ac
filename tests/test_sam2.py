"""SAM 2.1 as what answers prompts: transformers' own forward, Algorithm 4 around it, what is said where it fails."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_models import coarse_map, fill, picture
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig, Sam2PromptEncoderConfig

from s2clip import Segmenter
from s2clip.backbones import sam2, weights
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.sam import encode_images, load_sam, share_embeddings
from s2clip.backbones.weights import Fingerprint
from s2clip.decision.scores import DenseScores
from s2clip.errors import MissingExtraError, WeightsError
from s2clip.refinement import automatic
from s2clip.refinement.decoder import THREE_MASKS, decode, decode_masks
from s2clip.refinement.prompts import Prompts
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import Refinement

FRAME, SIDE, WIDTH = 128, 32, 32
SETTINGS = Refinement(minimal_area=4, sam_iou_threshold=0.45)


def small_model(*_):
    """transformers' class on a frame of 128 pixels: 8x8 cells, masks of 32x32."""
    widths = [8, 16, 32, 64]
    backbone = Sam2HieraDetConfig(
        hidden_size=8, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=widths, global_attention_blocks=[3],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 4, 2], image_size=[FRAME, FRAME],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        fpn_hidden_size=WIDTH,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=WIDTH, image_size=FRAME, patch_size=16, mask_input_channels=8)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=WIDTH, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=2
    )
    with weights.private_random_state():
        model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    return fill(model, 4, scale=0.4).eval()


@pytest.fixture(scope="module")
def sam():
    return sam2.Sam2(small_model(), name="sam2.1-t", fingerprint=Fingerprint("random"))


def frames(sam, images):
    resized = F.interpolate(images, (FRAME, FRAME), mode="bilinear", align_corners=False, antialias=True)
    return (resized - sam.mean[:, None, None]) / sam.std[:, None, None]


def prompts_of(kinds, count=3):
    """Prompts on two pictures, of the kinds that are asked for."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, 2, generator=generator) * 60
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 40], 1)
    return Prompts(
        boxes=boxes if "box" in kinds else None,
        points=boxes.view(-1, 2, 2).mean(1) if "point" in kinds else None,
        masks=torch.randn(2, SIDE, SIDE, generator=generator) if "mask" in kinds else None,
        mask_index=torch.tensor([0, 1, 1]),
        image_index=torch.tensor([0, 1, 0]),
    )


def by_transformers(sam, images, prompts, multimask):
    """Its own forward, one prompt of one picture after the other."""
    masks, ious = [], []
    for index in range(len(prompts)):
        own = images[prompts.image_index[index]][None]
        given = {}
        if prompts.points is not None:
            given["input_points"] = prompts.points[index].view(1, 1, 1, 2)
        if prompts.boxes is not None:
            given["input_boxes"] = prompts.boxes[index].view(1, 1, 4).clone()
        if prompts.masks is not None:
            given["input_masks"] = prompts.masks[prompts.mask_index[index]].view(1, 1, SIDE, SIDE)
        with torch.no_grad():
            answer = sam.model(pixel_values=frames(sam, own), multimask_output=multimask, **given)
        masks.append(answer.pred_masks[0, 0])
        ious.append(answer.iou_scores[0, 0])
    return torch.stack(masks), torch.stack(ious)


@pytest.mark.parametrize("kinds", [("box", "point", "mask"), ("box",), ("point",), ("mask",), ("box", "mask")])
def test_prompts_are_answered_as_by_the_librarys_forward(sam, kinds):
    sam = copy.deepcopy(sam).double()  # in fp32 the order of a sum moves logits by 5e-5
    images, prompts = torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(1)).double(), prompts_of(kinds)
    hints = None if prompts.masks is None else prompts.masks.double()
    prompts = Prompts(prompts.boxes, prompts.points, hints, prompts.mask_index, prompts.image_index)
    embeddings, size = encode_images(sam, images)
    assert (tuple(embeddings.shape), size) == ((2, 4 * WIDTH, 8, 8), (FRAME, FRAME))
    for multimask, answer in ((False, decode(sam, embeddings, prompts)),
                              (True, decode_masks(sam, embeddings, prompts, THREE_MASKS))):  # fmt: skip
        masks, ious = by_transformers(sam, images, prompts, multimask)
        ours = answer if multimask else tuple(part[:, None] for part in answer)
        torch.testing.assert_close(ours[0], masks, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours[1], ious, rtol=1e-6, atol=1e-6)


def test_an_unstable_mask_gives_way_to_the_surest_of_three(sam):
    embeddings, _ = encode_images(sam, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    prompts = prompts_of(("box", "point"))
    three, ious = decode_masks(sam, embeddings, prompts, THREE_MASKS)
    sam.model.mask_decoder.dynamic_multimask_stability_thresh = 2.0  # none is that stable
    one, iou = decode(sam, embeddings, prompts)
    sam.model.mask_decoder.dynamic_multimask_stability_thresh = 0.98
    best = ious.argmax(1)
    torch.testing.assert_close(one, three[torch.arange(3), best])
    torch.testing.assert_close(iou, ious.amax(1))


def test_algorithm_4_runs_around_it(sam):
    labels, probability = coarse_map((60, 90), 5)
    refiner = Refiner(sam, SETTINGS, name="sam2.1-t")
    embedding = refiner.embed(picture(60, 90))
    (refined,) = refiner([embedding], [labels], [DenseScores(probability)])
    assert refined.labels.shape == (60, 90)
    assert refined.accepted.any()
    assert not torch.equal(refined.labels, labels)
    # its box prompts are in the stretched frame: x and y have factors of their own
    (same,) = refiner([refiner.embed(picture(60, 90))], [labels], [DenseScores(probability)])
    assert torch.equal(refined.labels, same.labels)
    empty = refiner([embedding], [torch.full_like(labels, -1)], [DenseScores(probability)])[0]
    assert (empty.labels == -1).all()


def test_boxes_are_in_its_stretched_frame(sam, monkeypatch):
    from s2clip.refinement import sam as together

    seen = []
    decode_real = together.decode
    monkeypatch.setattr(
        together, "decode", lambda *args, **kwargs: seen.append(args[2]) or decode_real(*args, **kwargs)
    )
    labels = torch.zeros(60, 90, dtype=torch.int64)
    labels[:, 45:] = 1
    scores = torch.stack([(labels == 0) * 0.8 + 0.1, (labels == 1) * 0.8 + 0.1])
    refiner = Refiner(sam, SETTINGS, name="sam2.1-t")
    refiner([refiner.embed(picture(60, 90))], [labels], [DenseScores(scores)])
    right, bottom = FRAME * 44 / 45, FRAME * 29 / 30  # last column and row of a half picture of 45x30
    torch.testing.assert_close(seen[0].boxes[1, 2:], torch.tensor([right, bottom]), rtol=0, atol=1e-3)
    assert (seen[0].masks.flatten(1).amax(1) > 0).all()
    assert (seen[0].masks[:, -1].amax(1) > 0).all()  # the hint fills the square, too


def test_its_automatic_masks_are_regions(sam):
    settings = automatic.AutomaticMasks(points_per_side=3, iou_threshold=0.3, stability_threshold=0.1)
    ids = automatic.SamRegions(sam, settings, "sam2.1-t")(picture(60, 90))
    assert ids.shape == (60, 90)
    assert len(ids.unique()) > 1
    assert automatic.resolve_automatic("sam2.1-b+", None).iou_threshold == 0.8
    share_embeddings(sam)
    first, _ = encode_images(sam, torch.ones(1, 3, 40, 40))
    assert encode_images(sam, torch.ones(1, 3, 40, 40))[0].equal(first)
    sam.seen = None


@pytest.mark.parametrize("name", sam2.NAMES)
def test_rows_are_what_transformers_builds(name):
    with torch.device("meta"):
        model = sam2.build_sam2(name)
    row = MODELS["masks"][name]
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == row.parameters
    assert (model.prompt_encoder.input_image_size, model.prompt_encoder.image_embedding_size[0]) == (row.native, 64)


def test_the_published_layout_loads_without_its_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(sam2, "build_sam2", small_model)
    tensors = {name: tensor.clone() for name, tensor in small_model().state_dict().items()}
    del tensors[sam2.PLACES]
    video = {"memory_attention.layers.0.linear1.weight": torch.ones(2), "no_object_pointer": torch.ones(1, 2)}
    save_file(tensors | video, tmp_path / "sam2.1-t.safetensors")
    options = {"cache_dir": tmp_path, "device": "cpu", "local_files_only": True}
    loaded = load_sam("sam2-t", **options)
    for name, tensor in small_model().state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    save_file({"image_encoder.x": torch.ones(2)}, tmp_path / "sam2.1-t.safetensors")
    with pytest.raises(WeightsError, match=r"sam2.1-t: .* holds another model's weights\n  missing: "):
        load_sam("sam2.1-t", **options)


def test_half_precision_stays_close(sam):
    half = sam2.Sam2(small_model(), name="sam2.1-t", fingerprint=Fingerprint("random"))
    half = sam2.freeze_sam2(half, torch.device("cpu"), torch.float16)
    images = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(1))
    expected, received = encode_images(sam, images)[0], encode_images(half, images)[0]
    assert received.dtype == torch.float32
    assert (received - expected).norm() < 1e-2 * expected.norm()


def test_what_was_published_for_sam_is_refused_in_one_line(sam):
    with pytest.raises(ValueError, match=r"^refine: expected 'sam' or 'sam\+sd' with sam2.1-t, received 'trident'$"):
        Refiner(sam, SETTINGS, refine="trident")
    with pytest.raises(ValueError, match=r"^Refinement.faithful: expected False with sam2.1-t"):
        Refiner(sam, SETTINGS).with_settings(faithful=True)
    options = {"weights": "random", "device": "cpu"}
    with pytest.raises(ValueError, match=r"^refine: expected 'sam' or 'sam\+sd' with sam2.1-s"):
        Segmenter.from_pretrained("tiny", sam="sam2.1-s", refine="trident", **options)
    with pytest.raises(
        ValueError, match=r"^sam: expected one of sam-tiny, sam-vit-b, .*, whose attention trident reads"
    ):
        Segmenter.from_pretrained("tiny", sam="sam2.1-s", method="trident", **options)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"^sam2.1-l: needs transformers: pip install 's2clip\[sam2\]'$"):
        load_sam("sam2.1-l", weights="random", device="cpu")
