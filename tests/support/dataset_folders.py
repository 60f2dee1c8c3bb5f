# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Small folders of the true layouts and columns of public data sets, and files as users write them."""

import io
import json
import zipfile

from conftest import picture
from dataset_layouts import features_of
from datasets import Dataset

VIRL39K, GEOMETRY3K = features_of("TIGER-Lab/ViRL39K"), features_of("hiyouga/geometry3k")


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def virl39k(folder, questions, sizes=((56, 56),), zipped=False):
    """A folder as TIGER-Lab/ViRL39K: one parquet file of paths, and the images beside it, unpacked or as images.zip."""
    rows, files = [], {}
    for i, (question, count) in enumerate(questions):
        paths = [f"images/q{i}-{j}.png" for j in range(count)]
        files |= {path: encoded(picture(10 * i + j, *sizes[(i + j) % len(sizes)])) for j, path in enumerate(paths)}
        rows.append(
            {
                "question": question, "answer": f"\\boxed{{{i}}}", "PassRate_32BTrained": 0.5, "PassRate_7BBase": -1.0,
                "category": "(GradeSchool) Geometric", "source": "Processed", "qid": f"Processed-q{i}", "image": paths,
            }
        )  # fmt: skip
    folder.mkdir()
    Dataset.from_list(rows, features=VIRL39K).to_parquet(folder / "39Krelease.parquet")
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        (folder / "images").mkdir()
        for path, content in files.items():
            (folder / path).write_bytes(content)
    return folder


def geometry3k(folder, problems, splits=("train", "validation", "test")):
    """A folder as hiyouga/geometry3k: one parquet file a split, images embedded, answers not boxed."""
    (folder / "data").mkdir(parents=True)
    for place, split in enumerate(splits):
        rows = [
            {
                "images": [picture(i + place)], "problem": problem, "answer": answer, "id": i, "choices": ["0", answer],
                "ground_truth": "B",
            }
            for i, (problem, answer) in enumerate(problems)
        ]  # fmt: skip
        dataset = Dataset.from_list(rows, features=GEOMETRY3K)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


OWN_ROWS = [
    {"q": "How many?", "a": 5.0, "path": "photos/0.png"},
    {"q": "Which, then?", "a": "C", "path": "photos/1.png"},
    {"q": "“Zwölf” is?", "a": "007", "path": "photos/2.png"},
]


def photos(folder, count=3, start=0):
    """`0.png` and so on: the pictures from `start` on."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture(start + i).save(folder / f"{i}.png")


def jsonl(path, rows=OWN_ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
