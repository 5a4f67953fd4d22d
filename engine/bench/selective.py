"""What selecting costs: steps and memory of selective methods against dense AdamW and the ID3 authors' toolkit.

All sides train the same model on the same batches in one process, a few steps each in turn, with the same forward and
backward pass; what differs is gradients, choice and update. The toolkit (``pip install selective-optimizers``) is an
opponent, not a dependency; with it, the masks of both are compared over a run whose budget its steps divide.

python -m engine bench selective --model minilm-l6 --shares 0.1,1 --toolkit
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch

from engine.bench import options, peaks
from engine.bench.jobs import add_common, plan_if_possible, plan_of, recipe_of, write_report
from engine.devices import cpu_threads
from engine.errors import SpecError
from engine.methods.registry import config_of
from engine.plan import Plan
from engine.spec import RunSpec
from engine.tasks.encoding import Encoded
from engine.tasks.order import batch_order
from engine.training import recipe
from engine.training.build import Built, Caches, build, encoded_splits
from engine.training.evaluation import to_device
from engine.training.execution import StepWork, forward_of, steps_of
from engine.training.recipe import prepare_torch

METHODS = ("pafi", "fish", "id3", "random_mask", "shira", "speft")
SCORED = 32
"""Examples that score before the first step: enough for a mask, whatever it is worth."""
PEAK_RUN, PEAK_STEPS = 700, 12
"""Steps of the runs whose memory is looked at, and how many of them are taken: shapes repeat. A mask that grows takes
in as many weights a step as the run's length says."""


class Side(Protocol):
    """One opponent."""

    def take(self, step: int) -> Any:
        """Train step `step`."""

    def kept(self) -> dict[str, int]:
        """Bytes that stay from step to step, weights apart, and gradients alive when the backward pass ends."""


@dataclass
class Ours:
    """A method of ours, as a run executes it."""

    built: Built
    steps: Any
    gradients: int = 0

    def take(self, step: int) -> None:
        self.steps.take(step)

    def kept(self) -> dict[str, int]:
        dense = sum(parameter.numel() for _, parameter in self.built.dense)
        state = 2 * dense + self.built.method.optimizer_scalars()
        return {"state": 4 * state, "gradients": self.gradients}


class Toolkit:
    """The authors' ID3 over a fully trained model, with the same passes, clipping and learning rates."""

    def __init__(self, built: Built, encoded: Encoded, order: np.ndarray, config: Any) -> None:
        try:
            wrap = importlib.import_module("selective_optimizers.wrap")
        except ModuleNotFoundError:
            raise SpecError("The toolkit is not installed.", "Run: pip install selective-optimizers==0.4") from None
        self.built, self._work = built, StepWork(built, forward_of(built))
        self._encoded, self._order = encoded, order
        self._backbone = [parameter for _, parameter in built.method.parameters()]
        chooser = wrap.get_selective_optimizer(torch.optim.AdamW, "id3")
        self.optimizer = chooser(
            self._backbone, lr=1.0, budget=config.k, max_steps=len(order), exp=config.exp, eps=config.eps, verify=False
        )
        # Its ``eps`` shadows that of AdamW, which is left at the usual one.
        self._head = torch.optim.AdamW([p for _, p in built.head], weight_decay=0.0, fused=True)

    def take(self, step: int) -> None:
        train = self.built.spec.train
        batch = to_device(self._encoded.batch(self._order[step]), train.device)
        self._work.backward(batch, batch.pop("labels"))
        self.update(step)

    def update(self, step: int) -> None:
        """Clip, choose, mask and update."""
        train = self.built.spec.train
        recipe.clip((p for _, p in self.built.dense), None, train.clip)
        for optimizer in (self.optimizer, self._head):
            for group in optimizer.param_groups:
                group["lr"] = float(train.lr) * recipe.lr_factor(step, train.steps, train.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def masks(self) -> list[torch.Tensor]:
        """What it has chosen, bool, in the order of the backbone's tensors."""
        return [mask for group in self.optimizer.param_groups for mask in group["chosen_masks"]]

    def kept(self) -> dict[str, int]:
        tensors = [t for o in (self.optimizer, self._head) for s in o.state.values() for t in s.values()]
        held = sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *self.masks()])
        return {"state": held, "gradients": 4 * sum(p.numel() for _, p in self.built.dense)}


def main(argv: Sequence[str]) -> int:
    """Time all sides in turn, compare masks, print both and write them as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-selective-"))
    report: dict[str, Any] = {"settings": vars(given), "shares": {}}
    for share in given.shares:
        found = _timed(given, share)
        report["shares"][share] = found
        print("\n".join(_lines(share, found)))
        if found["peaks"]:
            print("\n".join(_peak_lines(found["peaks"])))
    if given.toolkit:
        report["masks"] = same_masks(given)
        print(
            "masks of ID3, ours and the toolkit's: {common:,} common of {ours:,} and {toolkit:,}".format(
                **report["masks"]
            )
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder, "selective", report)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench selective", description=__doc__)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--methods", type=options.names, default=list(METHODS))
    parser.add_argument("--shares", type=options.shares, default=[0.1, 1.0])
    parser.add_argument("--rounds", type=options.count, default=7)
    parser.add_argument("--block", type=options.count, default=5, help="steps of each side per round")
    parser.add_argument("--batch-size", type=options.count, default=16)
    parser.add_argument("--toolkit", action="store_true")
    add_common(parser)
    given = parser.parse_args(argv)
    given.steps = (given.rounds + 1) * given.block  # the first round warms up
    return given


def _timed(given: argparse.Namespace, share: float) -> dict[str, Any]:
    """Milliseconds per step of every side by round, and what each keeps."""
    caches = Caches()
    full = _plan(given, "full", None)
    budget = round(share / 100 * full.params.method)
    sides: dict[str, Side] = {"dense AdamW": _ours(full, caches)}
    for method in given.methods:
        plan = plan_if_possible(_base(given), method, budget)
        if plan is not None:
            sides[method] = _ours(plan, caches)
    if given.toolkit:
        whole = _even(given, budget)
        sides["toolkit id3"] = _toolkit(given, whole, caches)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(given.rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            for step in range(turn * given.block, (turn + 1) * given.block):
                side.take(step)
            if full.spec.train.device != "cpu":
                torch.cuda.synchronize()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started) / given.block)
    kept = {name: side.kept() for name, side in sides.items()}
    held = (
        {}
        if full.spec.train.device == "cpu"
        else _peaks(given, ["full", *(name for name in sides if name in given.methods)], budget)
    )
    return {
        "budget": budget,
        "milliseconds": times,
        "kept": kept,
        "threads": full.spec.train.threads,
        "peaks": held,
    }


def _peaks(given: argparse.Namespace, methods: Sequence[str], budget: int) -> dict[str, dict[str, float]]:
    """What eager steps of each method hold, by the CUDA allocator, and what they may hold."""
    base = _base(given)
    base = base.model_copy(update={"train": base.train.model_copy(update={"execution": "padded", "steps": PEAK_RUN})})
    found: dict[str, dict[str, float]] = {}
    for method in methods:
        plan = plan_of(base, method, 0, None if method == "full" else budget)
        peaks.settle(plan.spec.train.device)
        built, encoded, order = _scored(plan, Caches())
        held = peaks.measure(built, encoded, order[:PEAK_STEPS])
        sizes = [row.size for row in built.setting.architecture.backbone]
        limit = 1.0 if method == "full" else peaks.bound(sizes, budget)
        found[method] = {**asdict(held), "rest": held.rest, "limit": limit, "largest": 4 * max(sizes)}
    return found


def _plan(given: argparse.Namespace, method: str, budget: int | None) -> Plan:
    return plan_of(_base(given), method, 0, budget)


def _base(given: argparse.Namespace) -> RunSpec:
    return recipe_of(given, cpu_threads()).model_copy(update={"model": given.model})


def _even(given: argparse.Namespace, budget: int) -> int:
    """The budget as a multiple of the steps: the toolkit overshoots any other."""
    return max(1, budget // given.steps) * given.steps


def _ours(plan: Plan, caches: Caches) -> Ours:
    """A side of ours, scored if its method scores first."""
    built, encoded, order = _scored(plan, caches)
    steps = steps_of(built, encoded, order)
    side = Ours(built, steps)
    _watch(side)
    steps.start(0)
    return side


def _watch(side: Ours) -> None:
    """Note the most gradients that are alive when a backward pass has ended, before anything is dropped."""
    method, parameters = side.built.method, list(side.built.model.parameters())
    before_step = method.before_step

    def noted(step: int) -> None:
        alive = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
        side.gradients = max(side.gradients, alive)
        before_step(step)

    method.before_step = noted  # type: ignore[method-assign]


def _toolkit(given: argparse.Namespace, budget: int, caches: Caches) -> Toolkit:
    plan = _plan(given, "full", None)
    rate = _plan(given, "id3", budget).spec
    built, encoded, order = _built(plan, caches)
    built.spec = built.spec.model_copy(update={"train": rate.train})
    return Toolkit(built, encoded, order, config_of(rate.method))


def _scored(plan: Plan, caches: Caches) -> tuple[Built, Encoded, np.ndarray]:
    """A run's objects, its mask chosen where its method scores first."""
    built, encoded, order = _built(plan, caches)
    if built.method.scores_first:
        singles = (to_device(encoded.batch(np.array([i])), plan.spec.train.device) for i in range(SCORED))
        built.method.score_pass(built.model, singles, lambda done, total: None)
    return built, encoded, order


def _built(plan: Plan, caches: Caches) -> tuple[Built, Encoded, np.ndarray]:
    train = plan.spec.train
    prepare_torch(train)
    built = build(plan.spec, caches)
    encoded = encoded_splits(plan.spec, built.setting, caches)["train"]
    return built, encoded, batch_order(len(encoded), train.batch_size, train.steps, train.seed_of("data"))


def same_masks(given: argparse.Namespace) -> dict[str, int]:
    """Entries that our ID3 and the toolkit's have chosen after as many steps, and those of both."""
    caches = Caches()
    budget = _even(given, 100 * given.steps)
    ours, theirs = _ours(_plan(given, "id3", budget), caches), _toolkit(given, budget, caches)
    for step in range(given.steps):
        ours.take(step)
        theirs.take(step)
    selection: Any = ours.built.method.selection()
    names = [row.name for row in selection.parameters]
    mine = {(names[t], int(i)) for t, i in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True)}
    other = {
        (name, place)
        for (name, _), mask in zip(theirs.built.method.parameters(), theirs.masks(), strict=True)
        for place in mask.flatten().nonzero().flatten().tolist()
    }
    return {"ours": len(mine), "toolkit": len(other), "common": len(mine & other), "steps": given.steps}


def _lines(share: float, found: dict[str, Any]) -> list[str]:
    """Medians over rounds, and ratios to dense AdamW round by round."""
    dense = found["milliseconds"]["dense AdamW"]
    base = sum(found["kept"]["dense AdamW"].values())
    lines = [f"{share:g} % of the weights: {found['budget']:,}"]
    lines.append(f"{'':14}{'ms a step':>11}{'against dense, median of rounds':>36}{'state + gradients':>20}")
    for name, times in found["milliseconds"].items():
        ratios = [one / other for one, other in zip(times, dense, strict=True)]
        kept = sum(found["kept"][name].values())
        lines.append(
            f"{name:14}{median(times):>11.1f}{median(ratios):>20.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            f"{kept / 2**20:>12.1f} MiB ({kept / base:.3f})"
        )
    return lines


def _peak_lines(found: dict[str, dict[str, float]]) -> list[str]:
    """Memory by the CUDA allocator, and gradients with state as a share of full fine-tuning's."""
    base = found["full"]["state"] + found["full"]["gradients"]
    parts = ("weights", "state", "gradients", "temporaries", "rest", "whole")
    lines = ["CUDA allocator, eager steps, MiB; largest tensor {:.1f}".format(found["full"]["largest"] / 2**20)]
    lines.append(f"{'':14}" + "".join(f"{part:>13}" for part in parts) + "   state + gradients (at most)")
    for method, held in found.items():
        share = (held["state"] + held["gradients"]) / base
        numbers = "".join(f"{held[part] / 2**20:>13.1f}" for part in parts)
        lines.append(f"{method:14}{numbers}   {share:.3f} ({held['limit']:.3f})")
    return lines
