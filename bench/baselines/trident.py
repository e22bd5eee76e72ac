"""Trident (Shi et al. 2024, arXiv:2411.09219) as published: matrices in full, SAM class by class.

Windows of one picture as one batch, mixed by DINO's affinity, repeated for every head; their features averaged on the
grid; mixed again by SAM's last attention, which is held for all heads and all cells at once; cosines at the picture's
size. The picture is decoded a second time for SAM. Its refinement is `s2clip.refinement.trident`, Algorithm 2 as it was
published: per class on the host, probabilities of all classes at full size. A window's rows keep their diagonal.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from torch import Tensor

from baselines import affinity, classify
from s2clip.backbones.sam import Embedding, preprocess
from s2clip.decision.scores import DenseScores
from s2clip.methods.method import Method
from s2clip.pictures.images import read_image
from s2clip.pictures.windows import resize, resized_size, window_boxes
from s2clip.published.trident import aligned_size
from s2clip.refinement import trident
from s2clip.refinement.settings import Refinement
from s2clip.stopwatch import Stopwatch

CEILING = 0.9


class Trident:
    """Path of a picture → its coarse map, on the models that s2clip runs."""

    def __init__(self, models, method: Method, text: Tensor, sizes: tuple[int, ...]) -> None:
        self.clip, self.vfm, self.sam, self.method = models.clip, models.vfm, models.sam, method
        self.text, self.sizes = text, sizes

    @torch.inference_mode()
    def __call__(self, path) -> classify.Coarse:
        picture = read_image(path).to(self.clip.device)
        features = self.spliced(picture)
        mixed, embedding = self.correlated(read_image(path).to(self.clip.device), features)
        joint = F.normalize(self.clip.head(mixed.permute(1, 2, 0)), dim=-1)
        cosines = (joint @ self.text.to(joint).mT).permute(2, 0, 1)[None]
        size, scale = tuple(picture.shape[1:]), self.method.logit_scale
        return classify.coarse(cosines, size, scale, self.sizes, embedding)

    def spliced(self, picture: Tensor) -> Tensor:
        """uint8 [3,H,W] → the windows' features, averaged on DINO's grid: [D,r,c]."""
        method, patch = self.method, self.clip.patch_size
        image = resize(picture, resized_size(*picture.shape[1:], method.short_side, method.long_side))
        size = aligned_size(*image.shape[1:], patch, method.crop)
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        boxes = window_boxes(*size, method.crop, method.stride)
        maps = self.windows(torch.stack([image[:, box.top : box.bottom, box.left : box.right] for box in boxes]))
        ratio = max(1, round(maps.shape[1] * patch / method.crop))
        grid = (method.crop // patch * ratio,) * 2
        maps = F.interpolate(maps.permute(0, 3, 1, 2).float(), grid, mode="bilinear", align_corners=False)
        total = maps.new_zeros(maps.shape[1], *(side // patch * ratio for side in size))
        hits = torch.zeros_like(total[0])
        for one, box in zip(maps, boxes, strict=True):
            top, left, bottom, right = (side // patch * ratio for side in box)
            total[:, top:bottom, left:right] += one
            hits[top:bottom, left:right] += 1
        return total / hits

    def windows(self, images: Tensor) -> Tensor:
        """[n,3,h,w] → [n,r,c,D] on DINO's grid, before LN_post; the mean similarity is that of all windows."""
        states, grid = self.clip.hidden_states(images)
        _, _, value = self.clip.project_qkv(states[-1][:, 1:])
        value = value.transpose(1, 2).flatten(2).unflatten(1, grid)
        proxy = self.vfm.features(images).to(value.dtype)
        settings = {"beta": self.method.beta, "gamma": self.method.gamma, "heads": self.clip.heads}
        mixed = affinity.published(proxy, value, **settings, batch_mean=True, keep_diagonal=True)
        heads = mixed.flatten(1, 2).unflatten(2, (self.clip.heads, -1)).transpose(1, 2)
        return self.clip.project_attention(heads).unflatten(1, tuple(proxy.shape[1:3]))

    def correlated(self, picture: Tensor, features: Tensor) -> tuple[Tensor, Embedding | None]:
        """Features [D,r,c] mixed by SAM's attention over the picture: [D,r',c'] on SAM's grid; SAM's view of it."""
        patch, extension = self.clip.patch_size, self.method.extension
        parts = 2 if extension.halves else 1
        size = (-(-picture.shape[1] // patch) * patch, -(-picture.shape[2] // (patch * parts)) * patch * parts)
        columns = -(-features.shape[2] // parts)
        mixed = []
        for index, half in enumerate(resize(picture, size).chunk(parts, 2)):
            probability, value, embedding, inner = self.last_attention(half)
            side = self.sam.image_encoder.patch_embed.proj.kernel_size[0]
            valid = tuple(max(length // side, 1) for length in inner)
            start = index * (features.shape[2] - columns)
            mixed.append(self.correlate(probability, value, valid, features[:, :, start : start + columns]))
        return torch.cat(mixed, 2), None if extension.halves else Embedding(embedding, inner, size)

    def correlate(self, probability: Tensor, value: Tensor, valid: tuple[int, int], features: Tensor) -> Tensor:
        """P [a,g,g,g,g], values [a,g,g,d], which cells are picture (h,w), features [D,r,c] → [D,h,w]."""
        rows, columns = valid
        probability = probability[:, :rows, :columns, :rows, :columns].flatten(3).flatten(1, 2)
        value = F.normalize(value[:, :rows, :columns].flatten(1, 2).float(), dim=-1)
        cosines = value @ value.mT
        threshold = self.method.extension.cosine_factor * cosines.mean((0, 2))
        floor = self.method.extension.neg_threshold_floor
        if floor is not None:
            threshold = torch.where(threshold < 0, floor, threshold)
        kept = cosines > threshold.clamp(max=CEILING)[:, None]
        weights = (probability.float() * kept).mean(0)
        weights = weights / weights.sum(1, keepdim=True)
        resized = F.interpolate(features[None], valid, mode="bilinear", align_corners=False)[0]
        return (resized.flatten(1) @ weights.mT).unflatten(1, valid)

    def last_attention(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """[3,H,W] in [0,1] → last attention [a,g,g,g,g], its values [a,g,g,d], embedding, size in the frame."""
        frames, inner = preprocess(self.sam, image[None])
        encoder = self.sam.image_encoder
        x = encoder.patch_embed(frames.to(encoder.patch_embed.proj.weight.dtype))
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed
        for block in encoder.blocks[:-1]:
            x = block(x)
        last = encoder.blocks[-1]
        grid = tuple(x.shape[1:3])
        qkv = last.attn.qkv(last.norm1(x)).flatten(1, 2).unflatten(2, (3, last.attn.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)[:, 0]
        scores = query * last.attn.scale @ key.mT
        if last.attn.use_rel_pos:
            scores = add_decomposed_rel_pos(scores, query, last.attn.rel_pos_h, last.attn.rel_pos_w, grid, grid)
        probability = scores.softmax(-1)
        mixed = (probability @ value).transpose(0, 1).flatten(1).view(1, *grid, -1)
        x = x + last.attn.proj(mixed)
        x = x + last.mlp(last.norm2(x))
        embedding = encoder.neck(x.permute(0, 3, 1, 2)).float()
        return probability.unflatten(2, grid).unflatten(1, grid), value.unflatten(1, grid), embedding, inner


class Refined:
    """A pipeline followed by SAM, class by class."""

    def __init__(self, pipeline, sam: Sam, settings: Refinement) -> None:
        self.pipeline, self.sam, self.settings = pipeline, sam, settings

    @torch.inference_mode()
    def __call__(self, path) -> classify.Coarse:
        coarse = self.pipeline(path)
        embedding = coarse.embedding or self.embed(path)
        watch = Stopwatch(coarse.labels.device)
        given = ([embedding], [coarse.labels], [DenseScores(coarse.scores)])
        return coarse._replace(labels=trident.refine(self.sam, *given, self.settings, watch)[0].labels)

    def embed(self, path) -> Embedding:
        encoder = self.sam.image_encoder
        images = read_image(path).to(self.sam.device)[None].float() / 255
        frames, inner = preprocess(self.sam, images)
        return Embedding(encoder(frames.to(encoder.patch_embed.proj.weight.dtype)).float(), inner)
