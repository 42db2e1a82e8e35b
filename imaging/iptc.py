"""Keep the IPTC block, in which agencies write captions and rights (IPTC-NAA Information Interchange Model 4.2)."""

from imaging.position import bytes_may_hold_position

TIFF_TAG, RESOURCE = 33723, 0x0404
#: The head of the IPTC resource in a Photoshop block, without a name.
_RESOURCE = b"8BIM\x04\x04\0\0"
_PREVIEWS = range(200, 203)  # datasets of the application record that show the old image


def from_photoshop(block: bytes) -> bytes | None:
    """Return the IPTC block in a Photoshop block, or the block itself if it is IPTC."""
    if (at := block.find(_RESOURCE)) >= 0:
        start = at + len(_RESOURCE) + 4
        block = block[start : start + int.from_bytes(block[start - 4 : start], "big")]
    return block if block[:1] == b"\x1c" else None


def to_photoshop(block: bytes) -> bytes:
    """Return a Photoshop block that contains the IPTC block."""
    return _RESOURCE + len(block).to_bytes(4, "big") + block + b"\0" * (len(block) % 2)


def updated(block: bytes, *, gps: bool) -> bytes | None:
    """Return the block without previews and data for transport, and without texts with a position unless ``gps``."""
    kept, at = [], 0
    while block[at : at + 1] == b"\x1c" and at + 5 <= len(block):
        record, dataset, length = block[at + 1], block[at + 2], int.from_bytes(block[at + 3 : at + 5], "big")
        end = at + 5 + length
        is_text = record == 1 or (record == 2 and dataset not in _PREVIEWS)  # longer than 32,767: not a text
        if is_text and end <= len(block) and (gps or not bytes_may_hold_position(block[at + 5 : end])):
            kept.append(block[at:end])
        at = end
    return b"".join(kept) or None
