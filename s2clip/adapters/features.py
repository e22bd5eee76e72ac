"""Dense features and word vectors in one safetensors file, for who compares them in a way of his own.

STEM.features.safetensors, whose metadata are strings:

    features      float16 [C,h,w], unit vectors on a grid over the whole picture; of a method that keeps its windows
                  [n,C,h,w] ([n,S,C,h,w] where it gives S at once), with
    boxes         int64 [n,4] top, left, bottom, right of those windows in pixels of `canvas`
    text          float32 [Q,C], a unit row per word;   class_index int64 [Q], the class of each word
    metadata      classes, words (JSON lists), size and canvas (JSON [H,W]), logit_scale, method, clip, source
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from s2clip.files import whole_file
from s2clip.words.text import vocabulary

if TYPE_CHECKING:
    from s2clip.encoding.encoded import Encoded
    from s2clip.segmenter import Segmenter

SUFFIX = ".features.safetensors"


def write_features(segmenter: "Segmenter", encoded: "Encoded", path: Path) -> Path:
    """Write a picture's features and the vectors of the words that are set. Raises ValueError where none are."""
    from safetensors.torch import save

    words = vocabulary(segmenter.classes, allow_repeats=True)
    text = segmenter.encode_words(words.words)
    features = encoded.features.detach().cpu().to(torch.float16)
    tensors = {"text": text.float().cpu(), "class_index": torch.tensor(words.class_index, dtype=torch.int64)}
    if encoded.spliced:
        tensors["features"] = features[0]
    else:
        tensors |= {"features": features, "boxes": torch.tensor([list(box) for box in encoded.boxes])}
    facts = {"classes": list(words.classes), "words": list(words.words), "size": encoded.size, "canvas": encoded.canvas}
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
    metadata |= {"method": segmenter.method.name, "clip": segmenter.clip.name, "source": encoded.source or ""}
    metadata["logit_scale"] = repr(segmenter.method.logit_scale)
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with whole_file(path) as handle:
        handle.write(content)
    return path
