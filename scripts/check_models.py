"""Whether this library computes each causal LM's own log-probs: the table of docs/models.md.

Builds a small random model of every type of Transformers' causal-LM mapping, and makes the comparison that each run
makes before it trains (``rlif_lightning/rollout/self_check.py``), for model.policy.attention=sdpa and eager.

    python scripts/check_models.py --write          # docs/models.md anew, about three minutes on one core
    python scripts/check_models.py granite phi3     # a few types, one line each
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlif_lightning.model.shrunken import NotShrinkable
from rlif_lightning.rollout.self_check import Verdict, examine

SECONDS = 60  # for one type and one kind of attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)
    warnings.simplefilter("ignore")
    for kind in args.types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        t = time.time()
        out = {}
        for attention in ("sdpa", "eager"):
            try:
                v = examine(CONFIG_MAPPING[kind](), attention)
                out[attention] = ("shared" if v.shares_prompts else "dense", *v.faults)
            except NotShrinkable as e:
                out[attention] = ("NOT", str(e))
                break
            except Exception as e:
                out[attention] = ("EXC", repr(e)[:300])
                break
        print(json.dumps([kind, out, round(time.time() - t, 2)]), flush=True)


main()
