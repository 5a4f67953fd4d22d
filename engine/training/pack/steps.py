"""Steps of several runs at once: one batched forward and backward pass, one batched AdamW."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from engine.sparse.optimizer import BETAS, EPS, put
from engine.tasks.encoding import Encoded
from engine.training import recipe
from engine.training.build import Built
from engine.training.execution import Logits, Progress, Witness, wait_for
from engine.training.pack.batches import PackExamples, Tables
from engine.training.pack.model import Stacks, packed_model
from engine.training.ragged import FORWARDS
from engine.training.replay import Replays

ANSWERED = 2048
"""Examples of all runs together that one pass answers on a GPU when they are evaluated; on a processor `FEW`."""
FEW = 64


class Member:
    """One run's steps within a pack; implements `engine.training.execution.Steps`.

    Args:
        built: the run's objects.
        encoded: training examples.
        order: which of them each step reads, int64 (steps, batch).
    """

    def __init__(self, built: Built, encoded: Encoded, order: np.ndarray) -> None:
        self.built, self.encoded, self.order = built, encoded, order
        optimizer = recipe.dense_optimizer([p for _, p in built.dense], built.spec.train)
        assert optimizer is not None, "a head is trained whatever the method"
        self.optimizer: torch.optim.Optimizer = optimizer
        self.done = self._read = 0
        self._pack: Pack | None = None
        self._waiting: list[tuple[int, tuple[float, float, float]]] = []
        self._clock = 0.0

    def show(self, witness: Witness) -> None:
        raise NotImplementedError("steps of a pack are captured whole")

    def start(self, done: int) -> None:
        self.done = self._read = done

    def join(self, pack: Pack) -> None:
        """From now on this pack takes the steps; what another one took and nobody has read yet is kept."""
        if self._pack is not None:
            self._waiting = self.read()
        self._pack, self._clock = pack, pack.seconds

    def take(self, step: int) -> int:
        """The pack took it, at the same moment as everybody else's."""
        self.done = step + 1
        return self.pack.tokens(self, step)

    def wait(self) -> None:
        with self._by_myself():
            self.pack.wait()

    def elsewhere(self) -> float:
        spent, self._clock = self.pack.seconds - self._clock, self.pack.seconds
        return spent

    def read(self) -> list[tuple[int, tuple[float, float, float]]]:
        with self._by_myself():
            found = self._waiting + self.pack.numbers(self, self._read, self.done)
        self._read, self._waiting = self.done, []
        return found

    def predict(self, encoded: Encoded, indices: np.ndarray | None = None, progress: Progress | None = None) -> Logits:
        return self.pack.predict(self, encoded, indices, progress)

    @contextlib.contextmanager
    def _by_myself(self) -> Iterator[None]:
        """What the pack does meanwhile is on this run's own clock already."""
        before = self.pack.seconds
        yield
        self._clock += self.pack.seconds - before

    @property
    def pack(self) -> Pack:
        """Where its steps are taken."""
        assert self._pack is not None, "joined before its first step"
        return self._pack


class Pack:
    """What trains together, from where each member stands now.

    Args:
        members: of runs that differ in nothing but seeds, steps, learning rate, ranks and scales.

    Attributes:
        seconds: that steps took so far.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        built, encoded = members[0].built, members[0].encoded
        train = built.spec.train
        self._device, self._clip, self._decay = train.device, train.clip, train.weight_decay
        self._causal = built.setting.source.family.head_reads == "last"
        self._examples = PackExamples(encoded, [member.order for member in members], train.device, self._causal)
        self._stacks = Stacks([member.built for member in members])
        for run, member in enumerate(members):
            self._stacks.adopt(run, member.optimizer)
        self._model = packed_model(built.placed, self._stacks)
        self._forward = FORWARDS[str(built.setting.source.family.head_reads)]
        most = max(len(member.order) for member in members)
        self._rates = self._table([_rates(member.built, most) for member in members])
        self._steps = self._table([member.done for member in members])
        self._taken = self._steps.float()[:, None].repeat(1, len(built.dense))
        self._moves = self._table([True] * len(members))
        self._numbers = torch.zeros(len(members) * most, 3, device=train.device)
        self._most = most
        self._host = np.zeros((len(members), most, 3), np.float32)
        self._fresh = True
        self._answers: dict[Any, np.ndarray] = {}
        self._tables: dict[int, tuple[Encoded, Tables]] = {}
        self._replays = Replays(train.device)
        self.seconds = 0.0
        for run, member in enumerate(members):
            for place, (_, parameter) in enumerate(member.built.dense):
                member.optimizer.state[parameter]["step"] = self._taken[run, place]
            member.join(self)

    def __len__(self) -> int:
        return len(self._members)

    def step(self) -> None:
        """The next step of every member that has not left."""
        started = time.perf_counter()
        width = self._examples.width([member.done for member in self._members])
        self._replays.run(width, lambda: self._step(width))
        self._fresh = False
        self._answers.clear()
        self.seconds += time.perf_counter() - started

    def leave(self, member: Member) -> None:
        """A member's weights move no more; the others do not notice."""
        self._moves[self._members.index(member)] = False

    def tokens(self, member: Member, step: int) -> int:
        """Tokens of a member's step, without padding."""
        return self._examples.tokens(self._members.index(member), step)

    def wait(self) -> None:
        """Until the device has taken all steps."""
        started = time.perf_counter()
        wait_for(self._device)
        self.seconds += time.perf_counter() - started

    def numbers(self, member: Member, since: int, done: int) -> list[tuple[int, tuple[float, float, float]]]:
        """Loss, accuracy and gradient norm of a member's steps from `since` to before `done`."""
        if not self._fresh:
            started = time.perf_counter()
            self._host = self._numbers.view(len(self._members), self._most, 3).cpu().numpy()
            self.seconds += time.perf_counter() - started
            self._fresh = True
        rows = self._host[self._members.index(member), since:done].tolist()
        return [(since + place, tuple(row)) for place, row in enumerate(rows)]

    def predict(
        self, member: Member, encoded: Encoded, indices: np.ndarray | None, progress: Progress | None
    ) -> Logits:
        """A member's logits, float32 (examples, classes); whoever asks first has them computed for all."""
        chosen = np.arange(len(encoded)) if indices is None else np.asarray(indices)
        key = (id(encoded), chosen.tobytes())
        if key not in self._answers:
            self._answers[key] = self._predict(encoded, chosen, progress)
        return self._answers[key][self._members.index(member)]

    def _tables_of(self, encoded: Encoded) -> Tables:
        """A split on the device, where it stays: every point of the curves asks for the same one."""
        if id(encoded) not in self._tables:
            self._tables[id(encoded)] = encoded, Tables(encoded, self._device, self._causal)
        return self._tables[id(encoded)][1]

    @torch.no_grad()
    def _predict(self, encoded: Encoded, chosen: np.ndarray, progress: Progress | None) -> Logits:
        """Logits of all members, (members, examples, classes)."""
        runs, tables = len(self._members), self._tables_of(encoded)
        by_length = np.argsort(encoded.lengths[chosen], kind="stable")
        each, parts = max(1, (FEW if self._device == "cpu" else ANSWERED) // runs), []
        for start in range(0, len(chosen), each):
            part = chosen[by_length[start : start + each]]
            rows = torch.from_numpy(part).to(self._device).expand(runs, -1)
            ids, types, flat, _ = tables.batch(rows, int(tables.lengths[rows[0]].sum()))
            parts.append(self._forward(self._model, ids, types, flat).view(runs, len(part), -1).float())
            if progress:
                progress(start + len(part), len(chosen))
        found = torch.cat(parts, 1).cpu().numpy()
        logits = np.empty_like(found)
        logits[:, by_length] = found
        return logits

    def _step(self, width: int) -> None:
        """All of one step, from nothing but the counters on the device."""
        ids, types, flat, labels = self._examples.batch(self._steps, width)
        logits = self._forward(self._model, ids, types, flat).view(*labels.shape, -1).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        self._stacks.differentiate(losses.mean(1).sum())
        right = (logits.detach().argmax(-1) == labels).float().mean(1)
        with torch.no_grad():
            norms = self._update()
            self._stacks.updated(self._moves)
            rows = torch.arange(len(labels), device=labels.device) * self._most
            # One that has no steps left writes over its last row: what that holds is nobody's step.
            rows += self._steps.clamp(max=self._most - 1)
            put(self._numbers, rows, torch.stack([losses.mean(1), right, norms], 1))
            self._steps += self._moves
            self._taken += self._moves[:, None]

    def _update(self) -> torch.Tensor:
        """Clip and update each run by itself, as `torch.optim.AdamW` does; returns the norms before clipping."""
        values, gradients, first, second = (
            self._stacks.values, self._stacks.gradients, self._stacks.first, self._stacks.second
        )  # fmt: skip
        norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients *= torch.clamp(self._clip / (norms + 1e-6), max=1.0)[:, None]
        at = self._steps.clamp(max=self._most - 1)
        rates = (self._rates.gather(1, at[:, None])) * self._moves[:, None]
        taken = (self._taken[:, :1] + 1).double()
        if self._decay:
            values -= rates * self._decay * values
        first.lerp_(gradients, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        steps = (rates / (1 - BETAS[0] ** taken)).float()
        roots = (1 - BETAS[1] ** taken).sqrt().float()
        values -= steps * first / (second.sqrt() / roots + EPS)
        return norms

    def _table(self, rows: list[Any]) -> torch.Tensor:
        return torch.tensor(rows, device=self._device)


def _rates(built: Built, most: int) -> list[float]:
    """A run's learning rate at each of its steps; 0 beyond them."""
    train = built.spec.train
    rates = [float(train.lr) * recipe.lr_factor(step, train.steps, train.warmup) for step in range(train.steps)]
    return rates + [0.0] * (most - train.steps)
