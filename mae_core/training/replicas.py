"""The gradients of a step, computed in the chosen precision by several workers in parallel.

The optimizer's weights stay float32. Each worker has a copy of the model, whose weights are cast once per step. It
computes on parts of the batch that fit into the processor's caches, and accumulates its gradients in float32.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


class Replicas:
    """Copies of a model, one for each worker.

    On a CPU, workers with one thread each are faster than one worker with all threads, because no operation waits for
    the slowest thread (LOG.md has the timings). Gradients are added in a fixed order, so the same seed gives the
    same weights; another number of workers rounds differently.

    Args:
        model: its float32 weights are copied at every step; its gradients are set.
        precision: of weights and activations in the copies.
        n_workers: 1 computes in the calling thread, with torch's number of threads.
        loss_of: see Objective.
    """

    def __init__(
        self, model: nn.Module, precision: torch.dtype, n_workers: int, loss_of: Callable[[nn.Module, Tensor, Any], Tensor]
    ):
        self.weights: list[Tensor] = list(model.parameters())
        self.copies = [copy.deepcopy(model).to(precision).train() for _ in range(n_workers)]
        self.pool = ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,))
        self.loss_of = loss_of
        self.started = False

    def compute_gradients(self, images_BCHW: Tensor, drawn: Any, images_at_once: int) -> Tensor:
        """Set the model's gradients to those of the batch's mean loss, and return that loss.

        Args:
            images_BCHW: the batch.
            drawn: masks or labels of the batch, from Objective.draw.
            images_at_once: number of images in one pass of a worker.
        """
        n_images = len(images_BCHW)
        parts = [slice(start, start + images_at_once) for start in range(0, n_images, images_at_once)]
        n_workers = min(len(self.copies), len(parts))

        def work(worker: int) -> tuple[Tensor, list[Tensor]]:
            """Summed loss and float32 gradients of every ``n_workers``-th part."""
            model = self.copies[worker]
            weights: list[Tensor] = list(model.parameters())
            with torch.no_grad():
                torch._foreach_copy_(weights, self.weights)
            losses: list[Tensor] = []
            total: list[Tensor] = []
            for part in parts[worker::n_workers]:
                images = images_BCHW[part]
                loss = self.loss_of(model, images, drawn[part]) * (len(images) / n_images)
                gradients = torch.autograd.grad(loss, weights)
                if total:
                    torch._foreach_add_(total, list(gradients))
                else:
                    total = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
                    torch._foreach_copy_(total, list(gradients))
                losses.append(loss.detach())
            return torch.stack(losses).sum(), total

        if n_workers == 1:
            done = [work(0)]
        elif self.started:
            done = list(self.pool.map(work, range(n_workers)))
        else:  # at first one after the other: if the loss is compiled, the first worker does it for all
            done = [self.pool.submit(work, worker).result() for worker in range(n_workers)]
            self.started = True
        losses, (total, *others) = zip(*done, strict=True)
        for gradients in others:
            torch._foreach_add_(total, gradients)
        for weight, gradient in zip(self.weights, total, strict=True):
            weight.grad = gradient
        return torch.stack(losses).sum()
