"""A server killed under load: counts of the last second may be lost, an alert that was told may not."""

import json
import signal
import subprocess
import sys
import time

import pytest

from sdb.service.watch import Limits, LimitSet, Principal, TokenFile, Watch

# Four threads admit as fast as they can and say every hundredth time how much they had admitted by when.
LOAD = """
import sys, threading, time
from sdb.service.watch import LimitSet, Limits, Principal, Watch

limits = LimitSet(named=Limits(images_total=4_000), everyone=Limits())
watch = Watch.open(sys.argv[1], sys.argv[2], limits, alerts=sys.argv[3])
lock = threading.Lock()

def ask(thread):
    number = 0
    while True:
        number += 1
        name = f"user{thread}-{10 * int(sys.argv[4]) + number // 1500 % 10}"
        allowed = watch.admit(Principal(name), 3).allowed
        if number % 100 == 0:
            with lock:
                sys.stdout.write(f"{time.monotonic()} {int(watch.metrics()['images_admitted'])}\\n")
                sys.stdout.flush()
        time.sleep(0.0002)

for thread in range(4):
    threading.Thread(target=ask, args=(thread,), daemon=True).start()
time.sleep(60)
"""


@pytest.fixture
def places(tmp_path):
    tokens = TokenFile(tmp_path / "tokens.db", create=True)
    for thread in range(4):
        for number in range(40):
            tokens.add(f"user{thread}-{number}")
    return tmp_path / "watch.db", tokens.path, tmp_path / "alerts.jsonl"


def admitted_when_killed(places, seconds, run=0):
    """Run the load, kill it, and say what it had admitted one second before its last words, and by them."""
    with subprocess.Popen(
        [sys.executable, "-c", LOAD, *map(str, places), str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline()]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines()
    # The last line may be cut off.
    said = [(float(when), int(count)) for when, count in (line.split() for line in lines + rest[:-1])]
    last = said[-1][0]
    return max((count for when, count in said if when <= last - 1.0), default=0), said[-1][1]


def test_a_killed_server_loses_a_second_of_counts_at_most_and_no_told_alert(places):
    alerts, kept = places[2], 0
    for run in range(3):
        before = kept
        low, high = admitted_when_killed(places, 1.6 + 0.37 * run, run)
        watch = Watch.open(*places[:2], LimitSet(everyone=Limits()), alerts=alerts.with_name("none"))
        kept = watch._accounts.volume("*")["total"]
        told = [json.loads(line) for line in alerts.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept_alerts = watch._store.alerts()
        watch.close()
        # Each of four threads may have admitted 100 times three images that it never said.
        assert low > 0 and before + low <= kept <= before + high + 1_200
        assert all(alert in kept_alerts for alert in told)
    assert len(told) > 0
    keys = [(alert["principal"], alert["kind"]) for alert in kept_alerts]
    assert len(keys) == len(set(keys))  # the cool-down goes on after a restart


def test_a_budget_that_was_spent_before_the_kill_is_spent_after_it(places):
    store, tokens, alerts = places
    admitted_when_killed(places, 5.0)
    watch = Watch.open(store, tokens, LimitSet(named=Limits(images_total=4_000)), alerts=alerts)
    spent = [f"user{thread}-0" for thread in range(4)]
    assert [watch.admit(Principal(name), 3).allowed for name in spent] == [False] * 4
    watch.close()
