"""ProxyCLIP (Lan et al. 2024, arXiv:2408.04883) as published: one window after the other, everything at pixel size.

Per window of the resized picture: the values of CLIP's last block, resized per head to DINO's grid and mixed by DINO's
affinity, repeated for every head; projection, cosines, upsampled to the window's pixels and added to a canvas. Per
picture: the canvas at the picture's size, softmax, maximum over a class's words, argmax. A window's rows keep their
diagonal, and its mean is its own: the published code fails on flat windows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines import affinity, classify
from s2clip.methods.method import Method
from s2clip.pictures.images import read_image
from s2clip.pictures.windows import resize, resized_size, window_boxes


class ProxyCLIP:
    """Path of a picture → its coarse map, on the models that s2clip runs."""

    def __init__(self, models, method: Method, text: Tensor, sizes: tuple[int, ...]) -> None:
        clip, vfm = models.clip, models.vfm
        patch = math.lcm(clip.patch_size, vfm.patch_size)
        if method.crop % patch:
            raise ValueError(f"crop: expected a multiple of {patch}, so that nothing is padded, received {method.crop}")
        self.clip, self.vfm, self.method = clip, vfm, method
        self.text, self.sizes = text, sizes

    @torch.inference_mode()
    def __call__(self, path) -> classify.Coarse:
        picture = read_image(path).to(self.clip.device)
        method = self.method
        size = resized_size(*picture.shape[1:], method.short_side, method.long_side)
        image = resize(picture, size)
        total, hits = self.text.new_zeros(1, len(self.text), *size), self.text.new_zeros(size)
        for top, left, bottom, right in window_boxes(*size, method.crop, method.stride):
            features = self.window(image[None, :, top:bottom, left:right])
            cosines = (F.normalize(features, dim=-1) @ self.text.to(features).mT).permute(0, 3, 1, 2)
            upsampled = F.interpolate(cosines, (bottom - top, right - left), mode="bilinear", align_corners=False)
            total[:, :, top:bottom, left:right] += upsampled
            hits[top:bottom, left:right] += 1
        return classify.coarse(total / hits, tuple(picture.shape[1:]), method.logit_scale, self.sizes)

    def window(self, images: Tensor) -> Tensor:
        """[1,3,h,w] → CLIP features [1,r,c,C] on DINO's grid."""
        states, grid = self.clip.hidden_states(images)
        _, _, value = self.clip.project_qkv(states[-1])
        value = value[:, :, 1:].transpose(1, 2).flatten(2).unflatten(1, grid)
        proxy = self.vfm.features(images).to(value.dtype)
        mixed = affinity.published(
            proxy, value, beta=self.method.beta, gamma=self.method.gamma, heads=self.clip.heads, keep_diagonal=True
        )
        heads = mixed.flatten(1, 2).unflatten(2, (self.clip.heads, -1)).transpose(1, 2)
        return self.clip.head(self.clip.project_attention(heads)).unflatten(1, tuple(proxy.shape[1:3]))
