"""Modules and functions of PyTorch that users build from: none of them is accused by `verify`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lightwell

IMAGE, TEXT, ROWS, IDS = (
    torch.Size((2, 4, 6, 6)),
    torch.Size((2, 5, 8)),
    torch.Size((6, 8)),
    torch.tensor([[1, 2, 2, 3]]),
)


def behind(layer):
    """A layer behind one with weights, so that gradients go through it."""
    return lambda: nn.Sequential(nn.Linear(8, 8), layer())


def behind_pixels(layer):
    return lambda: nn.Sequential(nn.Conv2d(4, 4, 1), layer())


MODULES = {  # name -> the module, and what it is called with: tensors of these shapes, or these
    "conv2d": (lambda: nn.Conv2d(4, 3, 3, padding=1), [IMAGE]),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), [IMAGE]),
    "batch norm": (lambda: nn.BatchNorm2d(4), [IMAGE]),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), [IMAGE]),
    "group norm": (lambda: nn.GroupNorm(2, 4), [IMAGE]),
    "layer norm": (lambda: nn.LayerNorm(8), [TEXT]),
    "rms norm": (lambda: nn.RMSNorm(8), [TEXT]),
    "local response norm": (behind_pixels(lambda: nn.LocalResponseNorm(2)), [IMAGE]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [TEXT] * 3),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [TEXT]),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), [TEXT] * 2),
    "bilinear": (lambda: nn.Bilinear(8, 8, 3), [ROWS] * 2),
    "embedding": (lambda: nn.Embedding(10, 4, padding_idx=0), [IDS]),
    "bag of embeddings": (lambda: nn.EmbeddingBag(10, 4, mode="mean"), [IDS]),
    "largest of a bag": (lambda: nn.EmbeddingBag(10, 4, mode="max"), [IDS]),
    "alpha dropout": (behind(lambda: nn.AlphaDropout(0.3)), [ROWS]),
    "dropout2d": (behind_pixels(lambda: nn.Dropout2d(0.3)), [IMAGE]),
    "rnn": (lambda: nn.RNN(8, 4, 2, batch_first=True, bidirectional=True), [TEXT]),
    "gru": (lambda: nn.GRU(8, 4, 2, batch_first=True, bidirectional=True, dropout=0.2), [TEXT]),
    "gru cell": (lambda: nn.GRUCell(8, 4), [ROWS]),
    "lstm cell": (lambda: nn.LSTMCell(8, 4), [ROWS]),
    "max pool": (behind_pixels(lambda: nn.MaxPool2d(2)), [IMAGE]),
    "lp pool": (behind_pixels(lambda: nn.LPPool2d(2, 2)), [IMAGE]),
    "adaptive pool": (behind_pixels(lambda: nn.AdaptiveAvgPool2d(3)), [IMAGE]),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), [ROWS]),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)), [ROWS]),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), [ROWS]),
    "pixel shuffle": (behind_pixels(lambda: nn.PixelShuffle(2)), [IMAGE]),
    "bicubic": (behind_pixels(lambda: nn.Upsample(scale_factor=2, mode="bicubic")), [IMAGE]),
    "unfold": (behind_pixels(lambda: nn.Unfold(3)), [IMAGE]),
    "softmin": (behind(lambda: nn.Softmin(-1)), [ROWS]),
    "threshold": (behind(lambda: nn.Threshold(0.1, 0.2)), [ROWS]),
} | {
    layer.__name__: (behind(layer), [ROWS])
    for layer in (
        nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.GLU, nn.ReLU6,
        nn.LeakyReLU,
    )
}  # fmt: skip

CLASSES = torch.tensor([1, 2, 3, -100, 0, 7])
FUNCTIONS = {  # of h, which has a gradient, w, which it was made with, and v, which has none
    "bce": lambda h, w, v: F.binary_cross_entropy_with_logits(h, v.sigmoid()),
    "huber": lambda h, w, v: F.huber_loss(h, v),
    "smooth l1": lambda h, w, v: F.smooth_l1_loss(h, v),
    "kl": lambda h, w, v: F.kl_div(h.log_softmax(-1), v.softmax(-1), reduction="batchmean"),
    "nll": lambda h, w, v: F.nll_loss(h.log_softmax(-1), CLASSES),
    "cross entropy": lambda h, w, v: F.cross_entropy(h, CLASSES, label_smoothing=0.1),
    "of probabilities": lambda h, w, v: F.cross_entropy(h, v.softmax(-1)),
    "margin": lambda h, w, v: F.multi_margin_loss(h, CLASSES.clamp(min=0)),
    "many labels": lambda h, w, v: F.multilabel_soft_margin_loss(h, (v > 0).float()),
    "triplets": lambda h, w, v: F.triplet_margin_loss(h, v, v.flip(0)),
    "cosine embedding": lambda h, w, v: F.cosine_embedding_loss(h, v, v[:, 0].sign()),
    "poisson": lambda h, w, v: F.poisson_nll_loss(h, v.abs()),
    "soft margin": lambda h, w, v: F.soft_margin_loss(h, v.sign()),
    "ranking": lambda h, w, v: F.margin_ranking_loss(h, v, v.sign()),
    "normalize": lambda h, w, v: F.normalize(h, dim=-1).pow(3).sum(),
    "pdist": lambda h, w, v: F.pdist(h).sum(),
    "cdist": lambda h, w, v: torch.cdist(h, v).sum(),
    "pairwise": lambda h, w, v: F.pairwise_distance(h, v).sum(),
    "cosine similarity": lambda h, w, v: F.cosine_similarity(h, v).sum(),
    "gumbel": lambda h, w, v: (F.gumbel_softmax(h, hard=True) * v).sum(),
    "logsumexp": lambda h, w, v: h.logsumexp(0).sum(),
    "cumsum": lambda h, w, v: h.cumsum(0).pow(2).sum(),
    "cumprod": lambda h, w, v: h.cumprod(0).sum(),
    "sort": lambda h, w, v: (h.sort(-1)[0] * v).sum(),
    "topk": lambda h, w, v: h.topk(3)[0].pow(2).sum(),
    "median": lambda h, w, v: h.median(-1)[0].pow(2).sum(),
    "std": lambda h, w, v: h.std(-1).sum(),
    "var": lambda h, w, v: h.var(),
    "prod": lambda h, w, v: h.prod(-1).sum(),
    "amax": lambda h, w, v: h.amax(-1).pow(2).sum(),
    "maximum": lambda h, w, v: (torch.maximum(h, v) + torch.minimum(h, v)).pow(2).sum(),
    "inverse": lambda h, w, v: torch.linalg.inv(w + 5 * torch.eye(8)).sum(),
    "determinant": lambda h, w, v: torch.linalg.det(w),
    "logdet": lambda h, w, v: torch.logdet(w @ w.T + torch.eye(8)),
    "solve": lambda h, w, v: torch.linalg.solve(w + 5 * torch.eye(8), v.T).sum(),
    "cholesky": lambda h, w, v: torch.linalg.cholesky(w @ w.T + torch.eye(8)).sum(),
    "eigenvalues": lambda h, w, v: (torch.linalg.eigvalsh(w + w.T) * torch.arange(8.0)).sum(),
    "singular values": lambda h, w, v: torch.linalg.svdvals(w).sum(),
    "qr": lambda h, w, v: torch.linalg.qr(w)[1].pow(2).sum(),
    "einsum": lambda h, w, v: torch.einsum("ij,kj,ik->", h, v, v @ v.T),
    "scatter": lambda h, w, v: torch.zeros(6, 8).scatter_add(0, torch.zeros(6, 8, dtype=torch.long), h).pow(2).sum(),
    "index put": lambda h, w, v: torch.zeros(6, 8).index_put((CLASSES.clamp(0, 5),), h, accumulate=True).pow(2).sum(),
    "gather": lambda h, w, v: h.gather(1, torch.tensor([[0, 0, 1]] * 6)).pow(2).sum(),
    "where": lambda h, w, v: torch.where(h > 0, h, h.exp()).sum(),
    "masked": lambda h, w, v: h.masked_fill(v > 0, 0).pow(2).sum(),
    "selected": lambda h, w, v: h[v > 0].pow(2).sum(),
    "roll": lambda h, w, v: (h.roll(1, 0) * v).sum(),
    "fft": lambda h, w, v: torch.fft.rfft(h).abs().sum(),
    "clamp in place": lambda h, w, v: h.clamp_(-1, 1).pow(2).sum(),
    "in place": lambda h, w, v: h.mul_(2).add_(v).relu_().pow(2).sum(),
    "unbind": lambda h, w, v: sum(row.pow(n + 1).sum() for n, row in enumerate(h.unbind(0))),
    "addcmul": lambda h, w, v: torch.addcmul(h, v, h, value=0.3).pow(2).sum(),
    "lerp": lambda h, w, v: torch.lerp(h, v, 0.3).pow(2).sum(),
    "special functions": lambda h, w, v: (torch.erf(h) + torch.lgamma(h.abs() + 1) + torch.digamma(h.abs() + 1)).sum(),
    "atan2": lambda h, w, v: torch.atan2(h, v).sum(),
    "pow": lambda h, w, v: (h.abs() + 0.1).pow(v).sum(),
    "xlogy": lambda h, w, v: torch.xlogy(v.abs(), h.abs()).sum(),
    "fused attention": lambda h, w, v: F.scaled_dot_product_attention(h[None], v[None], v[None], is_causal=True).sum(),
    "checkpoint": lambda h, w, v: checkpoint(lambda a: a.tanh().pow(2).sum(), h, use_reentrant=False),
    "detached": lambda h, w, v: (h * h.detach()).sum(),
    "grid": lambda h, w, v: F.grid_sample(
        v[None, None], h[:, :2].reshape(1, 2, 3, 2).tanh(), align_corners=False
    ).sum(),
    "renorm": lambda h, w, v: h.renorm(2, 0, 1.0).pow(3).sum(),
    "nanmean": lambda h, w, v: h.nanmean().pow(2),
    "quantile": lambda h, w, v: torch.quantile(h, 0.3, dim=-1).sum(),
    "tril": lambda h, w, v: (h[:, :6].tril() @ v).sum(),
    "kron": lambda h, w, v: torch.kron(h, v).pow(2).sum(),
    "trapezoid": lambda h, w, v: torch.trapezoid(h).pow(2).sum(),
    "interpolate": lambda h, w, v: F.interpolate(h[None], scale_factor=1.7, mode="linear").pow(2).sum(),
}


def accused(trace):
    return [(row.kind, row.operation, row.error) for row in trace.verify().rows if row.verdict == "disagree"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MODULES)
def test_a_module(name, seed):
    make, inputs = MODULES[name]
    torch.manual_seed(seed)
    given, module = [torch.randn(x) if isinstance(x, torch.Size) else x for x in inputs], make()
    with lightwell.trace() as t:
        out = module(*given)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    assert accused(t) == []


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name, seed):
    torch.manual_seed(seed)
    v, w = torch.randn(6, 8), torch.randn(8, 8, requires_grad=True)
    with lightwell.trace() as t:
        FUNCTIONS[name](v @ w, w, v).backward()
    assert accused(t) == []
