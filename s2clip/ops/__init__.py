"""The public ops: what they compute, what they accept, and which code runs.

CPU tensors run `s2clip.kernels.reference`, CUDA tensors the Triton kernel of the same name. `backend` overrides that:

    "auto"    by the device of the tensors (default)
    "torch"   the reference, on any device and in fp64 too
    "triton"  the kernel; on CPU tensors only under TRITON_INTERPRET=1

Every op is registered with `torch.library` under the namespace `s2clip`, so that torch.compile keeps it whole. Results
do not depend on what else is in the batch and are bitwise the same from run to run; memory layout of the inputs does
not matter; empty inputs give empty outputs. Bad arguments raise `ValueError` with the argument, what was expected and
what was received. Values, unlike shapes, are looked at on the CPU only, because a look at the GPU's memory would hold
up the pipeline: the docstrings say what a kernel does with values it should not have got. There is no backward.

In: tensors. Out: tensors. No model, no method and no step of the pipeline is imported here, a kernel only when it runs.
"""

from s2clip.ops.attention import affinity_attention, progressive_affinity, recombined_attention
from s2clip.ops.components import Components, label_components, measure_components
from s2clip.ops.drop_in import connected_components_with_stats, get_connected_components
from s2clip.ops.entropy import spatial_entropy
from s2clip.ops.pixels import class_scores, classify_pixels, merge_masks

__all__ = [
    "Components",
    "affinity_attention",
    "class_scores",
    "classify_pixels",
    "connected_components_with_stats",
    "get_connected_components",
    "label_components",
    "measure_components",
    "merge_masks",
    "progressive_affinity",
    "recombined_attention",
    "spatial_entropy",
]
