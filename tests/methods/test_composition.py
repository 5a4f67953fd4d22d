"""A selective method on top of another: it selects among what the inner method adds, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import SpecError
from engine.methods._selective import Selective
from engine.methods.contract import Method
from engine.methods.fish import FishMask
from engine.methods.id3 import ID3
from engine.methods.pafi import PaFi
from engine.methods.registry import method_named
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert

STEPS = 10
EXAMPLES = batches_of(4, size=1)


def composed(outer: type[Selective], inner: str, k: int, model: nn.Module, **settings: Any) -> Training:
    below = make(method_named(inner), model, {"rank": 4}, steps=STEPS)
    method = make(outer, model, {"k": k, **settings}, steps=STEPS, on=below)
    return Training(method, model, lr=0.01, score_batches=EXAMPLES)


def parts(method: Method, step: int | None = None) -> list[str]:
    """Part of every selected entry, of one step or of all."""
    selection = method.selection()
    assert selection is not None
    pairs = zip(selection.tensor.tolist(), selection.step.tolist(), strict=True)
    return [selection.parameters[tensor].part for tensor, when in pairs if step is None or when == step]


@pytest.mark.parametrize("inner", ["lora", "dora"])
@pytest.mark.parametrize("outer", [ID3, FishMask, PaFi], ids=lambda cls: cls.name)
def test_exactly_k_of_the_inner_entries_change_and_nothing_else(outer: type[Selective], inner: str) -> None:
    fresh = tiny_bert()
    make(method_named(inner), fresh, {"rank": 4}, steps=STEPS).attach(fresh)
    before = weights(fresh)
    run = composed(outer, inner, 90, tiny_bert()).run(batches_of(STEPS))
    selection = run.method.selection()
    assert selection is not None
    assert selection.parameters == run.method.inner.trainables(architecture_of(tiny_bert()), run.method.inner.config)  # type: ignore[union-attr]
    assert len(selection.index) == 90
    chosen = {
        (selection.parameters[tensor].name, index)
        for tensor, index in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True)
    }
    moved = {
        (name, int(index))
        for name, parameter in run.model.named_parameters()
        for index in (parameter.detach() != before[name]).flatten().nonzero().flatten()
        if not name.startswith("classifier")
    }
    assert moved
    assert moved <= chosen
    assert run.method.optimizer_scalars() == 180
    assert run.method.parameters() == []


def test_on_lora_the_first_choices_are_all_in_b() -> None:
    """While B is zero, A gets no gradient."""
    run = composed(ID3, "lora", 200, tiny_bert()).run(batches_of(STEPS))
    assert parts(run.method, step=0) == ["B"] * 20


def test_a_large_epsilon_lets_a_in() -> None:
    small, large = (composed(ID3, "lora", 200, tiny_bert(), eps=eps).run(batches_of(STEPS)) for eps in (1e-8, 1.0))
    assert parts(small.method).count("A") <= parts(large.method).count("A")
    assert parts(large.method).count("A") > 0


def test_pafi_on_lora_takes_zeros_at_random_and_says_so() -> None:
    first = composed(PaFi, "lora", 60, tiny_bert())
    assert set(parts(first.method)) == {"B"}
    assert len(set(first.method.selection().tensor.tolist())) > 1  # type: ignore[union-attr]
    architecture = first.method.context.architecture
    assert any("means nothing" in text for text in PaFi.warnings(architecture, PaFi.Config(k=60), STEPS))


def test_the_change_of_a_base_weight_is_the_inner_methods() -> None:
    base = weights(tiny_bert())
    run = composed(ID3, "lora", 90, tiny_bert()).run(batches_of(STEPS))
    architecture = architecture_of(tiny_bert())
    merged = weights(run.method.merged(run.model))
    seen = 0
    for row in architecture.linears():
        delta = run.method.delta(row, base[row.name])
        if delta is not None:
            torch.testing.assert_close(base[row.name] + delta, merged[row.name])
            seen += bool(delta.any())
    assert seen


def test_merging_keeps_the_answers() -> None:
    run = composed(ID3, "lora", 90, tiny_bert()).run(batches_of(STEPS))
    run.model.eval()
    with torch.no_grad():
        attached = run.model(**tiny_batch()).logits
        plain = run.method.merged(run.model)(**tiny_batch()).logits
    torch.testing.assert_close(plain, attached, atol=1e-6, rtol=1e-5)


def test_resuming_and_installing_are_bit_for_bit() -> None:
    straight = composed(ID3, "lora", 93, tiny_bert()).run(batches_of(STEPS))
    state = composed(ID3, "lora", 93, tiny_bert()).run(batches_of(STEPS)[:4]).state()
    resumed = composed(ID3, "lora", 93, tiny_bert()).load(state).run(batches_of(STEPS)[4:])
    assert resumed.losses == straight.losses[4:]
    ours = weights(straight.model)
    assert all(torch.equal(parameter, ours[name]) for name, parameter in resumed.model.named_parameters())
    fresh = composed(ID3, "lora", 93, tiny_bert())
    fresh.method.install(straight.method.result())
    for name, parameter in fresh.model.named_parameters():
        assert name.startswith("classifier") or torch.equal(parameter, ours[name]), name


def test_the_result_is_an_adapter_that_peft_loads(tmp_path: Path) -> None:
    from peft import PeftModel

    run = composed(ID3, "lora", 90, tiny_bert()).run(batches_of(STEPS))
    assert run.method.inner is not None
    run.method.inner.save_peft(run.model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), str(tmp_path)).eval()
    run.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tiny_batch()).logits, run.model(**tiny_batch()).logits)


def test_a_method_that_moves_ranks_cannot_be_below() -> None:
    model = tiny_bert()
    with pytest.raises(SpecError, match="cannot stand on AdaLoRA"):
        make(ID3, model, {"k": 10}, on=make(method_named("adalora"), model))


def test_a_method_of_ten_lines_is_enough_below() -> None:
    """The contract alone: rows, attach and parameters."""

    class Pooler(Method):
        name, title = "pooler_only", "Pooler only"

        @classmethod
        def trainables(cls, architecture: Any, config: Any) -> Any:
            return tuple(row for row in architecture.backbone if row.role == "pooler")

        def attach(self, model: nn.Module) -> nn.Module:
            self.model = model.requires_grad_(False)
            return model

        def parameters(self) -> list[tuple[str, nn.Parameter]]:
            return [item for item in self.model.named_parameters() if "pooler" in item[0]]

    model, base = tiny_bert(), weights(tiny_bert())
    run = Training(make(ID3, model, {"k": 33}, steps=STEPS, on=make(Pooler, model, steps=STEPS)), model)
    run.run(batches_of(STEPS))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, base[name])}
    assert {name.split(".")[0] for name in moved} <= {"bert", "classifier"}
    assert all("pooler" in name or "classifier" in name for name in moved)
    assert len(run.method.selection().index) == 33  # type: ignore[union-attr]
