"""Published keys of PSPNet on ResNet-34."""

from cssr.published import RULES

RULES["pspnet"] = [
    (r"feats\.(.+)", lambda m: f"encoder.{m[1]}"),
    (r"psp\.stages\.(\d)\.1\.weight", lambda m: f"pyramid.branches.{m[1]}.1.weight"),
    (r"psp\.bottleneck\.(\w+)", lambda m: f"pyramid.merge.0.{m[1]}"),
    (r"up_([123])\.conv\.([012])\.(\w+)", lambda m: f"decoder.{int(m[1]) - 1}.{int(m[2]) + 1}.{m[3]}"),
    (r"final\.0\.(\w+)", lambda m: f"head.{m[1]}"),
    (r"aux\.([014])\.(\w+)", lambda m: f"aux.{m[1]}.{m[2]}"),
]
