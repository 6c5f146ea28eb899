"""Shapes, colours and files of pictures and animations."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from wam_jax.reporting import media


@pytest.fixture
def rng():
  return np.random.default_rng(3)


def test_upscale_repeats_pixels(rng):
  pictures = rng.integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
  large = media.upscale(pictures, 3)
  assert large.shape == (2, 9, 15, 3)
  np.testing.assert_array_equal(large[:, ::3, ::3], pictures)
  np.testing.assert_array_equal(large[:, 2::3, 2::3], pictures)


def test_border_surrounds_and_keeps_the_picture(rng):
  picture = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
  framed = media.add_border(picture, (10, 20, 30), 2)
  assert framed.shape == (10, 8, 3)
  np.testing.assert_array_equal(framed[2:-2, 2:-2], picture)
  np.testing.assert_array_equal(framed[0, 0], (10, 20, 30))
  np.testing.assert_array_equal(framed[-1, -1], (10, 20, 30))


def test_error_picture_sign(rng):
  true = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  np.testing.assert_array_equal(media.error_picture(true, true), np.full_like(true, 128))
  dark, light = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
  assert media.error_picture(dark, light).max() == 255
  assert media.error_picture(light, dark).min() == 0
  with pytest.raises(ValueError, match="differ"):
    media.error_picture(true, true[:2])


def test_strip_layout_and_border_colours(rng):
  rows = [
    (name, rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)) for name in ("true", "predicted", "error")
  ]
  strip = media.make_strip(rows, num_context=2, labels=list("abcde"), scale=2)
  assert strip.dtype == np.uint8 and strip.ndim == 3
  assert strip.shape[1] > 5 * 16 and strip.shape[0] > 3 * 16

  def bordered(colour):  # columns in which the colour fills a picture's edge in the upper rows
    mask = (strip[: strip.shape[0] - 34] == colour).all(-1)
    return np.flatnonzero(mask.sum(0) > 3 * 16)

  context, imagined = bordered(media.CONTEXT_COLOUR), bordered(media.IMAGINED_COLOUR)
  assert len(context) and len(imagined)
  assert context.max() < imagined.min()
  edge_columns = 6  # 3 pixels on both sides of a picture
  assert len(context) == 2 * edge_columns and len(imagined) == 3 * edge_columns


def test_strip_rejects_what_does_not_fit(rng):
  row = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
  with pytest.raises(ValueError, match="shape"):
    media.make_strip([("a", row), ("b", row[:2])], 1, list("abc"), 1)
  with pytest.raises(ValueError, match="labels"):
    media.make_strip([("a", row)], 1, ["x"], 1)
  with pytest.raises(ValueError, match="uint8"):
    media.make_strip([("a", row.astype(np.float32))], 1, list("abc"), 1)


def test_tile_places_row_by_row(rng):
  pictures = rng.integers(0, 255, (3, 4, 6, 3), dtype=np.uint8)
  grid = media.tile(pictures, 2, gap=1)
  assert grid.shape == (9, 13, 3)
  np.testing.assert_array_equal(grid[:4, 7:], pictures[1])
  np.testing.assert_array_equal(grid[5:, :6], pictures[2])
  assert (grid[5:, 7:] == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animation_reads_back(tmp_path, rng, suffix):
  frames = rng.integers(0, 256, (4, 10, 12, 3), dtype=np.uint8)
  path = tmp_path / f"a.{suffix}"
  media.save_animation(path, frames, fps=10, scale=2)
  with Image.open(path) as image:
    assert image.n_frames == 4
    assert image.size == (24, 20)
    assert image.info.get("loop") == 0
    assert image.format == suffix.upper()


def test_animation_shows_the_frames(tmp_path):
  colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
  frames = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours])
  media.save_animation(tmp_path / "a.gif", frames, fps=5)
  with Image.open(tmp_path / "a.gif") as image:
    for i, colour in enumerate(colours):
      image.seek(i)
      np.testing.assert_allclose(np.asarray(image.convert("RGB"))[4, 4], colour, atol=8)


@pytest.mark.parametrize("bad", ["fps", "kind", "empty"])
def test_animation_rejects(rng, bad):
  frames = rng.integers(0, 256, (0 if bad == "empty" else 2, 4, 4, 3), dtype=np.uint8)
  with pytest.raises(ValueError):
    media.animation_bytes(frames, 0 if bad == "fps" else 5, kind="avi" if bad == "kind" else "gif")


def test_data_uri_holds_the_png(rng):
  picture = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
  head, code = media.data_uri(media.png_bytes(picture), "png").split(",")
  assert head == "data:image/png;base64"
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))), picture)


def test_mp4_beside_webp_where_pyav_is(monkeypatch):
  frames = np.random.default_rng(3).integers(0, 256, (5, 15, 20, 3), dtype=np.uint8)
  monkeypatch.setattr(media, "has_mp4", lambda: False)
  assert list(media.film(frames, 15)) == ["webp"]
  monkeypatch.undo()
  av = pytest.importorskip("av")
  with av.open(io.BytesIO(media.film(frames, 15)["mp4"])) as container:
    shown = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert shown == [(16, 20)] * 5 and container.streams.video[0].average_rate == 15


def test_shown_frames_end_with_the_last():
  assert media.shown_times(4).tolist() == [0, 2, 4] and media.shown_times(5).tolist() == [0, 2, 4, 5]
