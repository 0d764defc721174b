"""Callbacks that watch or steer a run. Your own folder ``callbacks/``, without an ``__init__.py``, joins this one."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

from callbacks.collapse_guard import CollapseGuard
from callbacks.entropy_monitor import EntropyMonitor
from callbacks.kl_cov_scheduler import KLCovScheduler

__all__ = ["CollapseGuard", "EntropyMonitor", "KLCovScheduler"]
