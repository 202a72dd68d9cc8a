"""Signed boxes: every byte is bound, whoever tries to exchange one."""

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sdb.box.box import Box
from sdb.box.boxfile import SIGNATURE
from sdb.box.signing import SigningKey, key_id, read_public, sign_box, verify_box, write_public
from sdb.config import WrapSettings
from sdb.errors import CheckpointError, KeyFileError, SDBError
from sdb.keys import Key, Owner
from sdb.wrapping.wrap import wrap

OWNER = Owner(bytes(range(32)))
MAKER, OTHER = SigningKey(bytes(32)), SigningKey(bytes(range(32)))


@pytest.fixture(scope="module")
def box(few, make_net):
    """A weight-key box with a private part, a record and a slot: all that a box can hold."""
    settings = WrapSettings(epochs=1, batch_size=16, learning_rate=0.01)
    return wrap(make_net(few), few, settings, key=OWNER.partner("anna"), owner=OWNER)


@pytest.fixture(params=["box", "box.zip"])
def signed(box, tmp_path, request):
    """A signed box, folder and archive."""
    path = tmp_path / request.param
    box.save(path)
    sign_box(path, MAKER)
    return path


@pytest.fixture
def folder(box, tmp_path):
    path = tmp_path / "box"
    box.save(path)
    sign_box(path, MAKER)
    return path


def test_a_signed_box_verifies_loads_and_answers_as_before(box, signed, few):
    assert verify_box(signed, MAKER.public) == box.info.id
    loaded = Box.load(signed)
    images = torch.from_numpy(few.test.images).float() / 255
    assert torch.equal(loaded(images), box(images))
    assert torch.equal(loaded.unlock(OWNER.partner("anna"))(images), box.unlock(OWNER.partner("anna"))(images))
    assert loaded.owner_record(OWNER) == box.owner_record(OWNER)


def test_the_signature_is_ed25519_over_the_documented_statement(box, folder):
    """Made again from the format's description, by the cryptography library alone."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    body = json.loads(files.pop(SIGNATURE))
    assert files.keys() == {"box.json", "weights.safetensors", "private.bin", "record.bin"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    statement = {"sdb_signature": 1, "box": box.info.id, "files": digests}
    message = b"sdb/1/box-signature\0" + json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    key = Ed25519PrivateKey.from_private_bytes(MAKER.secret)
    assert body == {
        "sdb_signature": 1,
        "algorithm": "ed25519",
        "key_id": hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:32],
        "signature": key.sign(message).hex(),
    }


def test_a_folder_s_signature_is_the_archive_s(box, tmp_path):
    box.save(tmp_path / "a")
    box.save(tmp_path / "b.zip")
    for name in ("a", "b.zip"):
        sign_box(tmp_path / name, MAKER)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.read(SIGNATURE) == (tmp_path / "a" / SIGNATURE).read_bytes()
        archive.extractall(tmp_path / "c")
    assert verify_box(tmp_path / "c", MAKER.public) == box.info.id


@pytest.mark.parametrize("name", ["box.json", "weights.safetensors", "private.bin", "record.bin", SIGNATURE])
def test_no_byte_can_change(folder, name):
    whole = (folder / name).read_bytes()
    places = {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}
    places |= set(range(0, len(whole), max(1, len(whole) // 40)))
    for place in sorted(places):
        for bit in (1, 0x20):
            changed = bytearray(whole)
            changed[place] ^= bit
            (folder / name).write_bytes(bytes(changed))
            with pytest.raises(CheckpointError):
                verify_box(folder, MAKER.public)
    (folder / name).write_bytes(whole)
    verify_box(folder, MAKER.public)


def test_white_space_that_carries_no_meaning_cannot_change_either(folder):
    for name in ("box.json", SIGNATURE):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(json.dumps(json.loads(whole)).encode())
        with pytest.raises(CheckpointError, match="altered"):
            verify_box(folder, MAKER.public)
        (folder / name).write_bytes(whole)


def forge(box, folder, **changes):
    """A box of whoever likes, complete and consistent, under a signature that was made for another."""
    signature = (folder / SIGNATURE).read_bytes()
    box.save(folder, overwrite=True)
    assert not (folder / SIGNATURE).exists()  # what is written anew is not what was signed
    (folder / SIGNATURE).write_bytes(signature)
    Box.load(folder)


def test_other_weights_under_the_same_manifest_are_refused(box, folder, few, make_net):
    other = Box(make_net(few, seed=9), box.info, box.private, box.record)
    forge(other, folder)
    with pytest.raises(CheckpointError, match="does not fit"):
        verify_box(folder, MAKER.public)


def test_other_parts_or_claims_are_refused(box, folder):
    for changed in (
        Box(box.classifier, box.info, box.private, None),
        Box(box.classifier, box.info, box.private[::-1], box.record),
        Box(box.classifier, replace(box.info, class_names=tuple("abcdefghij")), box.private, box.record),
        box.add_partner(OWNER.partner("mallory"), OWNER),
    ):
        forge(changed, folder)
        with pytest.raises(CheckpointError, match="does not fit"):
            verify_box(folder, MAKER.public)


def test_a_signature_of_another_box_is_refused(box, folder, tmp_path):
    twin = tmp_path / "twin"
    Box(box.classifier, replace(box.info, id="0" * 32), box.private, box.record).save(twin)
    sign_box(twin, MAKER)
    for one, other in ((folder, twin), (twin, folder)):
        taken = tmp_path / f"taken-{one.name}"
        shutil.copytree(one, taken)
        shutil.copy(other / SIGNATURE, taken / SIGNATURE)
        with pytest.raises(CheckpointError, match="of another box"):
            verify_box(taken, MAKER.public)


@pytest.mark.parametrize("name", ["notes.txt", "model.sig", ".hidden"])
def test_added_files_are_refused(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not part of this box"):
        verify_box(folder, MAKER.public)


@pytest.mark.parametrize("name", ["private.bin", "record.bin", "weights.safetensors", "box.json"])
def test_missing_files_are_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        verify_box(folder, MAKER.public)


def test_another_signer_an_unsigned_box_and_a_renamed_signer_are_told_apart(folder, box, tmp_path):
    with pytest.raises(CheckpointError, match=f"signed by {key_id(MAKER.public)[:8]}, not by"):
        verify_box(folder, OTHER.public)
    body = json.loads((folder / SIGNATURE).read_text())
    (folder / SIGNATURE).write_text(json.dumps(body | {"key_id": key_id(OTHER.public)}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match="does not fit"):
        verify_box(folder, OTHER.public)
    (folder / SIGNATURE).unlink()
    with pytest.raises(CheckpointError, match="not signed"):
        verify_box(folder, MAKER.public)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"key_id": 3, "signature": 4}', b"[" * 60_000,
        b'{"key_id": "x", "signature": "zz"}', b'{"key_id": "x", "signature": "aa"}',
    ],
)  # fmt: skip
def test_a_damaged_signature_is_refused_in_words(folder, data):
    (folder / SIGNATURE).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"signature\.json"):
        verify_box(folder, MAKER.public)
    Box.load(folder)  # who does not ask for a signature is not kept from the box


def test_a_signature_is_replaced_only_when_told(signed, box):
    with pytest.raises(CheckpointError, match="signed already"):
        sign_box(signed, OTHER)
    verify_box(signed, MAKER.public)
    sign_box(signed, OTHER, overwrite=True)
    assert verify_box(signed, OTHER.public) == box.info.id


def test_a_damaged_box_is_not_signed(folder):
    (folder / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="altered or damaged"):
        sign_box(folder, MAKER, overwrite=True)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_signing_key_survives_its_file(tmp_path):
    key = SigningKey.generate()
    key.save(tmp_path / "k")
    write_public(key.public, tmp_path / "k.pub")
    assert SigningKey.load(tmp_path / "k") == key
    assert read_public(tmp_path / "k.pub").public_bytes_raw() == key.public.public_bytes_raw()
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert key.secret.hex() not in repr(key)


def test_a_passphrase_encrypts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SDB_SCRYPT_LOG_N", "10")
    monkeypatch.delenv("SDB_PASSPHRASE", raising=False)
    MAKER.save(tmp_path / "k", passphrase="correct horse")
    assert MAKER.secret.hex() not in (tmp_path / "k").read_text()
    assert SigningKey.load(tmp_path / "k", "correct horse") == MAKER
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        SigningKey.load(tmp_path / "k", "other")


def test_the_public_file_is_what_other_tools_read(tmp_path):
    write_public(MAKER.public, tmp_path / "pub")
    assert (
        load_pem_public_key((tmp_path / "pub").read_bytes()).public_bytes_raw() == MAKER.public.public_bytes_raw()
    )
    with pytest.raises(KeyFileError, match="exists"):
        write_public(OTHER.public, tmp_path / "pub")


def test_keys_of_another_kind_are_refused(tmp_path):
    Key(bytes(32), kind="weight").save(tmp_path / "partner")
    OWNER.save(tmp_path / "owner")
    MAKER.save(tmp_path / "signing")
    for name in ("partner", "owner"):
        with pytest.raises(KeyFileError, match="does not hold a signing key"):
            SigningKey.load(tmp_path / name)
    for kind in (Key, Owner):
        with pytest.raises(SDBError):
            kind.load(tmp_path / "signing")


@pytest.mark.parametrize("change", [{"id": "0" * 32}, {"secret": "11" * 32}, {"secret": "11" * 16}])
def test_an_altered_key_file_is_refused(tmp_path, change):
    MAKER.save(tmp_path / "k")
    (tmp_path / "k").write_text(json.dumps(json.loads((tmp_path / "k").read_text()) | change))
    with pytest.raises(KeyFileError, match="do not belong together"):
        SigningKey.load(tmp_path / "k")


@pytest.mark.parametrize(
    "data", [b"", b"not pem", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_public_key_is_refused(tmp_path, data):
    (tmp_path / "pub").write_bytes(data)
    with pytest.raises(KeyFileError, match="not the PEM of an Ed25519"):
        read_public(tmp_path / "pub")
    with pytest.raises(KeyFileError, match="cannot read"):
        read_public(tmp_path / "absent")


def test_a_public_key_of_another_algorithm_is_refused(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileError, match="Ed25519"):
        read_public(tmp_path / "pub")


# --- OpenSSF model-signing, extra `sign` -----------------------------------------------------------------------------


def test_model_signing_signs_and_verifies_a_folder_with_an_exported_file_offline(box, tmp_path):
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    from sdb.export import export

    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    (tmp_path / "ec.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "shipped").mkdir()
    export(box, tmp_path / "shipped/model.pt2", "pt2")
    box.save(tmp_path / "shipped/model.box")

    def model_signing(*arguments):
        """As docs/export.md has it; a proxy that is nowhere shows that nothing is asked of a network."""
        return subprocess.run(
            [sys.executable, "-m", "model_signing", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path)},
        )

    done = model_signing("sign", "key", "shipped", "--private_key", "ec.pem", "--signature", "shipped.sig")
    assert done.returncode == 0, done.stderr
    check = ("verify", "key", "shipped", "--public_key", "ec.pub", "--signature", "shipped.sig")
    assert model_signing(*check).returncode == 0
    Box.load(tmp_path / "shipped/model.box")  # the signature lies beside the folder, not in the box
    weights = tmp_path / "shipped/model.box/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    altered = model_signing(*check)
    assert altered.returncode != 0 and "mismatch" in (altered.stdout + altered.stderr).lower()
