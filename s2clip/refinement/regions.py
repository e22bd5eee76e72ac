"""Where the regions of a picture come from, for methods that need them: files, an array, a function, or SAM."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2clip.errors import DatasetError, reject

RegionSource = Callable[[Tensor, str | None], Tensor]
"""A picture uint8 [3,H,W] and its path, if it has one → integers [H,W], the id of each pixel's region; 0: no region."""

FROM_SAM = "sam"

Regions = RegionSource | str | PathLike[str] | Tensor | np.ndarray | None


def region_source(regions: Regions) -> RegionSource | None:
    """A function as it is; a folder's PNGs; an array [H,W] for pictures of its size. "sam" needs a model, and is not
    made here. Raises ValueError."""
    if regions is None or callable(regions):
        return regions
    if isinstance(regions, str | PathLike):
        return FolderRegions(regions)
    return ArrayRegions(regions)


def described(source: RegionSource) -> dict[str, Any]:
    """For run.json."""
    return {"regions": getattr(source, "described", "a function")}


class ArrayRegions:
    """The same ids for every picture."""

    described = "an array"

    def __init__(self, ids: Tensor | np.ndarray) -> None:
        self.ids = torch.as_tensor(ids)

    def __call__(self, pixels: Tensor, source: str | None) -> Tensor:
        return self.ids


class FolderRegions:
    """Ids in the folder's PNGs (grey, palette or 16 bit) that are named as the pictures: photo.jpg → photo.png."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            reject("regions", f"{FROM_SAM!r} or a folder of PNGs with region ids", repr(str(folder)))

    def __call__(self, pixels: Tensor, source: str | None) -> Tensor:
        """Raises `DatasetError` where there is no file for the picture, or one that cannot be used."""
        from s2clip.pictures.label_maps import read_label_map

        if source is None:
            raise DatasetError(f"{self.folder}: a picture without a path, by which the file of its regions is found")
        path = self.folder / f"{Path(source).stem}.png"
        fix = "write the ids of its regions there, 0 where it has none"
        ids = read_label_map(path, missing=f"no regions for {source}; {fix}", fix=fix)
        if ids.shape != tuple(pixels.shape[1:]):
            expected, received = (f"{width}x{height}" for height, width in (pixels.shape[1:], ids.shape))
            raise DatasetError(f"{path}: expected {expected} pixels as in {source}, received {received}")
        return torch.from_numpy(ids.astype(np.int64))

    @property
    def described(self) -> str:
        """For run.json."""
        return str(self.folder)
