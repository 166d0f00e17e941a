"""How many bytes the strategies of temporal attention send, as their docstrings tell."""


def wire_bytes(
    strategy: str, *, pairs: int, cells: int, width: int, halo: int, ways: int, itemsize: int = 4
) -> int:
    """Returns the bytes that a device receives in one layer's forward pass, per row of the batch.

    The backward pass moves as many again, twice as many where `remat` has it compute the layer anew. Of
    `halo`, those of a device with neighbours enough on both sides. Times and validity are on every device
    from the start.

    Args:
        pairs, cells, width: T, P and N * H of k.
        halo: see `halo_groups`.
        ways: devices along `context`.
        itemsize: bytes of one value.
    """
    size = -(-pairs // ways)
    others = (ways - 1) * size
    whole_cells = -(-cells // ways) * ways
    values = {
        "halo": 2 * 2 * min(halo, others) * cells,
        "allgather": 2 * others * cells,
        "alltoall": 4 * others * whole_cells // ways,
        "ring": 2 * others * cells,
    }
    return values[strategy] * width * itemsize
