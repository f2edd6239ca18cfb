"""The cut points of the paper's six networks.

The paper prints how many layers it measures (submission, Table 1) but not which; these lists have that many and end, as
§2 says, before the classifier. The authors' code cuts the ResNets at as many layers, but at others: it begins after the
max-pooling and ends with the class logits. Of the other four only the number is known, so both lists are the same.
"""

from __future__ import annotations

import re

from rankscope._base.errors import CutPointError, parameter
from rankscope.slicing.module_calls import ModuleCall, Trace

__all__ = ["paper_cut_points"]

_RESNET_CODE = [r"maxpool", r"layer\d\.\d+", r"(global_pool|avgpool)", r"fc"]
_RESNET = [r"(act1|relu)", r"maxpool", r"layer\d\.\d+", r"(global_pool|avgpool)"]
_BLOCKS = [r"blocks\.\d+"]
_VIT = [r"patch_embed", r"blocks\.\d+"]
_SWIN = [r"patch_embed", r"layers\.\d\.blocks\.\d+", r"layers\.[123]\.downsample", r"norm", r"head\.global_pool"]
_SWIN_TORCHVISION = [r"features\.0", r"features\.[1357]\.\d+", r"features\.[246]", r"norm", r"avgpool"]

# class of the model → (name of the paper's network, number of layers, patterns of module names)
_FAMILIES: dict[str, list[tuple[str, int, list[str]]]] = {
    "ResNet": [("ResNet-18", 11, _RESNET), ("ResNet-50", 19, _RESNET)],
    "MlpMixer": [("GluMixer-24 or ResMLP-S24", 24, _BLOCKS)],
    "VisionTransformer": [("ViT-T", 13, _VIT)],
    "SwinTransformer": [("Swin-T", 18, _SWIN), ("Swin-T", 18, _SWIN_TORCHVISION)],
}


def paper_cut_points(trace: Trace, *, code: bool = False) -> list[ModuleCall]:
    """The layers that the paper's Fig. 1 (a–c) shows for this network; with ``code`` those of the authors' code.

    Raises
    ------
    CutPointError
        When the model is none of the six.
    """
    counts = []
    for network, expected, listed in _FAMILIES.get(trace.model, []):
        patterns = _RESNET_CODE if code and listed is _RESNET else listed
        calls = [c for c in trace.calls if any(re.fullmatch(p, c.name) for p in patterns) and c.depends]
        counts.append(f"{len(calls)} layers where {network} has {expected}")
        if len(calls) == expected:
            return calls
    found = f" ({'; '.join(counts)})" if counts else ""
    asked = parameter("cut_points", "reference" if code else "paper")
    raise CutPointError(
        f"{asked} knows ResNet-18, ResNet-50, gmixer_24_224, resmlp_24_224, "
        f"swin_tiny_patch4_window7_224 and vit_tiny_patch16_224; this "
        f"{trace.model} is none of them{found}. Use {parameter('cut_points', 'blocks')}"
    )
