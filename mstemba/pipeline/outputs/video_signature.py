"""Tell a video from other files by its first bytes.

FFmpeg is not asked: it reads text files and pictures as videos.
"""

from __future__ import annotations

import re
from pathlib import Path

# Bytes at the beginning that are looked at: 5 packets of a transport stream after a part of one.
_HEAD = 2048
# Boxes that begin MP4 and QuickTime files, and the brands among them that are pictures or sound.
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx"}
_NO_VIDEO = {
    b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"jp2 ", b"jpx ", b"crx ",
    b"M4A ", b"M4B ", b"M4P ",
}  # fmt: skip
_SIGNATURES = (
    rb"\x1a\x45\xdf\xa3",  # Matroska, WebM
    rb"OggS\x00",
    rb"RIFF....AVI[ X\x19]",
    rb"FLV\x01",
    rb"\.RMF\x00",
    rb"GIF8[79]a",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",  # ASF: WMV, DVR-MS
    rb"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e",  # WTV
    rb"DKIF\x00\x00",  # IVF
    rb"nut/multimedia container\x00",
    rb"YUV4MPEG2 ",
    rb"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    rb"DHAV",  # Dahua's recorders
    rb"\x1f\x07\x00",  # DV
    rb"\x00\x00\x01(?:\xb3|\xba[\x21\x31\x44-\x7f]|\xbb)",  # MPEG-1 and 2, program streams
    rb"\x00\x00\x01(?:\xb0.|[\x00-\x1f])\x00\x00\x01[\x20-\x2f\xb5]",  # MPEG-4
    # H.264 and H.265 begin with a delimiter, a parameter set or a message.
    rb"\x00{2,3}\x01(?:\x09[\x10-\xf0]|[\x27\x47\x67][\x42-\xf4]|\x06[\x00-\x2d])",
    rb"\x00{2,3}\x01[\x40\x42\x44\x46\x4e]\x01",
    rb"\x12\x00\x0a",  # AV1: a temporal delimiter and a sequence header
    rb".{2,6}?(?:\x01\x10|\x02\x12\x00).{1,2}[\x08\x0a]",  # the same in Annex B, with sizes
)
_SIGNATURE = re.compile(b"|".join(b"(?:%s)" % one for one in _SIGNATURES), re.DOTALL)
_JPEG = b"\xff\xd8\xff"
_JPEG_SUFFIXES = {".mjpeg", ".mjpg"}
# Bytes of a packet of a transport stream: plain, of Blu-ray and AVCHD, with error correction.
_PACKETS = (188, 192, 204)
_SYNCS = b"GGGGG"


def is_video(path: Path) -> bool:
    """Return whether a file begins like a video, unlike pictures, playlists and sound."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[4:8] in _BOXES:
        return head[4:8] != b"ftyp" or head[8:12] not in _NO_VIDEO
    if head.startswith(_JPEG):
        return path.suffix.lower() in _JPEG_SUFFIXES  # one after the other, and no photo
    return bool(_SIGNATURE.match(head)) or _is_transport_stream(head)


def _is_transport_stream(head: bytes) -> bool:
    """Return whether packets follow each other, from the first one that is whole."""
    return any(
        head[start : start + 5 * size : size] == _SYNCS
        for size in _PACKETS
        for start in range(size)
    )
