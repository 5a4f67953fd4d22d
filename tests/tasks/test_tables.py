"""Reading files with the quirks of real ones, and refusing what cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine import settings
from engine.errors import DataError
from engine.tasks.tables import Table, read_table


def read(folder: Path, name: str, content: str | bytes, header: bool = True) -> Table:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, header)


def test_csv_with_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", 'text,label\n"one, ""two""\nthree",yes\nplain,no\n')
    assert table.columns == ("text", "label")
    assert table.column("text") == ['one, "two"\nthree', "plain"]
    assert table.column("label") == ["yes", "no"]
    assert table.quoting


def test_unbalanced_quotes_in_csv_do_not_swallow_lines(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", 'text,label\n"open,yes\n"closed" no,no\nlast,no\n')
    assert table.column("text") == ['"open', '"closed" no', "last"]
    assert not table.quoting


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", b"\xef\xbb\xbfsentence\tlabel\ngood\t1\n")
    assert table.columns == ("sentence", "label")
    assert table.encoding == "utf-8-sig"


def test_latin_1(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", "sentence\tlabel\ncafé à la carte\t1\n".encode("latin-1"))
    assert table.column("sentence") == ["café à la carte"]
    assert table.encoding == "latin-1"


def test_utf_16(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", "sentence\tlabel\ncafé\t1\n".encode("utf-16"))
    assert table.column("sentence") == ["café"]


def test_windows_line_ends(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", "text,label\r\none,yes\r\ntwo,no\r\n")
    assert table.column("label") == ["yes", "no"]


def test_unbalanced_quotes_are_text(tmp_path: Path) -> None:
    lines = ['" He said no .\t1', "plain\t0", 'he said " no\t1', '"Wind" is the word\t0']
    table = read(tmp_path, "a.tsv", "sentence\tlabel\n" + "\n".join(lines) + "\n")
    assert not table.quoting
    assert table.column("sentence") == ['" He said no .', "plain", 'he said " no', '"Wind" is the word']


def test_enclosing_quotes_in_tsv_are_taken_off(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", 'sentence\tlabel\n"He said ""no"" ."\t1\nplain\t0\n')
    assert table.quoting
    assert table.column("sentence") == ['He said "no" .', "plain"]


def test_no_header(tmp_path: Path) -> None:
    table = read(tmp_path, "a.tsv", "good film\t1\nbad film\t0\n", header=False)
    assert table.columns == ("0", "1")
    assert table.column("0") == ["good film", "bad film"]


def test_label_text_lines(tmp_path: Path) -> None:
    content = "DESC:def What is an atom ?\nLOC:city What county is Modesto , California in ?\n"
    table = read(tmp_path, "questions.txt", content)
    assert table.columns == ("label", "text")
    assert table.column("label") == ["DESC:def", "LOC:city"]
    assert table.column("text") == ["What is an atom ?", "What county is Modesto , California in ?"]
    assert not table.header


def test_semicolons_in_csv(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text;label\neins;ja\nzwei;nein\n").column("label") == ["ja", "nein"]


def test_words_that_pandas_takes_for_missing_stay_text(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", "text,label\nNA,None\nnull,nan\n")
    assert table.column("text") == ["NA", "null"]
    assert table.column("label") == ["None", "nan"]


def test_short_lines_have_empty_cells(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text,label\none,yes\ntwo\n").column("label") == ["yes", ""]


def test_html_stays_text(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", "text,label\n<script>alert(1)</script> & <b>bold</b>,yes\n")
    assert table.column("text") == ["<script>alert(1)</script> & <b>bold</b>"]


def test_json_lines(tmp_path: Path) -> None:
    records = [{"text": "one", "label": 1}, {"text": "zwei\u2028", "label": True, "more": None}]
    content = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    table = read(tmp_path, "a.jsonl", content)
    assert table.columns == ("text", "label", "more")
    assert table.column("text") == ["one", "zwei\u2028"]
    assert table.column("label") == ["1", "true"]


def test_json_array_and_lone_surrogates(tmp_path: Path) -> None:
    table = read(tmp_path, "a.json", '[{"text": "half \\ud83d", "label": "a"}]')
    assert table.column("text") == ["half ?"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", " \n\n", "is empty"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\none,yes\ntwo,no,really,no\n", r"malformed.*line 3"),
        ("a.csv", "text,label\none,yes,1\ntwo,no,2\n", "fewer cells"),
        ("a.csv", 'text,label\n"open,yes\nmore,no,1\n', "malformed"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n[1, 2]\n', "record 2 is not an object"),
        ("a.json", '[{"text": "a"}, ]', "not valid JSON"),
        ("a.json", "[]", "has no rows"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file"),
    ],
)
def test_malformed_files_are_explained(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, content)


def test_missing_column_lists_the_others(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", "review,stars\nfine,4\n")
    with pytest.raises(DataError, match=r"no column 'text'.*'review', 'stars'"):
        table.column("text")


def test_too_many_bytes_are_refused_with_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.truncate(settings.UPLOAD_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(DataError, match="limit is 64 MB"):
        read_table(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_too_many_rows_are_refused_with_the_limit(tmp_path: Path, suffix: str) -> None:
    line = {".csv": "a,b\n", ".jsonl": '{"a": 1}\n', ".txt": "LABEL some text\n"}[suffix]
    (tmp_path / f"long{suffix}").write_text(line * (settings.UPLOAD_ROWS + 2))
    with pytest.raises(DataError, match="limit of 200,000 rows"):
        read_table(tmp_path / f"long{suffix}")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("pattern", ['{{"text": {}}}', "[{}", '[{{"text": {}}}]'])
def test_deeply_nested_json_is_refused(tmp_path: Path, suffix: str, depth: int, pattern: str) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        read(tmp_path, f"a.{suffix}", pattern.format("[" * depth + "]" * depth))


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_32_is_refused_by_name(tmp_path: Path, order: str) -> None:
    content = "\ufefftext,label\none,1\n".encode(f"utf-32-{order}")
    with pytest.raises(DataError, match="UTF-32"):
        read(tmp_path, "a.csv", content)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(DataError, match="is not a file but"):
            read_table(path)
