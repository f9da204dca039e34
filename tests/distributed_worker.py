"""Trains adapters for three steps on this process's share of a batch; run by test_distributed.py.

python distributed_worker.py FAMILY TUNER VARIANT STRATEGY RANK FOLDER
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from models import CONFIGS, FAMILIES
from peft import get_peft_model
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from peft_vlsm.segmentation.training.processes import LAST_RESULT_SECONDS

BATCH, STEPS = 4, 3


def main(name: str, tuner: str, variant: str, strategy: str, rank: int, folder: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    torch.manual_seed(0)
    adapted = get_peft_model(family.build(), CONFIGS[tuner](variant=variant, adapter_dim=6, init_weights="paper"))
    world = 1 if strategy == "alone" else 2
    model = adapted
    if world == 2:
        meeting = f"file://{folder / strategy}"
        dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=world, rank=rank)
    if strategy == "ddp":
        model = DistributedDataParallel(adapted)
    if strategy == "fsdp":
        mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
        for module in adapted.modules():
            if type(module).__name__.endswith("EncoderLayer") or type(module).__name__ == "Sam3ViTLayer":
                fully_shard(module, mesh=mesh)
        # fully_shard takes no scalars, and the base model's logit scale is one.
        fully_shard(adapted, mesh=mesh, ignored_params={p for p in adapted.parameters() if p.dim() == 0})
    inputs = family.inputs(adapted, batch=BATCH)
    share = {key: value.chunk(world)[rank] for key, value in inputs.items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(STEPS):
        family.loss(model, share).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {
        key: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
        for key, parameter in adapted.named_parameters()
        if "vlsm_" in key
    }
    if rank == 0:
        save_file({key: value.contiguous() for key, value in trained.items()}, folder / f"{strategy}.safetensors")
    if world == 2:
        dist.barrier()
        time.sleep(LAST_RESULT_SECONDS)
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), Path(sys.argv[6]))
