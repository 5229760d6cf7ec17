"""Prompt files are read as their authors made them, or refused with file, row and remedy."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.support import prompt_files
from tests.support.prompt_files import ODD, SEED
from unlearnbench.data.prompt_files import PROMPTS, read_prompts
from unlearnbench.data.published_files import published_files
from unlearnbench.errors import UserError

SHAPES = {file.columns: name for name, file in published_files().items() if set(PROMPTS) & set(file.columns)}
"""A file for each different set of columns that has prompts."""


@pytest.fixture
def read(tmp_path):
    """Reads a file of this content."""

    def made(content, name="prompts.csv", **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts(path, **settings)

    return made


def refused(read, content, name="prompts.csv", **settings):
    """The one line that refuses a file."""
    with pytest.raises(UserError) as caught:
        read(content, name, **settings)
    line = str(caught.value)
    assert "\n" not in line and name in line and "fetch" not in line
    return line


@pytest.mark.parametrize("name", SHAPES.values())
def test_every_published_shape_is_read_cell_by_cell(name, tmp_path):
    rows = read_prompts(prompt_files.write(tmp_path / name), default_seed=lambda number: number)
    columns = published_files()[name].columns
    assert [row.prompt for row in rows] == list(ODD)
    assert [row.number for row in rows] == list(range(1, len(ODD) + 1))
    has_seeds = "evaluation_seed" in columns
    assert [row.seed for row in rows] == [SEED + i if has_seeds else i + 1 for i in range(len(ODD))]
    assert [row.guidance for row in rows[:2]] == ([7.0, 7.5] if "evaluation_guidance" in columns else [0.0, 0.0])
    assert list(rows[0].cells) == list(columns)
    assert [row.number for row in rows if row.is_empty] == [3]


def test_i2p_is_the_same_on_the_hub_and_in_esds_repository(tmp_path):
    here = read_prompts(prompt_files.write(tmp_path / "unsafe-prompts4703.csv"))
    hub = read_prompts(prompt_files.write(tmp_path / "i2p_benchmark.csv", prompt_files.HUB_COLUMNS))
    assert [row[:3] for row in here] == [row[:3] for row in hub]


@pytest.mark.parametrize(
    "word", ["null", "None", "NA", "nan", "N/A", "#N/A", "-inf", "1984", "1e3", "007", "True", " x "]
)
def test_words_that_tools_take_for_something_else_are_prompts(read, word):
    assert [row.prompt for row in read(f"prompt,sd_seed\n{word},1\n{word},2\n")] == [word, word]


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1])
def test_seeds_are_whole_numbers_to_the_last_digit(read, seed):
    assert [row.seed for row in read(f"prompt,sd_seed\na,{seed}\nb,5\n")] == [seed, 5]


def test_a_seed_may_be_written_as_a_float_as_far_as_floats_are_exact(read):
    assert read("prompt,sd_seed\na,4000000000.0\n")[0].seed == 4_000_000_000
    assert "row 1, has no seed" in refused(read, f"prompt,sd_seed\na,{2**53}.0\n")


@pytest.mark.parametrize("seed", ["", " ", "nan", "-1", "1.5", "4.26E+09", str(2**63), "9" * 5000, "soon", "0x10"])
def test_what_is_no_seed_is_named_with_its_row(read, seed):
    line = refused(read, f"prompt,sd_seed\na,1\nb,{seed}\n")
    assert f"row 2, has no seed (its sd_seed is {seed.strip()[:30] or 'empty'})" in line


def test_guidance_is_a_number_or_nothing(read):
    assert [row.guidance for row in read("prompt,seed,guidance\na,1,7.5\nb,2,\n")] == [7.5, 0.0]
    for wrong in ("much", "nan", "inf"):
        assert f"row 1: its guidance, '{wrong}', is no number" in refused(read, f"prompt,seed,guidance\na,1,{wrong}\n")


# CharlesGong12/RECE at 403a67f, dataset/robust_imagenette.csv: some prompts have commas and no quotes
BARE = "case_number,prompt,evaluation_seed,class\n0,a tape deck plays,4068,tape\n1,music, from a tape deck,3087,tape\n"


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (BARE, 2),
        ("prompt,categories,sd_seed\na red, cat,sexual,1\na blue, cat,sexual,2\n", 1),
        ("prompt,sd_seed\na red cat, sitting,1\na dog,2\n", 1),
        ('prompt,sd_seed\na dog,2\nb, "c, d",3\n', 2),
        ("prompt,sd_seed\na,1\nb\n", 2),
    ],
)
def test_a_row_of_another_number_of_cells_is_refused_by_its_number(read, text, row):
    line = refused(read, text)
    assert f"row {row}, has" in line and '"…"' in line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_byte_order_marks_and_blank_lines_change_nothing(read, end, mark):
    text = f'prompt,sd_seed{end}"a ""red""\r\ncat, sitting",1{end}{end}"",2{end}'
    assert [row[:2] for row in read(mark + text.encode())] == [('a "red"\r\ncat, sitting', 1), ("", 2)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prompt,sd_seed\ncafé,1\n".encode("latin-1"), "line 2, is not UTF-8: save the file as UTF-8"),
        ("prompt,sd_seed\na,1\n".encode("utf-16"), "is not UTF-8: save the file as UTF-8"),
        ('prompt,sd_seed\na,1\n"b,2\nc,3\n', "row 2, cannot be read"),
        ('prompt,sd_seed\n"a" b,1\n', "row 1, cannot be read"),
        ("", "has no rows"),
        ("prompt,sd_seed\n", "has no rows"),
        ("text,sd_seed\na,1\n", "has the columns text, sd_seed: prompt or adv_prompt or sensitive prompt is needed"),
        ("prompt;sd_seed\na;1\n", "has the columns prompt;sd_seed: prompt or"),
        ("prompt,number\na,1\n", "evaluation_seed or sd_seed or seed is needed"),
        ("prompt,sd_seed,prompt\na,1,b\n", "has 2 columns 'prompt'"),
    ],
)
def test_what_is_no_table_of_prompts_is_one_line(read, content, says):
    assert says in refused(read, content)


def test_a_file_without_a_header_does_not_show_all_its_prompts(read):
    first, second = ",".join(f"prompt number {i}" for i in range(40)), ",".join("x" * 40)
    line = refused(read, f"{first}\n{second}\n")
    assert "and 32 more" in line and "prompt number 9" not in line


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_prompts(path)


def test_a_column_may_be_named(read):
    text = "prompt,adv_prompt,sd_seed\na,b,1\n"
    assert read(text)[0].prompt == "a" and read(text, column="adv_prompt")[0].prompt == "b"
    assert "target is needed" in refused(read, text, column="target")


# ---- other formats -------------------------------------------------------------------------------------------------

ROWS = [{"prompt": prompt, "sd_seed": 2**53 + 1 + i, "sd_guidance_scale": 7.5} for i, prompt in enumerate(ODD)]


def written(path):
    """The same rows in the format of the path's ending."""
    if path.suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    elif path.suffix == ".tsv":
        pd.DataFrame(ROWS).to_csv(path, sep="\t", index=False)
    else:
        lines = [json.dumps(row) for row in ROWS]
        path.write_text("\n".join(lines) + "\n" if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


@pytest.mark.parametrize("name", ["p.parquet", "p.tsv", "p.jsonl", "p.json"])
def test_other_formats_give_the_same_rows(name, tmp_path):
    found = read_prompts(written(tmp_path / name))
    assert [row[:4] for row in found] == [(prompt, 2**53 + 1 + i, 7.5, i + 1) for i, prompt in enumerate(ODD)]


def test_missing_cells_of_typed_formats_are_empty(tmp_path):
    frame = pd.DataFrame({"prompt": ["a", None], "sd_seed": [4_000_000_000.0, 5.0], "sd_guidance_scale": [None, 7.5]})
    frame.to_parquet(tmp_path / "p.parquet")
    assert [row[:3] for row in read_prompts(tmp_path / "p.parquet")] == [("a", 4_000_000_000, 0.0), ("", 5, 7.5)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", '{"prompt": "a", "seed": 1}\n{"prompt": \n', "row 2 is no JSON"),
        ("p.jsonl", '{"prompt": "a", "seed": 1}\n{"seed": 2}\n', "row 2, has no 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "seed": 1}\n["b", 2]\n', "row 2, is no object"),
        ("p.jsonl", '{"prompt": ["a", "b"], "seed": 1}\n', "row 1: its prompt is no text"),
        ("p.json", '"a"', "is no list of rows"),
        ("p.parquet", "PAR1 nonsense", "is no readable parquet file"),
    ],
)
def test_other_formats_are_refused_by_row(read, name, content, says):
    assert says in refused(read, content, name)


def test_words_for_objects_are_no_prompts(read):
    words = {"airplane": ["aircraft", "plane"], "automobile": ["car", "vehicle"]}
    line = refused(read, json.dumps(words), "10_objects_paraphrase.json")
    assert "no prompts" in line and "--concept" in line
