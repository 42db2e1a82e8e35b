"""Recognize positions in metadata, under any name that camera and drone makers give them.

EXIF has one directory for the position; drones, phones and applications also write it under names of their own and in
texts. The rules prefer false alarms: one costs a single entry, and only with `gps=strip`; a miss can publish a home
address.
"""

import re

#: Parts of names in any namespace: ``GPSLatitude``, ``GpsLongtitude`` (DJI), ``LRFTargetLon``, ``geo:lat``.
_NAME = re.compile(
    r"(?i:gps|latitud|longt?itud|altitud|coordinat|geo(?!met)|iso6709|northing|easting)"
    r"|(?:Position|(?<![a-z])position)(?!ing)"
    r"|(?:(?:^|_|(?<=[a-z]))(?:L(?:at|on|ng|ong)|Alt)|(?:^|_)(?:lat|lon|lng|long|alt))(?:_?(?i:deg|degrees|e7|ref))?$"
    r"|MGRS|UTM|ECEF|(?i:what3words|plus_?code)"
)
#: Longest text to search: cameras and people write shorter ones, and a longer one is more likely an embedded file.
_MAX_TEXT = 10_000
_DEGREES = r"[+-]?\d{1,3}(?:\.\d{3,}|,\d{4,})"
#: Texts that are a position under any name, and embedded files, which may hold one. Repetitions are bounded, so that a
#: crafted text cannot make the search slow.
_TEXT = re.compile(
    r"(?i:gps\w{0,20}|latitude|longt?itude|(?<![a-z])(?:lat|lon|lng))\W{1,5}\d{1,9}\.\d"  # {"lat": 48.137}
    r"|\bgeo:-?\d"  # RFC 5870
    r"|[+-]\d{2,6}\.\d{1,9}[+-]\d{3,7}\.\d"  # ISO 6709: +48.1371+011.5761/
    r"|\b\d{1,3},\d{1,2}(?:[.,]\d{1,9})?[NSEW]\b"  # XMP: 48,8.2N
    r"|\d\s?(?:[°º˚]|deg\b)\s?(?:\d{1,2}(?:[.,]\d{1,9})?\s?['′’]|[NSEWO]\b)"  # 48° 8' 13" N, 48.137 deg N
    r"|\b[NSEWO]\s?\d{1,3}(?:[.,]\d{1,9})?\s?[°º˚]"  # N 48° 08.229
    rf"|{_DEGREES}(?:\s?[NSEW]\b|\s{{0,3}}(?:[,;/| ]|%2C)\s{{0,3}}[NSEW]?{_DEGREES})"  # 48.137N; 48.13715, 11.57612
    r"|^\s{0,9}[+-]?[1-9]\d{0,2}\.\d{6,20}\s{0,9}$"  # one coordinate of a list
    r"|\b[23456789CFGHJMPQRVWX]{8}\+[23456789CFGHJMPQRVWX]{2}|///\w{2,30}\.\w{2,30}\.\w"  # plus code, what3words
    r"|\b\d{1,2}[C-X]\s?[A-Z]{2}\s?\d{3,5}\s?\d{3,5}\b"  # MGRS: 32UPU9165236345
    r"|(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{70}"  # base64
)


def is_named_position(name: str) -> bool:
    """Return whether a property of this name holds a position or a part of one."""
    return _NAME.search(name) is not None


def may_hold_position(text: str) -> bool:
    """Return whether a text contains a position, or a file in which one could be, or is too long to be searched."""
    return len(text) > _MAX_TEXT or _TEXT.search(text) is not None


def bytes_may_hold_position(value: bytes) -> bool:
    """Return whether bytes contain such a text in ASCII, Latin-1, UTF-8 or UTF-16."""
    plain = value.replace(b"\0", b"")
    encodings = ((plain, "latin-1"), (plain, "utf-8"), (value, "utf-16-le"), (value, "utf-16-be"))
    return any(may_hold_position(text.decode(encoding, "ignore")) for text, encoding in encodings)
