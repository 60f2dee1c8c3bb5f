# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Data of one's own, files and folders, become prompts, images and solutions."""

import csv
import json
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import generation_batch, make_trainer, picture
from dataset_folders import OWN_ROWS as ROWS
from dataset_folders import jsonl, photos
from datasets import Dataset, DatasetDict, Image

from trl_cppo import digits
from trl_cppo.commands.prepare import PROMPT_SUFFIX, prepare

COLUMNS = dict(question="q", answer="a", image=["path"])
SOLUTIONS = ["\\boxed{5.0}", "\\boxed{C}", "\\boxed{007}"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def table(path, delimiter, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "mine.jsonl": jsonl,
    "lines.json": jsonl,
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "inside.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "list.JSONL": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "beside.json": lambda path: path.write_text(json.dumps({"data": ROWS, "kinds": ["a", "b"]})),
    "mine.csv": lambda path: table(path, ","),
    "spaced.csv": lambda path: path.write_text(
        ", ".join(ROWS[0]) + " \n" + "".join(", ".join(f'"{x}"' for x in row.values()) + "\n" for row in ROWS)
    ),
    "excel.csv": lambda path: table(path, ";", "utf-8-sig"),
    "mine.tsv": lambda path: table(path, "\t"),
    "mine.parquet": lambda path: Dataset.from_list([{**row, "a": str(row["a"])} for row in ROWS]).to_parquet(path),
}


def shown(rows):
    return [image.tobytes() for row in rows for image in row["images"]]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_each_kind_gives_the_same_rows(tmp_path, name):
    photos(tmp_path / "photos")
    WRITERS[name](tmp_path / name)
    prepared, counts = prepare(str(tmp_path / name), **COLUMNS)
    assert list(prepared) == ["train"] and counts == {"train": {"kept": 3}}
    rows = prepared["train"]
    assert rows["solution"][:] == SOLUTIONS and shown(rows) == [picture(i).tobytes() for i in range(3)]
    texts = [[part["text"] for part in message["content"]] for [message] in rows["prompt"][:]]
    assert texts == [[None, f"{row['q']} {PROMPT_SUFFIX}"] for row in ROWS]


def test_numbers_of_a_parquet_file_are_answers(tmp_path):
    photos(tmp_path / "photos")
    Dataset.from_list([{"question": "?", "answer": 7, "image": "photos/0.png"}]).to_parquet(tmp_path / "x.parquet")
    assert prepare(str(tmp_path / "x.parquet"))[0]["train"]["solution"][:] == ["\\boxed{7}"]


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_parquet_files_as_pandas_and_polars_write_them(tmp_path, several, embedded):
    """Their texts, bytes and lists are Arrow's large ones; answers may be of any type of number, or true and false."""
    photos(tmp_path / "photos")
    texts = [f"photos/{i}.png" for i in range(2)]
    shows = [(tmp_path / text).read_bytes() for text in texts] if embedded else texts
    kind = pa.large_binary() if embedded else pa.large_string()
    shows = pa.array([[show] for show in shows], pa.large_list(kind)) if several else pa.array(shows, kind)
    for answers, told in (([True, False], "true false"), (pa.array([Decimal("1.50"), Decimal("2.00")]), "1.50 2.00")):
        table = pa.table({"question": pa.array(["?", "?"], pa.large_string()), "answer": answers, "image": shows})
        pq.write_table(table, tmp_path / "mine.parquet")
        rows = prepare(str(tmp_path / "mine.parquet"))[0]["train"]
        assert shown(rows) == [picture(i).tobytes() for i in range(2)]
        assert rows["solution"][:] == [f"\\boxed{{{answer}}}" for answer in told.split()]


def test_a_file_that_is_missing_is_named_with_its_row(tmp_path):
    photos(tmp_path / "photos", 2)
    path = jsonl(tmp_path / "mine.jsonl")
    told = rf"^Row 2 of {path} \(train\), column 'path': image missing: image 0, no such file photos/2.png in {tmp_path}\. Mend"
    with pytest.raises(ValueError, match=told):
        prepare(str(path), **COLUMNS)
    prepared, counts = prepare(str(path), **COLUMNS, skip_broken=True)
    assert counts["train"] == {"kept": 2, "path: image missing": 1} and counts["train"].rows[
        "path: image missing"
    ] == [2]
    jsonl(path, [{**ROWS[0], "path": "https://host/x.png"}])
    with pytest.raises(ValueError, match="https://host/x.png is an address: download the image and give its path"):
        prepare(str(path), **COLUMNS)
    for content in ("data:image/png;base64," + 50 * "A", 5000 * "A"):
        jsonl(path, [{**ROWS[0], "path": content}])
        with pytest.raises(
            ValueError, match=rf"image 0, '{content[:40]}'… is an image's content: write it into a file"
        ):
            prepare(str(path), **COLUMNS)
    jsonl(path, [{**ROWS[0], "path": "photos"}])
    with pytest.raises(
        ValueError, match=rf"image 0 \(photos\), IsADirectoryError: it is a folder in {tmp_path}\. Mend"
    ):
        prepare(str(path), **COLUMNS)


def test_paths_that_windows_wrote_are_found(tmp_path):
    photos(tmp_path / "mine" / "photos")
    rows = [{"question": "?", "answer": "1", "image": f"photos\\{i}.png"} for i in range(3)]
    path = jsonl(tmp_path / "mine" / "x.jsonl", rows)
    for name in (path, path.parent):
        assert shown(prepare(str(name))[0]["train"]) == [picture(i).tobytes() for i in range(3)]
    jsonl(path, [{**rows[0], "image": "..\\mine\\..\\..\\x.png"}])
    with pytest.raises(ValueError, match="is no path inside the data set's folder"):
        prepare(str(path.parent))


def test_paths_of_a_named_file_may_lead_anywhere_those_of_a_folder_may_not(tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "texts").mkdir()
    paths = ["../photos/0.png", str(tmp_path / "photos" / "1.png")]
    path = jsonl(
        tmp_path / "texts" / "mine.jsonl", [{"question": "?", "answer": "1", "image": name} for name in paths]
    )
    assert shown(prepare(str(path))[0]["train"]) == [picture(i).tobytes() for i in range(2)]
    with pytest.raises(ValueError, match="'../photos/0.png' is no path inside the data set's folder"):
        prepare(str(path.parent))


def test_a_changed_photo_is_read_again(tmp_path):
    photos(tmp_path / "photos")
    for name in ("mine.jsonl", "mine.parquet"):
        WRITERS[name](tmp_path / name)
        prepare(str(tmp_path / name), **COLUMNS)
        picture(9).save(tmp_path / "photos" / "1.png")
        assert shown(prepare(str(tmp_path / name), **COLUMNS)[0]["train"])[1] == picture(9).tobytes()
        picture(1).save(tmp_path / "photos" / "1.png")


def test_several_images_a_row(tmp_path):
    photos(tmp_path / "photos")
    names = [f"photos/{i}.png" for i in range(3)]
    rows = [{"question": "<image> or <image>?", "answer": "1", "images": names[:2]}, {"question": "?", "answer": "2", "images": names[2]},
            {"question": "text", "answer": "3", "images": None}]  # fmt: skip
    made = prepare(str(jsonl(tmp_path / "lists.jsonl", rows)))[0]["train"]
    assert [len(row["images"]) for row in made] == [2, 1, 0] and shown(made) == [
        picture(i).tobytes() for i in range(3)
    ]
    [message] = made[0]["prompt"]
    assert [part["type"] for part in message["content"]] == ["image", "text", "image", "text"]
    (tmp_path / "columns.csv").write_text(f"question,answer,back,front\n?,1,{names[0]},{names[1]}\n?,2,,{names[2]}\n")
    made = prepare(str(tmp_path / "columns.csv"), image=["front", "back"])[0]["train"]
    assert [len(row["images"]) for row in made] == [2, 1] and shown(made) == [picture(i).tobytes() for i in (1, 0, 2)]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_photos_with_metadata_beside_them(tmp_path, name):
    for place, split in enumerate(("train", "test")):
        photos(tmp_path / "mine" / split, start=3 * place)
        rows = [{"file_name": f"{i}.png", "question": "?", "answer": str(i)} for i in range(3)]
        path = tmp_path / "mine" / split / name
        if name.endswith("csv"):
            path.write_text("file_name,question,answer\n" + "".join(",".join(row.values()) + "\n" for row in rows))
        else:
            jsonl(path, rows)
    prepared, _ = prepare(str(tmp_path / "mine"))
    assert {split: shown(rows) for split, rows in prepared.items()} == {
        "train": [picture(i).tobytes() for i in range(3)], "test": [picture(3 + i).tobytes() for i in range(3)]
    }  # fmt: skip


def test_photos_without_metadata_say_what_to_write(tmp_path):
    photos(tmp_path / "mine")
    with pytest.raises(
        FileNotFoundError, match=r"There are pictures: write .* metadata.jsonl beside them, .*\"file_name\""
    ) as error:
        prepare(str(tmp_path / "mine"))
    line = json.loads(re.search(r"\{.*\}", str(error.value))[0])
    jsonl(tmp_path / "mine" / "metadata.jsonl", [line])  # what it says, done
    assert prepare(str(tmp_path / "mine"))[1] == {"train": {"kept": 1}}


def test_each_file_of_a_folder_names_photos_from_its_own_folder(tmp_path):
    for place, part in enumerate(("a", "b")):
        photos(tmp_path / "mine" / part / "photos", start=3 * place)
        jsonl(tmp_path / "mine" / part / "rows.jsonl")
    rows = prepare(str(tmp_path / "mine"), **COLUMNS)[0]["train"]
    assert shown(rows) == [picture(i).tobytes() for i in range(6)]
    assert shown(prepare(str(tmp_path / "mine"), **COLUMNS, num_proc=2)[0]["train"]) == shown(rows)


def test_a_folder_of_save_to_disk(tmp_path):
    rows = Dataset.from_dict({"question": ["?"] * 2, "answer": ["1", "2"], "image": [picture(0), picture(1)]})
    rows.cast_column("image", Image()).save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "two")
    assert shown(prepare(str(tmp_path / "one"))[0]["train"]) == [picture(i).tobytes() for i in range(2)]
    prepared, _ = prepare(str(tmp_path / "two"))
    assert {split: rows["solution"][:] for split, rows in prepared.items()} == {
        "train": ["\\boxed{1}", "\\boxed{2}"], "test": ["\\boxed{2}"]
    }  # fmt: skip


def test_a_system_prompt_is_counted_and_trained(tmp_path):
    photos(tmp_path / "photos")
    digits.build_processor().save_pretrained(tmp_path / "model")
    path = jsonl(tmp_path / "mine.jsonl", [{**row, "q": "sum?"} for row in ROWS])
    options = dict(COLUMNS, model=str(tmp_path / "model"), prompt_suffix="")
    plain, rows = (prepare(str(path), **options, system_prompt=text)[0]["train"] for text in (None, "sum?"))
    system, user = rows[0]["prompt"]
    assert system == {"role": "system", "content": [{"type": "text", "text": "sum?"}]} and [user] == plain[0]["prompt"]
    assert all(more > less for more, less in zip(rows["num_tokens"][:], plain["num_tokens"][:], strict=True))
    trainer = make_trainer(tmp_path / "run", rows, per_device_train_batch_size=6, num_generations=2)
    assert set(generation_batch(trainer)["prompt_mask"].sum(1).tolist()) == set(rows["num_tokens"][:])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"q": "?"}\n{"q": ', r"mine\.jsonl, line 2, is no JSON \(Expecting value.*\): '\{\"q\": '\. Mend the line\.$"),
        ('{"q": "?"}\n5\n', r"Row 1 of .*mine\.jsonl is no JSON object, .* but '5'\.$"),
        ('{"q": {"text": "?"}, "a": "1", "path": "x"}', r"Row 0 of .*, column 'q': expected text, got \{'text': '\?'\}\. Mend the row\.$"),
        ("\n", r"mine\.jsonl has no rows\.$"),
        ('{"q": "?", "a": 1}', r"mine\.jsonl \(train\) has no column 'path'; its columns are \['q', 'a'\]\.$"),
    ],
)  # fmt: skip
def test_faults_of_a_file_name_the_line(tmp_path, text, told):
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(ValueError, match=told):
        prepare(str(tmp_path / "mine.jsonl"), **COLUMNS)


def test_faults_of_a_table(tmp_path):
    (tmp_path / "mine.csv").write_text("q,a,path\nYes, or no?,1,x.png\n")
    with pytest.raises(
        ValueError,
        match=r"Row 0 of .*mine.csv has more cells than the header \(q, a, path\)\. Put .* ',' into double quotes",
    ):
        prepare(str(tmp_path / "mine.csv"), **COLUMNS)
    (tmp_path / "mine.csv").write_bytes("q,a,path\nZwölf?,1,x.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.csv is not UTF-8 \(byte 11\)\. Save it as UTF-8"):
        prepare(str(tmp_path / "mine.csv"), **COLUMNS)
    (tmp_path / "mine.csv").write_text("q,a,path,q\n?,1,x.png,!\n")
    with pytest.raises(ValueError, match=r"mine.csv has two columns 'q', and one would hide the other\. Rename one\."):
        prepare(str(tmp_path / "mine.csv"), **COLUMNS)
    (tmp_path / "mine.csv").write_text("q,a,path\n?,1," + 140_000 * "A" + "\n")
    with pytest.raises(ValueError, match=r"mine.csv, line 2, cannot be read: field larger than"):
        prepare(str(tmp_path / "mine.csv"), **COLUMNS)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is none of the files that can be read: .parquet, .jsonl, "):
        prepare(str(tmp_path / "mine.txt"))
    with pytest.raises(FileNotFoundError, match="there is no file or folder nowhere.jsonl here"):
        prepare("nowhere.jsonl")


def test_a_worked_solution_is_an_answer_only_if_the_user_says_so(tmp_path):
    photos(tmp_path / "photos")
    path = jsonl(tmp_path / "x.jsonl", [{"question": "?", "solution": "5", "image": "photos/0.png"}])
    with pytest.raises(ValueError, match="if the column holds nothing else: --answer solution"):
        prepare(str(path))
    assert prepare(str(path), answer="solution")[0]["train"]["solution"][:] == ["\\boxed{5}"]
