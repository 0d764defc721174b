"""A device twin: ``cuda`` tensors on a machine without a GPU, for tests.

``install()`` fills the empty CUDA backend of a CPU build of PyTorch (``backend.cpp``, built once by g++). From then on, and
until the process ends, ``device="cuda"`` works: tensors are real, say ``cuda:0`` and take every branch for CUDA, and each
operation runs the CPU's kernel on host memory. ``watched()`` counts what a GPU would be asked for (``counting.py``).

- Honoured: factories, ``.to``, ``torch.tensor(device=)``, autograd on the device's own thread, ``autocast("cuda")``, fused
  AdamW, ``torch.save`` and ``torch.load`` with ``map_location``, pinned memory, events, ``causal_lower_right``, and of
  ``torch.cuda`` what Lightning and PyTorch's own code ask.
- Refused as CUDA refuses it: an operation on tensors of two devices (numbers of the host pass where they pass on CUDA),
  ``.numpy()``, attention of several dtypes. Refused although CUDA has it: a generator of the device, a second device.
- Counted, by call site: launches (operations that are no view), host waits (``.item()``, ``.cpu()``, ``bool()``,
  ``nonzero``, boolean indices, ...), uploads (copies from host to device). An upload from memory that is not pinned waits too.
- Not said: the numbers of CUDA's kernels, their speed and memory, NCCL, streams and their races, kernels that CUDA does not
  have, Triton and ``torch.compile``. One operation may be several kernels, or be fused with others. Which attention kernel
  CUDA would take is a restatement of PyTorch's rules (16-bit or float32, no dropout, no cuDNN), not its code.

A process that installed it stays so. Tests that need it therefore lie in this folder and run in a pytest of their own,
which ``tests/test_device_twin.py`` starts::

    PYTHONPATH=tests python -m pytest -p device_twin.plugin tests/device_twin/test_backend.py

``python tests/count_launches.py`` prints the counts of decoding and of an update.
"""
