"""Published keys of CrackFormer."""

from cssr.published import RULES

_BLOCK = r"(down|up)([1-5])\.nn([123])\.conv\."
_BOTTLENECK = {"conv1": "squeeze.0", "bn1": "squeeze.1", "conv3": "expand.0", "bn3": "expand.1"}
_MLP = {"fc1": "0.0", "gn1": "0.1", "dwconv.dwconv": "1.0", "gn2": "1.1", "fc2": "3.0", "gn3": "3.1"}


def _block(way: str, stage: str, number: str) -> str:
    """Where a block is here: encoder stages count down from full size, decoder stages up to it."""
    place = f"encoder.{int(stage) - 1}" if way == "down" else f"decoder.{5 - int(stage)}"
    return f"{place}.layers.{int(number) - 1}"


RULES["crackformer"] = [
    (r"down[345]\.nn3\..+", lambda m: None),  # published, but never applied: the second block runs twice
    (_BLOCK + r"bn2\.\w+", lambda m: None),  # published, but never applied
    (r"down1\.nn1\.conv\.(\w+)", lambda m: f"encoder.0.layers.0.0.{m[1]}"),
    (_BLOCK + r"(conv[13]|bn[13])\.(\w+)", lambda m: f"{_block(m[1], m[2], m[3])}.{_BOTTLENECK[m[4]]}.{m[5]}"),
    (_BLOCK + r"(shortcut\.[01]\.\w+)", lambda m: f"{_block(m[1], m[2], m[3])}.{m[4]}"),
    (_BLOCK + r"conv2\.0\.attn\.embedding", lambda m: f"{_block(m[1], m[2], m[3])}.attention.positions.weight"),
    (
        _BLOCK + r"conv2\.0\.attn\.((queries|keys|values)\.[01]\.\w+)",
        lambda m: f"{_block(m[1], m[2], m[3])}.attention.{m[4]}",
    ),
    (
        _BLOCK + r"conv2\.0\.mlp\.(fc[12]|gn[123]|dwconv\.dwconv)\.(\w+)",
        lambda m: f"{_block(m[1], m[2], m[3])}.mlp.{_MLP[m[4]]}.{m[5]}",
    ),
    (r"LABlock_([1-5])\.W_1\.(\d)\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.gate.1.{m[2]}.{m[3]}"),
    (r"LABlock_([1-5])\.psi\.(\d)\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.gate.2.{m[2]}.{m[3]}"),
    (r"fuse([1-5])\.nn\.conv\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.merge.0.{m[2]}"),
    (r"fuse([1-5])\.conv\.(\w+)", lambda m: f"sides.{5 - int(m[1])}.logits.{m[2]}"),
    (r"final\.(\w+)", lambda m: f"head.{m[1]}"),
]
