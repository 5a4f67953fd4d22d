"""FISH Mask's own oracles: squares of single examples, fixed mask, and how the authors count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import DataError
from engine.methods.fish import FishMask
from tests.methods import reference
from tests.methods.driver import Training, batches_of, make
from tests.tiny import architecture_of, tiny_bert

EXAMPLES = batches_of(5, size=1)


class Spy(FishMask):
    """Keeps the Fisher information it has measured."""

    def choose(self, scores: Callable[[int], torch.Tensor], **how: Any) -> None:
        self.fisher = [scores(number).clone() for number in range(len(self.rows))]
        super().choose(scores, **how)


def scored(examples: list[dict[str, torch.Tensor]] = EXAMPLES, **settings: Any) -> tuple[Spy, nn.Module]:
    model = tiny_bert()
    method = make(Spy, model, {"k": 300, **settings})
    attached = method.attach(model)
    method.score_pass(attached, examples, lambda done, total: None)
    assert isinstance(method, Spy)
    return method, attached


def backbone(model: nn.Module) -> list[nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[row.name] for row in architecture_of(model).backbone]


def entries(method: FishMask) -> set[tuple[int, int]]:
    selection = method.selection()
    return set(zip(selection.tensor.tolist(), selection.index.tolist(), strict=True))


def test_the_information_is_the_sum_of_squares_of_single_gradients() -> None:
    method, _ = scored()
    model = tiny_bert()
    for own, expected in zip(method.fisher, reference.fisher(model, backbone(model), EXAMPLES), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-12)
    together = {key: torch.cat([example[key] for example in EXAMPLES]) for key in EXAMPLES[0]}
    model(**together).loss.backward()
    mean = torch.cat([tensor.grad.flatten() for tensor in backbone(model)]) ** 2
    assert not torch.allclose(torch.cat(method.fisher), 25 * mean, rtol=0.1)  # the wrong quantity


def test_gradients_per_sample_of_a_whole_batch_agree() -> None:
    """The same by torch.func: one vectorised pass instead of one backward pass per example."""
    method, _ = scored()
    model = tiny_bert()
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], ids: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, weights, (ids[None],)).logits
        return torch.nn.functional.cross_entropy(logits, label[None])

    ids = torch.cat([example["input_ids"] for example in EXAMPLES])
    labels = torch.cat([example["labels"] for example in EXAMPLES])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(named, ids, labels)
    for row, own in zip(method.rows, method.fisher, strict=True):
        torch.testing.assert_close(own, each[row.name].square().sum(0).flatten(), rtol=1e-4, atol=1e-10)


def test_words_that_no_example_contains_have_no_information() -> None:
    method, _ = scored()
    seen = {int(token) for example in EXAMPLES for token in example["input_ids"].flatten()}
    tokens = next(n for n, row in enumerate(method.rows) if row.role == "token")
    rows = method.fisher[tokens].view(100, -1)
    assert all(bool(rows[token].any()) == (token in seen) for token in range(100))
    assert all(bool((total >= 0).all()) for total in method.fisher)
    assert all(index // 32 in seen for tensor, index in entries(method) if tensor == tokens)


def test_scoring_every_example_twice_changes_nothing() -> None:
    assert entries(scored()[0]) == entries(scored([*EXAMPLES, *EXAMPLES])[0])


def test_the_expectation_weighs_every_label() -> None:
    method, _ = scored(EXAMPLES[:2], kind="expected")
    model = tiny_bert()
    expected = [torch.zeros(tensor.numel()) for tensor in backbone(model)]
    for example in EXAMPLES[:2]:
        for label in range(2):
            model.zero_grad()
            likelihood = model(**{k: v for k, v in example.items() if k != "labels"}).logits.log_softmax(-1)[0, label]
            likelihood.backward()
            for total, tensor in zip(expected, backbone(model), strict=True):
                total += likelihood.exp().detach() * tensor.grad.flatten() ** 2
    for own, total in zip(method.fisher, expected, strict=True):
        torch.testing.assert_close(own, total, rtol=1e-4, atol=1e-12)


def test_sampled_labels_repeat_with_the_seed() -> None:
    first, again = scored(kind="sampled")[0], scored(kind="sampled")[0]
    assert all(torch.equal(a, b) for a, b in zip(first.fisher, again.fisher, strict=True))


def test_the_mask_does_not_depend_on_training() -> None:
    method, _ = scored()
    model = tiny_bert()
    run = Training(make(FishMask, model, {"k": 300}), model, lr=0.1, score_batches=EXAMPLES)
    before = entries(run.method)  # type: ignore[arg-type]
    run.run(batches_of(5))
    assert entries(run.method) == before == entries(method)  # type: ignore[arg-type]
    assert set(run.method.selection().step.tolist()) == {0}  # type: ignore[union-attr]


def test_dropout_plays_no_part_in_scoring() -> None:
    model = tiny_bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    method = make(FishMask, model, {"k": 300})
    assert isinstance(method, FishMask)
    method.score_pass(method.attach(model).train(), EXAMPLES, lambda done, total: None)
    assert entries(method) == entries(scored()[0])


def test_only_as_many_examples_as_asked_for_are_scored() -> None:
    seen = []
    model = tiny_bert()
    method = make(FishMask, model, {"k": 10, "samples": 3})
    method.score_pass(
        method.attach(model).train(), batches_of(9, size=1), lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert model.training  # scored in evaluation mode, handed back as it came
    with pytest.raises(DataError, match="no training example"):
        method.score_pass(model, [], lambda done, total: None)


def test_counting_as_the_authors_do() -> None:
    """Their K includes the dense head: int(N ratio) = selected + head."""
    architecture = architecture_of(tiny_bert())
    total = sum(row.size for row in architecture.parameters)
    head = sum(row.size for row in architecture.head)
    config = FishMask.fit(architecture, FishMask.Config(samples=4), int(total * 0.02) - head)
    model = tiny_bert()
    method = make(FishMask, model, config.model_dump(mode="json"))
    run = Training(method, model, score_batches=batches_of(4, size=1)).run(batches_of(2))
    chosen = method.selection()
    assert chosen is not None
    assert len(chosen.index) + sum(p.numel() for p in run.head) == int(total * 0.02)
