"""Muon for matrices and AdamW for the rest, over fp32 master copies of low-precision weights. Knows no model.

Muon: Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon/); the update is scaled to AdamW's size as in
"Muon is scalable for LLM training", 2025, section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.config import OptimConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Optimizer:
    """Updates the weights of one model in place. Lives as long as a training segment; its state is not saved."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> None:
        self._config = config
        self._step = 0
        matrices: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        self._rest: list[AdamState] = []
        for name, parameter in named:
            if parameter.dim() == 2 and "embed" not in name:
                matrices[parameter.shape].append(parameter)
            else:
                self._rest.append(AdamState(parameter))
        self._stacks = [MuonState(group) for group in matrices.values()]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients with both learning rates times `scale`, then forget the gradients."""
        self._step += 1
        config = self._config
        for stack in self._stacks:
            stack.step(config.muon_lr * scale, config.muon_momentum, config.weight_decay)
        for state in self._rest:
            state.step(config.adam_lr * scale, config.adam_betas, self._step)

    @torch.no_grad()
    def load_masters(self) -> dict[int, Tensor]:
        """Return the fp32 master of every parameter, keyed by the parameter's id()."""
        masters = {id(state.parameter): state.master for state in self._rest}
        for stack in self._stacks:
            masters.update({id(p): master for p, master in zip(stack.parameters, stack.master, strict=True)})
        return masters


class AdamState:
    """AdamW without decay for one parameter: embeddings and norms."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.master = parameter.detach().float().clone()
        self._mean = torch.zeros_like(self.master)
        self._square = torch.zeros_like(self.master)

    def step(self, lr: float, betas: tuple[float, float], step: int) -> None:
        assert self.parameter.grad is not None
        grad = self.parameter.grad.float()
        self._mean.lerp_(grad, 1 - betas[0])
        self._square.lerp_(grad.square(), 1 - betas[1])
        mean = self._mean / (1 - betas[0] ** step)
        root = (self._square / (1 - betas[1] ** step)).sqrt_().add_(1e-10)
        self.master.addcdiv_(mean, root, value=-lr)
        self.parameter.copy_(self.master)
        self.parameter.grad = None


class MuonState:
    """Muon for all matrices of one shape, stacked [N, out, in] so that they are orthogonalised together."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.master = torch.stack([p.detach().float() for p in parameters])
        self._momentum = torch.zeros_like(self.master)

    def step(self, lr: float, momentum: float, decay: float) -> None:
        grads = torch.stack([p.grad.float() for p in self.parameters if p.grad is not None])
        self._momentum.lerp_(grads, 1 - momentum)
        update = orthogonalize(grads.lerp(self._momentum, momentum))
        size = 0.2 * max(self.master.shape[1:]) ** 0.5
        self.master.mul_(1 - lr * decay).add_(update.float(), alpha=-lr * size)
        for parameter, master in zip(self.parameters, self.master, strict=True):
            parameter.copy_(master)
            parameter.grad = None


def orthogonalize(stack: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrices to a stack [N, out, in], in bf16 (Newton-Schulz)."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    result: Tensor = x.mT if tall else x
    return result
