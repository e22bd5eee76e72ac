"""`label_components` with `measure_components` as peers and careful users run them.

Each returns sorted rows of integers: image, class, area, x0, y0, x1, y1, raster index of the best point. Mean scores
are computed as part of the work, but not returned: every library rounds them in its own order.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def published(class_map, scores):
    """Trident and Algorithm 2: a one-hot map per class on the CPU, scikit-image labelling, a mask per region."""
    from skimage.measure import label

    rows = []
    for image in range(class_map.shape[0]):
        one_hot = F.one_hot(class_map[image].long(), scores.shape[1]).permute(2, 0, 1).float().cpu().numpy()
        for index, mask in enumerate(one_hot):
            labelled = label(mask, connectivity=2)
            for region in range(1, labelled.max() + 1):
                inside = torch.from_numpy(labelled == region).to(scores.device)
                own = scores[image, index]
                best = torch.where(inside, own, float("-inf")).argmax()
                y, x = np.nonzero(labelled == region)
                rows.append((image, index, x.size, x.min(), y.min(), x.max(), y.max(), own[inside].mean(), best))
    return sorted((int(r[0]), int(r[1]), *map(int, r[2:7]), int(r[8])) for r in rows)


def by_cc3d(class_map, scores):
    """cc3d's single pass over the whole class map and its statistics; means and peaks by torch on the labels."""
    import cc3d

    rows = []
    for image, classes in enumerate(class_map.cpu().numpy()):
        labels, count = cc3d.connected_components(classes + 1, connectivity=8, return_N=True)
        statistics = cc3d.statistics(labels)
        flat = torch.from_numpy(labels.astype("int64")).to(scores.device).flatten()
        own = _own_scores(class_map[image], scores[image])
        _mean(flat, own, count)
        boxes = [
            (columns.start, rows_of.start, columns.stop - 1, rows_of.stop - 1)
            for rows_of, columns in (box[:2] for box in statistics["bounding_boxes"][1:])
        ]
        areas = statistics["voxel_counts"][1:].tolist()
        rows += _rows(image, class_map[image], areas, boxes, _first_peak(flat, own, count))
    return sorted(rows)


def by_colorcc(class_map, scores):
    """colorcc's labels on the GPU, the class number as a colour; statistics by torch's scatters."""
    import colorcc

    rows = []
    for image, classes in enumerate(class_map):
        number = classes.int() + 1
        colours = torch.stack([number & 255, number >> 8 & 255, number >> 16 & 255], -1).to(torch.uint8)
        labels, count = colorcc.label(colours, conn=8)
        flat, own = labels.flatten().long(), _own_scores(classes, scores[image])
        _mean(flat, own, count)
        area = torch.zeros(count + 1, dtype=torch.int64, device=flat.device)
        area.index_add_(0, flat, torch.ones_like(flat))
        height, width = classes.shape
        y, x = (
            axis.flatten()
            for axis in torch.meshgrid(
                torch.arange(height, device=flat.device), torch.arange(width, device=flat.device), indexing="ij"
            )
        )
        low, high = ("amin", max(height, width)), ("amax", -1)
        sides = [
            torch.full((count + 1,), start, device=flat.device).scatter_reduce_(0, flat, axis, how)
            for (how, start), axis in ((low, x), (low, y), (high, x), (high, y))
        ]
        boxes = torch.stack(sides, 1)[1:].tolist()
        rows += _rows(image, classes, area[1:].tolist(), boxes, _first_peak(flat, own, count))
    return sorted(rows)


def by_cucim(class_map, scores):
    """cuCIM's labels and its table of region properties; peaks by torch, because it has none."""
    import cupy
    from cucim.skimage.measure import label, regionprops_table

    rows = []
    for image, classes in enumerate(class_map):
        labels, count = label(cupy.from_dlpack(classes + 1), connectivity=2, return_num=True)
        own = _own_scores(classes, scores[image])
        wanted = ("area", "bbox", "mean_intensity")
        table = regionprops_table(labels, cupy.from_dlpack(own.view(classes.shape)), properties=wanted)
        top, left, bottom, right = (table[f"bbox-{index}"].astype("int64").get() for index in range(4))
        boxes = np.stack([left, top, right - 1, bottom - 1], 1).tolist()
        flat = torch.from_dlpack(labels.astype("int64")).flatten()
        areas = table["area"].astype("int64").get().tolist()
        rows += _rows(image, classes, areas, boxes, _first_peak(flat, own, int(count)))
    return sorted(rows)


def _own_scores(classes: Tensor, scores: Tensor) -> Tensor:
    return scores.flatten(1).gather(0, classes.long().flatten()[None])[0]


def _mean(flat: Tensor, own: Tensor, count: int) -> Tensor:
    total = torch.zeros(2, count + 1, dtype=torch.float64, device=own.device)
    total.index_add_(1, flat, torch.stack([own.double(), torch.ones_like(own, dtype=torch.float64)]))
    return total[0] / total[1].clamp(min=1)


def _first_peak(flat: Tensor, own: Tensor, count: int) -> Tensor:
    """Raster index of each label's largest score, the first on ties."""
    peak = (
        torch.full((count + 1,), float("-inf"), device=own.device).to(own.dtype).scatter_reduce_(0, flat, own, "amax")
    )
    pixels = torch.arange(flat.numel(), device=own.device).where(own == peak[flat], flat.numel())
    return torch.full((count + 1,), flat.numel(), device=own.device).scatter_reduce_(0, flat, pixels, "amin")[1:]


def _rows(image: int, classes: Tensor, areas: list, boxes: list, peaks: Tensor) -> list[tuple[int, ...]]:
    columns = zip(classes.flatten()[peaks].tolist(), areas, boxes, peaks.tolist(), strict=True)
    return [(image, index, area, *map(int, box), peak) for index, area, box, peak in columns]
