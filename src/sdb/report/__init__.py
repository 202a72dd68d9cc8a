"""The report: self-contained pages and the words for what a run showed. It computes nothing but intervals."""

from sdb.report.page import write_report

__all__ = ["write_report"]
