"""The controls, SPEFT's scores, and the methods that count per neuron, matrix or unit: what each selects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from engine.errors import BudgetError
from engine.methods._static import StaticMask
from engine.methods.fish import FishMask
from engine.methods.gps import GPS
from engine.methods.magnitude import LargestMagnitude
from engine.methods.neuroada import NeuroAda
from engine.methods.pafi import PaFi
from engine.methods.random_mask import RandomMask
from engine.methods.s2ft import S2FT
from engine.methods.shira import SHiRA
from engine.methods.smt import SMT
from engine.methods.speft import Speft
from engine.methods.tr_pts import TrPts
from engine.sparse.selection import shares
from tests.methods import reference
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_bert

EXAMPLES = batches_of(6, size=1)
Mask = dict[str, torch.Tensor]


def mask_of(cls: type[StaticMask], model: nn.Module | None = None, seed: int = 0, **settings: Any) -> Mask:
    """The mask on the tiny model, bool by tensor."""
    model = model or tiny_bert()
    method = make(cls, model, settings, seed=seed)
    attached = method.attach(model)
    if method.scores_first:
        method.score_pass(attached, EXAMPLES, lambda done, total: None)
    selection = method.selection()
    masks = {row.name: torch.zeros(row.size, dtype=torch.bool) for row in selection.parameters}
    for tensor, index in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True):
        masks[selection.parameters[tensor].name][index] = True
    return {row.name: masks[row.name].view(row.shape) for row in selection.parameters}


def same(first: Mask, second: Mask) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def together(mask: Mask) -> torch.Tensor:
    return torch.cat([part.flatten() for part in mask.values()])


# --- controls -----------------------------------------------------------------------------


def test_no_frozen_weight_is_larger_than_a_selected_one() -> None:
    mask, model = mask_of(LargestMagnitude, k=700), dict(tiny_bert().named_parameters())
    values = torch.cat([model[name].detach().abs().flatten() for name in mask])
    chosen = together(mask)
    assert int(chosen.sum()) == 700
    assert values[chosen].min() >= values[~chosen].max()


def test_largest_and_smallest_never_meet() -> None:
    largest, smallest = mask_of(LargestMagnitude, k=2000), mask_of(PaFi, k=2000)
    assert not (together(largest) & together(smallest)).any()


def test_a_random_mask_follows_its_seed_and_spreads_evenly() -> None:
    first, again, other = (mask_of(RandomMask, seed=seed, k=4000) for seed in (1, 1, 2))
    assert same(first, again)
    one, two = together(first), together(other)
    expected = 4000**2 / len(one)
    spread = (expected * (1 - 4000 / len(one)) ** 2) ** 0.5  # of a hypergeometric count
    assert abs(int((one & two).sum()) - expected) < 5 * spread
    for name, part in first.items():
        share = 4000 / len(one)
        assert abs(int(part.sum()) - share * part.numel()) < 5 * (share * part.numel() + 1) ** 0.5, name


# --- SPEFT --------------------------------------------------------------------------------


def test_saliency_and_taylor_choose_the_same() -> None:
    assert same(mask_of(Speft, k=900, score="saliency"), mask_of(Speft, k=900, score="taylor"))


def test_fisher_is_fish_mask() -> None:
    assert same(mask_of(Speft, k=900, score="fisher"), mask_of(FishMask, k=900))


@pytest.mark.parametrize("score", ["gradient", "saliency", "skeleton"])
def test_each_score_chooses_what_sorting_everything_chooses(score: str) -> None:
    model = tiny_bert()
    rows = architecture_of(model).backbone
    tensors = [dict(model.named_parameters())[row.name] for row in rows]
    sums = reference.gradients(model, tensors, EXAMPLES)
    flat = [tensor.detach().flatten() for tensor in tensors]
    products = [g * w for g, w in zip(sums, flat, strict=True)]
    scores = {
        "gradient": [g.abs() for g in sums],
        "saliency": [p.abs() for p in products],
        "skeleton": [-p for p in products],
    }[score]
    everything = [torch.ones(len(part), dtype=torch.bool) for part in flat]
    expected = torch.cat(reference.top(scores, everything, 900))
    found = torch.cat([part.flatten() for part in mask_of(Speft, k=900, score=score).values()])
    assert int((found != expected).sum()) <= 2  # the two at the cut may be apart by rounding alone


def test_scoring_the_same_examples_twice_changes_nothing() -> None:
    def mask(examples: list[dict[str, torch.Tensor]]) -> list[int]:
        model = tiny_bert()
        method = make(Speft, model, {"k": 300})
        method.score_pass(method.attach(model), examples, lambda done, total: None)
        return sorted(method.selection().index.tolist())

    assert mask(EXAMPLES) == mask([*EXAMPLES, *EXAMPLES])


def test_in_each_tensor_the_share_is_the_same() -> None:
    mask = mask_of(Speft, k=1500, scope="tensor")
    assert int(together(mask).sum()) == 1500
    for name, part in mask.items():
        assert abs(int(part.sum()) - 1500 * part.numel() / len(together(mask))) < 1, name


def test_shares_add_up() -> None:
    assert shares([1, 1, 1], 2) == [1, 1, 0]
    assert shares([10, 30, 60], 10) == [1, 3, 6]
    assert sum(shares([7, 11, 13, 17], 29)) == 29


# --- per neuron -----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [NeuroAda, GPS])
@pytest.mark.parametrize("per_neuron", [1, 3])
def test_every_neuron_has_as_many(cls: type[StaticMask], per_neuron: int) -> None:
    mask = mask_of(cls, per_neuron=per_neuron)
    matrices = {name: part for name, part in mask.items() if part.ndim == 2}
    assert {row.name for row in architecture_of(tiny_bert()).linears()} == set(matrices)
    assert all(bool((part.sum(1) == per_neuron).all()) for part in matrices.values())
    assert all(bool(part.all()) for part in mask.values() if part.ndim == 1)


def test_neuroada_takes_the_largest_inputs_of_a_neuron() -> None:
    model = dict(tiny_bert().named_parameters())
    for name, part in mask_of(NeuroAda, per_neuron=4).items():
        values = model[name].detach().abs()
        chosen = values.masked_fill(~part, float("inf")).min(1).values
        others = values.masked_fill(part, -1).max(1).values
        assert bool((chosen >= others).all()), name


def test_a_matrix_stored_the_other_way_round_counts_by_neuron_too() -> None:
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    mask = mask_of(NeuroAda, model, per_neuron=2)
    assert mask["transformer.h.0.attn.c_attn.weight"].shape == (16, 48)
    for part in mask.values():
        assert bool((part.sum(0) == 2).all())


def test_gps_takes_the_inputs_whose_gradients_add_up_to_most() -> None:
    model = tiny_bert()
    rows = architecture_of(model).linears()
    tensors = [dict(model.named_parameters())[row.name] for row in rows]
    sums = reference.gradients(model, tensors, EXAMPLES)
    mask = mask_of(GPS, per_neuron=2)
    for row, total in zip(rows, sums, strict=True):
        size = total.abs().view(row.shape)
        chosen = size.masked_fill(~mask[row.name], float("inf")).min(1).values
        others = size.masked_fill(mask[row.name], -1).max(1).values
        assert bool((chosen >= others * (1 - 1e-5)).all()), row.name


def test_gps_trains_all_biases_of_the_linear_layers_and_no_norm() -> None:
    base = weights(tiny_bert())
    model = tiny_bert()
    method = make(GPS, model, {"per_neuron": 1})
    training = Training(method, model, lr=5e-3, score_batches=EXAMPLES).run(batches_of(8))
    for row in architecture_of(training.model).backbone:
        moved = int((dict(training.model.named_parameters())[row.name].detach() != base[row.name]).sum())
        if row.part == "bias" and row.role in ("q", "v", "o", "up", "down"):
            assert moved == row.size, row.name
        elif row.role in ("token", "position", "type", "norm_in", "norm_1", "norm_2", "pooler"):
            assert moved == 0, row.name


@pytest.mark.parametrize("cls", [NeuroAda, GPS])
def test_a_budget_is_met_in_whole_neurons(cls: type[Any]) -> None:
    architecture = architecture_of(tiny_bert())
    one = cls.size(architecture, cls.Config(per_neuron=1))
    step = cls.size(architecture, cls.Config(per_neuron=2)) - one
    assert step == sum(row.shape[0] for row in architecture.linears())
    assert cls.fit(architecture, cls.Config(), one + 2 * step + 5).per_neuron == 3
    with pytest.raises(BudgetError, match=f"at least {one:,}"):
        cls.fit(architecture, cls.Config(), one - 1)
    everything = cls.fit(architecture, cls.Config(), 10**9)
    assert cls.size(architecture, everything) == cls.eligible(architecture, everything)


# --- per matrix ----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["random", "magnitude", "gradient", "saliency"])
def test_shira_trains_as_many_in_each_matrix_as_lora_would(mask: str) -> None:
    found = mask_of(SHiRA, rank=2, mask=mask)
    assert {name: int(part.sum()) for name, part in found.items()} == {
        row.name: 2 * sum(row.shape) for row in architecture_of(tiny_bert()).linears()
    }


def test_shiras_random_masks_differ_from_matrix_to_matrix_and_from_seed_to_seed() -> None:
    first, second = (list(mask_of(SHiRA, seed=seed, rank=2, mask="random").values()) for seed in (0, 1))
    squares = [part.flatten() for part in first if part.shape == (32, 32)]
    assert len(squares) == 8
    assert all(not torch.equal(squares[0], other) for other in squares[1:])
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_seed_may_be_as_large_as_a_spec_allows() -> None:
    assert int(together(mask_of(SHiRA, seed=2**31 - 1, rank=1, mask="random")).sum()) > 0
    assert int(together(mask_of(RandomMask, seed=2**31 - 1, k=50)).sum()) == 50


def test_shiras_change_has_a_higher_rank_than_the_lora_it_matches() -> None:
    base, model = weights(tiny_bert()), tiny_bert()
    method = make(SHiRA, model, {"rank": 2, "mask": "random"})
    run = Training(method, model, lr=5e-3, score_batches=EXAMPLES).run(batches_of(8))
    now = weights(run.model)
    ranks = [int(torch.linalg.matrix_rank(now[row.name] - base[row.name])) for row in method.rows]  # type: ignore[attr-defined]
    assert min(ranks) > 2


# --- per unit ------------------------------------------------------------------------------


def test_s2ft_trains_whole_channels_and_heads() -> None:
    mask = mask_of(S2FT, channels=10, heads=2)
    architecture = architecture_of(tiny_bert())
    assert int(together(mask).sum()) == 10 * 32 + 2 * 16 * 32
    assert int(together(mask).sum()) == S2FT.size(architecture, S2FT.Config(channels=10, heads=2))
    for name, part in mask.items():
        whole = part.all(0)
        assert torch.equal(part.any(0), whole), name
        if "attention.output" in name:
            heads = whole.view(2, 16)
            assert torch.equal(heads.any(1), heads.all(1)), name
    other = mask_of(S2FT, seed=1, channels=10, heads=2)
    assert not same(mask, other)


def test_s2ft_meets_a_budget_in_whole_channels() -> None:
    architecture = architecture_of(tiny_bert())
    assert S2FT.fit(architecture, S2FT.Config(), 32 * 7 + 31).channels == 7
    assert S2FT.fit(architecture, S2FT.Config(), 10**9).channels == 2 * 64
    with pytest.raises(BudgetError, match="at least 32"):
        S2FT.fit(architecture, S2FT.Config(), 31)


def test_the_rows_of_a_matrix_stored_the_other_way_round_are_its_channels() -> None:
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    part = mask_of(S2FT, model, channels=5)["transformer.h.0.mlp.c_proj.weight"]
    assert part.shape == (64, 16)
    assert int(part.all(1).sum()) == 5
    assert int(part.sum()) == 5 * 16


# --- blocks ---------------------------------------------------------------------------------


def cut(table: torch.Tensor, side: int) -> torch.Tensor:
    """A matrix as (rows of blocks, columns of blocks, side, side)."""
    return torch.stack([torch.stack(part.split(side, 1)) for part in table.split(side)])


@pytest.mark.parametrize("score", ["mean_abs", "abs_mean"])
def test_smt_trains_the_best_blocks_of_all_attention_matrices(score: str) -> None:
    model = tiny_bert()
    rows = architecture_of(model).linears(["q", "k", "v"])
    sums = reference.gradients(model, [dict(model.named_parameters())[row.name] for row in rows], EXAMPLES)
    mask = mask_of(SMT, blocks=5, side=8, score=score)
    assert list(mask) == [row.name for row in rows]
    filled, scores = [], []
    for row, total in zip(rows, sums, strict=True):
        blocks, shares = cut(total.view(row.shape), 8), cut(mask[row.name].float(), 8).mean((2, 3))
        assert bool(((shares == 0) | (shares == 1)).all()), "whole blocks"
        filled.append(shares.flatten().bool())
        scores.append((blocks.mean((2, 3)).abs() if score == "mean_abs" else blocks.abs().mean((2, 3))).flatten())
    chosen, every = torch.cat(filled), torch.cat(scores)
    assert int(chosen.sum()) == 5
    assert every[chosen].min() >= every[~chosen].max() * (1 - 1e-5)


def test_smt_cuts_only_what_its_side_divides_and_meets_a_budget_in_whole_blocks() -> None:
    architecture = architecture_of(tiny_bert())
    assert SMT.fit(architecture, SMT.Config(side=8), 200).blocks == 3
    with pytest.raises(BudgetError, match="One block alone has 64"):
        SMT.fit(architecture, SMT.Config(side=8), 63)
    with pytest.raises(BudgetError, match="No matrix here can be cut"):
        SMT.fit(architecture, SMT.Config(side=7), 10_000)
    assert "only the head trains" in SMT.warnings(architecture, SMT.Config(side=7), 10)[0]


# --- a quota for each matrix ------------------------------------------------------------------


def test_tr_pts_gives_every_neuron_of_a_matrix_as_many_by_fisher_information() -> None:
    model = tiny_bert()
    rows = architecture_of(model).linears()
    tensors = [dict(model.named_parameters())[row.name] for row in rows]
    fisher = [torch.zeros(row.size) for row in rows]
    for batch in EXAMPLES:
        for total, gradient in zip(fisher, reference.gradients(model, tensors, [batch]), strict=True):
            total += gradient.flatten() ** 2
    mask = mask_of(TrPts, k=1500)
    counts = {name: part.sum(1) for name, part in mask.items()}
    assert all(bool((count == count[0]).all()) for count in counts.values())
    total = int(sum(count.sum() for count in counts.values()))
    assert 1200 < total <= 1500
    assert len({int(count[0]) for count in counts.values()}) > 1, "matrices differ"
    for row, information in zip(rows, fisher, strict=True):
        part, table = mask[row.name], information.view(row.shape)
        if part.any():
            chosen = table.masked_fill(~part, float("inf")).min(1).values
            others = table.masked_fill(part, -1).max(1).values
            assert bool((chosen >= others * (1 - 1e-5)).all()), row.name


def test_tr_pts_gives_more_to_where_the_information_is() -> None:
    model = tiny_bert()
    method = make(TrPts, model, {"k": 2000})
    method.attach(model)
    flat = [torch.rand(row.size) for row in method.rows]
    flat[3] += 1
    each = method._per_neuron([part.clone() for part in flat])
    assert each[3] == max(each) > 0
    assert sum(n * row.shape[0] for n, row in zip(each, method.rows, strict=True)) <= 2000


def test_tr_pts_spends_a_budget_too_small_to_divide_in_one_place() -> None:
    assert 0 < int(together(mask_of(TrPts, k=40)).sum()) <= 40
