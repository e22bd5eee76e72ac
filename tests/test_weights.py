"""Finding, fetching, reading and refusing weights; no test needs the network."""

import hashlib
import http.server
import math
import socket
import threading
import time
import warnings
from importlib import resources
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from s2clip.backbones import checkpoints, clip, sam, tiny_dino, vfm, weights
from s2clip.backbones.checkpoints import CHECKPOINTS, Checkpoint
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.tiny_file import read_tensors, write_model
from s2clip.backbones.tokenizers import load_tokenizer
from s2clip.errors import S2ClipError, WeightsError

NAME = "dino-s16"  # whose table entry these tests use, with a small model behind it


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def known_tensors(seed: int = 1) -> dict[str, torch.Tensor]:
    with weights.private_random_state(seed):
        return {name: torch.randn(tensor.shape) for name, tensor in small_model().state_dict().items()}


def load_small(**options):
    return weights.load(NAME, small_model, **options)


def assert_holds(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])


@pytest.fixture
def attempts(monkeypatch) -> list[object]:
    """Every attempt to resolve a host or to connect, all refused."""
    seen: list[object] = []

    def refuse(*arguments, **_options):
        seen.append(arguments)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return seen


# --- finding ---


def test_a_file_in_cache_dir_is_found_and_fingerprinted(tmp_path, attempts):
    save_file(known_tensors(), tmp_path / f"{NAME}.safetensors")
    model, fingerprint = load_small(cache_dir=tmp_path)
    assert_holds(model, known_tensors())
    assert fingerprint.sha256 == hashlib.sha256((tmp_path / f"{NAME}.safetensors").read_bytes()).hexdigest()
    assert attempts == []


def test_the_publishers_file_name_is_found_too(tmp_path, attempts):
    torch.save(known_tensors(), tmp_path / "dino_deitsmall16_pretrain.pth")
    assert_holds(load_small(cache_dir=str(tmp_path))[0], known_tensors())
    assert attempts == []


def test_the_hub_cache_is_found_offline(tmp_path, attempts):
    snapshot = tmp_path / "models--timm--vit_small_patch16_224.dino" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    save_file(known_tensors(), snapshot / "model.safetensors")
    assert checkpoints.find_local(NAME, tmp_path) == snapshot / "model.safetensors"
    assert_holds(load_small(cache_dir=tmp_path)[0], known_tensors())
    assert attempts == []


def test_the_folders_of_other_tools_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "checkpoints").mkdir()
    save_file(known_tensors(), tmp_path / "checkpoints" / f"{NAME}.safetensors")
    assert_holds(load_small()[0], known_tensors())


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("load", "name", "entries"),
    [
        (clip.load_clip, "ViT-B-16", ["ViT-B-16.safetensors", "hf download timm/vit_base_patch16_clip_224.openai"]),
        (clip.load_clip, "ViT-H-14", ["hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K open_clip_model.safetensors"]),
        (vfm.load_vfm, "dino-b8", ["dino_vitbase8_pretrain.pth", "hf download timm/vit_base_patch8_224.dino"]),
        (vfm.load_vfm, "sam-b", ["sam_vit_b_01ec64.pth https://dl.fbaipublicfiles.com/segment_anything/"]),
        (sam.load_sam, "sam-vit-h", ["sam_vit_h_4b8939.pth https://dl.fbaipublicfiles.com/segment_anything/"]),
    ],
)
def test_offline_opens_no_socket_and_says_how_to_get_the_file(
    load, name, entries, how, tmp_path, monkeypatch, attempts
):
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as error:
        load(name, cache_dir=tmp_path, local_files_only=how == "local_files_only", device="cpu")
    message = str(error.value)
    table_name = {"sam-b": "sam-vit-b"}.get(name, name)
    for entry in (f"{table_name}: its weights are not on this machine", str(tmp_path), how, "--model tiny", *entries):
        assert entry in message
    assert isinstance(error.value, S2ClipError)
    assert attempts == []


def test_tokenizers_open_no_socket(attempts):
    for name, architecture in clip.ARCHITECTURES.items():
        random = name == "MetaCLIP2-H-14"  # whose pieces of words are on the Hub
        tokenizer = load_tokenizer(architecture, name=name, extra="metaclip2", random=random)
        assert tokenizer(["a photo of a cat."]).shape == (1, 77)
    assert attempts == []


def test_no_network_is_a_quick_clear_error(tmp_path, attempts, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    with pytest.raises(WeightsError) as error:
        load_small(cache_dir=tmp_path)
    assert time.perf_counter() - start < 10  # huggingface_hub alone retries for 23 s
    assert len(attempts) >= 2
    message = str(error.value)
    assert "huggingface.co/timm/vit_small_patch16_224.dino/resolve/main/model.safetensors: " in message
    assert "Name or service not known" in message
    assert "dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain" in message
    assert not list(tmp_path.iterdir())


# --- fetching ---


@pytest.fixture
def serve(monkeypatch):
    """serve(bytes, announced length) -> URL on this machine's own interface."""
    servers = []

    def start(content: bytes, length: int | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/folder/weights.safetensors"

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def content(tmp_path) -> bytes:
    path = tmp_path / "published.safetensors"
    save_file(known_tensors(), path)
    data = path.read_bytes()
    path.unlink()
    return data


def test_a_download_is_kept_and_used_again(tmp_path, monkeypatch, serve, content):
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(CHECKPOINTS, NAME, Checkpoint(url=serve(content), sha256=sha256[:6]))
    assert_holds(load_small(cache_dir=tmp_path / "cache")[0], known_tensors())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["weights.safetensors"]
    model, fingerprint = load_small(cache_dir=tmp_path / "cache", local_files_only=True)
    assert_holds(model, known_tensors())
    assert fingerprint.sha256 == sha256


@pytest.mark.parametrize(
    ("length", "sha256", "reason"),
    [(None, "123456", "published is 123456"), (10_000, "", r"connection closed after \d+ of 10000 bytes")],
)
def test_an_altered_or_cut_download_leaves_nothing_behind(
    length, sha256, reason, tmp_path, monkeypatch, serve, content
):
    monkeypatch.setitem(CHECKPOINTS, NAME, Checkpoint(url=serve(content, length), sha256=sha256))
    with pytest.raises(WeightsError, match=reason):
        load_small(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# --- reading and refusing ---


def test_an_explicit_file_wins_and_must_exist(tmp_path, attempts):
    save_file(known_tensors(), tmp_path / "mine.safetensors")
    assert_holds(load_small(weights=tmp_path / "mine.safetensors")[0], known_tensors())
    torch.save({"state_dict": {f"module.{k}": v for k, v in known_tensors(2).items()}}, tmp_path / "mine.pt")
    assert_holds(load_small(weights=str(tmp_path / "mine.pt"))[0], known_tensors(2))
    with pytest.raises(WeightsError, match=r"dino-s16: weights: expected 'pretrained', 'random' or a file, .*nowhere"):
        load_small(weights="nowhere.pth")
    assert attempts == []


def test_another_models_weights_are_refused_with_what_differs(tmp_path):
    tensors = known_tensors()
    tensors["0.weight"] = torch.zeros(5, 3)
    tensors["head.weight"] = tensors.pop("1.bias")
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as error:
        load_small(weights=tmp_path / "other.safetensors")
    message = str(error.value)
    assert f"{NAME}: {tmp_path / 'other.safetensors'} holds another model's weights" in message
    assert "missing: 1.bias" in message
    assert "unexpected: head.weight" in message
    assert "shape: 0.weight is [5, 3], expected [4, 3]" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 20, 300])
def test_a_truncated_file_is_refused(suffix, keep, tmp_path):
    path = tmp_path / f"cut{suffix}"
    save_file(known_tensors(), path) if suffix == ".safetensors" else torch.save(known_tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"dino-s16: cannot read .*cut{suffix}: truncated, or no .* weights"):
        load_small(weights=path)


def test_a_flipped_byte_of_a_pytorch_file_names_the_tensor(tmp_path):
    """torch itself does not look at the checksums that its files have."""
    path = tmp_path / "a.pth"
    torch.save({"state_dict": known_tensors()}, path)
    content = path.read_bytes()
    place = content.index(known_tensors()["0.weight"].numpy().tobytes())
    path.write_bytes(content[: place + 5] + bytes([content[place + 5] ^ 4]) + content[place + 6 :])
    with pytest.raises(WeightsError, match=r"a\.pth is damaged: the checksum is wrong of state_dict\.0\.weight; "):
        load_small(weights=path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(known_tensors(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_holds(load_small(weights=path)[0], known_tensors())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    tensors = known_tensors()
    tensors["1.bias"][1] = value
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors is damaged: not finite: 1\.bias; "):
        load_small(weights=tmp_path / "a.safetensors")


def test_damage_in_an_embedded_model_names_the_tensor(tmp_path):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    path = tmp_path / "dino.safetensors"
    write_model(path, tiny_dino.build_dino(sizes), sizes, {})
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(WeightsError, match=r"dino\.safetensors is damaged: the checksum is wrong of \w+.*; "):
        vfm.load_vfm("tiny-dino", weights=path, device="cpu")
    path.write_bytes(content.replace(b'num_heads\\": 2', b'num_heads\\": 4'))
    with pytest.raises(WeightsError, match="the checksum is wrong of config"):
        vfm.load_vfm("tiny-dino", weights=path, device="cpu")


def test_the_embedded_files_carry_checksums():
    for name in ("clip", "dino", "sam"):
        with resources.as_file(resources.files("s2clip.data") / "tiny" / f"{name}.safetensors") as path:
            with safe_open(path, "pt") as file:
                assert "crc32" in file.metadata()
                count = len(list(file.keys()))
            assert len(read_tensors(path)) == count


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"0.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(WeightsError, match="cannot read"):
        load_small(weights=tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()


def test_something_else_than_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds list, expected tensors by name"):
        load_small(weights=tmp_path / "list.pth")


def test_a_known_file_is_checked_against_its_published_sha256(tmp_path):
    torch.save({}, tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(WeightsError, match=r"sam_vit_b_01ec64\.pth is truncated or altered: .*published is 01ec64"):
        sam.load_sam("sam-vit-b", cache_dir=tmp_path, local_files_only=True)


def test_torchscript_is_opened_only_with_a_published_sha256(tmp_path, monkeypatch):
    path = tmp_path / "archive.pt"
    model = small_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 3)).save(str(path))
    with pytest.raises(WeightsError, match=r"archive\.pt is a TorchScript archive, .* none of the published ones"):
        load_small(weights=path)
    monkeypatch.setitem(CHECKPOINTS, NAME, Checkpoint(sha256=weights.sha256_file(path)))
    assert_holds(load_small(weights=path)[0], model.state_dict())


def test_published_sha256_are_those_in_the_links():
    for name, checkpoint in CHECKPOINTS.items():
        assert checkpoint.sha256 in checkpoint.url, name
        assert checkpoint.hub or checkpoint.url, name
    assert {name for name in CHECKPOINTS if CHECKPOINTS[name].sha256} == {
        "ViT-B-16", "ViT-L-14", "sam-vit-b", "sam-vit-l", "sam-vit-h"
    }  # fmt: skip


def test_every_released_model_has_a_checkpoint():
    assert {name for rows in MODELS.values() for name in rows} == set(CHECKPOINTS)
    assert {*clip.ARCHITECTURES, *vfm.ARCHITECTURES, *sam.ARCHITECTURES} < set(CHECKPOINTS)
    assert set(vfm.SAM_ENCODERS) <= set(sam.SAM_NAMES)


# --- from file to backbone ---


def test_clip_loads_openais_names_and_ignores_the_archives_sizes(tmp_path, monkeypatch, attempts):
    def build(seed: int) -> open_clip.model.CLIP:
        with weights.private_random_state(seed):
            return open_clip.model.CLIP(
                embed_dim=24,
                vision_cfg={"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
                text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
                quick_gelu=True,
            )

    published = build(3).half().state_dict()
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    archive = published | {key: torch.tensor(value) for key, value in sizes.items()}
    save_file(archive, tmp_path / "ViT-B-16.safetensors")
    monkeypatch.setattr(clip, "build_clip", lambda _name: build(4))
    backbone = clip.load_clip("ViT-B-16", cache_dir=tmp_path, device="cpu")
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, published[name].float())
    assert backbone.weights_sha256 == weights.sha256_file(tmp_path / "ViT-B-16.safetensors")
    assert attempts == []


def test_dinov2_files_of_meta_are_renamed_for_timm():
    tensors = {
        "mask_token": torch.zeros(1, 3),
        "cls_token": torch.ones(1, 1, 3),
        "pos_embed": torch.full((1, 5, 3), 2.0),
    }
    plain = vfm._adapt_dinov2(dict(tensors))
    assert set(plain) == {"cls_token", "pos_embed"}
    registers = vfm._adapt_dinov2(tensors | {"register_tokens": torch.full((1, 4, 3), 7.0)})
    assert set(registers) == {"cls_token", "pos_embed", "reg_token"}
    assert registers["cls_token"].unique().item() == 3  # the class position goes into the class token
    assert registers["pos_embed"].shape == (1, 4, 3)
    assert registers["reg_token"].shape == (1, 4, 3)


def test_embedded_models_load_from_a_given_file(tmp_path):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    write_model(tmp_path / "dino.safetensors", tiny_dino.build_dino(sizes), sizes, {})
    features = vfm.load_vfm("tiny-dino", weights=tmp_path / "dino.safetensors", device="cpu")
    assert features.features(torch.rand(2, 3, 32, 48)).shape == (2, 4, 6, 16)
    assert features.weights_sha256 == weights.sha256_file(tmp_path / "dino.safetensors")
    (tmp_path / "dino.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match=r"tiny-dino: cannot load .*dino\.safetensors: "):
        vfm.load_vfm("tiny-dino", weights=tmp_path / "dino.safetensors", device="cpu")


def test_tensor_fingerprints_see_every_value_name_and_shape():
    tensors = known_tensors()
    changed = [
        tensors,
        tensors | {"0.bias": tensors["0.bias"] + 1e-6},
        {("1.beta" if name == "1.bias" else name): tensor for name, tensor in tensors.items()},
        tensors | {"0.weight": tensors["0.weight"].reshape(2, 6)},
    ]
    assert len({weights.sha256_tensors(entry) for entry in changed}) == 4
    assert weights.sha256_tensors(dict(reversed(tensors.items()))) == weights.sha256_tensors(tensors)
    assert weights.sha256_tensors({"scale": torch.tensor(1.0)}) != weights.sha256_tensors({"scale": torch.tensor(2.0)})


def test_private_random_state_is_private_and_seeded():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with weights.private_random_state():
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
