"""Published keys of SrcNet's SR network."""

from cssr.published import RULES

_PARTS = {"fe1": "layers", "attention": "attention", "sconv1": "head", "upscaling": "enlarge", "sconv2": "tail"}

RULES["srcnet"] = [
    (
        r"rir\.res_groups\.(\d+)\.res_blocks\.(\d+)\.(fe1|attention)\.(\d)\.(\w+)",
        lambda m: f"body.layers.{m[1]}.layers.{m[2]}.{_PARTS[m[3]]}.{m[4]}.{m[5]}",
    ),
    (r"rir\.res_groups\.(\d+)\.conv\.(\w+)", lambda m: f"body.layers.{m[1]}.last.{m[2]}"),
    (r"rir\.conv\.(\w+)", lambda m: f"body.last.{m[1]}"),
    (r"(sconv1|upscaling|sconv2)\.(\w+)", lambda m: f"{_PARTS[m[1]]}.{m[2]}"),
]
