"""Drawing and montage: each picture is checked by its pixels, each region against a hand count or scikit-image."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import measure

from camhook.drawing import anatomy, montage
from camhook.drawing import overlay as drawing
from camhook.drawing.anatomy import Term
from camhook.drawing.montage import Panel
from camhook.drawing.text import draw_text
from camhook.errors import CamhookError, DependencyError

NAN = float("nan")


def noise(height: int = 40, width: int = 60) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two_blobs() -> npt.NDArray[np.float32]:
    """Six by eight: a small strong blob (10) at the top left, a large weaker one (4) at the bottom right."""
    values = np.full((6, 8), -1, dtype=np.float32)
    values[0:2, 0:2] = 10
    values[3:6, 4:7] = 4
    return values


def differs(picture: Image.Image, other: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    changed: npt.NDArray[np.bool_] = (np.asarray(picture) != other).any(axis=2)
    return changed


# --- regions ---------------------------------------------------------------------------------------------------------


def test_largest_component_is_the_one_of_most_pixels_not_the_strongest() -> None:
    assert drawing.boxes(two_blobs()).tolist() == [[4, 3, 7, 6]]
    assert drawing.boxes(two_blobs(), component="all").tolist() == [[4, 3, 7, 6], [0, 0, 2, 2]]
    assert drawing.masks(two_blobs()).sum() == 9
    assert drawing.masks(two_blobs(), component="all").tolist() == (two_blobs() > 0).tolist()


def test_threshold_is_a_share_of_the_maximum_and_included() -> None:
    values = np.array([[10.0, -50.0, 2.0, -1.0, 1.99]])
    assert drawing.masks(values, component="all").tolist() == [[True, False, True, False, False]]
    assert drawing.masks(values, threshold=1.0).tolist() == [[True, False, False, False, False]]
    assert drawing.boxes(two_blobs(), threshold=0.5).tolist() == [[0, 0, 2, 2]]


def test_corners_connect() -> None:
    assert drawing.boxes(np.eye(3), component="all").tolist() == [[0, 0, 3, 3]]


def test_equal_components_come_upper_then_left_first() -> None:
    values = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]]
    assert drawing.boxes(values, component="all").tolist() == [[4, 0, 5, 1], [0, 2, 1, 3], [2, 2, 3, 3]]
    assert np.argwhere(drawing.masks(values)).tolist() == [[0, 4]]


@pytest.mark.parametrize("value", [-3.0, 0.0, NAN])
@pytest.mark.parametrize("component", ["largest", "all"])
def test_without_positive_evidence_there_is_no_region(value: float, component: drawing.Component) -> None:
    values = np.full((4, 5), value)
    mask, boxes = drawing.masks(values, component=component), drawing.boxes(values, component=component)
    assert mask.shape == (4, 5)
    assert mask.dtype == bool
    assert not mask.any()
    assert boxes.shape == (0, 4)
    assert boxes.dtype.kind == "i"


def test_constant_map_is_one_region_and_the_margins_none() -> None:
    values = np.full((4, 7), 2.5)
    assert drawing.boxes(values).tolist() == [[0, 0, 7, 4]]
    values[:, :2] = values[:, -1:] = NAN
    assert drawing.boxes(values).tolist() == [[2, 0, 6, 4]]
    assert drawing.masks(values).tolist() == (~np.isnan(values)).tolist()


def test_single_pixel_at_the_border() -> None:
    values = np.zeros((6, 8))
    values[5, 7] = 1e-30
    assert drawing.boxes(values).tolist() == [[7, 5, 8, 6]]


def test_smallest_float_does_not_mark_the_zeros() -> None:
    values = np.zeros((2, 3), dtype=np.float32)
    values[0, 0] = np.float32(1e-45)  # a fifth of it rounds to 0, which every zero reaches
    assert drawing.masks(values).sum() == 1


@pytest.mark.parametrize("seed", range(5))
def test_regions_agree_with_scikit_image(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((30, 40)).cumsum(axis=0).cumsum(axis=1)
    values[:, :3] = NAN
    strong = np.nan_to_num(values, nan=-1) >= 0.3 * np.nanmax(values)
    regions = measure.regionprops(measure.label(strong, connectivity=2))  # type: ignore[no-untyped-call]
    found = drawing.boxes(values, threshold=0.3, component="all").tolist()
    assert sorted(found) == sorted([left, top, right, bottom] for top, left, bottom, right in (r.bbox for r in regions))
    assert drawing.masks(values, threshold=0.3).sum() == max(region.area for region in regions)


# --- colours ---------------------------------------------------------------------------------------------------------


def test_colors_are_rgb_from_zero_to_scale() -> None:
    colors = drawing.colorize([[-7.0, 0.0, 2.0, 9.0, NAN]], scale=2.0, colormap="jet")
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 128], [0, 0, 128], [128, 0, 0], [128, 0, 0], [128, 128, 128]]]
    turbo = drawing.colorize([[0.0, 1.0]], scale=1.0)
    assert turbo.tolist() == [[[48, 18, 59], [122, 4, 3]]]  # the ends published with the colour map


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_without_evidence_gives_the_color_of_zero(scale: float) -> None:
    assert drawing.colorize([[5.0, -5.0]], scale=scale, colormap="hot").max() == 0


def test_unknown_colormap_names_its_neighbours() -> None:
    with pytest.raises(CamhookError, match=r"'virdis'.*viridis"):
        drawing.colorize([[1.0]], scale=1.0, colormap="virdis")


# --- overlays --------------------------------------------------------------------------------------------------------


def test_overlay_changes_the_photo_only_where_there_is_evidence() -> None:
    photo, values = noise(), np.full((40, 60), -2.0, dtype=np.float32)
    values[10:20, 30:50] = 3
    picture = drawing.overlay(photo, values)
    assert picture.mode == "RGB"
    assert picture.size == (60, 40)
    assert not differs(picture, photo)[values < 0].any()
    expected = np.rint(0.4 * photo[10:20, 30:50] + 0.6 * np.array([122, 4, 3]))
    np.testing.assert_allclose(np.asarray(picture)[10:20, 30:50], expected, atol=1)


@pytest.mark.parametrize("scale", [None, 4.0])
def test_overlay_of_a_negative_map_is_the_photo(scale: float | None) -> None:
    assert not differs(drawing.overlay(noise(), -np.ones((40, 60)), scale=scale), noise()).any()


def test_overlay_is_weaker_on_a_larger_shared_scale_and_grows_with_the_value() -> None:
    photo, values = np.full((1, 50, 3), 255, dtype=np.uint8), np.linspace(0, 1, 50)[None]

    def heat(scale: float | None) -> npt.NDArray[np.int_]:
        picture = drawing.overlay(photo, values, scale=scale, colormap="hot")
        change: npt.NDArray[np.int_] = np.abs(np.asarray(picture).astype(int)[0] - 255).sum(axis=1)
        return change

    weak, strong = heat(4.0), heat(None)
    assert (weak[2:25] < strong[2:25]).all()
    assert (np.diff(weak) >= 0).all()  # on a scale of 4 all values are where opacity rises
    assert weak[-1] > 20
    assert strong[1] < 6  # no rim where evidence starts


def test_unexplained_is_grey_dim_and_lined_off() -> None:
    photo, values = noise(), np.full((40, 60), -1.0)
    values[:, :20] = NAN
    pixels = np.asarray(drawing.overlay(photo, values)).astype(int)
    assert not differs(drawing.overlay(photo, values), photo)[:, 20:].any()
    assert (pixels[:, 19] == 255).all()
    outside = pixels[:, :19]
    assert (outside.max(axis=2) == outside.min(axis=2)).all()
    assert outside.max() <= 142
    assert outside.std() > 5  # still the photo, not a flat bar
    assert np.asarray(drawing.overlay(photo, np.full((40, 60), NAN))).max() <= 142


def test_photos_come_as_arrays_or_pictures_of_any_mode() -> None:
    values = np.random.default_rng(1).standard_normal((40, 60))
    array = np.asarray(drawing.overlay(noise(), values))
    assert not differs(drawing.overlay(Image.fromarray(noise()), values), array).any()
    assert drawing.overlay(Image.new("L", (60, 40)), values).mode == "RGB"


def test_signed_overlay_is_red_above_and_blue_below_zero() -> None:
    photo = np.full((1, 5, 3), 90, dtype=np.uint8)
    pixels = np.asarray(drawing.signed_overlay(photo, [[-2.0, -0.2, 0.0, 0.2, 2.0]], scale=2.0)).astype(int)
    redness = pixels[0, :, 0] - pixels[0, :, 2]
    assert (np.diff(redness) > 0).all()
    assert redness[2] == 0
    assert redness[4] > 100
    assert redness[0] < -100


# --- lines -----------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_inside_their_bounds_on_a_copy() -> None:
    picture = Image.new("RGB", (30, 20), (90, 90, 90))
    drawn = np.asarray(drawing.draw_boxes(picture, [[5, 4, 15, 12]], color="#ff0000", width=1))
    rows, columns = np.nonzero((drawn == (255, 0, 0)).all(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (5, 4, 15, 12)
    assert len(rows) == 2 * 10 + 2 * 6
    assert (np.asarray(picture) == 90).all()
    nothing: list[npt.ArrayLike] = [[], drawing.boxes([[-1.0]])]
    for none in nothing:
        assert not differs(drawing.draw_boxes(picture, none), np.asarray(picture)).any()


def test_contours_surround_the_region_of_their_level() -> None:
    values = np.zeros((40, 60))
    values[10:30, 20:40] = 1
    values[18:22, 28:32] = 4
    values[35:38, 50:55] = 1  # a second component
    picture = Image.new("RGB", (60, 40), (90, 90, 90))
    outer = differs(drawing.draw_contours(picture, values, levels=(0.2,)), np.asarray(picture))
    assert outer[10, 20:40].all()
    assert outer[10:30, 39].all()
    assert outer[35, 50:55].all()
    assert not outer[16:24, 26:34].any()
    assert not outer[:6].any()
    both = differs(drawing.draw_contours(picture, values, levels=(0.2, 0.5)), np.asarray(picture))
    assert both[18:22, 28].all()
    assert not differs(drawing.draw_contours(picture, -values), np.asarray(picture)).any()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: drawing.masks(np.ones((2, 3, 3))), r"\(2, 3, 3\).*expected.*\(H, W\)"),
        (lambda: drawing.masks([[1.0, float("inf")]]), "infinite"),
        (lambda: drawing.masks(np.ones((0, 3))), r"\(0, 3\)"),
        (lambda: drawing.masks([[1j]]), "complex"),
        (lambda: drawing.masks([[1.0]], threshold=0), "threshold=0"),
        (lambda: drawing.boxes([[1.0]], threshold=20), "threshold=20"),
        (lambda: drawing.boxes([[1.0]], threshold=NAN), "threshold=nan"),
        (lambda: drawing.boxes([[1.0]], component="biggest"), "'biggest'.*'largest' or 'all'"),  # type: ignore[arg-type]
        (lambda: drawing.colorize([[1.0]], scale=NAN), "scale=nan"),
        (lambda: drawing.overlay(noise(4, 5), np.ones((5, 4))), r"\(5, 4\).*\(4, 5\).*upsample"),
        (lambda: drawing.overlay(noise(4, 5)[..., 0], np.ones((4, 5))), r"photo of uint8 of shape \(4, 5\)"),
        (lambda: drawing.overlay(noise(4, 5) / 255, np.ones((4, 5))), "float64.*uint8"),  # type: ignore[arg-type]
        (lambda: drawing.overlay(noise(4, 5), np.ones((4, 5)), alpha=60), "alpha=60"),
        (lambda: drawing.draw_boxes(Image.new("RGB", (9, 9)), [1, 2, 3, 4]), "left, top, right, bottom"),
        (lambda: drawing.draw_boxes(Image.new("RGB", (9, 9)), [[5, 2, 3, 4]]), "left < right"),
        (lambda: drawing.draw_contours(Image.new("RGB", (9, 9)), np.ones((9, 9)), levels=(0.0,)), "threshold=0.0"),
        (lambda: montage.montage([[]]), "0 panels"),
        (lambda: montage.montage([[Panel(Image.new("RGB", (9, 9)))]], cell=(300, 10)), r"\(300, 10\)"),
    ],
)
def test_refusals_say_what_was_found(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(CamhookError, match=text):
        call()


# --- OpenCV ----------------------------------------------------------------------------------------------------------


class BrokenOpenCV(importlib.abc.MetaPathFinder):
    def __init__(self, message: str) -> None:
        self.message = message

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "cv2":
            raise ImportError(self.message)


@pytest.mark.parametrize("library", ["libGL.so.1", "libgthread-2.0.so.0", "libglib-2.0.so.0"])
def test_missing_system_library_is_named_with_what_mends_it(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    broken = BrokenOpenCV(f"{library}: cannot open shared object file: No such file or directory")
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    with pytest.raises(DependencyError) as caught:
        drawing.overlay(noise(), np.ones((40, 60)))
    for part in (
        f"system library {library} is missing",
        "apt-get install libgl1 libglib2.0-0",
        "opencv-python-headless",
    ):
        assert part in str(caught.value)
    assert str(caught.value.__cause__) == broken.message


def test_other_import_failures_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [BrokenOpenCV("recursion is detected"), *sys.meta_path])
    with pytest.raises(DependencyError, match=r"it says: recursion is detected.*apt-get"):
        drawing.opencv()


def test_opencv_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError, match="pip install opencv-python"):
        drawing.opencv()


# --- montage ---------------------------------------------------------------------------------------------------------


def black(height: int = 100, width: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height))


def ink(picture: Image.Image) -> npt.NDArray[np.bool_]:
    marked: npt.NDArray[np.bool_] = np.asarray(picture).min(axis=2) < 250
    return marked


def test_pictures_are_fitted_to_the_cell_with_their_aspect() -> None:
    for height, width in ((100, 200), (1000, 2000), (10, 20)):
        rows, columns = np.nonzero(ink(montage.montage([[Panel(black(height, width))]], cell=(300, 200))))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (100, 200)
    rows, columns = np.nonzero(ink(montage.montage([[Panel(black(300, 100))]], cell=(150, 200))))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (150, 50)


def test_montage_grows_by_cells_and_takes_rows_of_different_length() -> None:
    def size(*lengths: int) -> tuple[int, int]:
        return montage.montage([[Panel(black())] * length for length in lengths], cell=(200, 200)).size

    (one, height), (two, same), (three, taller) = size(1), size(2), size(3, 0, 1)
    assert two - one == three - two > 200
    assert height == same
    assert taller - height > 200
    assert size(3, 1) == size(1, 3)


def test_long_captions_stay_in_their_column_and_below_their_picture() -> None:
    for text in ("W" * 300, "a class name of many words " * 20, "W" * 40 + " " + "i" * 400):
        panel = Panel(black(), text, (text, text))
        marked = ink(montage.montage([[panel, panel]], cell=(200, 200)))
        rows, columns = np.nonzero(marked)
        top, left, right = rows.min(), columns.min(), columns.max() + 1
        below = marked[top + 200 :]
        assert below[:, left : left + 200].any()
        assert not below[:4].any()
        assert not below[-10:].any()
        assert not below[:, left + 200 : right - 200].any()
        assert not below[:, [left + 199, right - 1]].any()  # text cut off, not shortened, would reach the last column
        headed = np.nonzero(ink(montage.montage([[panel, panel]], cell=(200, 200), title=text, footer=text)))[1]
        assert headed.min() >= left - 1  # a letter may lean out by a pixel
        assert headed.max() < right


def test_captions_are_wrapped_then_shortened() -> None:
    def height(words: int) -> int:
        return montage.montage([[Panel(black(), "word " * words)]], cell=(200, 200)).height

    assert height(0) < height(1) < height(9) == height(900)
    whole, cut = (montage.montage([[Panel(black(), "three words " * n)]], cell=(200, 200)) for n in (4, 5))
    assert whole.size == cut.size
    assert ink(cut)[-60:].sum() > ink(whole)[-60:].sum()  # an ellipsis more


def written(text: str) -> Image.Image:
    """A line of text on a picture of fixed size."""
    picture = Image.new("RGB", (300, 60), "white")
    draw_text(ImageDraw.Draw(picture), (20, 20), text, size=20, fill=(0, 0, 0))
    return picture


def boxed(count: int) -> bytes:
    """What DejaVu Sans draws for characters that it does not have: boxes."""
    picture = Image.new("RGB", (300, 60), "white")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 20)
    ImageDraw.Draw(picture).text((20, 20), "\U0010fffd" * count, fill=(0, 0, 0), font=font, anchor="la")
    return picture.tobytes()


def test_accents_and_other_scripts_are_drawn() -> None:
    accented, plain = (montage.montage([[Panel(black(), title)]]) for title in ("Crème brûlée", "Creme brulee"))
    assert accented.tobytes() != plain.tobytes()
    for characters in ("éeßs", "αβγΩ", "жшяИ"):
        pictures = {written(character).tobytes() for character in characters}
        assert len(pictures) == len(characters)
        assert not pictures & {boxed(1), written("\N{REPLACEMENT CHARACTER}").tobytes(), written("").tobytes()}
    letter, accent = "e", "\N{COMBINING ACUTE ACCENT}"
    assert written(letter + accent).tobytes() == written("é").tobytes()


def test_what_dejavu_lacks_comes_from_another_font_or_shows_as_replaced() -> None:
    position, private = "\N{POSITION INDICATOR}", "\U0010fffd"  # the first is in STIX, which matplotlib ships too
    replaced = written("a\N{REPLACEMENT CHARACTER}b").tobytes()
    assert written(f"a{private}b").tobytes() == replaced != boxed(3)
    found = written(f"a{position}b")
    assert found.tobytes() not in (replaced, boxed(3), written("ab").tobytes(), written("a b").tobytes())
    around = np.asarray(written("a"))[:, :32]
    assert np.array_equal(np.asarray(found)[:, :32], around)  # on the same baseline, in the first font


@pytest.mark.parametrize("anchor", ["la", "ms", "rs", "mm"])
def test_text_stands_where_its_anchor_says(anchor: str) -> None:
    ours, pillows = (Image.new("RGB", (300, 60), "white") for _ in range(2))
    draw_text(ImageDraw.Draw(ours), (150, 30), "Grüße 3", size=20, fill=(0, 0, 0), anchor=anchor)
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 20)
    ImageDraw.Draw(pillows).text((150, 30), "Grüße 3", fill=(0, 0, 0), font=font, anchor=anchor)
    ends = [(found.min(1), found.max(1)) for found in (np.stack(np.nonzero(ink(p))) for p in (ours, pillows))]
    assert np.abs(np.array(ends[0]) - np.array(ends[1])).max() <= 1


def test_text_shows_on_any_background() -> None:
    for background, dark in (("white", False), ("#101418", True)):
        picture = montage.montage([[Panel(Image.new("RGB", (90, 90), background), "title")]], background=background)
        pixels = np.asarray(picture).astype(int)
        assert np.abs(pixels - pixels[0, 0]).max() > 180
        assert (pixels.max() > 200) if dark else (pixels.min() < 50)


def test_color_bar_runs_from_zero_to_scale_above_its_numbers() -> None:
    bar = np.asarray(montage.color_bar(300, 40, scale=7.5, colormap="jet"))
    assert bar.shape == (40, 300, 3)
    assert bar[0, 0].tolist() == [0, 0, 128]
    assert bar[19, -1].tolist() == [128, 0, 0]
    text = bar[20:].min(axis=2) < 128
    assert all(text[:, start : start + 100].any() for start in (0, 100, 200))
    assert not text[:1].any()
    assert not text[-1:].any()
    empty = np.asarray(montage.color_bar(300, 40, scale=0.0, colormap="jet"))
    assert (empty[:20] == (0, 0, 128)).all()
    assert (empty[20:].min(axis=2) < 128).any()


# --- anatomy ---------------------------------------------------------------------------------------------------------


def equation() -> tuple[list[Term], Term]:
    """Left half +4, right half -2, a rest of +1: scores 2, -1 and 1, an offset of 0.5, so a logit of 2.5."""
    left, right, rest = np.zeros((40, 60)), np.zeros((40, 60)), np.ones((40, 60))
    left[:, :30], right[:, 30:] = 4, -2
    terms = [Term("channel 4", 0.5, left, 2.0), Term("channel 9", -0.25, right, -1.0), Term("rest", None, rest, 1.0)]
    return terms, Term("map of cat", None, left + right + rest, 2.5)


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `anatomy` hands to `montage`."""
    seen: dict[str, Any] = {}
    draw = montage.montage

    def spy(rows: Sequence[Sequence[Panel]], **options: Any) -> Image.Image:
        seen.update(options, panels=[panel for row in rows for panel in row], lengths=[len(row) for row in rows])
        return draw(rows, **options)

    monkeypatch.setattr(anatomy, "montage", spy)
    return seen


def test_anatomy_writes_the_equation(layout: dict[str, Any]) -> None:
    terms, total = equation()
    picture = anatomy.anatomy(noise(), terms, total, offset=0.5, title="cat")
    panels = layout["panels"]
    assert [panel.sign for panel in panels] == ["", "=", "+", "+", "+", "="]
    assert [panel.title for panel in panels] == ["photo", "channel 4", "channel 9", "rest", "offset", "map of cat"]
    assert layout["lengths"] == [5, 1]
    assert [panel.lines[0] for panel in panels[:4]] == [
        "logit +2.50",
        "w = +0.5  ·  adds +2.00",
        "w = -0.25  ·  adds -1.00",
        "adds +1.00",
    ]
    assert "4 logits of either sign" in layout["footer"]  # the largest of the single channels
    assert "5 in the sums of many" in layout["footer"]  # 4 + 1
    assert "out" not in layout["footer"]
    assert picture.width > 4 * 260
    assert picture.height > 2 * 173


def test_anatomy_colors_have_the_sign_of_the_evidence(layout: dict[str, Any]) -> None:
    terms, total = equation()
    anatomy.anatomy(np.full((40, 60, 3), 90, dtype=np.uint8), terms, total, offset=0.5)
    left, right, rest, _, whole = (np.asarray(panel.picture).astype(int) for panel in layout["panels"][1:])
    redness = [part[..., 0] - part[..., 2] for part in (left, right, rest, whole)]
    assert (redness[0][:, :30] > 0).all()
    assert (redness[0][:, 30:] == 0).all()
    assert (redness[1][:, :30] == 0).all()
    assert (redness[1][:, 30:] < 0).all()
    assert redness[3][0, 0] == redness[0][0, 0] > redness[2][0, 0] > 0  # 5 of 5, 4 of 4, 1 of 5 logits
    assert redness[3][0, -1] < 0


def test_anatomy_says_when_the_equation_does_not_hold(layout: dict[str, Any]) -> None:
    terms, total = equation()
    anatomy.anatomy(noise(), terms[:2], total, offset=0.5)
    assert "leaves +1.00 of the logit out" in layout["footer"]


def test_anatomy_of_the_rest_alone_and_of_an_empty_map(layout: dict[str, Any]) -> None:
    nothing = Term("rest", None, np.zeros((40, 60)), 0.0)
    anatomy.anatomy(noise(), [], nothing, offset=0.0)
    assert [panel.sign for panel in layout["panels"]] == ["", "=", "="]
    whole = np.asarray(layout["panels"][-1].picture)
    assert (whole[..., 0] == whole[..., 2]).all()


def test_anatomy_refuses_another_size() -> None:
    terms, total = equation()
    with pytest.raises(CamhookError, match="upsample"):
        anatomy.anatomy(noise(20, 30), terms, total, offset=0.5)
