"""CUDA kernels for what a sparse method does with gradients; compiled when they are first needed.

The compiler is the one that comes with torch. Where it cannot be had there are no kernels, and the
callers' plain operations do the same work with the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

Kernel = Callable[..., None]
THREADS = 256

_GATHER = """
// Adds each selected entry's gradient to its slot; marks it where it was. Slots of other parts are left alone.
extern "C" __global__ void gather(
    const long long* addresses, float* slots, float* gradients,
    int first, int filled, double mark, int marked, int count
) {
    int slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= count) return;
    long long place = addresses[slot] - 128ll * first;
    if (place < 0 || place >= filled) return;
    slots[slot] += gradients[place];
    if (marked) gradients[place] = (float)mark;
}
"""

_SCORE = """
__device__ bool closed(float g) { return g == -3.40282347e38f; }
__device__ float score(float g, float w) { return closed(g) ? -1.0f : fabsf(g) / (fabsf(w) + EPS); }
__device__ float open(float g) { return closed(g) ? 0.0f : g; }
__device__ float square(float g) { return open(g) * open(g); }
"""

_TOPS = (
    _SCORE
    + """
// A warp reads a block of 128 entries, each of its lanes four of them.
extern "C" __global__ void tops(
    const float4* gradients, const float4* weights, float* tops, float* squares, int blocks
) {
    int block = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (block >= blocks) return;
    float4 g = gradients[(long long)block * 32 + lane], w = weights[(long long)block * 32 + lane];
    float top = fmaxf(fmaxf(score(g.x, w.x), score(g.y, w.y)), fmaxf(score(g.z, w.z), score(g.w, w.w)));
    float sum = square(g.x) + square(g.y) + (square(g.z) + square(g.w));
    for (int other = 16; other; other /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
        sum += __shfl_xor_sync(0xffffffffu, sum, other);
    }
    if (lane == 0) { tops[block] = top; squares[block] = sum; }
}
"""
)

_ENTRIES = (
    _SCORE
    + """
// A warp writes out the entries of one chosen block.
extern "C" __global__ void entries(
    const float4* gradients, const float4* weights, const long long* chosen, int first,
    float4* scores, float4* own, long long* addresses, int count
) {
    int number = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (number >= count) return;
    long long from = chosen[number] * 32 + lane, to = (long long)number * 32 + lane;
    float4 g = gradients[from], w = weights[from];
    scores[to] = make_float4(score(g.x, w.x), score(g.y, w.y), score(g.z, w.z), score(g.w, w.w));
    own[to] = make_float4(open(g.x), open(g.y), open(g.z), open(g.w));
    for (int one = 0; one < 4; one++) addresses[to * 4 + one] = 128ll * first + from * 4 + one;
}
"""
)


def gather_kernel(device: torch.device) -> Kernel | None:
    """Takes the gradients of selected entries out of a part."""
    return _compiled(device, "gather", _GATHER)


def tops_kernel(device: torch.device, eps: float) -> Kernel | None:
    """The highest score and the sum of squares of each block, from one reading of gradients and weights."""
    return _compiled(device, "tops", _with_eps(eps, _TOPS))


def entries_kernel(device: torch.device, eps: float) -> Kernel | None:
    """Score, gradient and address of the entries of chosen blocks."""
    return _compiled(device, "entries", _with_eps(eps, _ENTRIES))


def launch(kernel: Kernel, threads: int, *given: torch.Tensor | int | float) -> None:
    """Run a kernel with this many threads, rounded up, on the first tensor's device."""
    device = next(one.device for one in given if isinstance(one, torch.Tensor))
    with torch.cuda.device(device):
        kernel((-(-threads // THREADS), 1, 1), (THREADS, 1, 1), given)


def _with_eps(eps: float, source: str) -> str:
    return f"#define EPS {float(eps)!r}f\n{source}"


@cache
def _compiled(device: torch.device, name: str, source: str) -> Kernel | None:
    if device.type != "cuda":
        return None
    try:
        with torch.cuda.device(device), _some_headers():
            return torch.cuda._compile_kernel(source, name)
    except (AttributeError, ImportError, OSError, RuntimeError):
        return None


@contextmanager
def _some_headers() -> Iterator[None]:
    """Without a CUDA toolkit torch refuses to compile, for want of headers; these kernels include none."""
    from torch.utils import cpp_extension

    known = cpp_extension.CUDA_HOME
    if known is None:
        cpp_extension.CUDA_HOME = os.path.dirname(torch.__file__)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = known
