"""Stable Diffusion's self-attention as affinity: a UNet, an autoencoder and a text encoder of a few thousand weights.

Same classes and block names as the released model, saved in its layout and loaded as it is. What 2 GB of real weights
do is not shown here.
"""

import gc
import json
import shutil
import sys
import weakref

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from small_diffusion import save_model
from small_models import picture
from test_imports import fresh

from s2clip import Segmenter
from s2clip.backbones import stable_diffusion
from s2clip.backbones.diffusion_affinity import LAYERS, DiffusionAffinity, content_seed
from s2clip.backbones.weights import private_random_state
from s2clip.decision import scores as score_maps
from s2clip.decision.pixels import cosine_maps
from s2clip.decision.scores import DenseScores
from s2clip.errors import MissingExtraError, RefinementError, WeightsError
from s2clip.refinement.diffusion import diffuse, refine_scores
from s2clip.scenes import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(folder, tmp_path):
    """The model's folder, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def affinity(folder):
    return DiffusionAffinity.load(str(folder), device="cpu")


def load(place, **options):
    return DiffusionAffinity.load(str(place), device="cpu", **options)


def image(height=30, width=41, seed=0):
    return picture(height, width, seed).float() / 255


def probabilities(classes=3, height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(classes, height, width, generator=generator) * 3).softmax(0)


class LiteralProcessor(AttnProcessor):
    """Diffusers' plain attention, which keeps the softmax that it is asked for."""

    def __init__(self):
        self.maps = None

    def __call__(self, attn, hidden_states, *arguments, **keywords):
        query, key = (attn.head_to_batch_dim(project(hidden_states)) for project in (attn.to_q, attn.to_k))
        self.maps = attn.get_attention_scores(query, key)
        return super().__call__(attn, hidden_states, *arguments, **keywords)


def literal_matrices(folder, affinity, picture):
    """The ten (here four) attention matrices by a whole pass of diffusers' own pipeline parts."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    scheduler = diffusers.PNDMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(50)
    time = scheduler.timesteps[45:46]
    size = (2 * unet.config.sample_size,) * 2
    with torch.no_grad():
        pixels = 2 * F.interpolate(picture[None], size, mode="nearest") - 1
        latent = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(content_seed(picture)))
        second, first = LiteralProcessor(), LiteralProcessor()
        attentions = unet.up_blocks[3].attentions
        attentions[1].transformer_blocks[0].attn1.set_processor(second)
        attentions[0].transformer_blocks[0].attn1.set_processor(first)
        unet(scheduler.add_noise(latent, noise, time), time, encoder_hidden_states=affinity.prompt)
    return [*second.maps, *first.maps]


def literal_chain(matrices, columns, threshold):
    """A* = A_1 A_2 ... by whole products, in float64; then A* X."""
    product = torch.eye(len(columns), dtype=torch.float64)
    for matrix in matrices:
        matrix = matrix.double()
        matrix = matrix / (matrix.max(dim=0, keepdim=True).values + 1e-5)
        matrix = torch.where(matrix < threshold, 0.0, matrix)
        product = product @ (matrix / (matrix.sum(dim=1, keepdim=True) + 1e-5))
    return product @ columns.double()


@pytest.mark.parametrize("grid", [8, 16])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_equals_the_product_of_whole_matrices(tmp_path, grid, threshold):
    model = save_model(tmp_path, grid)
    affinity, scores = load(model, threshold=threshold), probabilities()
    matrices = literal_matrices(model, affinity, image())
    columns = F.interpolate(scores[None], (grid, grid), mode="bilinear")[0].flatten(1).T
    expected = literal_chain(matrices, columns, threshold)
    refined = affinity.refine(image(), scores)
    assert refined.shape == (3, grid, grid)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined.flatten(1).T.double(), expected, atol=1e-5, rtol=0)
    swapped = literal_chain(matrices[::-1], columns, threshold)
    assert (swapped - expected).abs().max() > 1e-3  # so that the order is shown
    everything = literal_chain(matrices, columns, 0)
    assert (everything - expected).abs().max() > 1e-3  # and the threshold


def test_noise_is_that_of_entry_45_of_pndm(affinity, copy):
    assert affinity.timestep == 101
    assert affinity.signal == pytest.approx(0.893, abs=5e-4)
    config = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    for name in ("skip_prk_steps", "steps_offset"):
        del config[name]
    config["_class_name"] = "DDIMScheduler"
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert load(copy).timestep == 101


def test_same_picture_same_result_whatever_came_before(affinity, folder):
    first = affinity.refine(image(seed=1), probabilities())
    affinity.refine(image(seed=2), probabilities())
    torch.randn(5)
    assert torch.equal(affinity.refine(image(seed=1), probabilities()), first)
    assert torch.equal(load(folder).refine(image(seed=1), probabilities()), first)


def test_the_seed_is_the_picture():
    seed = content_seed(image())
    assert seed == content_seed(image().double()) == content_seed(image().transpose(1, 2).clone().transpose(1, 2))
    assert seed == content_seed(image() * (1 + 1e-6))  # a device that divides by 255 otherwise
    changed = image()
    changed[0, 0, 0] = 1 - changed[0, 0, 0]
    assert content_seed(changed) != seed
    assert content_seed(torch.zeros(3, 4, 6)) != content_seed(torch.zeros(3, 6, 4))


def test_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    load(folder).refine(image(), probabilities())
    assert torch.equal(torch.get_rng_state(), before)


def test_stops_after_the_last_wanted_attention(affinity):
    ran = []
    names = ["up_blocks.3.attentions.0", LAYERS[0] + ".to_out.0", "up_blocks.3.attentions.2", "conv_out"]
    hooks = [
        affinity.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in names
    ]
    affinity.refine(image(), probabilities())
    for hook in hooks:
        hook.remove()
    assert ran == names[:1]


def unet_output(affinity):
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 4, *affinity.grid, generator=generator)
    with torch.inference_mode():
        return affinity.unet(latent, 7, encoder_hidden_states=affinity.prompt).sample


def test_puts_the_attention_processors_back(affinity, monkeypatch):
    before, output = dict(affinity.unet.attn_processors), unet_output(affinity)
    affinity.refine(image(), probabilities())
    assert affinity.unet.attn_processors == before
    assert torch.equal(unet_output(affinity), output)

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(affinity.unet.get_submodule(LAYERS[1]).to_k, "forward", fail)
    with pytest.raises(MemoryError):
        affinity.refine(image(), probabilities())
    assert affinity.unet.attn_processors == before


def test_the_prompt_is_empty_and_its_encoder_freed(folder, monkeypatch):
    encoders, read = [], transformers.CLIPTextModel.from_pretrained

    def remember(*arguments, **keywords):
        loaded = read(*arguments, **keywords)
        encoders.append(weakref.ref(loaded[0]))
        return loaded

    monkeypatch.setattr(transformers.CLIPTextModel, "from_pretrained", remember)
    affinity = load(folder)
    gc.collect()
    assert [reference() for reference in encoders] == [None]
    tokens = torch.tensor([[2, 3, 0, 0, 0, 0, 0]])  # start, end, padding up to the encoder's length
    with torch.no_grad():
        expected = read(folder, subfolder="text_encoder").eval()(tokens).last_hidden_state
    torch.testing.assert_close(affinity.prompt, expected)
    assert affinity.vae.decoder is None


def test_half_precision_keeps_the_affinity_in_fp32(folder, affinity):
    half = load(folder, dtype=torch.bfloat16)
    refined = half.refine(image(), probabilities())
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    assert refined.dtype == torch.float32
    # uncorrelated maps would be as far from each other as they vary
    expected = affinity.refine(image(), probabilities())
    assert (refined - expected).abs().mean() < 0.5 * (expected - expected.mean()).abs().mean()


def test_height_from_both_shape_from_the_affinity(affinity):
    scores = probabilities()
    scores[2] *= 1e-3  # nowhere likely
    refined, maps = affinity.refine(image(), scores), refine_scores(affinity, image(), scores)
    for own, result, before in zip(refined, maps, scores, strict=True):
        height = 0.5 * own.max() + 0.5 * before.max()
        torch.testing.assert_close(result, own / (own.max() + 1e-5) * height)
    assert maps[2].max() < 2e-3 < maps[:2].amax()


class Unsmoothed:
    """An affinity of tokens with themselves alone."""

    grid, device = (8, 8), torch.device("cpu")

    def refine(self, image, scores):
        assert 0 <= image.min() < image.max() <= 1
        return F.interpolate(scores[None], self.grid, mode="bilinear")[0]


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize(("threshold", "background"), [(0.0, None), (0.6, 1)])
def test_labels_are_the_argmax_of_the_resized_maps(monkeypatch, chunk, threshold, background):
    monkeypatch.setattr(score_maps, "CHUNK", chunk)
    scores = DenseScores(probabilities(5))
    labels, confidence, maps = diffuse(
        Unsmoothed(), picture(30, 41), scores, threshold=threshold, background=background
    )
    grid = F.interpolate(probabilities(5)[None], (8, 8), mode="bilinear")[0]
    torch.testing.assert_close(maps.scores, grid, rtol=0, atol=1e-4)
    planes = F.interpolate(maps.scores[None], (30, 41), mode="bilinear")[0]
    expected = planes.argmax(0)
    assert len(expected.unique()) == 5
    if background is not None:
        expected[planes.amax(0) < threshold] = background
        assert (expected != planes.argmax(0)).any()
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)
    torch.testing.assert_close(confidence, planes.amax(0))


def test_one_pixel_one_class_one_score(affinity):
    labels, confidence, _ = diffuse(
        affinity, picture(1, 1), DenseScores(torch.ones(1, 1, 1)), threshold=0.0, background=None
    )
    assert labels.tolist() == [[0]]
    assert confidence.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.full((2, 3, 3), float("nan")), "finite"),
        (torch.zeros(3, 3), r"\[3, 3\]"),
        (torch.zeros(0, 3, 3), r"\[0, 3, 3\]"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), "int64"),
    ],
)
def test_names_wrong_scores(affinity, scores, words):
    with pytest.raises(ValueError, match=f"scores: .*{words}"):
        affinity.refine(image(), scores)


def test_names_a_wrong_image(affinity):
    with pytest.raises(ValueError, match=r"\[1, 4, 5, 5\]"):
        affinity.refine(torch.zeros(4, 5, 5), probabilities())
    with pytest.raises(ValueError, match="uint8"):
        affinity.refine(picture(5, 5), probabilities())


def test_names_wrong_settings(folder):
    with pytest.raises(ValueError, match="threshold: expected 0 to 1, received 2"):
        load(folder, threshold=2)
    with pytest.raises(ValueError, match="weights: expected pretrained or random, received 'best'"):
        load(folder, weights="best")


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 's2clip\[diffusion\]'.*" + package):
        DiffusionAffinity.load(local_files_only=True)


def test_importing_it_imports_no_diffusers(tmp_path):  # open_clip imports transformers wherever that is installed
    assert fresh("import s2clip.refinement.diffusion, sys; print('diffusers' in sys.modules)", tmp_path) == "False"


@pytest.mark.parametrize("model_id", [stable_diffusion.MODEL_ID, "nobody/nothing", "no/such/layout"])
def test_a_model_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch, model_id):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a socket"))
    with pytest.raises(WeightsError) as caught:
        load(model_id, cache_dir=tmp_path, local_files_only=True)
    assert f"hf download {model_id}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_finds_the_hubs_cache_without_a_socket(folder, affinity, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a socket"))
    repository, commit = tmp_path / "models--some--mirror", "0123456789" * 4
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    expected = affinity.refine(image(), probabilities())
    for revision in (None, commit):
        found = load("some/mirror", cache_dir=tmp_path, revision=revision)
        assert torch.equal(found.refine(image(), probabilities()), expected)
    assert found.described["diffusion"] == "some/mirror"
    assert len(found.described["diffusion_sha256"]) == 64
    with pytest.raises(WeightsError, match="some/mirror"):
        load("some/mirror", cache_dir=tmp_path, revision="9" * 40, local_files_only=True)


@pytest.mark.parametrize("file", ["unet/config.json", stable_diffusion.WEIGHTS, "text_encoder/model.safetensors"])
def test_names_the_folder_that_lacks_a_file(copy, file):
    (copy / file).unlink()
    with pytest.raises(WeightsError, match="cannot load") as caught:
        load(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_no_weight_is_left_to_chance(copy, part):
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    lost = next(name for name in sorted(tensors) if name.endswith("weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"{part} lacks"):
        load(copy)


def test_refuses_a_unet_of_other_blocks(copy):
    with private_random_state():
        other = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    shutil.rmtree(copy / "unet")
    other.save_pretrained(copy / "unet")
    with pytest.raises(WeightsError, match=r"up_blocks\.3\.attentions\.1"):
        load(copy)


def test_random_weights_have_the_published_architecture():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**stable_diffusion.UNET)
        vae = diffusers.AutoencoderKL(**stable_diffusion.VAE)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 865_910_724
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    assert [unet.get_submodule(name).heads for name in LAYERS] == [5, 5]
    assert unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1) == 512


def test_random_weights_are_loud_and_the_same_each_time(monkeypatch, caplog):
    small = {"block_out_channels": (8, 8, 8, 8), "attention_head_dim": 2, "sample_size": 8, "norm_num_groups": 4}
    monkeypatch.setattr(stable_diffusion, "UNET", {**small, "cross_attention_dim": 12})
    narrow = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    monkeypatch.setattr(stable_diffusion, "VAE", {**stable_diffusion.VAE, **narrow})
    state = torch.get_rng_state()
    first, second = (DiffusionAffinity.load(weights="random", device="cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert "RANDOM WEIGHTS" in caplog.text
    assert first.described["diffusion_sha256"] == "random"
    assert torch.equal(first.refine(image(), probabilities()), second.refine(image(), probabilities()))


# Through the Segmenter


@pytest.fixture(scope="module")
def segmenter(folder):
    segmenter = Segmenter.from_pretrained("tiny", method="maskclip", refine="sam+sd", diffusion_model=str(folder))
    return segmenter.set_classes(["sky", "water; sea", "house", "tree"])


def test_segmenter_smooths_the_scores_before_sam_is_asked(segmenter):
    image, _ = generate(3, (48, 64))
    result = segmenter(image)
    coarse = Segmenter(segmenter.clip, method=segmenter.method).set_classes(segmenter.classes)(image)
    scores = score_maps.DenseScores(segmenter_scores(segmenter, image))
    smooth, _, _ = diffuse(segmenter.refiner.diffusion, result.image, scores, threshold=0.0, background=None)
    assert torch.equal(result.coarse, smooth)
    assert not torch.equal(result.coarse, coarse.segmentation)
    assert result.timings["diffusion"] > 0
    assert result.settings["refine"] == "sam+sd"
    assert result.settings["diffusion_timestep"] == 101


def segmenter_scores(segmenter, image):
    """Class probabilities at the picture's size, written out."""
    encoded = segmenter.encode(image)
    text = segmenter._text(segmenter._vocabulary.words, segmenter.method.templates)
    cosines = F.interpolate(cosine_maps(encoded, text), encoded.size, mode="bilinear", align_corners=False)[0]
    words = (segmenter.method.logit_scale * cosines).softmax(0)
    index = torch.tensor(segmenter._vocabulary.class_index)
    return torch.stack([words[index == number].amax(0) for number in range(4)])


def test_failure_of_the_diffusion_leaves_the_coarse_map(segmenter, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(segmenter.refiner.diffusion, "refine", fail)
    image, _ = generate(3, (48, 64))
    with pytest.raises(RefinementError, match="no memory") as caught:
        segmenter(image)
    assert caught.value.coarse[0].segmentation.shape == (48, 64)


def test_given_labels_stay_where_no_mask_reaches(segmenter):
    image, labels = generate(3, (48, 64))
    labels = torch.from_numpy(labels).clamp(max=3)
    labels[:, :20] = 255
    result = segmenter.with_refinement(sam_iou_threshold=9.0).refine(image, labels, torch.rand(4, 24, 32))
    assert torch.equal(result.segmentation, labels)
    assert result.timings["diffusion"] > 0
