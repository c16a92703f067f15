"""Published keys of DSRL, at any scale; in a joint checkpoint they begin with `parallel_model.`."""

from cssr.published import RULES

_DECODER_PLACES = {"0": "0.0", "1": "0.1", "4": "2.0", "5": "2.1", "8": "4"}  # dropout and activations hold nothing

RULES["dsrl"] = [
    (r"backbone\.(.+)", lambda m: f"encoder.{m[1]}"),
    (r"aspp\.aspp([1-4])\.(atrous_conv|bn)\.(\w+)", lambda m: f"aspp.convs.{int(m[1]) - 1}.{int(m[2] == 'bn')}.{m[3]}"),
    (r"aspp\.global_avg_pool\.([12])\.(\w+)", lambda m: f"aspp.convs.4.{m[1]}.{m[2]}"),
    (r"aspp\.(conv|bn)1\.(\w+)", lambda m: f"aspp.project.{int(m[1] == 'bn')}.{m[2]}"),
    (
        r"(sr_)?decoder\.(conv|bn)1\.(\w+)",
        lambda m: f"{m[1] or 'seg_'}decoder.squeeze.{int(m[2] == 'bn')}.{m[3]}",
    ),
    (
        r"(sr_)?decoder\.last_conv\.([01458])\.(\w+)",
        lambda m: f"{m[1] or 'seg_'}decoder.layers.{_DECODER_PLACES[m[2]]}.{m[3]}",
    ),
    (r"pointwise\.([01])\.(\w+)", lambda m: f"pointwise.{m[1]}.{m[2]}"),
    (r"up_sr_([0-3])\.(\w+)", lambda m: f"doublings.{3 - int(m[1])}.up.{m[2]}"),
    (r"up_edsr_([0-3])\.conv\.([02])\.(\w+)", lambda m: f"doublings.{3 - int(m[1])}.body.{m[2]}.{m[3]}"),
    (r"up_edsr_([0-3])\.residual_upsampler\.0\.weight", lambda m: f"doublings.{3 - int(m[1])}.skip.weight"),
    (r"up_conv_last\.(\w+)", lambda m: f"tail.{m[1]}"),
]
