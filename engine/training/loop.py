"""The training loop: every method's steps, in the order that `engine.methods.contract` promises."""

from __future__ import annotations

import time
from pathlib import Path

from engine.errors import Stopped
from engine.events import Control, Sink
from engine.plan import curve_points
from engine.tasks.encoding import Encoded
from engine.tasks.order import batch_order, curve_sample
from engine.training import checkpoint, recipe
from engine.training.build import Built
from engine.training.costs import PeakMemory
from engine.training.courtesy import Courtesy
from engine.training.evaluation import loss_and_accuracy
from engine.training.execution import steps_of
from engine.training.recorder import Recorder

FLUSH_SECONDS = 0.25
"""Losses wait on the device at most this long before they are read and stored."""
PATIENCE = 4
"""Of several runs that train together, up to so many times as long."""
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
        memory: watched since the run began.
    """

    def __init__(
        self,
        built: Built,
        splits: dict[str, Encoded],
        sink: Sink,
        control: Control,
        courtesy: Courtesy,
        folder: Path,
        memory: PeakMemory,
    ) -> None:
        self.built = built
        train_set = splits["train"]
        self.validation = splits["validation"]
        self.sink = sink
        self.control = control
        self.checkpoints = folder / "checkpoint"
        self.train = built.spec.train
        self.courtesy = courtesy
        self.guard = recipe.DivergenceGuard(len(built.setting.dataset.labels))
        self.recorder = Recorder(built, sink, self.train.steps, memory)
        order = batch_order(len(train_set), self.train.batch_size, self.train.steps, self.train.seed_of("data"))
        self.steps = steps_of(built, train_set, order)
        if self.recorder.plane is not None and self.recorder.plane.sees:
            self.steps.show(self.recorder.plane)
        self.curve = curve_sample(self.validation.labels)
        self.curve_steps = set(curve_points(self.train.steps))
        self.done = 0
        """Steps that were done when this attempt began."""
        self.seconds = 0.0
        """Time spent in training steps, evaluation and checkpoints apart."""
        self.loop_seconds = 0.0
        """The same with all that is recorded meanwhile, of this attempt."""
        self.earlier = 0.0
        """Wall time of what was done before the checkpoint this run goes on from."""
        self._began = time.monotonic()
        self._looped = time.perf_counter()
        self._window, self._patience = 0.0, 1
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
        self.begin()
        self.open()
        for step in range(self.done, self.train.steps):
            self.advance(step)

    def begin(self) -> None:
        """Restore the checkpoint if there is one."""
        self.recorder.memory.begin("training")
        self.done = self._resume()
        self.sink.phase("training", self.done, self.train.steps)
        self.steps.start(self.done)

    def open(self) -> None:
        """What is measured and kept of a run before its first step."""
        if self.done == 0:
            self._measure_curve(0)
            self._save(0)
            self.recorder.start()
        self._looped = time.perf_counter()

    def share_with(self, company: int) -> None:
        """So many runs train together: what is recorded of each leaves time for all of them."""
        self._patience = min(company, PATIENCE)
        self.recorder.schedule.share_with(company)

    def advance(self, step: int) -> None:
        """Take one step, and record, evaluate and save what is due after it.

        Raises:
            Stopped, Diverged: with the checkpoint kept as each promises.
        """
        last = step + 1 == self.train.steps
        self.recorder.watch(step, last)
        started = time.perf_counter()
        self.recorder.count_tokens(self.steps.take(step))
        if framed := self.recorder.due(step, last):
            self.steps.wait()  # what the steps still need is no cost of the frame
        self._window += time.perf_counter() - started - self.recorder.looking()
        self.recorder.watched(step)
        self.recorder.follow(step + 1)
        if framed:
            self.recorder.frame(step)
        if not (last or step + 1 in self.curve_steps or self._due(self._flushed, FLUSH_SECONDS * self._patience)):
            return
        self._flush(step + 1)
        self.loop_seconds += time.perf_counter() - self._looped
        if step + 1 in self.curve_steps:
            self._measure_curve(step + 1)
        if not last:
            self._pause(step + 1)
        self._looped = time.perf_counter()

    def _flush(self, done: int) -> None:
        """Read the waiting numbers from the device, store them, and act on what they say."""
        started = time.perf_counter()
        found = self.steps.read()
        self._window += time.perf_counter() - started  # a GPU finishes its steps here
        self._window += self.steps.elsewhere()
        if found:
            for step, (loss, accuracy, norm) in found:
                self.sink.scalar("train/loss", step + 1, loss)
                self.sink.scalar("train/accuracy", step + 1, accuracy)
                self.sink.scalar("gradient/norm", step + 1, norm)
                factor = recipe.lr_factor(step, self.train.steps, self.train.warmup)
                self.sink.scalar("lr", step + 1, float(self.train.lr) * factor)
                self.guard.see(step + 1, loss, norm)
            self.sink.scalar("step/seconds", done, self._window / len(found))
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
        logits = self.steps.predict(self.validation, self.curve)
        self.courtesy.look()
        loss, accuracy = loss_and_accuracy(logits, self.validation.labels[self.curve])
        self.sink.scalar("validation/loss", done, loss)
        self.sink.scalar("validation/accuracy", done, accuracy)
        self.sink.flush()
        recipe.check_finite("validation loss", done, loss)
        if done == 0:
            self.guard.see_untrained(loss)
        elif done == self.train.steps:
            self.guard.see_last(done, loss)

    def _save(self, done: int) -> None:
        state = {
            "guard": self.guard.state(),
            "recorder": self.recorder.state(),
            "seconds": self.seconds,
            "elapsed": self.earlier + time.monotonic() - self._began,
        }
        checkpoint.save(self.checkpoints, self.built, self.steps.optimizer, done, state)
        self._saved = time.monotonic()

    def _resume(self) -> int:
        """Restore the checkpoint, if there is one; returns the steps already done."""
        saved = checkpoint.read(self.checkpoints)
        if saved is None:
            self.sink.rewind(-1)  # of a run that starts again, nothing from before may stay
            return 0
        checkpoint.restore(saved, self.built, self.steps.optimizer)
        self.guard.restore(saved.state["guard"])
        self.recorder.restore(saved.state["recorder"])
        self.seconds, self.earlier = saved.state["seconds"], saved.state["elapsed"]
        self.sink.rewind(saved.step)
        self.sink.note("info", f"Resumed from the checkpoint after step {saved.step}.", saved.step)
        return saved.step

    @staticmethod
    def _due(since: float, seconds: float) -> bool:
        return time.monotonic() - since >= seconds
