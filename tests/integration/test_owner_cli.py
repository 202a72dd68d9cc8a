"""Owner, partners, passphrases and the budget, through the real command line."""

import json
import stat

import pytest

NET = {"model_name": "net", "model_args": {"num_channels": 4}, "subset_percent": 0.2, "batch_size": 32}
FIT = NET | {"epochs": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def sdb(quick_sdb):
    """A function that runs `sdb ARGS` and holds it to the outcome that is expected."""

    def run(*arguments, cwd, ok=True, **environment):
        done = quick_sdb(*arguments, cwd=cwd, env={"SDB_SCRYPT_LOG_N": "12", **environment})
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) is ok, done.stderr
        return done

    return run


def write(folder, **params):
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))


@pytest.fixture(scope="module")
def place(tmp_path_factory, sdb):
    """A teacher and a box for two partners of an owner."""
    place = tmp_path_factory.mktemp("owner")
    write(place / "teacher", **FIT)
    sdb("train", "teacher", cwd=place)
    sdb("key", "owner", "new", "owner.json", cwd=place)
    write(place / "box", **FIT, teacher="teacher", allowed_loss=1, owner="owner.json", partners=["anna", "bert"])
    sdb("wrap", "box", cwd=place)
    return place


def test_partners_open_the_box_and_strangers_do_not(place, sdb):
    for name in ("anna", "bert"):
        sdb("key", "partner", name, "--owner", "owner.json", cwd=place)
        done = sdb("evaluate", "box", "--key", f"{name}.key.json", cwd=place)
        assert json.loads(done.stdout)["keyed"] == json.loads((place / "box/result.json").read_text())["keyed"]
    sdb("key", "partner", "mallory", "--owner", "owner.json", cwd=place)
    refused = sdb("evaluate", "box", "--key", "mallory.key.json", cwd=place, ok=False)
    assert refused.returncode == 2 and "is of another box" in refused.stderr


def test_a_partner_is_added_later_without_data(place, sdb):
    before = (place / "box/box/weights.safetensors").read_bytes()
    sdb("key", "partner", "carl", "--owner", "owner.json", "--box", "box/box", cwd=place, SDB_DATA="/nonexistent")
    assert (place / "box/box/weights.safetensors").read_bytes() == before
    keyed = [
        json.loads(sdb("evaluate", "box", "--key", f"{name}.key.json", cwd=place).stdout)["keyed"]
        for name in ("anna", "carl")
        if (place / f"{name}.key.json").exists()
    ]
    assert keyed and len(set(keyed)) == 1


def test_another_owner_cannot_add_a_partner(place, sdb):
    sdb("key", "owner", "new", "thief.json", cwd=place)
    refused = sdb("key", "partner", "x", "--owner", "thief.json", "--box", "box/box", cwd=place, ok=False)
    assert "does not own this box" in refused.stderr and not (place / "x.key.json").exists()


def test_owner_files_are_private_encrypted_on_demand_and_never_replaced(place, sdb):
    sdb("key", "owner", "new", "locked.json", "--encrypt", cwd=place, SDB_PASSPHRASE="correct horse")
    path = place / "locked.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in json.loads(path.read_text())
    sdb("key", "partner", "dora", "--owner", "locked.json", cwd=place, SDB_PASSPHRASE="correct horse")
    wrong = sdb("key", "partner", "e", "--owner", "locked.json", cwd=place, ok=False, SDB_PASSPHRASE="x")
    assert "wrong passphrase" in wrong.stderr
    missing = sdb("key", "partner", "e", "--owner", "locked.json", cwd=place, ok=False)
    assert "SDB_PASSPHRASE" in missing.stderr
    again = sdb("key", "owner", "new", "locked.json", cwd=place, ok=False)
    assert "choose another name" in again.stderr


def test_a_key_file_in_the_owners_place_is_refused_and_the_other_way_round(place, sdb):
    sdb("key", "new", "some.json", cwd=place)
    first = sdb("key", "partner", "x", "--owner", "some.json", cwd=place, ok=False)
    second = sdb("evaluate", "box", "--key", "owner.json", cwd=place, ok=False)
    assert "the owner's file is needed" in first.stderr and "is an owner's secret" in second.stderr


def test_without_an_owner_named_one_is_made_beside_the_key(place, sdb):
    write(place / "own", **FIT, teacher="teacher", allowed_loss=1)
    sdb("wrap", "own", cwd=place)
    assert {"key.json", "owner.json"} <= {path.name for path in (place / "own").iterdir()}
    sdb("trace", "own", "--box", "own/box", "--owner", "owner.json", cwd=place, ok=False)
    done = sdb("trace", "teacher", "--box", "own/box", "--owner", "own/owner.json", "--json", "-", cwd=place)
    assert json.loads(done.stdout)["p_value"] > 1e-6


def test_the_budget_is_kept_or_its_shortfall_is_said(place, sdb):
    write(place / "budget", **FIT, teacher="teacher", budget=0.5)
    result = json.loads(sdb("wrap", "budget", "--set", "epochs=1", cwd=place).stdout)
    assert len(result["budget"]["trials"]) == 3
    assert result["budget"]["met"] is (min(t["loss"] for t in result["budget"]["trials"]) <= 0.5)
    assert (place / "budget/box/box.json").exists() and (place / "budget/trials/2/last.safetensors").exists()


def test_partners_without_an_owner_are_refused(place, sdb):
    write(place / "bad", **FIT, teacher="teacher", partners=["anna"])
    refused = sdb("wrap", "bad", cwd=place, ok=False)
    assert refused.returncode == 2 and "set owner to the owner's file" in refused.stderr
