"""Batch normalization whose batch may be divided among the processes of a job."""

from typing import Any

import torch
from torch import Tensor, nn

from specreg.processes import sum_over_processes


class BatchNorm(nn.BatchNorm2d):
    r"""Normalize by the statistics of the whole batch, of which each process has an equal share.

    With one process this is torch's. With several, the means over processes of each share's :math:`\mu_p` and
    :math:`\sigma_p^2 + \mu_p^2`, in double precision, give :math:`\mu` and :math:`\sigma^2` of the whole. (torch's
    SyncBatchNorm does the same on GPUs only.)
    """

    processes = 1  # that share the batch; see share_batches

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the normalized features; labels are ignored, class-conditional norms need them."""
        if self.processes == 1 or not self.training:
            return super().forward(hidden)
        return self._normalized_by_all(hidden)

    def _normalized_by_all(self, hidden: Tensor) -> Tensor:
        features = hidden.float() if hidden.dtype in (torch.float16, torch.bfloat16) else hidden
        variance, mean = (part.double() for part in torch.var_mean(features, (0, 2, 3), correction=0))
        moments = sum_over_processes(torch.stack([mean, variance + mean.square()])) / self.processes
        mean, variance = moments[0], moments[1] - moments[0].square()
        self._track(mean.detach(), variance.detach(), features.numel() // self.num_features * self.processes)
        gain = (variance + self.eps).rsqrt()
        if self.affine:
            gain = gain * self.weight
        offset = -mean * gain if self.bias is None else self.bias - mean * gain
        scaled = features * gain.to(features)[:, None, None] + offset.to(features)[:, None, None]
        return scaled.to(hidden.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics, by the variance's unbiased estimate, as torch does."""
        own: Any = self  # torch declares its statistics as perhaps None
        own.num_batches_tracked.add_(1)
        own.running_mean.lerp_(mean.to(own.running_mean), own.momentum)
        own.running_var.lerp_((variance * count / max(1, count - 1)).to(own.running_var), own.momentum)


def share_batches(network: nn.Module, processes: int) -> None:
    """Let a network's norms take the statistics of a batch that so many processes share equally."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.processes = processes
            if processes > 1:
                # A graph would break at the communication anyway. Here and not as a decorator, which would load
                # torch.compile's machinery, seconds of it, in every process.
                disable: Any = torch.compiler.disable
                module._normalized_by_all = disable(module._normalized_by_all)  # type: ignore[method-assign]
