"""Deep diversified quantization: codebooks, scope, two-stage partition, and the incremental schedule."""

from d2ed2q.quantization.codebooks import CODEBOOKS, Codebook, check_bits, geometric_magnitudes, make_codebook
from d2ed2q.quantization.incremental import IncrementalQuantizer
from d2ed2q.quantization.partition import (
    RELEASED_FRACTIONS,
    check_fractions,
    cumulative_count,
    two_stage_partition,
)
from d2ed2q.quantization.scope import QuantizableWeight, quantizable_weights

__all__ = [
    "CODEBOOKS",
    "RELEASED_FRACTIONS",
    "Codebook",
    "IncrementalQuantizer",
    "QuantizableWeight",
    "check_bits",
    "check_fractions",
    "cumulative_count",
    "geometric_magnitudes",
    "make_codebook",
    "quantizable_weights",
    "two_stage_partition",
]
