"""The page of a trace by ties."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdb.report.trace_page import Row, _least, write_trace_page
from sdb.tracing.ties import log10_tail


def row(usable, hits, correction=0.3, name="bob", asked=None):
    log10_p = log10_tail(hits, usable)
    corrected = min(0.0, log10_p + correction)
    return Row(name, usable, asked or usable, usable, hits, log10_p, corrected, corrected < -6)


@given(st.integers(1, 80), st.sampled_from([-6.0, -2.0]))
def test_the_tick_is_where_an_account_is_named(usable, threshold):
    least = _least(row(usable, usable), threshold)
    named = [hits for hits in range(usable + 1) if log10_tail(hits, usable) + 0.3 < threshold]
    if log10_tail(usable, usable) + 0.3 < 0:  # else the correction is not known from the row
        assert least == (min(named) if named else None)


def page_of(tmp_path, rows, **changes):
    accounts = [
        {name: getattr(each, name) for name in Row.__dataclass_fields__} | {"account": "0"} for each in rows
    ]
    values = {
        "threshold_log10_p": -6.0,
        "questions": 9,
        "commitment": "ab" * 32,
        "lodged": False,
        "accounts": accounts,
    }
    write_trace_page(values | changes, "The sentence <b>.", "copy & co.onnx", tmp_path / "trace.html")
    return (tmp_path / "trace.html").read_text()


def test_the_page_stands_alone_and_escapes(tmp_path):
    page = page_of(tmp_path, [row(60, 55), row(60, 31, name="<script>", asked=70)])
    assert "An account is named" in page
    assert "The sentence &lt;b&gt;." in page
    assert "copy &amp; co.onnx" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "to 10 questions it answered neither" in page
    assert "Nothing was lodged before" in page
    assert "were fixed by the commitment" in page_of(tmp_path, [row(60, 30)], lodged=True)


@pytest.mark.parametrize("rows", [[], [row(1, 1)], [Row("a", 5, 0, 0, 0, 0.0, 0.0, False)]])
def test_with_nothing_to_draw_there_is_still_a_page(tmp_path, rows):
    assert "No account is named" in page_of(tmp_path, rows)


def test_many_accounts_are_all_in_the_table(tmp_path):
    page = page_of(tmp_path, [row(40, 20, name=f"account {number}") for number in range(60)])
    assert "The 25 accounts with the smallest p are drawn." in page
    assert page.count('<th scope="row">') == 60
