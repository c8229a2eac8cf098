"""Photos in, maps back out: against timm's own transform, Fractions, and squares whose place is known."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, features
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import create_model

from camhook.errors import ImageError
from camhook.images import photos as images
from camhook.images.geometry import Geometry
from camhook.images.photos import load_photo
from camhook.images.preprocessing import ImageBatch, Preprocessing

Array = npt.NDArray[Any]

PHOTO_SIZES = [(120, 200), (200, 121), (64, 64), (9, 13)]  # landscape, portrait, one input's own and tiny
INPUT_SIZES = [(64, 64), (48, 80), (80, 48)]
CELL = 8  # input pixels along a coarse map's cell

every_way = pytest.mark.parametrize(
    ("mode", "pct", "input_size", "photo_size"),
    list(itertools.product(["center", "squash", "border"], [0.875, 1.0], INPUT_SIZES, PHOTO_SIZES)),
)


def config(**changes: Any) -> dict[str, Any]:
    """Without normalisation, so that tensors hold the photo's own brightness and borders are black."""
    plain = {"input_size": (3, 64, 64), "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return {**plain, "crop_pct": 0.875, "crop_mode": "center", **changes}


def noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def shown(photo_size: tuple[int, int], input_size: tuple[int, int], mode: str, pct: float) -> list[list[bool]]:
    """Which rows and which columns of the photo have their centre in the input, in exact arithmetic."""
    target = [math.floor(side / pct) for side in input_size]
    ratios = [Fraction(side, goal) for side, goal in zip(photo_size, target, strict=True)]
    ratio = max(ratios) if mode == "border" else min(ratios)
    if mode == "squash":
        drawn = target
    elif mode == "center" and target[0] == target[1]:  # torchvision's Resize rounds down, timm's to nearest
        drawn = [math.floor(side / ratio) for side in photo_size]
    else:
        drawn = [round(side / ratio) for side in photo_size]
    visible = []
    for photo, full, side in zip(photo_size, drawn, input_size, strict=True):
        start = round((full - side) / 2) if full > side else -((side - full) // 2)
        centres = [Fraction(2 * pixel + 1, 2) * full / photo - start for pixel in range(photo)]
        visible.append([0 <= centre < side for centre in centres])
    return visible


# --- geometry --------------------------------------------------------------------------------------------------------


@every_way
def test_a_bright_square_comes_back_to_its_place(
    mode: str, pct: float, input_size: tuple[int, int], photo_size: tuple[int, int]
) -> None:
    side = max(1, min(photo_size) // 12)
    top, left = int(0.42 * photo_size[0]), int(0.55 * photo_size[1])
    photo = np.zeros((*photo_size, 3), dtype=np.uint8)
    photo[top : top + side, left : left + side] = 255
    square = np.array([top, left]) + side / 2
    batch = Preprocessing(config(input_size=(3, *input_size), crop_mode=mode, crop_pct=pct))([photo])
    maps, geometry = batch.tensor.mean(1)[0], batch.geometries[0]
    assert batch.tensor.shape == (1, 3, *input_size)
    assert (geometry.photo_size, geometry.input_size) == (photo_size, input_size)

    back = geometry.to_photo(maps).double()
    assert list(back.shape) == list(photo_size)
    rows, columns = shown(photo_size, input_size, mode, pct)
    inside = torch.tensor(rows)[:, None] & torch.tensor(columns)
    assert torch.equal(back.isnan(), ~inside)

    weights = back.nan_to_num().numpy()
    places = np.indices(photo_size) + 0.5
    centroid = (places * weights).sum((1, 2)) / weights.sum()
    peak = np.array(np.unravel_index(weights.argmax(), photo_size)) + 0.5
    assert abs(centroid - square).max() < 0.5
    assert abs(peak - square).max() <= side / 2 + 1

    coarse = F.avg_pool2d(maps[None, None], CELL)[0, 0]
    back = geometry.to_photo(coarse)
    assert torch.equal(back.isnan(), ~inside)
    peak = np.array(np.unravel_index(back.nan_to_num(-1).numpy().argmax(), photo_size)) + 0.5
    cell = CELL / np.array(geometry.scale)
    assert (abs(peak - square) <= cell + 0.5).all()


@every_way
def test_every_pixel_comes_back_to_its_own_row_and_column(
    mode: str, pct: float, input_size: tuple[int, int], photo_size: tuple[int, int]
) -> None:
    photo = np.zeros((*photo_size, 3), dtype=np.uint8)
    photo[:, :, 0], photo[:, :, 1] = np.indices(photo_size)
    batch = Preprocessing(config(input_size=(3, *input_size), crop_mode=mode, crop_pct=pct))([photo])
    geometry = batch.geometries[0]
    difference = (geometry.to_photo(batch.tensor[0, :2] * 255) - torch.tensor(np.indices(photo_size))).abs()
    margin = 1 + math.ceil(1.5 / min(geometry.scale))  # at the border the resize filter is cut off, or sees padding
    inside = F.max_pool2d(difference.isnan().float(), 2 * margin + 1, 1, margin) == 0
    inside[:, :margin], inside[:, -margin:], inside[:, :, :margin], inside[:, :, -margin:] = (False,) * 4
    assert inside.any() or min(photo_size) < 10
    assert difference[inside].nan_to_num(99).max() < 1.01 if inside.any() else True


@every_way
def test_the_geometry_is_exact_to_a_part_of_a_pixel(
    mode: str, pct: float, input_size: tuple[int, int], photo_size: tuple[int, int]
) -> None:
    # Nearest neighbour copies single pixels, and every pixel of this photo carries its own row and column (and a flag,
    # which borders have not): so the tensor itself says which photo pixel covers the centre of which input pixel.
    photo = np.full((*photo_size, 3), 255, dtype=np.uint8)
    photo[:, :, 0], photo[:, :, 1] = np.indices(photo_size)
    data_config = config(input_size=(3, *input_size), crop_mode=mode, crop_pct=pct, interpolation="nearest")
    batch = Preprocessing(data_config)([photo])
    geometry = batch.geometries[0]
    drawn = (batch.tensor[0] * 255).round().double().numpy()
    real = drawn[2] == 255
    for axis, (scale, offset) in enumerate(zip(geometry.scale, geometry.offset, strict=True)):
        centres = np.indices(input_size)[axis] + 0.5
        sources = drawn[axis] + 0.5
        assert (abs(sources * scale + offset - centres)[real] <= scale / 2 + 1e-6).all()
    coordinates = [(np.indices(input_size)[a] + 0.5 - geometry.offset[a]) / geometry.scale[a] for a in (0, 1)]
    covered = [(place >= 0) & (place < side) for place, side in zip(coordinates, photo_size, strict=True)]
    assert np.array_equal(real, covered[0] & covered[1])


def test_a_centre_on_the_border_itself_is_inside_at_the_top_and_outside_at_the_bottom() -> None:
    # In exact arithmetic the centres of some rows fall on the borders, where the last digit of a float could decide.
    found = 0
    for photo, drawn, side in itertools.product(range(90, 130), (60, 84, 98), (42, 56)):
        start = (drawn - side) // 2
        back = Geometry((photo, 1), (side, 1), (drawn / photo, 1.0), (-start, 0.0)).to_photo(torch.ones(1, 1))
        ahead = [(2 * row + 1) * drawn - 2 * photo * start for row in range(photo)]
        assert (~back[:, 0].isnan()).tolist() == [0 <= place < 2 * photo * side for place in ahead]
        found += sum(place in (0, 2 * photo * side) for place in ahead)
    assert found > 10


@pytest.mark.parametrize("border", [1, 7])
def test_a_trimmed_border_is_outside(border: int) -> None:
    batch = Preprocessing(config(crop_mode="squash", crop_pct=1.0, crop_border_pixels=border))([noise(90, 150)])
    back = batch.geometries[0].to_photo(torch.ones(4, 4))
    expected = torch.zeros(90, 150, dtype=torch.bool)
    expected[border:-border, border:-border] = True
    assert torch.equal(~back.isnan(), expected)


def test_identity_is_interpolate() -> None:
    maps = torch.randn(2, 3, 5, 7, generator=torch.manual_seed(0))
    back = Geometry.identity((61, 40)).to_photo(maps)
    torch.testing.assert_close(back, F.interpolate(maps, (61, 40), mode="bilinear", align_corners=False))
    torch.testing.assert_close(Geometry.identity((5, 7)).to_photo(maps), maps)


def test_to_photo_keeps_float64_gradients_and_leading_axes() -> None:
    geometry = Geometry.identity((6, 6))
    assert geometry.to_photo(torch.ones(2, 2, dtype=torch.float64)).dtype == torch.float64
    assert geometry.to_photo(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert geometry.to_photo(torch.ones(2, 2, dtype=torch.int64)).dtype == torch.float32
    assert geometry.to_photo(torch.ones(0, 2, 1, 1)).shape == (0, 2, 6, 6)
    maps = torch.ones(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(geometry.to_photo(maps).sum(), maps)
    torch.testing.assert_close(gradient, torch.full((2, 2), 9.0))


def test_resized_is_the_same_place_at_another_size() -> None:
    geometry = Preprocessing(config())([noise(120, 210)]).geometries[0]
    maps = torch.randn(8, 8, generator=torch.manual_seed(0))
    third = geometry.resized((40, 70))
    assert third.photo_size == (40, 70)
    assert third.input_size == geometry.input_size
    # The centre of every third of a row or column is the centre of its middle pixel.
    torch.testing.assert_close(third.to_photo(maps), geometry.to_photo(maps)[1::3, 1::3], equal_nan=True)


# --- timm's own result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@every_way
def test_the_tensor_is_timms_bit_for_bit(
    mode: str, pct: float, input_size: tuple[int, int], photo_size: tuple[int, int], interpolation: str
) -> None:
    data_config = config(
        input_size=(3, *input_size), crop_mode=mode, crop_pct=pct, mean=(0.485, 0.456, 0.406), std=(0.2, 0.22, 0.25)
    )
    data_config["interpolation"] = interpolation
    photo = noise(*photo_size)
    batch = Preprocessing(data_config)([photo, photo[::-1]])
    transform = create_transform(**data_config, is_training=False)
    expected = torch.stack([transform(Image.fromarray(array)) for array in (photo, photo[::-1])])
    assert batch.tensor.dtype == torch.float32
    assert torch.equal(batch.tensor, expected)


def test_a_config_that_timm_resolves_is_understood() -> None:
    resolve: Any = resolve_data_config  # has no types
    data_config = resolve(model=create_model("test_vit"))
    preprocessing = Preprocessing(data_config)
    photo = Image.fromarray(noise(200, 300))
    assert torch.equal(preprocessing([photo]).tensor[0], create_transform(**data_config, is_training=False)(photo))
    assert preprocessing.input_size == data_config["input_size"][1:]


def test_random_interpolation_reads_as_bilinear() -> None:
    photos = [noise(90, 120)]
    bilinear, random = (Preprocessing(config(interpolation=name))(photos) for name in ("bilinear", "random"))
    assert torch.equal(bilinear.tensor, random.tensor)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_one_channel(mode: str) -> None:
    statistics = {"mean": (0.2, 0.5, 0.8), "std": (0.2, 0.3, 0.4)}
    batch = Preprocessing(config(crop_mode=mode, **statistics), in_chans=1)([noise(90, 150)])
    grey_config = config(crop_mode=mode, input_size=(1, 64, 64), mean=(0.5,), std=(0.3,))
    expected = create_transform(**grey_config)(Image.fromarray(noise(90, 150)).convert("L"))
    assert batch.tensor.shape == (1, 1, 64, 64)
    torch.testing.assert_close(batch.tensor[0], expected)
    assert batch.photos[0].mode == "RGB"
    assert batch.geometries == Preprocessing(config(crop_mode=mode))([noise(90, 150)]).geometries


def test_the_tensor_is_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert Preprocessing(config())([noise(8, 8)]).tensor.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_names_and_photos_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "my.cat.png"
    Image.fromarray(noise(70, 90)).save(path)
    batch = Preprocessing(config())([path, noise(30, 20), str(path), Image.new("L", (80, 70))])
    assert isinstance(batch, ImageBatch)
    assert batch.names == ["my.cat", "image1", "my.cat", "image3"]
    assert [photo.size for photo in batch.photos] == [(90, 70), (20, 30), (90, 70), (80, 70)]
    assert np.array_equal(np.asarray(batch.photos[0]), noise(70, 90))
    assert len(batch.geometries) == len(batch.tensor) == 4


# --- pictures of tensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_chans", [1, 3])
def test_photos_of_undoes_the_normalisation(in_chans: int) -> None:
    preprocessing = Preprocessing(config(mean=(0.2, 0.5, 0.8), std=(0.2, 0.3, 0.4), crop_pct=1.0), in_chans)
    photo = noise(64, 64)
    (picture,) = preprocessing.photos_of(preprocessing([photo]).tensor)
    expected = Image.fromarray(photo)
    expected = expected.convert("L").convert("RGB") if in_chans == 1 else expected
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_photos_of_one_channel_are_grey() -> None:
    (picture,) = Preprocessing(config(mean=(0.2, 0.5, 0.8), std=(0.2, 0.3, 0.4))).photos_of(torch.ones(1, 1, 2, 2))
    assert picture.getpixel((0, 0)) == (204, 204, 204)


def test_photos_of_any_tensor() -> None:
    preprocessing = Preprocessing(config(), in_chans=5)
    tensor = torch.randn(2, 5, 4, 6, generator=torch.manual_seed(0))
    tensor[1] = 3.0
    first, second = preprocessing.photos_of(tensor.requires_grad_())
    assert first.size == (6, 4)
    assert first.mode == "RGB"
    assert np.asarray(first).min() == 0
    assert np.asarray(first).max() == 255
    assert not np.asarray(second).any()
    wild = torch.tensor([-1e9, 0.0, 0.5, 2.0, math.nan, math.inf]).expand(1, 3, 1, 6)
    assert np.asarray(preprocessing.photos_of(wild)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 0, 255]
    assert preprocessing.photos_of(wild[:, :1].bfloat16())[0].mode == "RGB"


# --- reading photos --------------------------------------------------------------------------------------------------


def stored(upright: Array, orientation: int) -> Array:
    """What a camera writes, from the EXIF standard's words on where its first row and column belong."""
    turned: dict[int, Array] = {
        1: upright,
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }
    return turned[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    upright = noise(5, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored(upright, orientation))).save(path, exif=exif)
    assert np.array_equal(np.asarray(load_photo(path)), upright)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(load_photo(image)), upright)
    deep = Image.fromarray(np.ascontiguousarray(stored(upright[:, :, 0].astype(np.uint16) * 257, orientation)))
    deep.save(path, exif=exif)
    assert np.array_equal(np.asarray(load_photo(path))[:, :, 0], upright[:, :, 0])


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "damaged.png"
    Image.fromarray(noise(5, 8)).save(path, exif=b"Exif\x00\x00neither")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(np.asarray(load_photo(path)), noise(5, 8))


def with_transparent_entry() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    return image


WHITE = (255, 255, 255)
MODES: dict[str, tuple[Image.Image, tuple[int, ...], tuple[int, ...]]] = {
    "L": (Image.fromarray(np.array([[7, 200]], dtype=np.uint8)), (7, 7, 7), (200, 200, 200)),
    "LA": (Image.fromarray(np.array([[7, 200]], dtype=np.uint8)).convert("LA"), (7, 7, 7), (200, 200, 200)),
    "LA, clear": (Image.new("LA", (2, 1), (0, 0)), WHITE, WHITE),
    "RGBA": (Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], dtype=np.uint8)), WHITE, (9, 8, 7)),
    "RGBA, half": (Image.new("RGBA", (2, 1), (0, 0, 0, 127)), (128, 128, 128), (128, 128, 128)),
    "RGBa": (Image.new("RGBa", (2, 1), (0, 0, 0, 0)), WHITE, WHITE),
    "P": (Image.new("RGB", (2, 1), (10, 20, 30)).quantize(2), (10, 20, 30), (10, 20, 30)),
    "P, one entry clear": (with_transparent_entry(), WHITE, (200, 100, 50)),
    "CMYK": (Image.new("CMYK", (2, 1), (255, 0, 0, 0)), (0, 255, 255), (0, 255, 255)),
    "I;16": (Image.fromarray(np.array([[7 * 257, 65535]], dtype=np.uint16)), (7, 7, 7), WHITE),
    "1": (Image.fromarray(np.array([[False, True]])), (0, 0, 0), WHITE),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    image, first, second = MODES[mode]
    assert image.mode == mode.split(",")[0]
    photo = load_photo(image)
    assert photo.mode == "RGB"
    assert (photo.getpixel((0, 0)), photo.getpixel((1, 0))) == (first, second)
    assert Preprocessing(config())([image]).tensor.shape == (1, 3, 64, 64)
    assert Preprocessing(config(), in_chans=1)([image]).tensor.shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("LA, clear", "png"), ("P, one entry clear", "png"), ("P, one entry clear", "gif"), ("CMYK", "tiff")]
    + [("I;16", "png"), ("I;16", "tiff"), ("1", "png"), ("1", "tiff"), ("RGBA", "webp"), ("L", "bmp"), ("L", "pgm")],
)
def test_modes_from_files(mode: str, kind: str, tmp_path: Path) -> None:
    image, first, second = MODES[mode]
    path = tmp_path / f"photo.{kind}"
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    image.save(path, **options)
    photo = load_photo(path)
    assert (photo.getpixel((0, 0)), photo.getpixel((1, 0))) == (first, second)


def test_a_clear_grey_value_of_a_deep_png_is_white(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    image = Image.fromarray(np.array([[1000, 1001]], dtype=np.uint16))
    image.save(path, transparency=1000)
    photo = load_photo(path)
    assert (photo.getpixel((0, 0)), photo.getpixel((1, 0))) == (WHITE, (4, 4, 4))


def test_a_deep_pgm_is_scaled_though_pillow_reads_it_as_integers(tmp_path: Path) -> None:
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([7 * 257, 65535], dtype=">u2").tobytes())
    photo = load_photo(path)
    assert (photo.getpixel((0, 0)), photo.getpixel((1, 0))) == ((7, 7, 7), WHITE)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "moves.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_photo(path).getpixel((0, 0)) == (255, 0, 0)
    with Image.open(path) as image:
        image.seek(1)
        assert load_photo(image).getpixel((0, 0)) == (0, 255, 0)
        assert image.tell() == 1


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 1), (5, 8, 3), (5, 8, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = noise(5, 8, math.prod(shape[2:])).reshape(shape)
    array[..., 3:] = 255
    array.flags.writeable = False
    for view in (array, array[::-1, ::-1], np.asfortranarray(array)):
        expected = np.broadcast_to(view.reshape(5, 8, -1)[:, :, :3], (5, 8, 3))
        assert np.array_equal(np.asarray(load_photo(view)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_users_image_is_left_as_it_is(mode: str) -> None:
    image = MODES[mode][0].copy()
    exif = image.getexif()
    exif[0x0112] = 6
    before = image.copy()
    photo = load_photo(image)
    assert photo.size == before.size[::-1]
    assert (image.mode, image.size, image.tobytes()) == (before.mode, before.size, before.tobytes())
    assert image.info == before.info
    assert image.getpalette() == before.getpalette()
    assert dict(image.getexif()) == {0x0112: 6}
    upright = Image.new("RGB", (3, 3))
    load_photo(upright).putpixel((0, 0), WHITE)
    assert upright.getpixel((0, 0)) == (0, 0, 0)
    array = noise(3, 3)
    load_photo(array).putpixel((0, 0), WHITE)
    assert np.array_equal(array, noise(3, 3))


def test_nothing_global_changes(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        flags = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
        return *flags, list(warnings.filters), torch.get_default_dtype(), torch.get_rng_state().tolist()

    before = state()
    path = tmp_path / "cut.png"
    Image.fromarray(noise(30, 30)).save(path)
    Preprocessing(config())([path])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImageError):
        load_photo(path)
    assert state() == before


# --- errors ----------------------------------------------------------------------------------------------------------


def test_files_that_are_no_photos(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png.*no such file, seen from.*check the path"):
        load_photo(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"''.*no such file"):
        load_photo("")
    with pytest.raises(ImageError, match=r"no such file"):
        load_photo("null\0byte.png")
    with pytest.raises(ImageError, match=r"it is a directory; pass the files in it"):
        load_photo(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg.*0 bytes; get it again"):
        load_photo(tmp_path / "empty.jpg")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.png.*not an image in a format that Pillow knows; convert it"):
        load_photo(str(tmp_path / "text.png"))


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.jpg.*cut short.*OSError"):
        Preprocessing(config())([path])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"the PIL image cannot be used.*cut short"):
        load_photo(image)


def test_gigantic_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(noise(30, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert load_photo(path).size == (30, 30)  # within twice the limit Pillow only warns: that is no reason to stop
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ImageError, match=r"large\.png.*too large to be safe; shrink it, or raise PIL.Image.MAX"):
        load_photo(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own words on a damaged file, which are left to pass
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "avif"])
def test_cut_and_scrambled_files_give_a_photo_or_an_image_error(kind: str, tmp_path: Path) -> None:
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    image, buffer = Image.fromarray(noise(12, 9)), io.BytesIO()
    options: dict[str, Any] = {"compression": "tiff_lzw"} if kind == "tiff" else {}
    image.save(buffer, kind, **(options if kind == "gif" else {**options, "exif": exif}))
    whole, path = buffer.getvalue(), tmp_path / "photo"
    random = np.random.default_rng(0)
    variants = [whole[:end] for end in range(0, len(whole), max(1, len(whole) // 150))]
    for _ in range(150):
        scrambled = bytearray(whole)
        scrambled[random.integers(8, len(whole))] = random.integers(256)
        variants.append(bytes(scrambled))
    failures = 0
    for data in variants:
        path.write_bytes(data)
        try:
            assert load_photo(path).mode == "RGB"
        except ImageError:
            failures += 1
    assert 50 < failures < len(variants)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), r"float32 and shape \(4, 4, 3\), expected uint8.*0\.\.255"),
        (np.zeros((4, 4), dtype=np.uint16), r"uint16.*expected uint8"),
        (np.zeros((4, 4), dtype=bool), r"bool.*expected uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"uint8 and shape \(3, 8, 8\).*channels last"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), r"images of a batch in a list"),
        (np.zeros(8, dtype=np.uint8), r"shape \(8,\), expected"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"shape \(4, 4, 2\), expected"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"shape \(0, 4, 3\).*not empty"),
    ],
)
def test_arrays_that_are_no_photos(array: Array, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        load_photo(array)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_unknown_range(mode: str) -> None:
    with pytest.raises(ImageError, match=rf"mode '{mode}'.*range is known.*uint8 array"):
        load_photo(Image.new(mode, (3, 3)))


def test_pil_images_that_are_no_photos() -> None:
    with pytest.raises(ImageError, match=r"mode 'RGB' and 3 x 0 pixels; expected at least 1 x 1"):
        load_photo(Image.new("RGB", (0, 3)))
    with pytest.raises(ImageError, match=r"of a mode that Pillow cannot turn into RGB\. \(ValueError: conversion"):
        load_photo(Image.new("La", (3, 3)))
    closed = Image.new("RGB", (3, 3))
    closed.close()
    with pytest.raises(ImageError, match=r"the PIL image cannot be used"):
        load_photo(closed)


def test_other_things_are_no_photos() -> None:
    source: Any
    for source, name in ((torch.zeros(1, 3, 8, 8), "Tensor"), (b"photo.png", "bytes"), (None, "NoneType")):
        with pytest.raises(ImageError, match=rf"found {name}, expected a path, a PIL image or a uint8 array"):
            load_photo(source)


def test_one_image_is_not_a_list_of_them() -> None:
    source: Any
    for source in ("photo.png", Path("photo.png"), noise(8, 8), Image.new("RGB", (8, 8))):
        with pytest.raises(ImageError, match=r"found one \w+, expected a list of images: put it in a list"):
            Preprocessing(config())(source)
    with pytest.raises(ImageError, match=r"empty list of images; pass at least one"):
        Preprocessing(config())([])


@pytest.mark.parametrize("in_chans", [2, 4, 12])
def test_photos_do_not_have_other_channels(in_chans: int) -> None:
    with pytest.raises(ImageError, match=rf"do not have {in_chans} channels; pass a preprocessed"):
        Preprocessing(config(), in_chans)([noise(8, 8)])


def test_photos_too_small_to_use() -> None:
    with pytest.raises(ImageError, match=r"image0 \(6 x 60\) cannot be used: it may be too small or narrow"):
        Preprocessing(config(crop_border_pixels=3))([noise(6, 60)])
    with pytest.raises(ImageError, match=r"image0 \(6 x 60\) .* TrimBorder.*no pixels left"):
        Preprocessing(config(crop_border_pixels=3, crop_mode="squash"))([noise(6, 60)])
    with pytest.raises(ImageError, match=r"image1 \(1 x 900\) cannot be used: it may be too small or narrow"):
        Preprocessing(config(crop_mode="border"))([noise(8, 8), noise(1, 900)])
    assert Preprocessing(config())([noise(1, 1)]).geometries[0].to_photo(torch.ones(2, 2)).shape == (1, 1)


def test_configs_that_cannot_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"lacks \['mean', 'std'\].*resolve_model_data_config"):
        Preprocessing({"input_size": (3, 8, 8)})
    for changes in ({"no_such_option": 1}, {"interpolation": "no such"}):
        with pytest.raises(ImageError, match=r"data_config .* cannot be used: pass what timm.data.resolve_model"):
            Preprocessing(config(**changes))([noise(8, 8)])

    class Shift:
        transforms = (torch.nn.ZeroPad2d(1),)

    monkeypatch.setattr("timm.data.transforms_factory.create_transform", lambda **_: Shift())
    with pytest.raises(ImageError, match=r"ZeroPad2d.*cannot be traced back to the photo; change data_config"):
        Preprocessing(config())([noise(8, 8)])


def test_this_module_never_swallows_everything() -> None:
    assert not {Exception, BaseException} & set(images._BAD)
