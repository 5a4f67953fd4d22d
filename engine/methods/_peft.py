"""What the methods built on the peft library share: targets by role, seeded injection, change, export.

peft puts its layers into the model in place. The model itself, not peft's wrapper, is what is
trained: so the head keeps its name, peft neither copies nor freezes it, and the names of the added
tensors are those of `trainables`. The wrapper is kept beside it, for merging and for export.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import SpecError
from engine.methods.contract import Family, Method, MethodConfig
from engine.models.architecture import LINEAR_ROLES, Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER = "default"
"""peft's name of the one adapter; part of the added tensors' names."""
MAX_RANK = 1024
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]


class AdapterConfig(MethodConfig):
    """Settings common to the low-rank methods."""

    targets: tuple[Target, ...] = Field(
        ("q", "v"),
        min_length=1,
        title="Adapted matrices",
        description="Roles of the weight matrices that get an adapter, in every layer.",
        json_schema_extra={"source": "LoRA paper, section 7.1; peft's default for BERT and Llama"},
    )
    alpha: float = Field(
        8.0,
        gt=0,
        le=1024,
        title="Alpha",
        description="Scale of the update: it is multiplied by alpha over the rank.",
        json_schema_extra={"source": "peft", "level": "advanced"},
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Adapter dropout",
        description="Share of the adapter's inputs dropped while training.",
        json_schema_extra={"source": "peft", "level": "advanced"},
    )


class PeftMethod(Method):
    """A method whose layers are peft's."""

    family: ClassVar[Family] = "reparameterised"
    export_formats: ClassVar[tuple[str, ...]] = ("peft", "merged")

    @classmethod
    def targets_of(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The weight matrices that get an adapter, in model order.

        Raises:
            SpecError: when the model has none with these roles.
        """
        wanted = set(config.targets)
        if wanted & {"q", "k", "v"}:
            wanted.add("qkv")  # GPT-2 keeps the three in one matrix
        found = architecture.linears(wanted)
        if not found:
            has = sorted({row.role for row in architecture.linears()}, key=LINEAR_ROLES.index)
            raise SpecError(
                f"This model has no weight matrix with a role among: {', '.join(config.targets)}.",
                f"Choose `targets` among: {', '.join(has)}." if has else "Choose another model or method.",
            )
        return found

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        present = {row.role for row in cls.targets_of(architecture, config)}
        missing = [role for role in config.targets if role not in present and not (role in "qkv" and "qkv" in present)]
        return [f"This model has no matrix with role {role}: that target has no effect." for role in missing]

    @abstractmethod
    def peft_config(self) -> Any:
        """The configuration object that peft injects by."""

    def attach(self, model: nn.Module) -> nn.Module:
        """Put peft's layers into the model and freeze all but them and the head.

        Raises:
            SpecError: when the model has no matrix to adapt.
        """
        from peft import get_peft_model

        architecture = self.context.architecture
        with _seeded(self.context.init_seed):
            self.peft = get_peft_model(model, self.peft_config())
        tensors = dict(model.named_parameters())
        for row in architecture.head:
            tensors[row.name].requires_grad_(True)  # peft froze it with the rest
        self._parameters = [(row.name, tensors[row.name]) for row in self.trainables(architecture, self.config)]
        self._layers: dict[str, Any] = {
            row.name: model.get_submodule(row.module) for row in self.targets_of(architecture, self.config)
        }
        return model

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self._parameters

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        import torch

        layer = self._layers.get(weight.name)
        if layer is None:
            return None
        with torch.no_grad():
            return self._change(layer, weight, base)

    def _change(self, layer: Any, weight: Parameter, base: torch.Tensor) -> torch.Tensor:
        """What merging would add to an adapted weight."""
        change: torch.Tensor = layer.get_delta_weight(ADAPTER)
        return change

    def merged(self, model: nn.Module) -> nn.Module:
        """A plain copy of the model with the change added to its weights; `model` stays as it is."""
        plain: nn.Module = copy.deepcopy(self.peft).merge_and_unload()
        return plain

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """Write adapter and head so that `PeftModel.from_pretrained` puts both on a fresh classifier."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        tensors = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        heads = sorted({row.name.split(".")[0] for row in self.context.architecture.head})
        for head in heads:
            for name, tensor in model.get_submodule(head).state_dict().items():
                tensors[f"base_model.model.{head}.{name}"] = tensor
        config = copy.copy(self.peft.peft_config[ADAPTER])
        config.task_type = "SEQ_CLS"
        config.modules_to_save = heads
        config.target_modules = sorted(name.rpartition(".")[0] for name in self._layers)
        config.inference_mode = True
        config.base_model_name_or_path = ""  # not the folder of this machine that it was loaded from
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` on the CPU, where peft initialises, and leave the global stream as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def in_out(row: Parameter) -> tuple[int, int]:
    """Inputs and outputs of a linear weight."""
    first, second = row.shape
    return (first, second) if row.transposed else (second, first)
