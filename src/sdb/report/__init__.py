"""The report: one self-contained HTML page that says what a run showed, in words that follow the numbers."""

from sdb.report.page import write_report

__all__ = ["write_report"]
