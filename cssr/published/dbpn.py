"""Published keys of DBPN."""

from cssr.published import LAYER, PROJECTION_PARTS, RULES

RULES["dbpn"] = [
    (r"feat([01])\.(conv|act)\.(\w+)", lambda m: f"head.{m[1]}.{LAYER[m[2]]}.{m[3]}"),
    (r"(up|down)(\d+)\.conv\.(conv|act)\.(\w+)", lambda m: f"{m[1]}s.{int(m[2]) - 1}.squeeze.{LAYER[m[3]]}.{m[4]}"),
    (
        r"(up|down)(\d+)\.\1_conv([123])\.(conv|deconv|act)\.(\w+)",
        lambda m: f"{m[1]}s.{int(m[2]) - 1}.{PROJECTION_PARTS[m[3]]}.{LAYER[m[4]]}.{m[5]}",
    ),
    (r"output_conv\.conv\.(\w+)", lambda m: f"tail.{m[1]}"),
]
