"""The real runner, with a checkpoint at nearly every step, for workers that tests kill."""

from engine.training import loop
from engine.training.run import Caches, run_job, run_jobs

__all__ = ["Caches", "run_job", "run_jobs"]

loop.FLUSH_SECONDS = 0.02
loop.CHECKPOINT_SECONDS = 0.05
