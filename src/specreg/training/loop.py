"""The training loop: n_dis discriminator steps, a compensation after each, one generator step, and again."""

import operator
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from specreg.data.arrays import encode
from specreg.losses import LOSSES
from specreg.processes import ALONE, Processes
from specreg.training.average import update_average
from specreg.training.config import TrainingConfig
from specreg.training.replay import Replay, replayable
from specreg.training.state import TrainingState
from specreg.training.steps import Batch, NonFiniteError, discriminator_step, diverging, draw_latent, generator_step

# What a callback is told after each step: the state, and the losses of that step by name.
Callback = Callable[[TrainingState, dict[str, Tensor]], None]


def train(
    state: TrainingState,
    config: TrainingConfig,
    *,
    processes: Processes = ALONE,
    callback: Callback = lambda state, losses: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from ``state.step`` to ``config.steps``.

    Args:
        state: updated in place.
        processes: each draws the same batches and takes its share of them.
        callback: called after every step.
        stop: asked after every step, and to answer the same in all processes; True ends the training early.

    Raises:
        NonFiniteError: a loss or gradient was NaN or infinite, before its update was made, or a weight when it was to
            be compensated; names the step.
    """
    loss = LOSSES[config.loss]
    device = next(state.generator.parameters()).device

    def latent(size: int) -> list[Batch]:
        return [draw_latent(state.generator, size, state.random, processes) for _ in range(config.accumulate)]

    def real_batches(multiple: int) -> list[tuple[Tensor, Tensor]]:
        return [draw_real(state, config.batch_size, multiple, processes) for _ in range(config.accumulate)]

    def placed(batches: list[tuple[Tensor, Tensor]]) -> list[Batch]:
        conditional = bool(state.generator.num_classes)
        # Of points there is no such format.
        memory_format = torch.channels_last if batches[0][0].ndim == 4 else torch.preserve_format
        return [
            (inputs.to(device, memory_format=memory_format), labels.to(device) if conditional else None)
            for inputs, labels in batches
        ]

    networks = (state.generator, state.discriminator)
    # A step is to be the same kernels each time: a penalty may look at values, an interpolation is drawn.
    is_fixed = state.penalty is None and not loss.gradient_penalty
    if not state.replays and config.graphs and processes.count == 1 and is_fixed and replayable(networks):
        state.replays = {"d": Replay(networks, state.discriminator), "g": Replay(networks, state.generator)}
    optimizers = (state.discriminator_optimizer, config.d_lr), (state.generator_optimizer, config.g_lr)
    # A GPU would wait for its batches, which are made on the CPU: in another thread, in the same order.
    drawn: Callable[..., Iterable[list[tuple[Tensor, Tensor]]]] = map
    if device.type == "cuda":
        drawn = ThreadPoolExecutor(1).map
    while state.step < config.steps:
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * decay_factor(config, state.step)
        try:
            for real in drawn(real_batches, [1] * config.d_steps):
                d_loss = discriminator_step(
                    state.generator,
                    state.discriminator,
                    state.discriminator_optimizer,
                    loss,
                    placed(real),
                    latent(config.batch_size),
                    random=state.random,
                    gamma=config.gamma,
                    penalty=state.penalty,
                    processes=processes,
                    run=state.replays.get("d", operator.call),
                )
                if state.compensator is not None:
                    with diverging():
                        state.compensator.step()
            g_loss = generator_step(
                state.generator,
                state.discriminator,
                state.generator_optimizer,
                loss,
                latent(config.batch_size * config.generator_batch),
                real=placed(real_batches(config.generator_batch)) if loss.relativistic else (),
                processes=processes,
                run=state.replays.get("g", operator.call),
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"step {state.step + 1}: {error}") from error
        if state.ema is not None:
            update_average(state.ema, state.generator, config.ema_decay)
        state.step += 1
        callback(state, {"d_loss": d_loss, "g_loss": g_loss})
        if stop():
            break


def decay_factor(config: TrainingConfig, step: int) -> float:
    """Return what the learning rates are multiplied by at a step: 1 - step / steps if they decay."""
    return 1 - step / config.steps if config.lr_decay == "linear" else 1.0


def draw_real(
    state: TrainingState, size: int, multiple: int = 1, processes: Processes = ALONE
) -> tuple[Tensor, Tensor]:
    """Draw so many batches of networks' inputs as one, with labels; of that, this process's share."""
    drawn = []
    for _ in range(multiple):
        samples, labels = state.dataset.draw(size, state.draws)
        drawn.append((encode(samples, state.draws), labels))
    inputs, classes = (processes.share(torch.cat(parts)) for parts in zip(*drawn, strict=True))
    return inputs, classes
