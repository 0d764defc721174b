"""Callbacks that watch or steer a run.

Your own folder ``callbacks/``, without an ``__init__.py``, joins this one.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

from callbacks.checker_monitor import CheckerMonitor
from callbacks.collapse_guard import CollapseGuard
from callbacks.completion_writer import CompletionWriter
from callbacks.entropy_monitor import EntropyMonitor
from callbacks.hf_exporter import HFExporter
from callbacks.hub_exporter import HubExporter
from callbacks.kl_cov_scheduler import KLCovScheduler
from callbacks.label_free_stopping import LabelFreeStopping
from callbacks.learning_rate_factors import LearningRateFactors
from callbacks.overclaim_monitor import OverclaimMonitor
from callbacks.report import RunReport
from callbacks.sampler_gap import SamplerGap
from callbacks.sandbox_trace import SandboxTrace
from callbacks.stare_controller import STAREController

__all__ = [
    "CheckerMonitor",
    "CollapseGuard",
    "CompletionWriter",
    "EntropyMonitor",
    "HFExporter",
    "HubExporter",
    "KLCovScheduler",
    "LabelFreeStopping",
    "LearningRateFactors",
    "OverclaimMonitor",
    "RunReport",
    "STAREController",
    "SamplerGap",
    "SandboxTrace",
]
