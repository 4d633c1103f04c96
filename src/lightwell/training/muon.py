"""Muon: momentum whose matrix is replaced by the nearest one that turns without stretching, then taken as the update.

A gradient matrix is dominated by a few directions. Its polar factor U V^T (from the singular value decomposition
U S V^T) has the same directions, all of equal size, so that rare ones are learned as fast. A few products approximate
it: an odd polynomial p(x) = a x + b x^3 + c x^5, applied to the matrix several times, drives every singular value
towards 1.
Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; coefficients of the five
polynomials: Amsel et al. 2025, "The Polar Express", for five iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.training.sharding import local, part_of, whole

Coefficients = tuple[tuple[float, float, float], ...]

POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(matrices: Tensor, coefficients: Coefficients = POLAR_EXPRESS) -> Tensor:
    """An approximate polar factor of each matrix: (..., rows, columns) to the same shape and dtype.

    All products are in the dtype of `matrices`. Singular values of the result lie near 1 (0.7 to 1.3).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices  # the products below are then of the smaller side
    X = X.reshape(-1, *X.shape[-2:])
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)  # singular values at most 1
    for a, b, c in coefficients:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    X = X.mT if tall else X
    return X.reshape(matrices.shape)


def exact_polar_factor(matrix: Tensor) -> Tensor:
    """The slow twin: U V^T from the singular value decomposition, in float64."""
    U, _, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U @ Vh


class Muon:
    """The optimizer for the matrices of blocks, stacked by shape so that one product serves many.

    weights: name -> (rows, columns) parameter. splits: name -> row counts of the matrices that one parameter holds
    (queries, keys and values share one). dtype: of the products in `orthogonalise`.
    """

    def __init__(
        self, weights: dict[str, Tensor], splits: dict[str, list[int]], momentum: float, dtype: torch.dtype
    ) -> None:
        self.weights = weights
        self.splits = splits
        self.momentum = momentum
        self.dtype = dtype
        self.buffers = {name: torch.zeros_like(local(weight)) for name, weight in weights.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, weight_decay: float, apply: Tensor) -> None:
        """One update from each weight's `.grad`. `apply`: 0-D bool; where False nothing changes, without a wait.

        Of sharded weights each process has some rows; the momentum too. The matrix to orthogonalise is gathered whole.
        """
        names = [name for name, weight in self.weights.items() if weight.grad is not None]
        if not names:
            return
        buffers = [self.buffers[name] for name in names]
        gradients = [local(self.weights[name].grad) for name in names]  # type: ignore[arg-type]
        if apply.device.type != "cpu":
            gradients = [torch.where(apply, *pair) for pair in zip(gradients, buffers)]
        elif not apply:  # a CPU's number can be looked at without a wait
            return
        torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
        lookahead = torch._foreach_lerp(gradients, buffers, self.momentum)  # Nesterov's: where the momentum will be
        updates = {name: whole(ahead, self.weights[name]) for name, ahead in zip(names, lookahead)}
        self._turn([part for name in names for part in updates[name].split(self.splits.get(name, len(updates[name])))])
        for name in names:
            here, update = local(self.weights[name]), part_of(updates[name], self.weights[name])
            if weight_decay:
                update.add_(here, alpha=weight_decay)
            here.sub_(update if apply.device.type == "cpu" else torch.where(apply, update, 0.0), alpha=learning_rate)

    def _turn(self, matrices: list[Tensor]) -> None:
        """Put its polar factor in the place of each matrix; all of one shape, lying or standing, at once."""
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
        for (rows, _), alike in by_shape.items():
            lying = torch.stack([matrix if len(matrix) == rows else matrix.mT for matrix in alike]).to(self.dtype)
            for matrix, turned in zip(alike, orthogonalise(lying)):
                matrix.copy_(turned if len(matrix) == rows else turned.mT)
                # A tall matrix has few columns to share its size: scaled so that outputs move as much in every shape.
                if len(matrix) > matrix.shape[1]:
                    matrix.mul_((len(matrix) / matrix.shape[1]) ** 0.5)
