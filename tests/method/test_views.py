# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
import torch
from PIL import Image

from trl_cppo.method import views
from trl_cppo.method.view_maker import ViewMaker
from trl_cppo.method.views import apply_view, choose_view, get_view, register_view, to_rgb

PRESERVING = ["color_jitter", "random_perspective", "random_rotation", "gaussian_blur"]
REMOVING = ["noise_boxes", "zoom_crop", "black_squares", "patch_blackening"]


def picture(width=60, height=45, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (13, 14), (15, 29), (300, 7), (224, 224)])
@pytest.mark.parametrize("name", PRESERVING + REMOVING)
def test_views_keep_size_and_mode_at_any_size(name, size):
    for seed in range(4):
        view = apply_view(get_view(name), picture(*size), generator(seed))
        assert view.size == size and view.mode == "RGB"


@pytest.mark.parametrize("name", PRESERVING + REMOVING)
def test_views_depend_on_the_generator_alone(name):
    image, view = picture(), get_view(name)
    before = image.tobytes()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    results = [apply_view(view, image, generator(seed)).tobytes() for seed in (1, 1, *range(2, 12))]
    assert results[0] == results[1]
    assert len(set(results)) > 1 or name == "gaussian_blur"  # the blur draws nothing
    assert image.tobytes() == before
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()


def changed_share(name, size=(280, 280), seeds=20):
    image = picture(*size)
    shares = []
    for seed in range(seeds):
        view = np.array(apply_view(get_view(name), image, generator(seed)))
        shares.append((view != np.array(image)).any(axis=2).mean())
    return float(np.mean(shares))


def test_noise_boxes_cover_what_fifty_boxes_cover():
    # 50 boxes of 1 % mean area: 1 − exp(−0.5) ≈ 0.39 of the image, less at the border
    assert 0.33 < changed_share("noise_boxes") < 0.42


def test_black_squares_cover_four_fifths():
    for seed in range(5):
        view = np.array(apply_view(get_view("black_squares"), picture(280, 210), generator(seed)))
        black = (view == 0).all(axis=2).mean()
        assert 0.8 <= black < 0.8 + 14 * 14 / (280 * 210)


def test_patch_blackening_is_a_grid_of_patches():
    view = np.array(apply_view(get_view("patch_blackening"), picture(280, 280), generator(3)))
    patches = (view == 0).all(axis=2).reshape(20, 14, 20, 14).mean(axis=(1, 3))
    assert set(patches.flatten().tolist()) == {0.0, 1.0}
    assert abs(changed_share("patch_blackening") - 0.6) < 0.05


def test_zoom_crop_enlarges_a_part():
    gradient = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    for seed in range(10):
        row = np.array(apply_view(get_view("zoom_crop"), Image.fromarray(gradient), generator(seed)))[50, :, 0]
        assert (np.diff(row.astype(int)) >= 0).all()
        assert 0.58 < (int(row[-1]) - int(row[0])) / 199 < 0.71


def test_rotation_and_perspective_stay_within_their_bounds():
    white = Image.new("RGB", (200, 200), "white")
    rotated = [np.array(apply_view(get_view("random_rotation"), white, generator(seed))) for seed in range(50)]
    # ±10° of a square opens at most sin(10°)·cos(10°)/... of it; 9 % is the figure at the limit
    assert 0.02 < np.mean([(x == 0).all(axis=2).mean() for x in rotated]) < 0.09
    turned = [np.array(apply_view(get_view("random_perspective"), white, generator(seed))) for seed in range(200)]
    untouched = np.mean([(x == 255).all() for x in turned])
    assert 0.4 < untouched < 0.6  # p = 0.5
    assert all((x[40:160, 40:160] == 255).all() for x in turned)  # corners move in by 20 pixels at the most


def test_color_jitter_spans_the_authors_ranges():
    gray = Image.new("RGB", (8, 8), (100, 100, 100))
    means = [np.array(apply_view(get_view("color_jitter"), gray, generator(s))).mean() for s in range(300)]
    assert 18 <= min(means) < 30 and 120 < max(means) <= 131  # brightness × [0.2, 1.3]


def test_the_choice_is_uniform():
    draw = generator(0)
    names = [choose_view(["a", "b", "c"], draw) for _ in range(3000)]
    assert all(900 < names.count(name) < 1100 for name in "abc")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "PA", "CMYK", "I;16", "I", "F", "1", "YCbCr", "HSV"])
def test_any_mode_is_seen_as_the_processor_sees_it(mode):
    from transformers import Qwen2VLImageProcessor

    base = picture(56, 56)
    if mode == "I;16":
        image = Image.fromarray(np.array(base.convert("L")).astype(np.uint16) * 200)
    else:
        image = base.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(100)
    processor = Qwen2VLImageProcessor()
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=[to_rgb(image)], return_tensors="pt")["pixel_values"], expected)


def test_palette_transparency_is_laid_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0] + [0, 0, 0] * 255)
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_left_as_the_processor_leaves_it():
    image = picture(20, 10)
    image.getexif()[0x0112] = 6  # rotated by 90°
    assert to_rgb(image).size == (20, 10)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    picture().save(path)
    path.write_bytes(path.read_bytes()[:600])
    with Image.open(path) as image, pytest.raises(ValueError, match="cannot be read as an RGB image"):
        to_rgb(image)


def test_registry_names_what_it_knows():
    with pytest.raises(ValueError, match="noise_boxes"):
        get_view("nosie_boxes")
    with pytest.raises(ValueError, match="registered already"):
        register_view("zoom_crop")(lambda image, generator: image)


CELL = """
@register_view("test_cell")
def brighter(image, generator):
    return image.point(lambda value: min(255, value + {more}))
"""


def test_a_cell_that_is_run_again_replaces_its_view(monkeypatch):
    monkeypatch.setattr("trl_cppo.method.views._VIEWS", dict(views._VIEWS))
    notebook = {"register_view": register_view, "__name__": "__main__"}
    for more in (1, 2):
        exec(CELL.format(more=more), notebook)
    image = Image.new("RGB", (2, 2), (7, 7, 7))
    assert get_view("test_cell")(image, generator()).getpixel((0, 0)) == (9, 9, 9)
    with pytest.raises(ValueError, match="'test_cell' is registered already: <function brighter.*another name"):
        exec(CELL.format(more=3).replace("brighter", "darker"), notebook)
    with pytest.raises(ValueError, match="registered already"):
        exec(CELL.format(more=3), {**notebook, "__name__": "a_library"})
    assert get_view("test_cell")(image, generator()).getpixel((0, 0)) == (9, 9, 9)


def test_a_callable_object_that_is_made_again_replaces_its_view(monkeypatch):
    monkeypatch.setattr("trl_cppo.method.views._VIEWS", dict(views._VIEWS))

    class Rotation:
        def __call__(self, image, generator):
            return image

    first, second = Rotation(), Rotation()
    register_view("test_object")(first)
    assert register_view("test_object")(second) is second is get_view("test_object")
    with pytest.raises(ValueError, match="registered already"):
        register_view("test_object")(get_view("zoom_crop"))


def test_a_view_that_breaks_its_promise_is_named():
    def shrink(image, generator):
        return image.resize((3, 3))

    with pytest.raises(ValueError, match=r"shrink changed the size from \(60, 45\) to \(3, 3\)"):
        apply_view(shrink, picture(), generator())
    with pytest.raises(TypeError, match="returned a ndarray"):
        apply_view(lambda image, generator: np.array(image), picture(), generator())


def test_view_maker_is_keyed():
    maker = ViewMaker([get_view(n) for n in PRESERVING], [get_view(n) for n in REMOVING], seed=3)
    images = [picture(seed=1), picture(30, 30, seed=2)]

    def drawn(*key, maker=maker):
        pair = maker(images, *key)
        assert [x.size for x in pair.preserved] == [x.size for x in pair.removed] == [x.size for x in images]
        return [x.tobytes() for x in pair.preserved + pair.removed]

    assert drawn("train", 1, 0, 0) == drawn("train", 1, 0, 0)
    others = [("train", 0, 0, 1), ("train", 0, 1, 0), ("eval", 1, 0, 0), ("train", 10, 0, 0)]
    assert all(drawn("train", 1, 0, 0) != drawn(*key) for key in others)
    assert drawn("train", 1, 0, 0) != drawn("train", 1, 0, 0, maker=ViewMaker(maker.preserving, maker.removing, 4))


def test_view_maker_reads_paths_and_names_the_image(tmp_path):
    maker = ViewMaker([get_view("gaussian_blur")], [get_view("zoom_crop")], seed=0)
    path = tmp_path / "image.png"
    picture().save(path)
    assert maker([str(path)], 0).removed[0].tobytes() == maker([picture()], 0).removed[0].tobytes()
    with pytest.raises(ValueError, match="image 1: expected a PIL image, a path or a URL, got int"):
        maker([picture(), 7], 0)
    with pytest.raises(ValueError, match="image 0: .*missing.png"):
        maker([str(tmp_path / "missing.png")], 0)
