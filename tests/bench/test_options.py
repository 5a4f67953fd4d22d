"""Options of benchmarks that make no sense are refused before anything is measured."""

from __future__ import annotations

import pytest

from engine.bench import options
from engine.cli.main import main


def test_lists_and_numbers() -> None:
    assert options.names("lora, id3") == ["lora", "id3"]
    assert options.counts("8,32") == [8, 32]
    assert options.rates("1e-3,2") == [1e-3, 2.0]
    assert options.shares("0.1,100") == [0.1, 100.0]
    assert (options.count("3"), options.count_or_none("0"), options.count_or_none("4")) == (3, 0, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("steps --pairs 0", "'0' is no whole number from 1"),
        ("accuracy --workers -1", "'-1' is no whole number"),
        ("many --runs x", "'x' is no whole number"),
        ("memory --batch-sizes 8,", "empty place"),
        ("tune --rates nan", "'nan' is no number above 0"),
        ("tune --rates inf", "'inf' is no number above 0"),
        ("selective --shares 101", "101 % is more than everything"),
        ("selective --methods ,", "empty place"),
    ],
)
def test_what_cannot_be_is_said_and_not_begun(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words.split()])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["wide", "wide=", "wide=lora", "wide={name: lora", "={name: lora}"])
def test_a_variant_is_a_label_and_a_method(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "tuned", "--variant", variant])
    assert "is not written as LABEL={name: METHOD, ...}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("wide={name: lorra}", "Did you mean 'lora'? Known: adalora"),
        ("wide={name: lora, rank: -1}", "Settings of LoRA are not valid: rank"),
        ("wide={name: id3, on: {name: lora, rank: -1}}", "Settings of LoRA are not valid: rank"),
        ("wide={rank: 2}", "method.name: Field required"),
    ],
)
def test_a_variant_that_cannot_be_is_explained(variant: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tuned", "--variant", variant]) == 1
    assert said in capsys.readouterr().err
