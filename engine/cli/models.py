"""Commands about models themselves: pretrain a nano model, or prompt a decoder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine import settings
from engine.cli.listing import emit, table
from engine.devices import cpu_threads, resolve_device
from engine.errors import SpecError


def pretrain(arguments: argparse.Namespace) -> int:
    """Make a nano model; stopped and called again with the same settings it goes on."""
    import torch

    from engine.pretraining.make import make

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(arguments.threads or cpu_threads())
    facts = make(
        arguments.name,
        Path(arguments.to),
        Path(arguments.work) if arguments.work else settings.home() / "pretraining" / arguments.name,
        device=resolve_device(arguments.device),
        seed=arguments.seed,
        steps=arguments.steps,
        say=say,
    )
    held = ", ".join(f"{name} {value:.4f}" for name, value in facts["held_out"].items())
    return emit(arguments, facts, f"{arguments.to}: {facts['parameters']:,} parameters; held-out losses: {held}")


def prompt(arguments: argparse.Namespace) -> int:
    """Ask a decoder with growing numbers of solved questions in front."""
    from engine.prompting.measure import by_shots, load_speaker

    found = by_shots(load_speaker(arguments.model), arguments.task, _numbers(arguments.shots), arguments.questions)
    rows = [
        {
            "shots": row["shots"],
            "right": f"{row['correct']} of {row['total']}",
            "accuracy": f"{100 * row['accuracy']:.1f} % [{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}]",
            "kept out of pretraining": f"{row['fresh_correct']} of {row['fresh_total']}",
        }
        for row in found["rows"]
    ]
    return emit(arguments, found, f"{table(rows)}\n{found['naive_way']}: {100 * found['naive']:.1f} %")


def divergence(arguments: argparse.Namespace) -> int:
    """Measure how far answers move when weights do, against the Fisher information's prediction."""
    from engine.training.divergence import from_kl_to_fisher

    found = from_kl_to_fisher(
        arguments.model, arguments.dataset, k=arguments.k, examples=arguments.examples, seed=arguments.seed
    )
    rows = [
        {
            "weights": row["group"],
            "step": f"{row['step']:.1e}",
            "KL (nats)": f"{sum(row['kl']) / len(row['kl']):.2e}",
            "predicted": f"{sum(row['quadratic']) / len(row['quadratic']):.2e}",
            "by the diagonal": f"{row['diagonal']:.2e}",
        }
        for row in found["rows"]
    ]
    return emit(arguments, found, table(rows))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--shots takes numbers with commas, not {text!r}.", "For example: --shots 0,1,2,4,8") from None
