"""Distil a student from a box that somebody else serves.

Start a server in another terminal, then:

    sdb serve model.box
    python examples/distil_from_remote.py http://127.0.0.1:8000/v2/models/box                    # a thief
    python examples/distil_from_remote.py http://127.0.0.1:8000/v2/models/box --key key.json     # a partner

The key must be an image key; the partner of a weight-key box gives --token-env VARIABLE instead. The same without any
code: sdb distill DIR --set teacher_url=URL (docs/method.md).
"""

import argparse
from pathlib import Path

import sdb
from sdb.remote import RemoteTeacher, token_from
from sdb.training.evaluation import evaluate, evaluation_batches

parser = argparse.ArgumentParser(description="Distil a student from a remote box.")
parser.add_argument("url", help="http://HOST:PORT/v2/models/NAME")
parser.add_argument("--key", type=Path, help="image key file")
parser.add_argument("--token-env", help="environment variable that holds an API token")
parser.add_argument(
    "--cache", type=Path, default=Path("answers.sqlite"), help="keeps the answers: none is paid twice"
)
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()

data = sdb.load_data("digits")
teacher = RemoteTeacher(
    options.url,
    key=sdb.Key.load(options.key) if options.key else None,
    token=token_from(options.token_env),
    cache=options.cache,
)
teacher.check_fits(data.num_classes, data.image_shape)

spec = sdb.ModelSpec("net", {"num_channels": 8}, data.num_classes, data.image_shape, data.mean, data.std)
student = spec.build()
# Eight views of every image, used in turn, bound what is asked: at most 8 x the training images.
settings = sdb.DistillSettings(epochs=options.epochs, learning_rate=0.003, views=8)
sdb.distill(teacher, student, data, settings)

accuracy = evaluate(student, evaluation_batches(data.test, next(student.parameters()).device))["accuracy"]
print(f"accuracy {100 * accuracy:.1f} %; {teacher.counts['asked']} images asked")
