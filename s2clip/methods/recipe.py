"""What a model needs of every method, because it was trained at another size than the papers' models."""

import dataclasses
from dataclasses import dataclass

from s2clip.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model needs instead of a method's values, as it was trained at another size: see `Method` for each."""

    short_side: int | None
    crop: int | None
    stride: int
    vfm_scale: float
    gamma: float

    def adapt(self, method: Method) -> Method:
        """The method with this model's values, but for what its extension needs as it is."""
        needed = {} if method.extension is None else method.extension.requires
        values = {field: value for field, value in dataclasses.asdict(self).items() if field not in needed}
        return dataclasses.replace(method, **values)


# Trained on 64x64. Its DINO was taught cosines near zero between kinds, of which a softmax with γ = 3 makes little,
# and tells kinds apart better on enlarged windows (average precision 83 at 1x, 93 at 2x): docs/scenes.md has trials.
RECIPES = {"tiny": Recipe(short_side=160, crop=64, stride=32, vfm_scale=1.5, gamma=15.0)}
