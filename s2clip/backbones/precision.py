"""Where a backbone runs and in which number format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Read in fp32 where they are used: sums with tokens are rounded once, after the sum.
FLOAT32_PARAMETERS = {"positional_embedding", "class_embedding", "pos_embed", "cls_token", "reg_token", "logit_scale"}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; `None` is CUDA where there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


DTYPES = {
    **dict.fromkeys(("float32", "fp32", "float"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float64", "fp64", "double"), torch.float64),
}


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """fp32 on the CPU, fp16 elsewhere, unless fp16, bf16, fp32 or, on the CPU, fp64 is asked for; names will do.

    fp64 tells rounding from a difference; the kernels of a GPU have none.
    """
    if isinstance(dtype, str):
        dtype = DTYPES.get(dtype.removeprefix("torch.").lower(), repr(dtype))
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    known = isinstance(dtype, torch.dtype) and dtype in DTYPES.values()
    if not known or (dtype == torch.float64 and device.type != "cpu"):
        raise ValueError(f"dtype: expected float32, float16, bfloat16, None, or float64 on the CPU, received {dtype}")
    return dtype


def freeze(
    model: nn.Module, device: torch.device, dtype: torch.dtype, *, keep: tuple[type[nn.Module], ...] = ()
) -> nn.Module:
    """Move `model` to device and dtype for inference: eval, no gradients, layer norms and position tables in fp32.

    keep: further module types whose parameters stay in fp32.

    Layer norms become open_clip's `LayerNormFp32` on the same parameters: mean and variance over 1,024 channels with a
    few outliers of several hundred, as CLIP's residual stream has them, do not survive fp16 rounding well.
    """
    model = model.eval().requires_grad_(False)
    if dtype == torch.float64:
        model = model.double()
    elif dtype != torch.float32:
        _replace_layer_norms(model)
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, *keep)):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name not in FLOAT32_PARAMETERS:
                    parameter.data = parameter.data.to(dtype)
    return model.to(device)


def _replace_layer_norms(model: nn.Module) -> None:
    from open_clip.transformer import LayerNormFp32

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm) and not isinstance(child, LayerNormFp32):
                norm = LayerNormFp32(child.normalized_shape, child.eps, elementwise_affine=False)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm.eval())


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or as it is where that is fp64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images − mean)/std per channel in at least fp32; images [B,3,H,W] in [0,1]."""
    return (at_least_float32(images) - mean[:, None, None]) / std[:, None, None]


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images is a non-empty float [B,3,H,W]."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] < 1 or images.shape[3] < 1:
        raise ValueError(f"images: expected [B,3,H,W], received {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images: expected float in [0,1], received {images.dtype}")
