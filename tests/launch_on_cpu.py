"""Runs a script on CPUs as accelerate runs it on GPUs: gloo stands in for NCCL, all else is accelerate's own.

By itself accelerate takes up FSDP and DeepSpeed on GPUs alone.
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

PartialState._prepare_backend = lambda self, *rest: ("gloo", DistributedType.MULTI_GPU)
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
