"""What a world model knows and imagines of windows of frames, as two compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wam_jax.core import image
from wam_jax.nn import vision
from wam_jax.nn.world_model import WorldModel
from wam_jax.training import world_model as wm
from wam_jax.types import Batch, Latent, Params, features

MAX_PSNR = 60.0  # dB; equal pictures would be infinite
PICTURE_RANGE = 2.0  # of pictures in [-1, 1]
SSIM_WINDOW = 11  # pixels; smaller pictures have no SSIM


def make_filter(model: WorldModel, context: int) -> Callable[[Params, Batch, jax.Array], dict[str, Any]]:
  """Builds `filter(params, batch, key)`, compiled once for each shape of batch.

  Args:
    model: the networks.
    context: C, frames seen before imagination starts.

  Returns:
    Function of windows [B, T] to `feature` [B, T, F] of the posterior, `last`, the Latent [B, ...] of frame
    C - 1, `embed` [B, T, E] of the pictures alone, and `action` [B, T-1, A], predicted by inverse dynamics.
  """

  def filter_windows(params: Params, batch: Batch, key: jax.Array) -> dict[str, Any]:
    embed, posterior = wm.filter_windows(model, params, batch, key)
    feature = features(posterior)
    source = wm.inverse_dynamics_source(model, embed, feature)
    return {
      "feature": feature,
      "last": jax.tree.map(lambda x: x[:, context - 1], posterior),
      "embed": embed[..., : model.embed],
      "action": wm.predict_actions(model, params, source),
    }

  return jax.jit(filter_windows)


def make_imagine_features(
  model: WorldModel, context: int
) -> Callable[[Params, Batch, Latent, jax.Array], jax.Array]:
  """Builds `imagine(params, batch, last, key)`: features [B, T-C, F] imagined with the true actions.

  Args:
    model: the networks.
    context: C, frames seen; `last` is the Latent of frame C - 1.
  """

  def imagine(params: Params, batch: Batch, last: Latent, key: jax.Array) -> jax.Array:
    return features(wm.imagine(model, params, last, batch.prev_action[:, context:], key))

  return jax.jit(imagine)


def compare_pictures(
  guess: jax.Array, true: jax.Array, ssim_frames: Sequence[int]
) -> tuple[jax.Array, jax.Array | None]:
  """PSNR of every frame and SSIM of some.

  Args:
    guess: [..., T, S, S, 3] in [-1, 1].
    true: likewise.
    ssim_frames: N indices into T.

  Returns:
    ([..., T] in dB, at most MAX_PSNR; [..., N] in [-1, 1], None for pictures smaller than SSIM's window).
  """
  psnr = jnp.minimum(image.psnr(guess, true, PICTURE_RANGE), MAX_PSNR)
  if true.shape[-2] < SSIM_WINDOW:
    return psnr, None
  frames = jnp.asarray(ssim_frames)
  return psnr, image.ssim(guess[..., frames, :, :, :], true[..., frames, :, :, :], PICTURE_RANGE, SSIM_WINDOW)


def make_imagine(
  model: WorldModel, context: int, horizons: Sequence[int]
) -> Callable[[Params, Batch, jax.Array, Latent, jax.Array], dict[str, Any]]:
  """Builds `imagine(params, batch, feature, last, key)`, compiled once for each shape of batch.

  Args:
    model: the networks.
    context: C, frames seen.
    horizons: N numbers of imagined frames, each at most T - C, at which SSIM is measured.

  Returns:
    Function of windows [B, T], their posterior features [B, T, F] and the Latent of frame C - 1 to
    `feature` [B, T-C, F], imagined with the true actions; and for each camera
      `psnr` [B, T-C+1]: the last frame seen, reconstructed, and the imagined ones,
      `ssim` [B, N+1]: likewise, at the horizons; None for pictures smaller than SSIM's window,
      `repeated_psnr` [B, T-C], `repeated_ssim` [B, N]: of repeating the last true frame seen,
      `pictures` [B, T, S, S, 3] uint8: reconstructed where seen, imagined after.
  """

  def imagine_windows(
    params: Params, batch: Batch, feature: jax.Array, last: Latent, key: jax.Array
  ) -> dict[str, Any]:
    imagined = features(wm.imagine(model, params, last, batch.prev_action[:, context:], key))
    decoded = wm.decode(model, params, jnp.concatenate([feature[:, :context], imagined], 1))
    pictures = jnp.stack([jnp.clip(decoded[camera], -1, 1) for camera in model.cameras])
    true = jnp.stack([vision.normalise(batch.pictures[camera]) for camera in model.cameras])
    judged, target = pictures[:, :, context - 1 :], true[:, :, context - 1 :]
    repeated = jnp.broadcast_to(target[:, :, :1], target.shape)
    both = jnp.stack([judged, repeated])  # compared at once: half the program to compile
    psnr, ssim = compare_pictures(both, jnp.stack([target, target]), [0, *horizons])
    out: dict[str, Any] = {"feature": imagined}
    for i, camera in enumerate(model.cameras):
      out[camera] = {
        "psnr": psnr[0, i],
        "ssim": None if ssim is None else ssim[0, i],
        "repeated_psnr": psnr[1, i, :, 1:],
        "repeated_ssim": None if ssim is None else ssim[1, i, :, 1:],
        "pictures": vision.denormalise(pictures[i]),
      }
    return out

  return jax.jit(imagine_windows)
