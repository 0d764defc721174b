"""Callbacks that watch or steer a run. A folder ``callbacks/`` of your own, without an ``__init__.py``, joins this one."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

from callbacks.entropy_monitor import EntropyMonitor  # noqa: E402
from callbacks.kl_cov_scheduler import KLCovScheduler  # noqa: E402

__all__ = ["EntropyMonitor", "KLCovScheduler"]
