"""Provenance in picture files: PNG text, XMP and EXIF, written for other programs too and read with distrust."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import InvalidRequest
from sfumato.pictures.untrusted_pictures import read_bounded, reading
from sfumato.pipeline.parameters_text import Parameters, format_parameters, parse_parameters
from sfumato.pipeline.provenance import Provenance

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PNG_KEY = "sfumato"
_PARAMETERS = "parameters"
_COMMENT = "comment"  # GIF's only place for text
_SOURCE_LINE = f"DigitalSourceType: {SOURCE_TYPE}"
_PNG_XMP = "XML:com.adobe.xmp"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OWN = "urn:sfumato:1.0:"
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_UNICODE = b"UNICODE\0"
_MAX_XMP = 4 * 2**20
_NOT_IN_XML = re.compile("[\ufffe\uffff]")


def xmp_packet(provenance: Provenance) -> bytes:
    """The XMP packet: made by an algorithm (IPTC's term for it), by which program, and our JSON."""
    json = _NOT_IN_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", provenance.to_json())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{_RDF}">'
        f'<rdf:Description rdf:about="" xmlns:xmp="{_XMP}" xmlns:Iptc4xmpExt="{_IPTC}" xmlns:sfumato="{_OWN}">'
        f"<xmp:CreatorTool>{escape(f'sfumato {provenance.sfumato}')}</xmp:CreatorTool>"
        f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
        f"<sfumato:provenance>{escape(json)}</sfumato:provenance>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def exif_block(provenance: Provenance) -> bytes:
    """EXIF with the `parameters` text as user comment, in UTF-16 (big-endian throughout, as A1111 writes it)."""
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + format_parameters(provenance).encode("utf-16-be")
    return exif.tobytes()


def png_text(provenance: Provenance) -> PngInfo:
    """The text chunks of a PNG: our JSON, the `parameters` text and the XMP packet."""
    info = PngInfo()
    info.add_itxt(_PNG_KEY, provenance.to_json())
    info.add_text(_PARAMETERS, format_parameters(provenance))
    info.add_itxt(_PNG_XMP, xmp_packet(provenance).decode())
    return info


def plain_comment(provenance: Provenance | None) -> str:
    """What formats without XMP say: made by an algorithm, and how."""
    settings = f"\n{format_parameters(provenance)}" if provenance else ""
    return _SOURCE_LINE + settings


def read_provenance(path: Path) -> Provenance | None:
    """How the picture was made, if sfumato made it, else None. `InvalidRequest` where picture or record is broken."""
    return provenance_of(read_bounded(path), str(path))


def provenance_of(data: bytes, name: str) -> Provenance | None:
    """Read the provenance in a file's bytes, as `read_provenance` does; `name` is what `InvalidRequest` calls it."""
    with reading(data, name) as picture:
        text = picture.info.get(_PNG_KEY)
        packet = picture.info.get("xmp")
    record = text if isinstance(text, str) else _from_xmp(packet)
    if record is None:
        return None
    try:
        return Provenance.from_json(record)
    except InvalidRequest as error:
        raise InvalidRequest(f"{name}: {error}") from error


def parameters_of(data: bytes, name: str) -> Parameters | None:
    """The settings in A1111's text in a picture file's bytes, ours or another program's; None where it has none.
    `name` is what errors call it. Raises `InvalidRequest` where the picture is broken."""
    texts = texts_of(data, name)
    if _PARAMETERS in texts:
        return parse_parameters(texts[_PARAMETERS])
    found = parse_parameters(texts.get(_COMMENT, "").removeprefix(_SOURCE_LINE))
    return found if found.settings else None  # most comments are about something else


def texts_of(data: bytes, name: str) -> dict[str, str]:
    """Every text a program can have put in a picture: a PNG's by their keys, an EXIF comment as `parameters`, a GIF's
    or JPEG's as `comment`."""
    with reading(data, name) as picture:
        comment = _comment_text(picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT))
        texts = {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
        plain = picture.info.get(_COMMENT)
    if isinstance(plain, bytes):
        texts = {_COMMENT: plain.decode(errors="replace")} | texts
    return texts if comment is None else {_PARAMETERS: comment} | texts


def _comment_text(comment: object) -> str | None:
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")


def _from_xmp(packet: object) -> str | None:
    """Our JSON in an XMP packet, as an element or, as some programs rewrite it, an attribute."""
    if not isinstance(packet, bytes) or len(packet) > _MAX_XMP:
        return None
    try:
        text = packet.decode().strip("\0")
        if "<!DOCTYPE" in text:  # nobody's XMP has one, but entity bombs do
            return None
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError):
        return None
    name = f"{{{_OWN}}}provenance"
    for description in root.iter(f"{{{_RDF}}}Description"):
        found = description.findtext(name) or description.get(name)
        if found:
            return found
    return None
