"""Triton functions that round: to nearest, and stochastically by Philox words."""
# As kernels.py.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

import triton
import triton.language as tl


@triton.jit
def nearest(x, dtype: tl.constexpr):
    """To `dtype`, ties to even: by whole numbers for bfloat16, which the interpreter cuts off."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        even = bits + 0x7FFF + ((bits >> 16) & 1)
        even = tl.where(x != x, bits | 0x400000, even)
        nearest = (even & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        nearest = x.to(dtype)
    return nearest


@triton.jit
def random_halves(row, counters, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Sixteen random bits a column [ROWS, 8 * GROUPS]: halves of Philox4x32-10 words, low first.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the
    counter is that of `cpp/base/philox.h`.
    """
    zero = tl.zeros([ROWS, GROUPS], tl.uint32)
    k0 = tl.load(counters).to(tl.uint32)
    k1 = tl.load(counters + 1).to(tl.uint32)
    c0 = row.to(tl.uint32)[:, None] + zero
    c1 = tl.load(counters + 2).to(tl.uint32) + zero
    c2 = tl.arange(0, GROUPS).to(tl.uint32)[None, :] + zero
    c3 = ((row >> 32).to(tl.uint32) | tl.load(counters + 3).to(tl.uint32))[:, None] + zero
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full([ROWS, GROUPS], 0xD2511F53, tl.uint32))
        low0 = c0 * 0xD2511F53
        high1 = tl.umulhi(c2, tl.full([ROWS, GROUPS], 0xCD9E8D57, tl.uint32))
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1.to(tl.uint32)
        c3 = low0.to(tl.uint32)
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    words = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    return tl.interleave(words & 0xFFFF, words >> 16)


@triton.jit
def round_bfloat16(x, random16):
    """To bfloat16, up with the probability of what is cut off."""
    bits = x.to(tl.uint32, bitcast=True)
    up = bits + random16
    # An exponent of ones: infinities stay, NaNs stay NaNs.
    bits = tl.where((bits & 0x7F800000) == 0x7F800000, tl.where(x != x, bits | 0x400000, bits), up)
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def round_float16(x, random16):
    """To float16, up with the probability of what is cut off; to nearest beyond its range."""
    bits = x.to(tl.uint32, bitcast=True)
    size = tl.abs(x)
    normal = ((bits + (random16 >> 3)) & 0xFFFFE000).to(tl.float32, bitcast=True)
    # Below 2^-14 the last place is 2^-24.
    places = tl.where(size < 0.00006103515625, size, 0.0) * 16777216.0
    lower = tl.floor(places)
    part = ((places - lower) * 65536.0).to(tl.uint32)
    lower += ((part + random16) >> 16).to(tl.float32)
    tiny = lower * 0.000000059604644775390625
    tiny = (tiny.to(tl.uint32, bitcast=True) | (bits & 0x80000000)).to(tl.float32, bitcast=True)
    rounded = tl.where(size < 0.00006103515625, tiny, normal)
    return tl.where(size < 65504.0, rounded, x).to(tl.float16)
