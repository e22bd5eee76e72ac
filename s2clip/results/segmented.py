"""What a format needs to know of a segmented picture."""

from typing import Protocol

from torch import Tensor


class Segmented(Protocol):
    """The fields of `Result` that are written into files."""

    @property
    def segmentation(self) -> Tensor: ...

    @property
    def confidence(self) -> Tensor: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image(self) -> Tensor | None: ...

    @property
    def source(self) -> str | None: ...
