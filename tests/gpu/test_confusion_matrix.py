"""The confusion matrix on the GPU: the CPU's counts, and no waiting for the device."""

import pytest
import torch

from s2clip.evaluation.metrics import confusion_matrix, mean_iou

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("classes", [19, 171, 300])
def test_counts_are_those_of_the_cpu_and_nothing_waits(classes):
    generator = torch.Generator().manual_seed(classes)
    prediction, target = torch.randint(0, classes, (2, 1024, 2048), generator=generator)
    target[:64] = 255
    expected = confusion_matrix(prediction, target, classes)
    on_device = prediction.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [confusion_matrix(*on_device, classes) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found[0].cpu(), expected)
    assert torch.equal(found[0], found[1])


def test_an_id_out_of_range_is_told_by_the_figures():
    matrix = confusion_matrix(torch.tensor([0, 7]).cuda(), torch.tensor([0, 1]).cuda(), 2)
    with pytest.raises(ValueError, match="out of range"):
        mean_iou(matrix)
