"""Fixed features, without a network: what samples are compared by unless an encoder is given."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_AS_THEY_ARE = 1024  # values of a sample
_VECTOR = 8192  # longer rows are waveforms
_SIDE = 32
_WINDOW = 512
_BANDS, _PARTS = 64, 4


def plain_features(samples: Tensor) -> Tensor:
    r"""Return features (N, d) of samples (N, \*), the same on every machine but for rounding.

    Vectors, and whatever has no more than 1,024 values, as they are, complex numbers as two real ones; images
    (N, C, H, W), (N, H, W, C) with C of 1, 3 or 4, or (N, H, W) averaged to 32x32 pixels at most; waveforms, (N, C, T)
    or (N, T, C) with C of 1 or 2, or (N, T) with T above 8,192, by the square roots of a spectrogram's magnitudes,
    averaged over 64 bands and 4 parts, in which phases do not matter; anything else flattened.
    """
    if samples.is_complex():
        parts = torch.view_as_real(samples).movedim(-1, 1)  # (N, 2, *)
        is_wave = samples.ndim == 2 and parts[0].numel() > _VECTOR
        samples = parts if samples.ndim == 1 or is_wave else parts.flatten(1, 2)
    num_values = samples[0].numel()
    if num_values <= _AS_THEY_ARE or (samples.ndim == 2 and num_values <= _VECTOR):
        return samples.flatten(1) if samples.ndim > 1 else samples[:, None]
    if _is_channels_last(samples.shape[1:]):
        samples = samples.movedim(-1, 1)
    if samples.ndim == 2 or (samples.ndim == 3 and samples.shape[1] <= 2):
        return _bands(samples.reshape(len(samples), -1, samples.shape[-1]).float())
    if samples.ndim in (3, 4):
        height, width = samples.shape[-2:]
        samples = F.adaptive_avg_pool2d(samples.float(), (min(height, _SIDE), min(width, _SIDE)))
    return samples.flatten(1)


def _is_channels_last(shape: Sequence[int]) -> bool:
    *sides, channels = shape
    if len(sides) == 1:
        return channels <= 2 < sides[0]
    return len(sides) == 2 and channels in (1, 3, 4) and min(sides) > 4


def _bands(waveforms: Tensor) -> Tensor:
    window = torch.hann_window(_WINDOW, device=waveforms.device)
    spectrogram = torch.stft(
        waveforms.flatten(0, 1), _WINDOW, hop_length=_WINDOW // 2, window=window, center=False, return_complex=True
    )
    return F.adaptive_avg_pool2d(spectrogram.abs().sqrt(), (_BANDS, _PARTS)).reshape(len(waveforms), -1)
