"""The run report.

Read read.py (files -> Run), curves.py, panels.py (which curves), figures.py, tables.py, page.py
and callback.py.
"""

from callbacks.report.callback import RunReport, write_report
from callbacks.report.read import read_run

__all__ = ["RunReport", "read_run", "write_report"]
