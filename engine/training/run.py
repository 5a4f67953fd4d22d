"""Runs from their rows in the queue to their last states, whoever carries them out: worker, terminal or notebook."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from engine.training.build import Caches
from engine.training.job import Job
from engine.training.pack.steps import Member, Pack

log = logging.getLogger(__name__)


def run_job(home: Path, run_id: str, caches: Caches) -> str:
    """Carry out an active run by itself and record how it ended; returns its last state.

    Whatever goes wrong ends in the run's row, in words for its owner; nothing is raised but what
    keeps that from being recorded.
    """
    with Job(home, run_id) as job:
        with job.attempt():
            job.prepare(caches)
            if isinstance(job.run.loop.steps, Member):
                _train([job])
            else:
                job.run.loop.run()
                job.conclude()
        return str(job.state)


def run_jobs(home: Path, run_ids: Sequence[str], caches: Caches) -> None:
    """Carry out active runs of one base model in one pass over it; each ends as it would alone.

    A stop, a divergence or an error of one ends that one. What goes wrong in the common pass sends
    all of them back to the queue, from where each goes on by itself.
    """
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(Job(home, run_id)) for run_id in run_ids]
        for job in jobs:
            with job.attempt():
                job.prepare(caches)
        try:
            _train(_living(jobs))
        except Exception as error:
            log.exception("the common pass failed")
            for job in _living(jobs):
                job.send_on_alone(error)


def _train(jobs: Sequence[Job]) -> None:
    """All steps of prepared runs, and their ends; what goes wrong in the common pass is raised."""
    for job in jobs:
        with job.attempt():
            job.run.loop.begin()
    living = _living(jobs)
    if not living:
        return
    pack, company = Pack([_member(job) for job in living]), len(living)
    for job in living:
        with job.attempt():
            job.open(company)
    while living := _living(living):
        if 2 * len(living) <= len(pack):  # half of it works for nobody
            pack = Pack([_member(job) for job in living])
        pack.step()
        for job in living:
            member = _member(job)
            with job.attempt():
                job.run.loop.advance(member.done)
                if member.done == job.run.loop.train.steps:
                    job.conclude(company)
            if job.state is not None:
                pack.leave(member)


def _living(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.state is None]


def _member(job: Job) -> Member:
    steps = job.run.loop.steps
    assert isinstance(steps, Member), "only packed runs train together"
    return steps
