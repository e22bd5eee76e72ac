"""What other programs call: encoders of mappers, back ends of Label Studio and CVAT, pipelines of transformers."""

import base64
import json
import logging
import threading
import urllib.error
import urllib.request
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from s2clip import Result, Segmenter, ops, scenes
from s2clip.adapters.label_studio import LabelStudioBackend, serve
from s2clip.adapters.rayfronts import SpatialEncoder
from s2clip.results.formats.label_studio import labelling_config

CLASSES = ["sky", "water; sea", "grass", "house"]
FIRST = ["sky", "water", "grass", "house"]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny", method="clip").set_classes(CLASSES)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "a b.png"
    Image.fromarray(scenes.generate(3, (48, 64))[0]).save(path)
    return path


def test_features_and_vectors_of_the_file_give_the_labels(run, photo, segmenter):
    from safetensors import safe_open

    arguments = ("--classes", ", ".join(CLASSES), "--method", "s2clip", "--format", "features", "png")
    result = run("segment", photo, "nowhere.png", *arguments)
    assert result.exit_code == 1, result.output
    assert "nowhere.png: no such file" in result.stderr
    with safe_open("out/a b.features.safetensors", "pt") as file:
        features, text, class_index = (file.get_tensor(name) for name in ("features", "text", "class_index"))
        facts = file.metadata()
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["words"]) == ["sky", "water", "sea", "grass", "house"]
    cosines = torch.einsum("chw,qc->qhw", features.float(), text)
    labels, _ = ops.classify_pixels(
        cosines[None], json.loads(facts["size"]), scale=float(facts["logit_scale"]), class_index=class_index
    )
    with Image.open("out/a b.png") as image:
        same = labels[0].numpy() == np.array(image)
    assert same.mean() > 0.995  # features are kept in 16 bits
    again = run("segment", photo, *arguments, "--resume")
    assert "1 of 1 pictures were done before" in again.stderr


def test_an_encoder_answers_as_those_of_rayfronts(segmenter):
    apart = segmenter  # a method that keeps its windows apart
    segmenter = segmenter.with_method("naclip", merge="splice", short_side=64, crop=64, stride=32)
    pictures = torch.stack([torch.from_numpy(scenes.generate(seed, (48, 64))[0]).permute(2, 0, 1) for seed in (1, 2)])
    encoder = SpatialEncoder(segmenter)
    assert encoder.is_compatible_size(48, 64)
    assert encoder.get_nearest_size(48, 64) == (48, 64)
    features = encoder.encode_image_to_feat_map(pictures.float() / 255)
    assert features.ndim == 4
    assert torch.allclose(features.norm(dim=1), torch.ones(()), atol=1e-5)
    aligned, vectors = encoder.align_spatial_features_with_language(features), encoder.encode_labels(["sky", "grass"])
    assert vectors.shape == (2, features.shape[1])
    cosines = torch.einsum("bchw,qc->bqhw", aligned, vectors)
    labels, _ = ops.classify_pixels(cosines, (48, 64), scale=segmenter.method.logit_scale)
    for picture, found in zip(pictures, labels, strict=True):
        assert torch.equal(segmenter.segment(segmenter.encode(picture), ["sky", "grass"]).segmentation, found.long())
    sentence = encoder.encode_prompts(["a photo of a house."])
    assert torch.allclose(sentence.norm(dim=1), torch.ones(()), atol=1e-5)
    assert not torch.allclose(sentence, encoder.encode_labels(["house"]))
    with pytest.raises(ValueError, match="method: expected one that gives one map"):
        SpatialEncoder(apart).encode_image_to_feat_map(pictures.float() / 255)
    with pytest.raises(ValueError, match=r"rgb_image: expected \[B,3,H,W\]"):
        encoder.encode_image_to_feat_map(pictures[0].float())


# Label Studio


@pytest.fixture
def server(segmenter, photo):
    found = serve(LabelStudioBackend(segmenter, photo.parent), "127.0.0.1", 0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()
    thread.join(10)


def call(address, document=None):
    data = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_label_studio_gets_predictions_that_its_own_package_decodes(server, segmenter, photo):
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
    from label_studio_sdk.converter import brush

    config = labelling_config(FIRST)
    assert call(f"{server}/health") == (200, {"status": "UP", "model_class": "s2clip", **version(server)})
    assert call(f"{server}/setup", {"project": "1", "schema": config})[0] == 200
    inside = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    addresses = ["/data/local-files/?d=a%20b.png", "a b.png", inside]
    tasks = [{"id": number, "data": {"image": address}} for number, address in enumerate(addresses)]
    status, answer = call(f"{server}/predict", {"tasks": tasks, "label_config": config, "project": "1"})
    assert status == 200, answer
    first, second, third = answer["results"]
    assert first == second == third
    for one in first["result"]:  # the set-up as their package understands it
        tag = parse_config(config)[one["from_name"]]
        assert tag["type"].lower() == one["type"]
        assert [place["type"] for place in tag["inputs"]] == ["Image"]
        assert tag["to_name"] == [one["to_name"]]
        assert set(one["value"]["brushlabels"]) <= set(tag["labels"])
    expected = segmenter.segment(segmenter.encode(photo), FIRST).segmentation.numpy()
    found = {one["value"]["brushlabels"][0]: one["value"]["rle"] for one in first["result"]}
    assert set(found) == {FIRST[index] for index in np.unique(expected)}
    for name, rle in found.items():
        mask = brush.decode_rle(rle).reshape(48, 64, 4)[..., 3] > 0
        assert np.array_equal(mask, expected == FIRST.index(name))


def version(server):
    return {"model_version": call(f"{server}/setup", {"schema": labelling_config(FIRST)})[1]["model_version"]}


@pytest.mark.parametrize(
    ("path", "document", "status", "message"),
    [
        ("predict", {"tasks": [{"data": {"image": "x.png"}}], "label_config": "<View/>"}, 400, "expected <BrushLabels"),
        ("predict", {"tasks": [{"data": {}}], "label_config": None}, 400, "its data have no 'image'"),
        ("predict", {"tasks": [{"data": {"image": "../x.png"}}], "label_config": None}, 400, "outside of the folder"),
        ("predict", {"tasks": [{"data": {"image": "http://a/x.png"}}], "label_config": None}, 400, "are not fetched"),
        ("predict", {"tasks": [{"data": {"image": "no.png"}}], "label_config": None}, 400, "no such file"),
        ("setup", {"schema": "<View"}, 400, "expected Label Studio's XML"),
        ("train", {}, 404, "expected GET /health"),
        ("predict", [1], 400, "expected a JSON object"),
    ],
)
def test_what_label_studio_cannot_have_is_one_line(server, path, document, status, message):
    if isinstance(document, dict) and document.get("label_config", "") is None:
        document = {**document, "label_config": labelling_config(FIRST)}
    found, answer = call(f"{server}/{path}", document)
    assert found == status
    assert message in answer["error"]
    assert "\n" not in answer["error"]


# CVAT


def test_cvat_takes_the_function_and_its_shapes(segmenter, photo):
    from cvat_sdk import masks
    from cvat_sdk.auto_annotation.driver import _AnnotationMapper

    from s2clip.adapters.cvat import Function

    function = Function(segmenter)
    theirs = [
        SimpleNamespace(id=70 + k, name=name, type="any", attributes=[], sublabels=[]) for k, name in enumerate(FIRST)
    ]
    image = Image.open(photo)
    expected = segmenter(image).segmentation.numpy()
    for as_polygons in (False, True):
        mapper = _AnnotationMapper(
            logging.getLogger("cvat"),
            function.spec.labels,
            theirs,
            allow_unmatched_labels=False,
            conv_mask_to_poly=as_polygons,
        )
        context = SimpleNamespace(frame_name="a b.png", conf_threshold=None, conv_mask_to_poly=as_polygons)
        shapes = function.detect(context, image)
        mapper.validate_and_remap(shapes, 5)  # raises for what CVAT would refuse
        assert {shape.frame for shape in shapes} == {5}
        assert {shape.type.value for shape in shapes} == {"polygon" if as_polygons else "mask"}
        if not as_polygons:
            found = np.full(expected.shape, -1)
            for shape in shapes:
                found[masks.decode_mask(shape.points, image_width=64, image_height=48)] = shape.label_id - 70
            assert np.array_equal(found, expected)
    context.conf_threshold = 1.0
    assert function.detect(context, image) == []


# transformers


def test_results_are_those_of_the_pipeline_of_transformers():
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
        pipeline,
    )

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8, "num_attention_heads": [1, 1, 1, 1]}
    config = SegformerConfig(depths=[1, 1, 1, 1], id2label=dict(enumerate(FIRST)), **sizes)
    theirs = pipeline(
        "image-segmentation",
        model=SegformerForSemanticSegmentation(config).eval(),
        image_processor=SegformerImageProcessor(size={"height": 64, "width": 64}),
        device="cpu",
    )
    expected = theirs(Image.fromarray(scenes.generate(3, (48, 64))[0]), subtask="semantic")
    labels = torch.zeros(48, 64, dtype=torch.long)
    for one in expected:
        labels[torch.from_numpy(np.array(one["mask"]) > 0)] = FIRST.index(one["label"])
    ours = Result(labels, torch.full((48, 64), 0.5), tuple(CLASSES)).to_transformers()
    assert [sorted(one) for one in ours] == [sorted(one) for one in expected]
    assert [one["label"] for one in ours] == [one["label"] for one in expected]
    for mine, their in zip(ours, expected, strict=True):
        assert (mine["mask"].mode, mine["mask"].size) == (their["mask"].mode, their["mask"].size)
        assert np.array_equal(np.array(mine["mask"]), np.array(their["mask"]))
        assert isinstance(mine["score"], float)
    buffer = BytesIO()
    ours[0]["mask"].save(buffer, "PNG")
