"""Distilling from afar against a real `sdb serve`: thief, partners, limits, and a kill in the middle."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

EXAMPLES = Path(__file__).parents[2] / "examples"
# Without batch norm and with plain steps, training makes little of the rounding of answers in other batch sizes.
PLAIN = {"model_name": "mlp", "num_channels": None, "optimizer": "sgd", "learning_rate": 0.01}
DISTIL = {"epochs": 3, "kd_temperature": 4} | PLAIN


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, write_params):
    """A teacher, a box for an image key, and one for a weight key."""
    place = tmp_path_factory.mktemp("afar")
    write_params(place / "teacher", epochs=3, learning_rate=0.01)
    write_params(
        place / "image", teacher="teacher", method="sdb", key_blend=0.5, disturbance_weight=0.1, allowed_loss=1
    )
    write_params(place / "weight", teacher="teacher", allowed_loss=1)
    for command, folder in (("train", "teacher"), ("wrap", "image"), ("wrap", "weight")):
        done = quick_sdb(command, folder, cwd=place)
        assert done.returncode == 0, done.stderr
    return place


@contextlib.contextmanager
def serving(place, sdb_command, *arguments):
    """`sdb serve` on a free port; gives the model's URL."""
    command, environment = sdb_command
    with subprocess.Popen(
        [*command, "serve", *map(str, arguments), "--port", "0"],
        cwd=place,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"serving box at (http://\S+?)/? ", line):
                    break
            else:
                pytest.fail("the server did not start: " + "".join(said))
            yield f"{found[1]}/v2/models/box"
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


@pytest.fixture(scope="module")
def image_server(place, sdb_command):
    with serving(place, sdb_command, "image/box") as url:
        yield url


def answered(url):
    """How many images the server has answered, by its own count."""
    with urllib.request.urlopen(url.partition("/v2/")[0] + "/metrics") as page:
        return float(re.search(r"^sdb_images_total (\S+)", page.read().decode(), re.M)[1])


def settled(url):
    """The same, when what a killed client left under way has been answered."""
    last = -1.0
    while (now := answered(url)) != last:
        last = now
        time.sleep(0.2)
    return last


def model_of(folder):
    return {name: t for name, t in load_file(folder / "last.safetensors").items() if name.startswith("model.")}


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def assert_same_student(first, second):
    one, other = model_of(first), model_of(second)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", [None, "image/key.json"], ids=["thief", "partner"])
def test_a_remote_student_is_the_local_one(place, quick_sdb, write_params, image_server, key):
    who = "partner" if key else "thief"
    keyed = ["--key", key] if key else []
    write_params(place / f"local-{who}", teacher="image", **DISTIL)
    write_params(place / f"remote-{who}", teacher_url=image_server, **DISTIL)
    before = answered(image_server)
    for kind in ("local", "remote"):
        done = quick_sdb("distill", f"{kind}-{who}", *keyed, cwd=place)
        assert done.returncode == 0, done.stderr
    assert_same_student(place / f"local-{who}", place / f"remote-{who}")
    local, remote = result_of(place / f"local-{who}"), result_of(place / f"remote-{who}")
    assert (local["accuracy"], local["best_epoch"]) == (remote["accuracy"], remote["best_epoch"])
    assert remote["queries"]["asked"] == answered(image_server) - before
    assert remote["queries"]["from_cache"] > 0  # augmentation of 8x8 images comes upon the same ones again


def test_a_thief_and_a_partner_learn_different_things(place):
    thief, partner = model_of(place / "remote-thief"), model_of(place / "remote-partner")
    assert any(not torch.allclose(thief[name], partner[name], atol=1e-3) for name in thief)


def test_the_run_says_what_it_cost_and_views_bound_it(place, quick_sdb, write_params, image_server):
    write_params(place / "views", teacher_url=image_server, **DISTIL | {"epochs": 4})
    done = quick_sdb("distill", "views", "--set", "views=1", cwd=place)
    assert done.returncode == 0, done.stderr
    queries = json.loads(done.stdout)["queries"]
    local = json.loads((place / "views/params.resolved.json").read_text())
    assert local["views"] == 1
    images = sum(queries.values()) // 4
    assert queries["asked"] <= 2 * images  # 64 of a batch at most are left out of an epoch, and come in another
    assert f"asking {image_server} for logits" in (place / "views/training.log").read_text()


def rows(folder):
    path = folder / "answers.sqlite"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.OperationalError):
        return database.execute("SELECT count(*) FROM answers").fetchone()[0]
    return 0


def test_after_a_kill_nothing_is_asked_twice_and_the_student_is_the_same(
    place, quick_sdb, write_params, sdb_command, image_server
):
    long = DISTIL | {"epochs": 6, "batch_size": 32, "teacher_url": image_server}
    write_params(place / "whole", **long)
    assert quick_sdb("distill", "whole", cwd=place).returncode == 0
    total = result_of(place / "whole")["queries"]["asked"]

    write_params(place / "killed", **long)
    command, environment = sdb_command
    process = subprocess.Popen(
        [*command, "distill", "killed"],
        cwd=place,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while rows(place / "killed") < total // 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = rows(place / "killed")
    assert total // 3 <= kept < total
    before = settled(image_server)
    done = quick_sdb("distill", "killed", "--resume", cwd=place)
    assert done.returncode == 0, done.stderr
    assert answered(image_server) - before == total - kept
    assert result_of(place / "killed")["queries"]["asked"] == total
    assert result_of(place / "killed")["accuracy"] == result_of(place / "whole")["accuracy"]
    assert_same_student(place / "killed", place / "whole")


def test_a_run_that_is_begun_again_pays_for_nothing_twice(place, quick_sdb, image_server):
    before = answered(image_server)
    done = quick_sdb("distill", "remote-thief", "--overwrite", cwd=place)
    assert done.returncode == 0, done.stderr
    assert answered(image_server) == before
    assert_same_student(place / "local-thief", place / "remote-thief")


@pytest.mark.parametrize("key", [None, "image/key.json"], ids=["thief", "partner"])
def test_the_example_runs(place, image_server, tmp_path, key):
    command = [sys.executable, str(EXAMPLES / "distil_from_remote.py"), image_server, "--epochs", "1"]
    command += ["--cache", str(tmp_path / "answers.sqlite"), *(["--key", key] if key else [])]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"accuracy .*%.* asked", done.stdout)


# --- tokens and limits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(place):
    """Tokens of a partner, of a stranger with a small budget, and of one who may ask slowly; none is in a file."""
    from sdb.keys import Key
    from sdb.service.watch.limits import Limits
    from sdb.service.watch.tokens import TokenFile

    file = TokenFile(place / "tokens.db", create=True)
    partner = Key.load(place / "weight/key.json").id
    return {
        "PARTNER": file.add("hospital", partner),
        "POOR": file.add("poor", limits=Limits(images_total=200)),
        "SLOW": file.add("slow", limits=Limits(rate=400.0, burst=64)),
        "LABELS": file.add("labels", answers="labels"),
    }


@pytest.fixture(scope="module")
def weight_server(place, sdb_command, tokens):
    arguments = ("weight/box", "--tokens", "tokens.db", "--partner-keys", "weight/key.json")
    with serving(place, sdb_command, *arguments) as url:
        yield url


def test_a_weight_key_partner_comes_with_a_token_and_is_the_local_partner(
    place, quick_sdb, write_params, weight_server, tokens
):
    write_params(place / "here", teacher="weight", **DISTIL)
    write_params(place / "there", teacher_url=weight_server, teacher_token_env="HOSPITAL_TOKEN", **DISTIL)
    assert quick_sdb("distill", "here", "--key", "weight/key.json", cwd=place).returncode == 0
    done = quick_sdb("distill", "there", cwd=place, env={"HOSPITAL_TOKEN": tokens["PARTNER"]})
    assert done.returncode == 0, done.stderr
    assert_same_student(place / "here", place / "there")
    for path in (place / "there").iterdir():
        assert tokens["PARTNER"].encode() not in path.read_bytes(), path.name
    assert tokens["PARTNER"] not in done.stdout + done.stderr


def test_who_is_rated_waits_and_gets_there(place, quick_sdb, write_params, weight_server, tokens):
    write_params(place / "slow", teacher_url=weight_server, teacher_token_env="T", **DISTIL | {"epochs": 1})
    done = quick_sdb("distill", "slow", cwd=place, env={"T": tokens["SLOW"]})
    assert done.returncode == 0, done.stderr
    write_params(place / "thief", teacher="weight", **DISTIL | {"epochs": 1})
    assert quick_sdb("distill", "thief", cwd=place).returncode == 0
    assert_same_student(place / "slow", place / "thief")


def test_a_spent_budget_ends_the_run_in_one_line_and_keeps_what_was_paid_for(
    place, quick_sdb, write_params, weight_server, tokens
):
    write_params(place / "poor", teacher_url=weight_server, teacher_token_env="T", **DISTIL)
    for resume in ([], ["--resume"]):
        done = quick_sdb("distill", "poor", *resume, cwd=place, env={"T": tokens["POOR"]})
        assert done.returncode == 2 and done.stderr.count("\n") <= 2, done.stderr
        assert "429" in done.stderr and "--resume" in done.stderr
    assert 64 <= rows(place / "poor") <= 200
    log = (place / "poor/training.log").read_text()
    assert "RemoteError" in log and "answered 429" in log and tokens["POOR"] not in log


@pytest.mark.parametrize(
    ("changes", "env", "says"),
    [
        ({"teacher_token_env": "T"}, {}, "no such environment variable"),
        ({"teacher_token_env": "T"}, {"T": "LABELS"}, "gives labels"),
        ({"teacher_url": "http://127.0.0.1:9/v2/models/box"}, {}, "is the server running"),
        ({"teacher_url": "SERVER/v2/models/other"}, {}, "check the model's name"),
        ({"teacher_url": "http://me:secret@host/v2/models/box"}, {}, "teacher_url: holds a user name or password"),
        ({"key": "weight/key.json"}, {}, "teacher_token_env"),
        ({"teacher": "weight"}, {}, "one of the two"),
        ({"dataset": "folder", "data_root": "pictures"}, {}, "knows 10 classes"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    place, quick_sdb, write_params, weight_server, tokens, changes, env, says, tmp_path
):
    if "data_root" in changes:
        from PIL import Image

        for split in ("train", "test"):
            for label in ("a", "b"):
                (tmp_path / "pictures" / split / label).mkdir(parents=True)
                for number in range(10):
                    Image.new("L", (8, 8), number).save(tmp_path / "pictures" / split / label / f"{number}.png")
        changes = changes | {"data_root": str(tmp_path / "pictures")}
    values = {"teacher_url": weight_server} | changes
    values["teacher_url"] = values["teacher_url"].replace("SERVER", weight_server.partition("/v2/")[0])
    write_params(tmp_path / "run", **DISTIL, **values)
    done = quick_sdb("distill", tmp_path / "run", cwd=place, env={n: tokens[v] for n, v in env.items()})
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "secret" not in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["params.json"]


def test_several_processes_are_refused(place, quick_sdb, image_server):
    done = quick_sdb("distill", "remote-thief", "--overwrite", cwd=place, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2 and "one process" in done.stderr
    assert (place / "remote-thief/result.json").exists()
