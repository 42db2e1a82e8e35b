"""Read EXIF blocks entry by entry, and write them again without interpreting the values.

A block is a small TIFF (CIPA DC-008, 4.6.2): a main directory, which points to one with the camera's settings and one
with the position. The bytes of a value do not change, so text in any encoding and values of unusual types survive; only
their offsets change. Pointers inside a maker's note may become invalid.
"""

import struct
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Self

from imaging.position import bytes_may_hold_position

ORIENTATION, SETTINGS, POSITION = 0x0112, 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003
_COLOR_SPACE, _UNCALIBRATED, _INTEROPERABILITY = 0xA001, 0xFFFF, 0xA005
_SUBJECT_AREA, _SUBJECT_LOCATION = 0x9214, 0xA214  # in pixels of the old file
_MAKER_NOTE = 0x927C
#: Tags that are dropped last from a block that is too long: camera, dates and rights.
_LAST_LOST = {0x010F, 0x0110, 0x0132, 0x013B, 0x8298, 0x9003, 0x9004, *range(0x9010, 0x9013), *range(0x9290, 0x9293)}
#: Tags that describe the photograph: text, camera, resolution, date, author, rights, rating and Windows' own texts. The
#: others describe the layout of the old file, and would be wrong in the new one.
_DESCRIPTIVE = {
    0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749,
    0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
}  # fmt: skip
#: Tags of the camera's settings that are kept when the position is stripped: those that Exif 3.0 defines, except those
#: that only the camera's maker can read (MakerNote, DeviceSettingDescription).
_STANDARD = {
    0x829A, 0x829D, 0x8822, 0x8824, 0x8827, 0x8828, *range(0x8830, 0x8836), 0x9000, 0x9003, 0x9004,
    *range(0x9010, 0x9013), 0x9101, 0x9102, *range(0x9201, 0x920B), 0x9214, 0x9286, *range(0x9290, 0x9293),
    *range(0x9400, 0x9406), *range(0xA000, 0xA005), 0xA20B, 0xA20C, 0xA20E, 0xA20F, 0xA210, 0xA214, 0xA215, 0xA217,
    *range(0xA300, 0xA303), *range(0xA401, 0xA40B), 0xA40C, 0xA420, *range(0xA430, 0xA440), *range(0xA460, 0xA463),
    0xA500,
}  # fmt: skip
BYTE, _SHORT, _LONG, _POINTER = 1, 3, 4, 13
_TEXT_KINDS = (BYTE, 2, 7)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}  # bytes of one number
_PREFIX = b"Exif\0\0"


@dataclass(frozen=True)
class Entry:
    """The value of a tag: its TIFF type, the number of values, and their bytes."""

    kind: int
    count: int
    value: bytes

    def numbers(self, order: str) -> tuple[int, ...]:
        """Return the values of an integer or offset type; (0,) for other types."""
        code = {BYTE: "B", _SHORT: "H", _LONG: "I", _POINTER: "I"}.get(self.kind)
        return struct.unpack(f"{order}{self.count}{code}", self.value) if code else (0,)

    def byte_swapped(self) -> Self:
        """Return the entry in the other byte order."""
        unit = _UNITS.get(self.kind, 1)
        parts = (self.value[i : i + unit][::-1] for i in range(0, len(self.value), unit))
        return replace(self, value=b"".join(parts))


Directory = dict[int, Entry]


@dataclass(frozen=True)
class Exif:
    """The EXIF of a photograph, in the byte order of its file (``<`` or ``>``), and its interoperability index."""

    order: str
    main: Directory
    settings: Directory
    position: Directory
    interoperability: bytes = b""

    @property
    def is_adobe_rgb(self) -> bool:
        """Whether the colours are Adobe RGB: by the index R03 (DCF 2.0), or by the ColorSpace 2 of some cameras."""
        space = self._number(self.settings, _COLOR_SPACE)
        return space == 2 or (space in (0, _UNCALIBRATED) and self.interoperability.startswith(b"R03"))

    @property
    def orientation(self) -> int:
        """The orientation, 1 to 8 (CIPA DC-008, 4.6.4); 1 if it is missing or invalid."""
        value = self._number(self.main, ORIENTATION)
        return value if 1 <= value <= 8 else 1

    def _number(self, directory: Directory, tag: int) -> int:
        return directory[tag].numbers(self.order)[0] if tag in directory else 0

    def updated(self, *, width: int, height: int, is_turned: bool, gps: bool) -> Self:
        """Return the EXIF for an upright file of this size, with the position if ``gps``.

        ``is_turned``: the pixels of the old file were not upright.
        """
        main, settings = dict(self.main), dict(self.settings)
        if is_turned or (width, height) != (self._number(settings, _WIDTH), self._number(settings, _HEIGHT)):
            settings = {t: e for t, e in settings.items() if t not in (_SUBJECT_AREA, _SUBJECT_LOCATION)}
        if not gps:
            main, settings = _without_position(main), _without_position(settings, _STANDARD)
        if ORIENTATION in main:
            main[ORIENTATION] = Entry(_SHORT, 1, struct.pack(f"{self.order}H", 1))
        for tag, side in ((_WIDTH, width), (_HEIGHT, height)):
            if tag in settings:
                settings[tag] = Entry(_LONG, 1, struct.pack(f"{self.order}I", side))
        return replace(self, main=main, settings=settings, position=self.position if gps else {})

    def to_block(self) -> bytes:
        """Return the bytes that files other than TIFF embed, beginning with ``Exif\\0\\0``."""
        head = (b"II*\0" if self.order == "<" else b"MM\0*") + struct.pack(f"{self.order}I", 8)
        return _PREFIX + head + self._to_directory(8)

    def shortened(self, max_bytes: int) -> Self:
        """Return the EXIF shortened to ``max_bytes``: the maker's note is dropped first, then the longest values;
        camera, dates and rights last."""
        excess = len(self.to_block()) - max_bytes
        kept = {"main": dict(self.main), "settings": dict(self.settings), "position": dict(self.position)}
        entries = [(name, tag, len(entry.value)) for name, tags in kept.items() for tag, entry in tags.items()]
        for name, tag, length in sorted(entries, key=lambda e: (e[1] != _MAKER_NOTE, e[1] in _LAST_LOST, -e[2])):
            if excess <= 0:
                break
            del kept[name][tag]
            excess -= 12 + (length if length > 4 else 0)
        return replace(self, main=kept["main"], settings=kept["settings"], position=kept["position"])

    def append_to(self, tiff: bytes) -> bytes:
        """Return the little-endian TIFF with these tags: a new directory at its end, to which its header then points.

        Nothing else moves, so offsets in old entries stay valid. Old entries take precedence (TIFF 6.0, section 2).
        """
        old = read_directory(tiff, struct.unpack_from("<I", tiff, 4)[0], "<", max_bytes=len(tiff))
        start = len(tiff) + len(tiff) % 2  # directories begin on a word
        added = self._to_little_endian()
        new = replace(added, main={**added.main, **old})._to_directory(start)
        return tiff[:4] + struct.pack("<I", start) + tiff[8:] + b"\0" * (start - len(tiff)) + new

    def _to_little_endian(self) -> "Exif":
        if self.order == "<":
            return self
        main, settings, position = (
            {tag: entry.byte_swapped() for tag, entry in each.items()}
            for each in (self.main, self.settings, self.position)
        )
        return Exif("<", main, settings, position)

    def _to_directory(self, start: int) -> bytes:
        """Return the main directory for offset ``start``, followed by the other directories and all values."""
        main = dict(self.main)
        inner = {tag: entries for tag, entries in ((SETTINGS, self.settings), (POSITION, self.position)) if entries}
        main |= dict.fromkeys(inner, Entry(_LONG, 1, bytes(4)))
        others, at = b"", start + 6 + 12 * len(main)
        for tag, entries in inner.items():
            main[tag] = Entry(_LONG, 1, struct.pack(f"{self.order}I", at + len(others)))
            others += _serialize(entries, self.order, at + len(others))
        return _serialize(main, self.order, start, others)


def _without_position(directory: Directory, known: Set[int] = _DESCRIPTIVE) -> Directory:
    def is_kept(tag: int, entry: Entry) -> bool:
        return tag in known and not (entry.kind in _TEXT_KINDS and bytes_may_hold_position(entry.value))

    return {tag: entry for tag, entry in directory.items() if is_kept(tag, entry)}


def _serialize(directory: Directory, order: str, start: int, others: bytes = b"") -> bytes:
    """Return the bytes of a directory for offset ``start``, then ``others``, then the values longer than four bytes."""
    head = struct.pack(f"{order}H", len(directory))
    values_at = start + 6 + 12 * len(directory) + len(others)
    values = b""
    for tag, entry in sorted(directory.items()):
        if len(entry.value) <= 4:
            field = entry.value.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", values_at + len(values))
            values += entry.value + b"\0" * (len(entry.value) % 2)
        head += struct.pack(f"{order}HHI", tag, entry.kind, entry.count) + field
    return head + bytes(4) + others + values


def parse(data: bytes) -> Exif | None:
    """Parse an embedded block or a whole TIFF; return None if it has no EXIF. Damaged entries are dropped."""
    data = data.removeprefix(_PREFIX)
    order, main = read_main(data)
    settings, position = (_read_inner(data, main.get(tag), order) for tag in (SETTINGS, POSITION))
    index = _read_inner(data, settings.pop(_INTEROPERABILITY, None), order).get(1)
    kept = {tag: entry for tag, entry in main.items() if tag in _DESCRIPTIVE}
    if not (kept or settings or position):
        return None
    return Exif(order, kept, settings, position, index.value if index else b"")


def read_main(data: bytes) -> tuple[str, Directory]:
    """Return the byte order and the first directory of a TIFF; both empty for other files."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4], "")
    if not order or len(data) < 8:
        return "", {}
    return order, read_directory(data, struct.unpack_from(f"{order}I", data, 4)[0], order)


def next_directory(data: bytes, start: int, order: str) -> int:
    """Return the offset of the directory after the one at ``start``; 0 if there is none."""
    at = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little" if order == "<" else "big")
    return int.from_bytes(data[at : at + 4], "little" if order == "<" else "big")


def _read_inner(data: bytes, pointer: Entry | None, order: str) -> Directory:
    if pointer is None or len(pointer.value) != 4:
        return {}
    entries = read_directory(data, struct.unpack(f"{order}I", pointer.value)[0], order)
    # Pointers lead to directories that are not kept.
    return {tag: entry for tag, entry in entries.items() if tag == _INTEROPERABILITY or entry.kind != _POINTER}


#: Limits of one directory, more than cameras write; without them a crafted file could repeat one large value.
_MAX_ENTRIES, _MAX_BYTES = 500, 4_000_000


def read_directory(data: bytes, start: int, order: str, *, max_bytes: int = _MAX_BYTES) -> Directory:
    """Return the entries of the directory at ``start`` that lie inside the data."""
    if start + 2 > len(data):
        return {}
    entries: Directory = {}
    total = 0
    count = struct.unpack_from(f"{order}H", data, start)[0]
    for at in range(start + 2, start + 2 + 12 * min(count, _MAX_ENTRIES), 12):
        if at + 12 > len(data):
            break
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at)
        length = _SIZES.get(kind, 0) * number
        value_at = at + 8 if length <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
        total += length
        if length > 0 and value_at + length <= len(data) and total <= max_bytes:
            entries.setdefault(tag, Entry(kind, number, data[value_at : value_at + length]))
    return entries
