"""An image encoder as mappers such as RayFronts call it: pixels to a map of features, labels to vectors beside it.

The calls are those of RayFronts' `LangSpatialImageEncoder` (github.com/RayFronts/RayFronts, image_encoders/base.py),
which is not imported: an object with these methods serves where one of its encoders does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2clip.errors import reject

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter


class SpatialEncoder:
    """cos(feature, label) = feature · label: both are unit vectors of one space.

        encoder = SpatialEncoder(Segmenter.from_pretrained("ViT-B-16", method="naclip"))
        features = encoder.encode_image_to_feat_map(rgb)      # [B,C,h,w]
        vectors = encoder.encode_labels(["road", "tree"])     # [2,C]

    segmenter: with a method that gives one map for the whole picture (`merge="splice"`); the windows, the grid and the
    templates are the method's.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter
        self.device = segmenter.device

    def is_compatible_size(self, h: int, w: int) -> bool:
        """Pictures of any size are taken; they are resized as the method says."""
        return h > 0 and w > 0

    def get_nearest_size(self, h: int, w: int) -> tuple[int, int]:
        """(h, w), which is compatible."""
        return h, w

    def encode_image_to_feat_map(self, rgb_image: Tensor) -> Tensor:
        """float [B,3,H,W] in 0..1, RGB → float32 [B,C,h,w] on the encoder's device, unit vectors.

        Raises:
            ValueError: another shape, values outside of 0..1, or a method that keeps its windows apart.
        """
        if rgb_image.ndim != 4 or rgb_image.shape[1] != 3 or not len(rgb_image):
            reject("rgb_image", "[B,3,H,W]", list(rgb_image.shape))
        maps = []
        for picture in rgb_image:
            encoded = self.segmenter.encode(picture)
            if not encoded.spliced or encoded.features.ndim != 4:
                name = self.segmenter.method.name
                reject("method", 'one that gives one map of features (merge="splice")', name)
            maps.append(encoded.features[0])
        return torch.stack(maps).to(self.device)

    def align_spatial_features_with_language(self, features: Tensor) -> Tensor:
        """[B,C,h,w] as they are: they lie in the space of the labels already."""
        return features

    def encode_labels(self, labels: Sequence[str]) -> Tensor:
        """[N,C] float32 unit rows: each label as the mean over the method's templates."""
        return self.segmenter.encode_words(labels)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N,C] float32 unit rows of whole sentences, without templates."""
        return self.segmenter.encode_words(prompts, templates=("{}",))
