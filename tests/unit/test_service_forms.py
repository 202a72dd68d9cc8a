"""Forms: the file is found however its name is written, and a form without one is refused."""

import pytest

pytest.importorskip("fastapi")

from sdb.service.forms import upload
from sdb.service.limits import Refusal


def form(*parts, boundary="b"):
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data for head, data in parts
    ]
    return b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def test_a_form_gives_its_first_file():
    picture = bytes(range(256)) * 8192  # 2 MiB: kept in memory all the same
    body, kind = form(
        ('name="note"', b"x"), ('name="file"; filename="a.png"', picture), ('name="b"; filename="b"', b"")
    )
    assert upload(body, kind) == picture
    assert upload(b"raw", "image/png") == b"raw"
    assert upload(b"raw", "") == b"raw"


@pytest.mark.parametrize(
    "head",
    [
        'name="f"; filename="a.png"',
        'name="f"; filename=a.png',
        'name="f"; filename=""',
        'name="f"; filename="a\\"b;c.png"',
        'name="f"; filename="x; name=y"',
        'name="f"; FileName="a.png"',
        "name=\"f\"; filename*=UTF-8''%e2%82%ac.png",
        'name="f"; filename*=utf-8\'en\'a.png; filename="a.png"',
        "filename*=UTF-8''a.png",
        'name="f"\r\nContent-Type: image/png',
        'name="f"\r\ncontent-type: application/octet-stream',
    ],
)
def test_a_file_is_one_however_its_head_says_so(head):
    text = ('name="note; filename=x"', b"no file"), ('name="filename"\r\nContent-Type: text/plain', b"nor this")
    assert upload(*form(*text, (head, b"picture"))) == b"picture"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        form(('name="note"', b"x")),
        form(*[('name="f"; filename="f"', b"x")] * 20),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b"),
        (form(('name="f"; filename="f"', b"x"))[0], "multipart/form-data"),
        (b"", "multipart/form-data; boundary=b"),
        (b"x", "multipart/form-data; boundary=" + "b" * 1000),
    ],
)
def test_a_form_without_a_file_is_refused(body, kind):
    with pytest.raises(Refusal) as refusal:
        upload(body, kind)
    assert refusal.value.status == 400
