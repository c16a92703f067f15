"""What command lines have in common."""


def check_bits(bits: int | None) -> None:
    """ValueError unless it is the number of bits of values that are stored in 16."""
    if bits is not None and not 8 <= bits <= 16:
        raise ValueError(f"--bits is {bits}; give 8 to 16, the bits of values that are stored in 16")
