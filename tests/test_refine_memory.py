"""Memory of the SAM refinement: measured on the CPU by the allocator's events, against what is counted beforehand."""

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from small_models import small_sam
from torch import nn

from s2clip.backbones.sam import Embedding, input_size
from s2clip.decision.scores import DenseScores, LogitScores
from s2clip.refinement import decoder, sam
from s2clip.refinement.decoder import decode, prompts_within
from s2clip.refinement.memory import stage_bytes
from s2clip.refinement.prompts import Prompts, find_regions, make_prompts
from s2clip.refinement.settings import Refinement
from s2clip.stopwatch import Stopwatch


def peak_bytes(work):
    """Largest sum of live allocations of torch's CPU allocator during work(), above the start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert events
    return peak


@pytest.mark.slow
def test_memory_at_2048x1024_with_171_classes_and_60_regions():
    """Everything but SAM's networks within 60 MB; the scores at half size alone would be 358 MB."""
    size, classes = (1024, 2048), 171
    blocks = torch.arange(60).view(6, 10) * 2
    labels = blocks.repeat_interleave(171, 0)[:1024].repeat_interleave(205, 1)[:, :2048].contiguous()
    hot = F.one_hot(labels[::16, ::16], classes).permute(2, 0, 1).float() / 4
    maps, settings, peaks = LogitScores(hot, 40.0, range(classes), size), Refinement(), {}

    def measured(name, work):
        made = []
        peaks[name] = peak_bytes(lambda: made.append(work()))
        return made[0]

    regions = measured("components", lambda: find_regions(labels, maps, settings))
    assert len(regions) == 60
    given = measured("prompts", lambda: make_prompts(regions, maps, size, 1024, 256, settings))
    assert given.masks.shape == (60, 256, 256)
    accepted, logits = torch.ones(60, dtype=torch.bool), torch.full((1, 256, 256), 3.0).expand(60, 256, 256)
    measured("merge", lambda: sam.merge(labels, regions, maps, logits, (512, 1024), 1024))
    measured("failed", lambda: sam.in_failed(regions, accepted, size))
    assert max(peaks.values()) <= 60e6, peaks


class RealDecoder(nn.Module):
    """Prompt encoder and mask decoder at their released sizes."""

    def __init__(self):
        super().__init__()
        self.prompt_encoder = PromptEncoder(256, (64, 64), (1024, 1024), 16)
        self.mask_decoder = MaskDecoder(
            transformer_dim=256, transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
        )


def some_prompts(count, frame, side):
    boxes = torch.tensor([0.1, 0.1, 0.6, 0.7]).mul(frame).expand(count, 4)
    masks = torch.zeros(count, side, side)
    return Prompts(boxes, boxes[:, :2] + 1, masks, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_a_prompt_takes_no_more_than_is_counted():
    """SAM's released decoder: 25 MB measured for each prompt of a batch, 101 MB counted."""
    state = torch.random.get_rng_state()
    model, embedding = RealDecoder().eval(), torch.zeros(1, 256, 64, 64)
    torch.random.set_rng_state(state)
    for count in (1, 2):
        with torch.inference_mode():
            peak = peak_bytes(lambda count=count: decode(model, embedding, some_prompts(count, 1024, 256)))
        assert peak <= count * decoder.MAPS_PER_PROMPT * 4 * embedding.numel()


@pytest.mark.parametrize("free", [10**6, 3 * 10**6, 10**8])
def test_decoder_batches_stay_within_free_memory(free, monkeypatch):
    """40 prompts, and as little free memory as a device would report: fewer at a time, and never more than is free."""
    model, embedding, sizes = small_sam(), torch.zeros(1, 16, 8, 8), []
    whole = decoder._decode_batch
    monkeypatch.setattr(
        decoder, "_decode_batch", lambda part, source, *rest: sizes.append(len(source)) or whole(part, source, *rest)
    )
    monkeypatch.setattr(decoder, "batch_size", lambda embeddings: prompts_within(free, embeddings))
    given = some_prompts(40, 64, 32)
    with torch.inference_mode():
        peak = peak_bytes(lambda: decode(model, embedding, given))
    assert sum(sizes) == 40
    assert max(sizes) == min(40, free // 2 // (24 * 4 * 16 * 8 * 8))
    assert peak <= free


def test_free_memory_is_what_the_device_and_the_cache_have(monkeypatch):
    """Algorithm 4's rule: from free memory; cached blocks that nobody uses count as free."""

    class OnDevice:
        device = torch.device("cuda")

        def __getitem__(self, index):
            return torch.empty(256, 64, 64, device="meta")

    each = 24 * 4 * 256 * 64 * 64
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * each, 99 * each))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * each)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * each)
    assert decoder.batch_size(OnDevice()) == 7
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 99 * each))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * each)
    assert decoder.batch_size(OnDevice()) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000 * each, 10_000 * each))
    assert decoder.batch_size(OnDevice()) == decoder.MOST_PROMPTS


@pytest.mark.parametrize("kind", ["dense", "cosines"])
def test_stage_stays_within_its_bound(kind, monkeypatch):
    """COCO-Object's size, 81 classes, 100 regions, every one accepted."""
    size, classes = (480, 640), 81
    labels = torch.arange(100).view(10, 10).repeat_interleave(48, 0).repeat_interleave(64, 1) % classes
    hot = F.one_hot(labels[::16, ::16], classes).permute(2, 0, 1).float() / 4
    maps = LogitScores(hot, 40.0, range(classes), size)
    if kind == "dense":
        maps = DenseScores(maps.whole(size))
    logits = torch.linspace(-3, 3, 64).expand(100, 64, 64)

    def answers(model, features, prompts, **_):
        parts = [logits[start : start + 8].clone() for start in range(0, 100, 8)]
        return torch.cat(parts), torch.ones(100)

    monkeypatch.setattr(sam, "decode", answers)
    model = small_sam()
    model.image_encoder.img_size, model.prompt_encoder.mask_input_size = 256, (64, 64)
    embedding = Embedding(torch.zeros(1, 16, 8, 8), input_size(size, 256))
    arguments = ([embedding], [labels], [maps], Refinement(), Stopwatch())
    made = []
    with torch.inference_mode():
        peak = peak_bytes(lambda: made.extend(sam.refine(model, *arguments)))
    assert len(made[0].accepted) == 100
    assert peak <= stage_bytes(size, 100, classes, 8, mask_side=64, embedding=16 * 8 * 8)


def test_benchmarks_fit_24_gb():
    """The bound at full size with half of 20 GB for decoder batches: Cityscapes, and COCO-Object's largest picture."""
    free = 20 * 10**9
    for size, classes, regions in (((1024, 2048), 19, 400), ((640, 640), 81, 100)):
        prompts = prompts_within(free, torch.empty(1, 256, 64, 64, device="meta"))
        assert stage_bytes(size, regions, classes, prompts) < 11e9
        assert stage_bytes(size, regions, classes, 1) < 0.6e9
