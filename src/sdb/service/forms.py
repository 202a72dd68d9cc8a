"""The picture in a request's body: the body itself, or a file in a form."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sdb.service.limits import Refusal

MAX_PARTS = 16
QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
FILE_NAME = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)


@dataclass(slots=True)
class _Part:
    """One part of a form while it is read: the header that is arriving, all headers by name, and the content."""

    name: bytes = b""
    value: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def is_file(self) -> bool:
        """Whether it has a file name, in one of the two ways to write it, or a type that no text field has."""
        kind = self.headers.get(b"content-type", b"text/plain")
        disposition = QUOTED.sub(b'""', self.headers.get(b"content-disposition", b""))
        return FILE_NAME.search(disposition) is not None or not kind.startswith(b"text/")


def upload(body: bytes, content_type: str) -> bytes:
    """The encoded picture in a body: the first file of a multipart form, else the body itself.

    Raises:
        Refusal: 400, a form that is damaged or holds no file.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return body
    parts = _parts(body, options.get(b"boundary", b""))
    file = next((part for part in parts if part.is_file()), None)
    if file is None:
        raise Refusal(400, "the form holds no file: curl -F file=@picture.png")
    return bytes(file.content)


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise Refusal(400, "the form has too many parts: send one file")
        parts.append(_Part())

    def header_name(data: bytes, start: int, end: int) -> None:
        parts[-1].name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        parts[-1].value += data[start:end]

    def header_end() -> None:
        part = parts[-1]
        part.headers[part.name.lower()] = part.value.strip().lower()
        part.name = part.value = b""

    def content(data: bytes, start: int, end: int) -> None:
        parts[-1].content += data[start:end]

    damaged = Refusal(400, "the form is damaged or cut off")
    if not boundary:
        raise damaged
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": header_name,
                "on_header_value": header_value,
                "on_header_end": header_end,
                "on_part_data": content,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise damaged from None
    return parts
