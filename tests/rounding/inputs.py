"""Matrices and second moments to round with."""

import torch

from bitquilt.rounding.hessian import Factor, factorize
from tests.progress import Speechless


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def second_moment(columns: int, seed: int = 1) -> torch.Tensor:
    """Of inputs that lie near a plane of a quarter of the dimensions, columns of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(columns // 4, columns, generator=generator)
    sizes = torch.exp(torch.randn(columns, generator=generator))
    x = torch.randn(4 * columns, columns // 4, generator=generator) @ plane
    x = (x + torch.randn(4 * columns, columns, generator=generator)) * sizes
    return x.T @ x / len(x)


def cost(error: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """E H Eᵀ of each row, in double precision."""
    error, hessian = error.double(), hessian.double()
    return ((error @ hessian) * error).sum(1).float()


def factor_of(*hessians: torch.Tensor) -> Factor:
    """Of inputs whose Hessians are expected to factorize."""
    return factorize(
        torch.stack(hessians), [f"input {i}" for i in range(len(hessians))], Speechless()
    )
