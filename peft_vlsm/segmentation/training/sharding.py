"""
A run's model and optimizer after accelerate prepared them, each process holding all of them or only its part.

| launched with | weights | gradients and optimizer |
| --- | --- | --- |
| one process, DistributedDataParallel | all | all |
| DeepSpeed's ZeRO 1 and 2 | all | a part |
| FSDP2 | a part | a part |

What is saved is whole, and the same whatever the run was launched with.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import DistributedType, load_fsdp_optimizer, save_fsdp_optimizer
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader

from peft_vlsm.architectures.reach import layer_names
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import weights_to_save
from peft_vlsm.segmentation.models.segmenter import base_of, family_of

_SIXTEEN_BITS = {"fp16": "float16", "bf16": "bfloat16"}


def check_launch(accelerator: Accelerator) -> None:
    """
    Refuses what a run cannot be launched with.

    Raises:
        InputError: the processes do not know of each other, FSDP 1, ZeRO 3, or a setting under which the processes
            begin with other weights.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched > 1 and accelerator.num_processes == 1:
        raise InputError(
            f"{launched} processes were launched that do not know of each other, since there is no GPU for each; on a "
            f"CPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} examples/finetune.py"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        if plugin.fsdp_version != 2:
            raise InputError(f"fsdp_version {plugin.fsdp_version} of accelerate's configuration must be 2")
        if plugin.cpu_ram_efficient_loading:
            raise InputError("fsdp_cpu_ram_efficient_loading true of accelerate's configuration must be false")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        stage = plugin.zero_stage
        if stage not in (1, 2):
            raise InputError(f"zero_stage {stage} of accelerate's configuration must be 1 or 2; or take FSDP2")


class PreparedRun:
    """
    A model and its optimizer as accelerate prepares them.

    Args:
        accelerator ([`~accelerate.Accelerator`]): of the run, see [`check_launch`].
        model (`torch.nn.Module`): bare, on the device, with `requires_grad` at what trains.
        optimizer (`torch.optim.Optimizer`): of what trains.
        loaders (`list[DataLoader]`): of evaluation.
        batch_size (`int`): rows in a training batch of one process.
        max_grad_norm (`float`): for DeepSpeed, which clips gradients itself.

    Raises:
        InputError: a weight that trains cannot be cut into parts.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loaders: list[DataLoader],
        batch_size: int,
        max_grad_norm: float,
    ):
        self.accelerator = accelerator
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.deepspeed or accelerator.is_fsdp2:
            _keep_scalars_whole(model)
        if accelerator.is_fsdp2:
            _name_layers(accelerator, model)
        if self.deepspeed:
            _settle_deepspeed(accelerator, batch_size, max_grad_norm)
        with _no_input_embeddings(model):
            self.model, self.optimizer, *self.loaders = accelerator.prepare(model, optimizer, *loaders)
        self.bare_model: torch.nn.Module = accelerator.unwrap_model(self.model)
        self.trainable = {name: value for name, value in self.bare_model.named_parameters() if value.requires_grad}

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """What trains, whole, in copies on the CPU; all processes call it."""
        return {name: self._whole(value).cpu().clone() for name, value in self.trainable.items()}

    @torch.no_grad()
    def put_trained_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Puts back what [`trained_weights`] gave."""
        for module in self.bare_model.modules():
            # What FSDP gathered for the last forward pass would stay in use.
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, value in self.trainable.items():
            whole = weights[name].to(value.device)
            if isinstance(value, DTensor):
                whole = distribute_tensor(whole, value.device_mesh, value.placements)
            value.copy_(whole)

    def weights_to_save(self) -> dict[str, torch.Tensor]:
        """What [`save_finetuned`] writes, whole; all processes call it."""
        parameters = self.trainable if self.deepspeed else {}
        weights = weights_to_save(self.bare_model)
        return {name: self._whole(parameters.get(name, value)) for name, value in weights.items()}

    def _whole(self, value: torch.Tensor) -> torch.Tensor:
        return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()

    def save_states(self, folder: Path) -> None:
        """Writes the optimizer's and the random states; all processes call it."""
        if self.accelerator.is_fsdp2:
            # save_state would write the base model too.
            process, step, scaler = self.accelerator.process_index, self.accelerator.step, self.accelerator.scaler
            save_accelerator_state(str(folder), [], [], [], [], process, step, scaler)
            save_fsdp_optimizer(
                self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, str(folder)
            )
        elif self.deepspeed:
            self.accelerator.save_state(str(folder), exclude_frozen_parameters=True)
        else:
            with _without_models(self.accelerator):
                self.accelerator.save_state(str(folder))

    def load_states(self, folder: Path) -> None:
        """Reads what [`save_states`] wrote; nothing in it is run as code."""
        if self.accelerator.is_fsdp2:
            process, scaler = self.accelerator.process_index, self.accelerator.scaler
            override = load_accelerator_state(str(folder), [], [], [], [], process, scaler)
            self.accelerator.step = override.get("step", self.accelerator.step)
            load_fsdp_optimizer(
                self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, str(folder)
            )
        elif self.deepspeed:
            with _weights_only():
                self.accelerator.load_state(str(folder), load_module_strict=False)
        else:
            with _without_models(self.accelerator):
                self.accelerator.load_state(str(folder))


def _settle_deepspeed(accelerator: Accelerator, batch_size: int, max_grad_norm: float) -> None:
    """The run's settings are what counts; 16 bits are autocast's, so that the weights that train stay in float32."""
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None
    config = plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = batch_size
    config["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps
    config["gradient_clipping"] = max_grad_norm
    if accelerator.mixed_precision in _SIXTEEN_BITS:
        dtype = _SIXTEEN_BITS[accelerator.mixed_precision]
        config["fp16"], config["bf16"] = {"enabled": False}, {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": dtype}


def _keep_scalars_whole(model: torch.nn.Module) -> None:
    """FSDP2 refuses single numbers such as CLIP's logit_scale, and DeepSpeed 0.19.8 fails: as buffers they pass."""
    scalars = [name for name, value in model.named_parameters() if value.dim() == 0]
    for name in scalars:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        value = module.get_parameter(last)
        if value.requires_grad:
            raise InputError(
                f"{name} is a single number that trains, which cannot be cut into parts; use several GPUs"
                " without FSDP2 and DeepSpeed"
            )
        delattr(module, last)
        module.register_buffer(last, value.detach())


def _name_layers(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """The layers of the encoders are what FSDP2 cuts: transformers' own list names some that a SAM3 does not have."""
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    if plugin.transformer_cls_names_to_wrap is None:
        base, family = base_of(model), family_of(model)
        encoders = [encoder for encoder in (family.vision, family.text) if encoder is not None]
        layers = {base.get_submodule(name) for encoder in encoders for name in layer_names(encoder, base)}
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})


@contextmanager
def _no_input_embeddings(model: torch.nn.Module) -> Iterator[None]:
    """accelerate's FSDP2 asks for input embeddings, which a model with two encoders does not have but as an error."""
    base = base_of(model)
    vars(base)["get_input_embeddings"] = lambda: None
    try:
        yield
    finally:
        del vars(base)["get_input_embeddings"]


@contextmanager
def _without_models(accelerator: Accelerator) -> Iterator[None]:
    """accelerate would write and read the whole model, base and all."""
    handles = [
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear()),
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _weights_only() -> Iterator[None]:
    """DeepSpeed unpickles its files with whatever they hold; here with its own four types alone."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler  # pyright: ignore
    from deepspeed.runtime.zero.config import ZeroStageEnum  # pyright: ignore
    from deepspeed.utils.tensor_fragment import fragment_address  # pyright: ignore

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
