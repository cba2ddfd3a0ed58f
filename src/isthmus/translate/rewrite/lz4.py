"""LZ4 as Linux packs its kernels with it: the "legacy" frame, in plain Python.

The standard library has no LZ4, and Debian's cloud kernels are packed so.  Format: the frame is the
magic number 0x184C2102, then blocks, each preceded by its packed length (LZ4 frame format
description, "Legacy frame"); a block is a row of literals and matches (LZ4 block format
description).  Linux appends the unpacked length, 4 bytes (scripts/Makefile.lib, size_append).
"""

from isthmus.errors import InputError

MAGIC = b"\x02\x21\x4c\x18"
_BLOCK = 8 << 20


def unpack(data: bytes, *, limit: int) -> bytes:
    """Unpack a legacy frame; what follows the last whole block is not looked at.

    :param limit: the most bytes that may come out.
    :raises InputError: it is damaged, or more than ``limit``.
    """
    if not data.startswith(MAGIC):
        raise InputError("not an LZ4 frame")
    blocks = []
    at, total = len(MAGIC), 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if length > len(data) - at:
            break  # the appended length
        try:
            block = _block(data[at : at + length])
        except (IndexError, ValueError) as error:
            raise InputError("the LZ4 frame is damaged") from error
        total += len(block)
        if total > limit:
            raise InputError(f"the LZ4 frame holds more than {limit} bytes")
        blocks.append(block)
        at += length
    return b"".join(blocks)


def _block(data: bytes) -> bytearray:
    """One block: token, literals, offset, and so on; the last sequence has literals only."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        length = token >> 4
        if length == 15:
            while True:
                more = data[at]
                at += 1
                length += more
                if more != 255:
                    break
        if length:
            out += data[at : at + length]
            at += length
        if at >= end:
            break
        offset = data[at] | data[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            while True:
                more = data[at]
                at += 1
                length += more
                if more != 255:
                    break
        length += 4
        start = len(out) - offset
        if start < 0 or not offset or len(out) > _BLOCK:
            raise ValueError("a match before the block's beginning")
        if offset >= length:
            out += out[start : start + length]
        else:
            piece = out[start:]
            out += (piece * (length // offset + 1))[:length]
    return out
