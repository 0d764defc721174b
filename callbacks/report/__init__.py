"""The run report.

Read read.py (files -> Run), panels.py (which curves), figures.py, page.py, callback.py.
"""

from callbacks.report.callback import RunReport, write_report
from callbacks.report.read import read_run

__all__ = ["RunReport", "read_run", "write_report"]
