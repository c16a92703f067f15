"""Published keys of SegNet."""

from cssr.published import RULES

_SEGNET_DEPTH = {"1": 2, "2": 2, "3": 3, "4": 3, "5": 3}  # convolutions of each stage

RULES["segnet"] = [
    (r"BNDe11\.\w+", lambda m: None),  # published, but never applied
    (
        r"(Conv|BN)En([1-5])([123])\.(\w+)",
        lambda m: f"encoder.{int(m[2]) - 1}.{3 * int(m[3]) - 3 + (m[1] == 'BN')}.{m[4]}",
    ),
    (
        r"(Conv|BN)De([1-5])([123])\.(\w+)",
        lambda m: f"decoder.{5 - int(m[2])}.{3 * (_SEGNET_DEPTH[m[2]] - int(m[3])) + (m[1] == 'BN')}.{m[4]}",
    ),
]
