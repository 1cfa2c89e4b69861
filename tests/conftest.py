"""For every test: one thread each. The models are tiny, and `make test` runs a worker on every core."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch

torch.set_num_threads(1)
