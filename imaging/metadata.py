"""Keep EXIF and XMP, and change only what differs in the new file.

The new image is upright, so the orientation becomes 1 in both; width and height become those of the new file; the
embedded thumbnail, which shows the old image, is dropped. The rest is kept, unless the position is stripped: then all
entries that hold a position or cannot be searched for one are removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.dom import minidom

from PIL import Image

from imaging import exif
from imaging.exif import Exif
from imaging.position import is_named_position, may_hold_position

#: `tiff:Orientation` as an attribute or an element (XMP part 1, 7.9.2.2).
_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # the first bytes of such a packet
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_RDF_ALTERNATIVES = ("Alt", "http://www.w3.org/1999/02/22-rdf-syntax-ns#")
_XMLNS = "http://www.w3.org/2000/xmlns/"
#: The longest XMP packet that is parsed; a longer one is kept unchanged, or dropped if the position is stripped.
_MAX_XMP = 2_000_000


@dataclass(frozen=True)
class Metadata:
    """The EXIF and XMP of a file, as stored there."""

    exif: Exif | None = None
    xmp: bytes | None = None

    @property
    def orientation(self) -> int:
        """The orientation in EXIF, else in XMP: 1 to 8."""
        if self.exif and exif.ORIENTATION in self.exif.main:
            return self.exif.orientation
        match = _ORIENTATION.search(self.xmp[:_MAX_XMP]) if self.xmp else None
        return int(match[1]) if match else 1

    def updated(self, *, width: int, height: int, gps: bool) -> Metadata:
        """Return the metadata for an upright file of this size, with the position if ``gps``."""
        return Metadata(
            self.exif.updated(width=width, height=height, gps=gps) if self.exif else None,
            _update_xmp(self.xmp, gps=gps) if self.xmp else None,
        )


NO_METADATA = Metadata()


def read_metadata(image: Image.Image, data: bytes) -> Metadata:
    """Read the metadata of a file that Pillow has opened; drop what is damaged."""
    block = data if image.format == "TIFF" else image.info.get("exif")
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    packet = packet.encode() if isinstance(packet, str) else packet
    return Metadata(
        exif.parse(block) if isinstance(block, bytes) else None, packet if isinstance(packet, bytes) else None
    )


def _update_xmp(packet: bytes, *, gps: bool) -> bytes | None:
    """Return the packet unchanged if nothing needs to change; None if something does and it cannot be parsed."""
    orientation = _ORIENTATION.search(packet[:_MAX_XMP])
    if gps and (orientation is None or orientation[1] == b"1"):
        return packet
    if len(packet) > _MAX_XMP:
        return None
    try:
        document = minidom.parseString(packet if packet[:2] in _UTF16 else packet.rstrip(b"\0"))
    except Exception:  # noqa: BLE001  expat and minidom raise many types for foreign bytes
        return None
    for element in document.getElementsByTagName("*"):
        for attribute in list(element.attributes.values()):
            if (attribute.namespaceURI, attribute.localName) == (_TIFF, "Orientation"):
                attribute.value = "1"
            elif not gps and _is_position(attribute, attribute.value):
                element.removeAttributeNode(attribute)
        if (element.namespaceURI, element.localName) == (_TIFF, "Orientation"):
            while element.firstChild:
                element.removeChild(element.firstChild)
            element.appendChild(document.createTextNode("1"))
        elif not gps:
            _strip_position(element)
    # Node by node: an XMP packet has no XML declaration (XMP part 1, 7.3.2).
    nodes = (node for node in document.childNodes if gps or node is document.documentElement or _is_wrapper(node))
    return "".join(node.toxml() for node in nodes).encode("utf-8")


def _strip_position(element: minidom.Element) -> None:
    """Remove the element if it holds a position, else those of its nodes that are neither an element nor text."""
    text = "".join(node.data for node in element.childNodes if isinstance(node, minidom.Text))
    if _is_position(element, text) and element.parentNode:
        element.parentNode.removeChild(element)
    for node in list(element.childNodes):
        if not isinstance(node, minidom.Element | minidom.Text):
            element.removeChild(node)


def _is_position(node: minidom.Attr | minidom.Element, value: str) -> bool:
    if node.namespaceURI == _XMLNS:
        return False
    names = (str(node.localName), str(node.namespaceURI))
    return (names != _RDF_ALTERNATIVES and any(map(is_named_position, names))) or may_hold_position(value)


def _is_wrapper(node: minidom.Node) -> bool:
    """Whether it is ``<?xpacket ...?>``, which begins and ends a packet."""
    return node.nodeType == node.PROCESSING_INSTRUCTION_NODE and node.nodeName == "xpacket"
