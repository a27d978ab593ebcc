"""The instructions that the zoo is trained with: those that every x86 processor of a decade has.

With wider registers sums come in another order, and after some hundred steps of training the
weights are others: a record would belong to one kind of processor. So PyTorch, oneDNN, NumPy and
OpenBLAS (by which the signs are drawn: one pixel of 3,000 pictures is enough) keep to AVX2. Scans
and repairs keep to nothing.
"""

from __future__ import annotations

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
}
"""Environment variables, to be set before PyTorch and NumPy are imported."""

COMPATIBLE = {"MKL_CBWR": "COMPATIBLE"}
"""What the networks of the seventh run were trained with besides, in the hope that MKL's code would
be the same on all makers' processors. It is not enough: those of an Intel processor have other
weights on an AMD one. All other networks are of AMD's, and trained without, which is faster."""
