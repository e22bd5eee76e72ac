"""Position embeddings at grid shapes a ViT was not trained on.

Published ways to resample a learned table of n₀×m₀ rows to n×m, per channel:

meta      bicubic, a = −0.75, source row of output i is (i + ½)·n₀/(n + 0.1) − ½. The 0.1 once guarded against a grid
          one row short; it stayed in DINO (facebookresearch/dino), DINOv2 without registers, and the CLIP code of
          SCLIP, ClearCLIP, NACLIP and ProxyCLIP, so published numbers contain it. Patch features move by 0.3 to 3 %
          against "timm".
timm      bicubic, a = −0.5, source row (i + ½)·n₀/n − ½, antialiased when the grid shrinks. So do DINOv2 with registers
          and GEM.
radio     bilinear to a square of the longer side of the grid, of which the upper left part is taken: C-RADIO, whose
          table of 128×128 is for pictures of up to 2,048. "radio-corners" is the same with corners aligned, source
          row i·(n₀−1)/(n−1): the code that C-RADIOv3-B is published with.
bilinear  source row (i + ½)·n₀/n − ½. So does CLIPSurgery, which also overwrites the stored table: not here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PosEmbedInterp = Literal["meta", "timm", "bilinear", "radio", "radio-corners"]


def check_pos_embed_interp(value: str) -> None:
    """Raise ValueError unless `value` names one of the ways."""
    if value not in get_args(PosEmbedInterp):
        raise ValueError(f"pos_embed_interp: expected one of {', '.join(get_args(PosEmbedInterp))}, received {value!r}")


def resample_positions(table: Tensor, native: tuple[int, int], grid: tuple[int, int], interp: PosEmbedInterp) -> Tensor:
    """Patch rows of a position table at another grid: table [n₀·m₀,D], native (n₀,m₀), grid (n,m) -> [n·m,D], fp32.

    The grid's shape decides, never the number of tokens: 7×28 has as many tokens as 14×14 and other positions.
    The table is only read.
    """
    check_pos_embed_interp(interp)
    rows, columns = grid
    if len(table) != native[0] * native[1]:
        raise ValueError(f"table: expected {native[0]}·{native[1]} rows, received {len(table)}")
    table = table.detach().to(torch.promote_types(table.dtype, torch.float32))
    if grid == native:
        return table
    maps = table.reshape(1, *native, -1).permute(0, 3, 1, 2)
    if interp == "meta":
        scale = ((rows + 0.1) / native[0], (columns + 0.1) / native[1])
        maps = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    elif interp == "timm":
        maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False, antialias=True)
    elif interp == "bilinear":
        maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    else:
        square = (max(grid), max(grid))
        maps = F.interpolate(maps, size=square, mode="bilinear", align_corners=interp == "radio-corners")
        maps = maps[:, :, :rows, :columns]
    return maps.permute(0, 2, 3, 1).reshape(rows * columns, -1)
