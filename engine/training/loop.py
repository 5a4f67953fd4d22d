"""The training loop: every method's steps, in the order that `engine.methods.contract` promises."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from engine.errors import Stopped
from engine.events import Control, Sink
from engine.plan import curve_points
from engine.tasks.encoding import Encoded
from engine.tasks.order import batch_order, curve_sample
from engine.training import checkpoint, recipe
from engine.training.build import Built
from engine.training.courtesy import Courtesy
from engine.training.evaluation import loss_and_accuracy, predict, to_device
from engine.training.execution import forward_of
from engine.training.recorder import Recorder

FLUSH_SECONDS = 0.25
"""Losses wait on the device at most this long before they are read and stored."""
CHECKPOINT_SECONDS = 30.0


class Loop:
    """Trains one built run from its first step, or from a checkpoint, to its last.

    Args:
        built: model, method and spec.
        splits: encoded training and validation examples.
        sink: takes the events.
        control: asked between steps whether to stop.
        courtesy: looked at now and then, so that other processes get their share of the machine.
        folder: the run's folder; its checkpoint lives below.
    """

    def __init__(
        self,
        built: Built,
        splits: dict[str, Encoded],
        sink: Sink,
        control: Control,
        courtesy: Courtesy,
        folder: Path,
    ) -> None:
        self.built = built
        self.train_set = splits["train"]
        self.validation = splits["validation"]
        self.sink = sink
        self.control = control
        self.checkpoints = folder / "checkpoint"
        self.train = built.spec.train
        self.forward = forward_of(built)
        self.courtesy = courtesy
        self.optimizer = recipe.dense_optimizer([p for _, p in built.dense], self.train)
        self.guard = recipe.DivergenceGuard(len(built.setting.dataset.labels))
        self.recorder = Recorder(built, sink, self.train.steps)
        self.order = batch_order(
            len(self.train_set), self.train.batch_size, self.train.steps, self.train.seed_of("data")
        )
        self.curve = curve_sample(self.validation.labels)
        self.curve_steps = set(curve_points(self.train.steps))
        self.seconds = 0.0
        """Time spent in training steps, evaluation and checkpoints apart."""
        self.loop_seconds = 0.0
        """The same with all that is recorded meanwhile, of this attempt."""
        self.earlier = 0.0
        """Wall time of what was done before the checkpoint this run goes on from."""
        self._began = time.monotonic()
        self._window = 0.0
        self._waiting: list[tuple[int, torch.Tensor]] = []
        self._flushed = self._saved = time.monotonic()

    @property
    def resumes(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.checkpoints / checkpoint.FILE).is_file()

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped, Diverged: with the checkpoint kept as each promises.
        """
        done = self._resume()
        self.sink.phase("training", done, self.train.steps)
        self._hook_gradients()
        if done == 0:
            self._measure_curve(0)
            self._save(0)
            self.recorder.start()
        looped = time.perf_counter()
        for step in range(done, self.train.steps):
            started = time.perf_counter()
            self._step(step)
            self._window += time.perf_counter() - started
            last = step + 1 == self.train.steps
            self.recorder.after_step(step, last)
            if not (last or step + 1 in self.curve_steps or self._due(self._flushed, FLUSH_SECONDS)):
                continue
            self._flush(step + 1)
            self.loop_seconds += time.perf_counter() - looped
            if step + 1 in self.curve_steps:
                self._measure_curve(step + 1)
            if not last:
                self._pause(step + 1)
            looped = time.perf_counter()

    def _step(self, step: int) -> None:
        """One optimizer step."""
        train, method = self.train, self.built.method
        lr = float(train.lr) * recipe.lr_factor(step, train.steps, train.warmup)
        batch = to_device(self.train_set.batch(self.order[step]), train.device)
        labels = batch.pop("labels")
        logits = self.forward(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        extra = method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        method.before_step(step)
        norm, scale = recipe.clip((p for _, p in self.built.dense), method.gradient_square(), train.clip)
        method.update(lr, scale)
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
        method.after_step(step)
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        self._waiting.append((step, torch.stack([loss.detach(), accuracy, norm.to(loss.device)])))
        self.recorder.count_tokens(batch["attention_mask"].numel())

    def _hook_gradients(self) -> None:
        """Hand each streamed tensor's gradient to the method as soon as it is complete."""
        for name, parameter in self.built.method.streamed():

            def consume(p: Any, name: str = name) -> None:
                self.built.method.on_gradient(name, p)

            parameter.register_post_accumulate_grad_hook(consume)

    def _flush(self, done: int) -> None:
        """Read the waiting numbers from the device, store them, and act on what they say."""
        if self._waiting:
            steps = [step for step, _ in self._waiting]
            started = time.perf_counter()
            values = torch.stack([numbers for _, numbers in self._waiting]).cpu().tolist()
            self._window += time.perf_counter() - started  # a GPU finishes its steps here
            self._waiting = []
            for step, (loss, accuracy, norm) in zip(steps, values, strict=True):
                self.sink.scalar("train/loss", step + 1, loss)
                self.sink.scalar("train/accuracy", step + 1, accuracy)
                self.sink.scalar("gradient/norm", step + 1, norm)
                factor = recipe.lr_factor(step, self.train.steps, self.train.warmup)
                self.sink.scalar("lr", step + 1, float(self.train.lr) * factor)
                self.guard.see(step + 1, loss, norm)
            self.sink.scalar("step/seconds", done, self._window / len(values))
            self.seconds += self._window
            self._window = 0.0
        self.recorder.costs(done)
        self.courtesy.look()
        self.sink.phase("training", done, self.train.steps)
        self.sink.flush()
        self._flushed = time.monotonic()

    def _pause(self, done: int) -> None:
        """Between two steps, with everything so far recorded: stop if asked to, checkpoint if it is time."""
        wish = self.control.stop_requested()
        if wish == "keep" or self._due(self._saved, CHECKPOINT_SECONDS):
            self._save(done)
        if wish:
            raise Stopped(keep=wish == "keep")

    def _measure_curve(self, done: int) -> None:
        """Validation loss and accuracy on the fixed sample."""
        logits = predict(self.built.model, self.validation, self.train.device, self.curve)
        self.courtesy.look()
        loss, accuracy = loss_and_accuracy(logits, self.validation.labels[self.curve])
        self.sink.scalar("validation/loss", done, loss)
        self.sink.scalar("validation/accuracy", done, accuracy)
        self.sink.flush()
        recipe.check_finite("validation loss", done, loss)

    def _save(self, done: int) -> None:
        state = {
            "guard": self.guard.state(),
            "recorder": self.recorder.state(),
            "seconds": self.seconds,
            "elapsed": self.earlier + time.monotonic() - self._began,
        }
        checkpoint.save(self.checkpoints, self.built, self.optimizer, done, state)
        self._saved = time.monotonic()

    def _resume(self) -> int:
        """Restore the checkpoint, if there is one; returns the steps already done."""
        saved = checkpoint.read(self.checkpoints)
        if saved is None:
            self.sink.rewind(-1)  # of a run that starts again, nothing from before may stay
            return 0
        checkpoint.restore(saved, self.built, self.optimizer)
        self.guard.restore(saved.state["guard"])
        self.recorder.restore(saved.state["recorder"])
        self.seconds, self.earlier = saved.state["seconds"], saved.state["elapsed"]
        self.sink.rewind(saved.step)
        self.sink.note("info", f"Resumed from the checkpoint after step {saved.step}.", saved.step)
        return saved.step

    @staticmethod
    def _due(since: float, seconds: float) -> bool:
        return time.monotonic() - since >= seconds
