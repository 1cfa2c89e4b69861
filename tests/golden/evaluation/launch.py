"""Run a script in an environment whose torchvision has no build beside its torch: `python launch.py SCRIPT`.

The programs that measure pictures import torchvision, which at import time only asks that its operators have names.
"""

from __future__ import annotations

import runpy
import sys

import torch

NAMES = (
    "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward",
    "roi_pool", "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
    "_deform_conv2d_backward",
)  # fmt: skip

if __name__ == "__main__":
    library = torch.library.Library("torchvision", "DEF")
    for name in NAMES:
        library.define(f"{name}(Tensor x) -> Tensor")
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
