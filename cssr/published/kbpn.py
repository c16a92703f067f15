"""Published keys of KBPN."""

from cssr.published import LAYER, PROJECTION_PARTS, RULES

_KERNEL_UPDATE = {"0": "join", "1": "mix.0", "2": "delta"}
_SFT_PARTS = {"0": "first", "1": "second"}

RULES["kbpn"] = [
    (r"feat\.([0246])\.(\w+)", lambda m: f"head.{int(m[1]) // 2}.0.{m[2]}"),
    (r"predictor\.feat_ext\.(\d)\.(layer|act)\.(\w+)", lambda m: f"predictor.layers.{m[1]}.{LAYER[m[2]]}.{m[3]}"),
    (
        r"back_projection_stages\.(\d+)\.(up|down)\.(conv|\2_conv([123]))\.(layer|act)\.(\w+)",
        lambda m: (
            f"{'stages' if m[2] == 'up' else 'backs'}.{m[1]}.{m[2]}."
            f"{PROJECTION_PARTS[m[4]] if m[4] else 'squeeze'}.{LAYER[m[5]]}.{m[6]}"
        ),
    ),
    (r"back_projection_stages\.(\d+)\.kb\.sr_reconst\.layer\.(\w+)", lambda m: f"stages.{m[1]}.image.{m[2]}"),
    (
        r"back_projection_stages\.(\d+)\.kb\.up_conv1\.(layer|act)\.(\w+)",
        lambda m: f"stages.{m[1]}.error.{LAYER[m[2]]}.{m[3]}",
    ),
    (r"back_projection_stages\.(\d+)\.kb\.conv\.layer\.(\w+)", lambda m: f"backs.{m[1]}.error.{m[2]}"),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.fe_(SR|kernel)\.(\d)\.layer\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.of_{'image' if m[2] == 'SR' else 'kernel'}.{m[3]}.0.{m[4]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.fe_cat\.([012])\.layer\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.{_KERNEL_UPDATE[m[2]]}.{m[3]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.kb\.kernel_predictor\.pad_descriminator\.(\d)\.(\w+)",
        lambda m: f"stages.{m[1]}.predictor.resize.gate.{m[2]}.{m[3]}",
    ),
    (
        r"back_projection_stages\.(\d+)\.sft\.SFT_(scale|shift)_conv([01])\.(\w+)",
        lambda m: f"backs.{m[1]}.sft.{m[2]}.{_SFT_PARTS[m[3]]}.{m[4]}",
    ),
    (r"output_conv\.layer\.(\w+)", lambda m: f"tail.{m[1]}"),
]
