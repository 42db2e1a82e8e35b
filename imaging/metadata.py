"""Keep EXIF, XMP and IPTC, and change only what would be untrue in the new file.

docs/photographs.md lists what changes. If the position is stripped, so is all that cannot be searched for one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from xml.dom import minidom

from PIL import Image

from imaging import exif, iptc, png
from imaging.exif import Exif
from imaging.position import is_named_position, may_hold_position

#: `tiff:Orientation` as an attribute or an element (XMP part 1, 7.9.2.2).
_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # the first bytes of such a packet
_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_PANORAMA = "http://ns.google.com/photos/1.0/panorama/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_RDF_ALTERNATIVES = ("Alt", _RDF)
_XMLNS = "http://www.w3.org/2000/xmlns/"
#: The longest XMP packet that is parsed; a longer one is kept unchanged, or dropped if it has to change.
_MAX_XMP = 2_000_000
#: Parts of namespaces and names of what is dropped: the video of a motion photo, gain maps, depth maps, other
#: images and sound, the extended part of the packet, and thumbnails.
_LEFT_BEHIND = (
    "MotionPhoto", "MicroVideo", "oplus.com/photos", "xiaomi.com/photos", "photos/1.0/container/", "photos/dd/1.0/",
    "photos/1.0/depthmap/", "photos/1.0/image/", "photos/1.0/audio/", "hdr-gain-map", "HDRGainMap", "HasExtendedXMP",
    "Thumbnails",
)  # fmt: skip
#: Names of places in the stored pixels: in pixels, and in fractions of the sides.
_PLACES, _REGIONS = ("SubjectArea", "SubjectLocation"), ("Regions", "RegionInfo", "ImageRegion")
#: Properties that an overlong packet loses last.
_LAST_LOST = {
    "rights", "creator", "UsageTerms", "WebStatement", "Marked", "Credit", "CopyrightNotice", "DateCreated",
    "CreateDate", "DateTimeOriginal", "Make", "Model", "Rating", "title", "description", "subject",
}  # fmt: skip
#: Sizes in pixels, as an attribute or an element.
_SIZES = re.compile(
    rb":(PixelXDimension|PixelYDimension|ImageWidth|ImageLength|(?:CroppedAreaImage|FullPano)(?:Width|Height)Pixels)"
    rb"(?:\s{0,9}=\s{0,9}[\"']|>)\s{0,9}(\d{1,9})"
)
#: Names of sizes and places in the pixels of a panorama; the group is set for those along x.
_PANORAMA_NAME = re.compile(r"(?:(Width|Left)|Height|Top)(?:Pixels)?$")
_NUMBER = re.compile(r"\s{0,9}[+-]?\d{1,9}(?:\.\d{0,9})?\s{0,9}")


@dataclass(frozen=True)
class Metadata:
    """EXIF, XMP and IPTC of a file, as stored there, and the orientation in which its pixels are shown, 1 to 8."""

    exif: Exif | None = None
    xmp: bytes | None = None
    orientation: int = 1
    iptc: bytes | None = None

    @classmethod
    def of(cls, block: object, packet: object, photoshop: object = None) -> "Metadata":
        """Parse what a codec returns for EXIF, XMP and IPTC. The orientation is that in EXIF, else that in XMP."""
        captions = iptc.from_photoshop(photoshop) if isinstance(photoshop, bytes) else None
        parsed = exif.parse(block) if isinstance(block, bytes) else None
        xmp = packet if isinstance(packet, bytes) else None
        if parsed and exif.ORIENTATION in parsed.main:
            return cls(parsed, xmp, parsed.orientation, captions)
        match = _ORIENTATION.search(xmp[:_MAX_XMP]) if xmp else None
        return cls(parsed, xmp, int(match[1]) if match else 1, captions)

    def updated(self, *, width: int, height: int, gps: bool) -> "Metadata":
        """Return the metadata for an upright file of this size, with the position if ``gps``."""
        is_turned = self.orientation != 1
        return Metadata(
            self.exif.updated(width=width, height=height, is_turned=is_turned, gps=gps) if self.exif else None,
            _update_xmp(self.xmp, width, height, is_turned=is_turned, gps=gps) if self.xmp else None,
            iptc=iptc.updated(self.iptc, gps=gps) if self.iptc else None,
        )


NO_METADATA = Metadata()


def read_metadata(image: Image.Image, data: bytes) -> Metadata:
    """Read the metadata of a file that Pillow has opened; drop what is damaged."""
    if image.format == "PNG":
        before_pixels, everywhere = png.read_blocks(data)
        shown = Metadata.of(before_pixels.get(png.EXIF), before_pixels.get(png.XMP))
        kept = Metadata.of(*(everywhere.get(name) for name in (png.EXIF, png.XMP, png.IPTC)))
        return replace(kept, orientation=shown.orientation)
    if image.format == "TIFF":
        captions = exif.read_main(data)[1].get(iptc.TIFF_TAG)
        return Metadata.of(data, image.info.get("xmp"), captions.value if captions else None)
    photoshop = image.info.get("photoshop", {})  # of a JPEG
    return Metadata.of(image.info.get("exif"), image.info.get("xmp"), photoshop.get(iptc.RESOURCE))


@dataclass(frozen=True)
class _Changes:
    """How the properties of an XMP packet change: ``sides`` by name, the factors of a panorama along x and y, parts of
    the names of what would be untrue, and whether the position is kept."""

    sides: dict[str, int]
    scales: tuple[float, float]
    untrue: tuple[str, ...]
    gps: bool

    def text(self, node: minidom.Attr | minidom.Element, text: str) -> str | None:
        """Return the text of the property in the new file, or None to remove it."""
        space, name = str(node.namespaceURI), str(node.localName)
        if space == _XMLNS:
            return text
        if _has_any(self.untrue, f"{space} {name}") or (not self.gps and _is_position(space, name, text)):
            return None
        if (space, name) == (_TIFF, "Orientation"):
            return "1"
        if space in (_TIFF, _EXIF) and name in self.sides:
            return str(self.sides[name])
        axis = _PANORAMA_NAME.search(name) if space == _PANORAMA and _NUMBER.fullmatch(text) else None
        scale = self.scales[0 if axis[1] else 1] if axis else 1
        return text if scale == 1 else str(round(float(text) * scale))


def _update_xmp(packet: bytes, width: int, height: int, *, is_turned: bool, gps: bool) -> bytes | None:
    """Return the packet unchanged if nothing needs to change; None if something does and it cannot be parsed."""
    searched = packet[:_MAX_XMP]
    stated = {name.decode(): int(value) for name, value in _SIZES.findall(searched)}
    sides = {"PixelXDimension": width, "ImageWidth": width, "PixelYDimension": height, "ImageLength": height}
    is_resized = any(stated.get(name, side) != side for name, side in sides.items())
    untrue = _LEFT_BEHIND + _PLACES * (is_resized or is_turned) + _REGIONS * is_turned
    orientation = _ORIENTATION.search(searched)
    is_other = is_resized or (orientation and orientation[1] != b"1") or packet[:2] in _UTF16
    if gps and not is_other and not _has_any((*untrue, _PANORAMA), searched.decode("latin-1")):
        return packet
    document = _parse_xmp(packet)
    if document is None:
        return None
    scales = [
        side / (stated.get(f"CroppedAreaImage{axis}Pixels") or stated.get(f"FullPano{axis}Pixels") or side)
        for axis, side in (("Width", width), ("Height", height))
    ]
    if not _update_elements(document, _Changes(sides, (scales[0], scales[1]), untrue, gps)) and gps:
        return packet
    # Node by node: an XMP packet has no XML declaration (XMP part 1, 7.3.2).
    nodes = (node for node in document.childNodes if gps or node is document.documentElement or _is_wrapper(node))
    return "".join(node.toxml() for node in nodes).encode("utf-8")


def _parse_xmp(packet: bytes) -> minidom.Document | None:
    if len(packet) > _MAX_XMP:
        return None
    try:
        return minidom.parseString(packet if packet[:2] in _UTF16 else packet.rstrip(b"\0"))
    except Exception:  # noqa: BLE001  expat and minidom raise many types for foreign bytes
        return None


def shorten_xmp(packet: bytes, max_bytes: int) -> bytes | None:
    """Return the packet without what ``max_bytes`` has no room for: the longest properties go first, rights last.

    Return None if it cannot be parsed, or is too long without any property.
    """
    if len(packet) <= max_bytes:
        return packet
    document = _parse_xmp(packet)
    if document is None:
        return None
    removals: list[tuple[bool, int, Callable[[], object]]] = []
    containers = document.getElementsByTagNameNS(_RDF, "RDF")
    for each in (node for rdf in containers for node in rdf.childNodes if isinstance(node, minidom.Element)):
        for attribute in each.attributes.values():
            if attribute.namespaceURI not in (None, _RDF, _XMLNS):
                is_last, length = attribute.localName in _LAST_LOST, len(attribute.value)
                removals.append((is_last, -length, partial(each.removeAttributeNode, attribute)))
        for child in each.childNodes:
            if isinstance(child, minidom.Element):
                removals.append((child.localName in _LAST_LOST, -len(child.toxml()), partial(each.removeChild, child)))
    excess = len(document.toxml("utf-8")) - max_bytes
    for _, negative, remove in sorted(removals, key=lambda removal: removal[:2]):
        if excess > 0:
            remove()
            excess += negative
    shortened = "".join(node.toxml() for node in document.childNodes).encode("utf-8")
    return shortened if len(shortened) <= max_bytes else None


def _update_elements(document: minidom.Document, changes: _Changes) -> bool:
    """Update or remove the properties, which are attributes or elements; return whether any has changed."""
    is_changed = False
    for element in document.getElementsByTagName("*"):
        for attribute in list(element.attributes.values()):
            old, new = attribute.value, changes.text(attribute, attribute.value)
            is_changed |= new != old
            if new is None:
                element.removeAttributeNode(attribute)
            else:
                attribute.value = new
        old = "".join(node.data for node in element.childNodes if isinstance(node, minidom.Text))
        new = changes.text(element, old)
        is_changed |= new != old
        if new is None and element.parentNode:
            element.parentNode.removeChild(element)
        elif new is not None and new != old:
            while element.firstChild:
                element.removeChild(element.firstChild)
            element.appendChild(document.createTextNode(new))
        for node in list(element.childNodes):
            if not changes.gps and not isinstance(node, minidom.Element | minidom.Text):
                element.removeChild(node)
    return is_changed


def _has_any(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _is_position(space: str, name: str, text: str) -> bool:
    is_named = (name, space) != _RDF_ALTERNATIVES and any(map(is_named_position, (name, space)))
    return is_named or may_hold_position(text)


def _is_wrapper(node: minidom.Node) -> bool:
    """Return whether it is ``<?xpacket ...?>``, which begins and ends a packet."""
    return node.nodeType == node.PROCESSING_INSTRUCTION_NODE and node.nodeName == "xpacket"
