"""AdaLoRA: schedule, allocation, budget, and parity with plain peft."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig

from engine.errors import BudgetError, SpecError
from engine.methods._allocation import Allocator, CubicSchedule
from engine.methods.adalora import AdaLoRA
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.plain_peft import train_plainly
from tests.methods.test_lora import minilm  # noqa: F401 (a fixture)
from tests.tiny import architecture_of, tiny_bert, tiny_llama

STEPS = 20
GOLDEN = {"rank": 3, "initial_rank": 6, "tinit": 2, "tfinal": 5}


def base() -> torch.nn.Module:
    """Six adapted matrices, as in the golden trace."""
    return tiny_bert(layers=3)


def training(settings: dict | None = None, lr: float = 1e-2) -> Training:
    model = base()
    method = make(AdaLoRA, model, settings or GOLDEN, steps=STEPS, seed=4, clip=1e9)
    return Training(method, model, lr=lr, schedule=False)


def test_the_budget_follows_the_golden_trace():
    schedule = CubicSchedule(start=36, final=18, initial=2, settled=5, steps=20, every=1)
    trace = [schedule.budget(step) for step in range(1, 21)]
    assert trace == [36, 36, 32, 28, 26, 23, 22, 20, 19, 19] + [18] * 10
    assert [step for step in range(21) if schedule.prunes(step)] == list(range(3, 16))


def test_after_each_step_the_ranks_add_up_to_the_budget():
    made = training()
    schedule = made.method.schedule_of(made.method.context.architecture, made.method.config, STEPS)
    history = [made.method.ranks()]
    for batch in batches_of(STEPS):
        history.append(made.run([batch]).method.ranks())
    assert history[0].active.sum() == 0  # every factor starts at zero
    for done, ranks in enumerate(history):
        assert ranks.allocated.sum() == ranks.budget == schedule.budget(done)
        if done:
            assert (ranks.active == ranks.allocated).all()
    assert all((ranks.allocated == 6).all() for ranks in history[:3])
    final = history[15].allocated
    assert final.sum() == history[-1].final_budget == 18
    assert all((ranks.allocated == final).all() for ranks in history[15:])
    assert final.min() < final.max()


def test_the_rank_of_each_change_is_its_active_rank():
    made = training().run(batches_of(STEPS))
    ranks, untouched = made.method.ranks(), weights(base())
    for row, active in zip(ranks.parameters, ranks.active, strict=True):
        values = torch.linalg.svdvals(made.method.delta(row, untouched[row.name]).double())
        assert int((values > 1e-4 * values.max()).sum()) == active if active else values.max() == 0


@pytest.mark.parametrize("every", [1, 4])
def test_losses_and_ranks_equal_those_of_plain_peft(every):
    made = training(GOLDEN | {"delta_t": every})
    ours = [made.run([batch]).method.ranks().allocated.tolist() for batch in batches_of(STEPS)]
    theirs = []

    def allocate(model, step):
        model.base_model.update_and_allocate(step)
        pattern = model.peft_config["default"].rank_pattern
        theirs.append([sum(kept) for kept in pattern.values()] if pattern else [6] * 6)

    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=6,
        target_r=3,
        tinit=2,
        tfinal=5,
        deltaT=every,
        total_step=STEPS,
        lora_alpha=8,
        target_modules=["query", "value"],
    )
    plain, losses = train_plainly(base(), config, batches_of(STEPS), lr=1e-2, seed=4, after_step=allocate)
    assert ours == theirs
    assert made.losses == pytest.approx(losses, rel=1e-6)
    tensors = dict(plain.base_model.model.named_parameters())
    for name, parameter in made.method.parameters():
        assert torch.allclose(parameter, tensors[name], atol=1e-6), name


def test_the_penalty_is_pefts():
    made = training().run(batches_of(5))
    model, batch = made.method.peft, batches_of(1)[0]
    with_penalty = model.base_model(**batch)
    cross_entropy = torch.nn.functional.cross_entropy(with_penalty.logits, batch["labels"])
    assert float(made.method.extra_loss()) == pytest.approx(float(with_penalty.loss - cross_entropy), rel=1e-5)
    assert training(GOLDEN | {"orthogonality": 0}).method.extra_loss() is None


def test_between_prunings_ranks_grow_back_and_the_allocation_shows_the_last_mask():
    made = training(GOLDEN | {"delta_t": 6}).run(batches_of(8))  # pruned at 6, not at 7 and 8
    ranks = made.method.ranks()
    assert ranks.allocated.sum() == 23
    assert ranks.active.sum() == 36


def test_a_triplet_without_gradients_scores_zero():
    a, b, e = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4, 2), (2, 1)))
    for tensor in (a, b, e):
        tensor.grad = torch.zeros_like(tensor)
    a.grad[1] = 1.0
    allocator = Allocator([(a, b, e)], CubicSchedule(2, 1, 0, 0, 5, 1), 0.85, 0.85)
    allocator.after_step()
    scores = allocator.scores()
    smoothed = 0.15 * 1.0
    assert scores[0, 0] == 0
    assert float(scores[0, 1]) == pytest.approx(smoothed * 0.15 * (1 - smoothed))


def test_a_start_that_leaves_nothing_to_prune_is_refused():
    architecture = architecture_of(base())
    with pytest.raises(SpecError, match="nothing to prune"):
        AdaLoRA.size(architecture, AdaLoRA.Config(rank=4, initial_rank=4))
    with pytest.raises(SpecError, match="`initial_rank` to at least 4"):
        AdaLoRA.size(architecture, AdaLoRA.Config(total_rank=18, initial_rank=3))


@pytest.mark.parametrize(("settings", "steps"), [({"tinit": 8, "tfinal": 12}, 20), ({}, 1), ({"tfinal": 0.9}, 10)])
def test_a_run_too_short_for_the_schedule_is_refused(settings, steps):
    model = base()
    architecture, config = architecture_of(model), AdaLoRA.Config.model_validate(settings)
    with pytest.raises(SpecError, match="Train for more steps"):
        AdaLoRA.warnings(architecture, config, steps)
    with pytest.raises(SpecError, match="Train for more steps"):
        make(AdaLoRA, model, settings, steps=steps).attach(model)


def test_a_coarse_schedule_and_unequal_shapes_are_said():
    architecture = architecture_of(base())
    assert AdaLoRA.warnings(architecture, AdaLoRA.Config(), 300) == []
    assert "prunes only 6 times" in AdaLoRA.warnings(architecture, AdaLoRA.Config(), 10)[0]
    assert "differ in shape" in AdaLoRA.warnings(architecture_of(tiny_llama()), AdaLoRA.Config(), 300)[0]


def test_any_whole_number_of_triplets_is_reached(minilm):  # noqa: F811
    config = AdaLoRA.fit(minilm, AdaLoRA.Config(), 26_112)
    assert config.total_rank == 33  # not a multiple of the 12 matrices
    assert AdaLoRA.size(minilm, config) == 33 * 769 == 25_377
    assert AdaLoRA.start_rank(minilm, config) == 4
    assert AdaLoRA.peak(minilm, config) == 4 * 12 * 769
    model = base()
    made = Training(make(AdaLoRA, model, {"total_rank": 17}, steps=STEPS), model, lr=1e-2).run(batches_of(STEPS))
    assert made.method.ranks().active.sum() == 17


@pytest.mark.parametrize("total", range(1, 30))
def test_the_default_start_always_leaves_something_to_prune(total):
    architecture, config = architecture_of(base()), AdaLoRA.Config(total_rank=total)
    assert 6 * AdaLoRA.start_rank(architecture, config) > total


def test_with_unequal_shapes_the_count_is_never_above_the_budget():
    model = tiny_llama()
    architecture = architecture_of(model)
    config = AdaLoRA.fit(architecture, AdaLoRA.Config(), 700)
    method = make(AdaLoRA, model, config.model_dump(), steps=STEPS)
    Training(method, model, lr=1e-2).run(batches_of(STEPS))
    ranks = method.ranks()
    kept = sum(int(n) * (sum(row.shape) + 1) for row, n in zip(ranks.parameters, ranks.active, strict=True))
    assert kept <= AdaLoRA.size(architecture, config) <= 700


def test_budgets_out_of_reach(minilm):  # noqa: F811
    with pytest.raises(BudgetError, match="at least 769"):
        AdaLoRA.fit(minilm, AdaLoRA.Config(), 768)
    assert AdaLoRA.start_rank(minilm, AdaLoRA.fit(minilm, AdaLoRA.Config(), 10**8)) == 384


def test_the_exported_file_holds_the_kept_triplets_alone(tmp_path):
    from safetensors.torch import load_file

    made = training().run(batches_of(STEPS))
    made.method.save_peft(made.model, tmp_path)
    rows = [t.shape[0] for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if n.endswith("lora_A")]
    assert sorted(rows) == sorted(made.method.ranks().active.tolist())


def test_it_refuses_to_go_on_without_its_gradients():
    made = training().run(batches_of(1))
    with pytest.raises(SpecError, match="gradients"):
        made.method.after_step(1)
