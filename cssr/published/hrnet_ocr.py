"""Published keys of HRNet-W48 with OCR."""

import re

from cssr.published import RULES

_CONTEXT = "ocr_distri_head.object_context_block"
_PARTS = {  # a convolution and its BatchNorm each
    "aux_head": "aux",
    "conv3x3": "squeeze",
    f"{_CONTEXT}.f_down": "context.down",
    f"{_CONTEXT}.f_up": "context.up",
    "ocr_distri_head.conv_bn_dropout": "context.merge",
}

RULES["hrnet_ocr"] = [
    (r"backbone\.(.+)", lambda m: f"encoder.{m[1]}"),
    (rf"{re.escape(_CONTEXT)}\.f_(pixel|object)\..+", lambda m: None),  # of attention, which is 1 with one class
    (rf"({'|'.join(map(re.escape, _PARTS))})\.(0|1\.0)\.(\w+)", lambda m: f"{_PARTS[m[1]]}.{m[2][0]}.{m[3]}"),
    (r"aux_head\.2\.(\w+)", lambda m: f"aux.3.{m[1]}"),
    (r"cls_head\.(\w+)", lambda m: f"head.0.{m[1]}"),
]
