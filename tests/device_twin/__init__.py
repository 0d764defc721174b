"""A device twin: ``cuda`` tensors on a machine without a GPU, for tests.

``install()`` fills the empty CUDA backend of a CPU build of PyTorch (``backend.cpp``, built once by
g++). From then on, until the process ends, ``device="cuda"`` works: tensors are real, say
``cuda:0`` and take every branch for CUDA; each operation runs the CPU's kernel on host memory.
``watched()`` counts what a GPU would be asked for (``counting.py``).

- Honoured: factories, ``.to``, ``torch.tensor(device=)``, autograd on the device's own thread,
  ``autocast("cuda")``, fused AdamW, ``torch.save`` and ``torch.load`` with ``map_location``, pinned
  memory, events, ``causal_lower_right``, and of ``torch.cuda`` what Lightning and PyTorch's own
  code ask.
- Refused as CUDA refuses it: an operation on tensors of two devices (numbers of the host pass where
  they pass on CUDA), ``.numpy()``, attention of several dtypes. Refused although CUDA has it: a
  generator of the device, a second device.
- Counted, by call site: launches (operations that are neither view nor allocation), host waits
  (``.item()``, ``.cpu()``, ``bool()``, ``nonzero``, boolean indices, ...), uploads (copies from
  host to device). On a GPU, an upload from memory that is not pinned waits too; it is counted as an
  upload alone.
- Not said: the numbers of CUDA's kernels, their speed and memory, NCCL, streams and their races,
  which kernels CUDA does not have, Triton and ``torch.compile``. One operation may be several
  kernels, or be fused with others, and what an operation does inside (``multinomial`` is several
  kernels) is not seen. Which attention kernel CUDA would take is a restatement of PyTorch's rules
  (16-bit or float32, no dropout, no cuDNN), not its code.

A process that installed it stays so. So the tests that need it lie in this folder, which a plain
``pytest`` passes by (``norecursedirs``); ``tests/test_device_twin.py`` starts a pytest of their own
for each file. By hand::

    python -m pytest tests/device_twin/test_backend.py
    python tests/count_launches.py    # counts of a decode step and of a micro-batch
"""
