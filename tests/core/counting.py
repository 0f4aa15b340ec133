"""Multiply-adds as fvcore's tracer sees them, and what it sees beyond our formulas.

The counter sees no fused attention: trace with gradients on, then ours is an explicit softmax.
"""

from collections.abc import Callable

from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from madtp_core.encoder import Encoded
from madtp_core.flops import AlignmentGeometry, BranchTrace


class Traced(nn.Module):
    """A forward of tensors to a tensor, and the modules that it runs."""

    def __init__(self, modules: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.run = modules, forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)


def counted(modules: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Multiply-adds that fvcore counts."""
    analysis = FlopCountAnalysis(Traced(modules, forward), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


def traces_of(encoded: Encoded) -> list[BranchTrace]:
    """The trace of each row, which entered its first block whole."""
    counts = [part.T.tolist() for part in (encoded.tokens_in, encoded.needed, encoded.kept)]
    return [BranchTrace(row[0][0], *map(tuple, row)) for row in zip(*counts, strict=True)]


def uncounted(trace: BranchTrace, alignment: AlignmentGeometry, width: int, is_mapped: bool = False) -> int:
    """What fvcore counts of a branch that MADTP scores beyond our formula.

    It counts A, and the map to it, for the class token too, and the merge over all tokens, those of weight
    zero included, where we count the tokens that need it; it does not count the threshold, which is no matrix
    product. Of a block that drops nothing it counts no scoring at all: nothing that is traced comes of it.
    """
    total = 0
    for entering, kept in zip(trace.tokens_in, trace.kept, strict=True):
        a_token = alignment.dim * alignment.num_tokens + is_mapped * width * alignment.dim
        total -= entering * alignment.num_tokens
        total += a_token + (kept + 1) * width if kept < entering else -entering * a_token
    return total
