"""Decoding steps as CUDA graphs: one launch instead of one for each operation.

A decoding step of 28 layers is about 1,400 small operations, and the host needs longer to launch
them than a GPU to compute them (docs/gpu.md). A graph records the launches of a step once and
repeats all of them at once. Results are equal bit for bit: the same kernels run on the same
addresses.

Example: the steps of one generation, by bucket (what decides shapes and addresses of a step):

    step      0    1    2    3    4    5    6
    bucket    a    a    a    b    b    b    a
              run  cap. rep. run  cap. rep. rep.

The first step of a bucket runs as it is, the second is captured and replayed, later ones are
replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from rlif_lightning.model.out_of_memory import is_out_of_memory
from rlif_lightning.processes.ranks import num_data_ranks, num_processes
from rlif_lightning.rollout.decoder_base import Decoder
from rlif_lightning.rollout.decoders import SharedPrefixDecoder


class StepGraphs:
    """The graphs of one generation, by bucket.

    Attributes:
        graphs: of each bucket that was seen; None = seen once, without a graph.
        replayed: how many times a graph was replayed.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.replayed = 0
        # Graphs run one after the other, so they may share the memory of what they compute between.
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, bucket: Hashable, work: Callable[[], None]) -> None:
        """Run part of a step, or replay its graph.

        Args:
            bucket: what decides the operations of ``work``, their shapes and their addresses.
            work: reads and writes tensors that stay at their addresses; it neither uploads nor
                waits.

        Raises:
            RuntimeError: the step cannot be captured; names the setting.
        """
        if bucket not in self.graphs:
            # Autocast casts weights and libraries choose their kernels here, and not in a graph.
            self.graphs[bucket] = None
            work()
            return
        graph = self.graphs[bucket]
        if graph is None:
            graph = self.graphs[bucket] = self._captured(work)
        graph.replay()
        self.replayed += 1

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):  # records without computing
                work()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RuntimeError(
                "a decoding step of this model cannot be a CUDA graph: a layer waits for the GPU or"
                " copies to the host; set model.engine.cuda_graphs=false"
            ) from error
        return graph


def refuse_uncapturable(decoder: Decoder, device: torch.device) -> None:
    """Raise where the steps of a decoder cannot be graphs.

    Raises:
        ValueError: not on a GPU; a model that is decoded otherwise; processes that draw together.
    """
    if device.type != "cuda":
        why = f"a policy on {device.type}, and they exist on NVIDIA and AMD GPUs alone"
    elif num_processes() != num_data_ranks():
        why = "processes that draw the same completions (tensor parallelism)"
    elif not isinstance(decoder, SharedPrefixDecoder):
        why = f"a model that needs {type(decoder).__name__}, whose steps change their shapes"
    else:
        return
    raise ValueError(f"engine.cuda_graphs=true does not serve {why}; set it to false")
