"""Whole pipelines from files, s2clip beside the published formulations: groups are pipeline and pictures.

CUDA: CLIP ViT-B/16, DINO and SAM ViT-B of random weights at the data sets' sizes. CPU: the embedded models on small
pictures. Label maps are compared before anything is timed; `bench/pipelines.py` has the paired ratios.
"""

import functools

import machine
import models
import pipelines
import pytest
import torch

ON_GPU = torch.cuda.is_available()
SETTINGS = [name for name in models.SETTINGS if (name == models.REDUCED) != ON_GPU]


@functools.cache
def loaded(vfm):
    if not ON_GPU:
        return models.load("tiny", "tiny-dino", "sam-tiny", "pretrained", machine.device())
    return models.load("ViT-B-16", vfm, "sam-vit-b", "random", machine.device())


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """(name, setting) → a pair whose label maps were compared, and how many differ; both sides' tests share it."""

    @functools.cache
    def pair_of(name, setting):
        own = loaded("dino-b16" if name.startswith("trident") else "dino-b8")
        pair = pipelines.build(name, setting, models.SETTINGS[setting], own, tmp_path_factory.mktemp(name))
        share = pipelines.differing(pair)
        assert share <= pipelines.allowed(pair, own.clip.dtype), f"{share:.2%} of the labels differ"
        return pair, share

    return pair_of


@pytest.mark.parametrize("side", ["s2clip", "published"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", [name for name, against in pipelines.PIPELINES.items() if against == "published"])
def test_pipeline(benchmark, verified, name, setting, side):
    pair, share = verified(name, setting)
    benchmark.group, benchmark.name = f"pipeline {name} {pair.shape}", side
    run = pair.ours if side == "s2clip" else pair.theirs

    def timed():
        run(pair.paths)
        machine.finish()

    benchmark.extra_info |= {"kind": side, "device": machine.name(), "pictures": len(pair.paths), "differing": share}
    benchmark.extra_info["peak_mib"] = pipelines.peak_mib(run, pair.paths)
    benchmark.pedantic(timed, rounds=10 if ON_GPU else 2, warmup_rounds=int(ON_GPU))
    benchmark.extra_info["images_per_second"] = len(pair.paths) / benchmark.stats["median"]
