"""Published keys of the U-Net on VGG16."""

from cssr.published import RULES

_VGG16_FIRST = {
    "1": 0,
    "2": 5,
    "3": 10,
    "4": 17,
    "5": 24,
}  # index of a VGG block's first layer in torchvision's numbering
_DECODER = {"center": 0, "dec4": 1, "dec3": 2, "dec2": 3}

RULES["unet"] = [
    (r"encoder\.\d+\.\w+", lambda m: None),  # the same tensors as conv1 to conv5, which the reference loads last
    (r"conv([1-5])\.(\d)\.(\w+)", lambda m: f"encoder.features_{_VGG16_FIRST[m[1]] + int(m[2])}.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.conv\.(\w+)", lambda m: f"decoder.{_DECODER[m[1]]}.{m[2]}.0.{m[3]}"),
    (r"(center|dec[234])\.block\.(\d)\.(\w+)", lambda m: f"decoder.{_DECODER[m[1]]}.{m[2]}.{m[3]}"),
    (r"dec1\.conv\.(\w+)", lambda m: f"head.0.0.{m[1]}"),
    (r"final\.(\w+)", lambda m: f"head.1.{m[1]}"),
]
