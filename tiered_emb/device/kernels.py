"""Triton kernels over slots on a device: moving rows, pooled lookup, updates.

They compute what `cpp/rows/reference.cc` says, to the last bit: sums in float32 over occurrences in
order, no fused multiply-add (launch with ``enable_fp_fusion=False``), division and roots rounded to
nearest, sums over the columns of a row in sixteen lanes, Philox words for stochastic rounding. No
atomics: a bag, and a unique row, belongs to one program, so the same plan gives the same bits on
every run. NaNs may have other payloads.

A slot is a row of `stride_bytes` bytes, seen through two tensors over the same memory: `weights`
in the table's dtype and `states` in float32. Their strides are compile-time constants, for without
them the compiler cannot prove that rows begin at 16 bytes, and loads them in small pieces.
`launch.py` is the only caller.
"""
# Triton's own language: signatures are its, and calls are resolved when it compiles.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

import triton
import triton.language as tl

from tiered_emb.device.rounding import nearest, random_halves, round_bfloat16, round_float16

SUM = tl.constexpr(0)
MEAN = tl.constexpr(1)
MAX = tl.constexpr(2)

SGD = tl.constexpr(1)
ADAGRAD = tl.constexpr(2)
ROWWISE_ADAGRAD = tl.constexpr(3)
ADAM = tl.constexpr(4)

LANES = tl.constexpr(16)
PADDING = tl.constexpr(-1)  # slot number of an occurrence that is left out


@triton.jit
def _nothing(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """-0, where sums begin: what is added first stays what it is, -0 too. Triton 3.8 reads the
    literal as 0."""
    return tl.full([ROWS, COLUMNS], 0x80000000, tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _at(slot, stride: tl.constexpr, here, shift, ELSEWHERE: tl.constexpr):
    """Where the row in a slot begins; with ELSEWHERE those from `here` on are `shift` further."""
    at = slot.to(tl.int64) * stride
    if ELSEWHERE:
        at += tl.where(slot >= here, shift, 0)
    return at


@triton.jit(do_not_specialize=["count"])
def copy_rows(
    source,
    source_slots,
    target,
    target_slots,
    count,
    words: tl.constexpr,
    FROM_LIST: tl.constexpr,
    TO_LIST: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """target[target_slots[i]] = source[source_slots[i]], slots of `words` 32-bit words.

    Without a list they are i.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    there = i < count
    source_slot = i.to(tl.int64)
    if FROM_LIST:
        source_slot = tl.load(source_slots + i, mask=there, other=0).to(tl.int64)
    target_slot = i.to(tl.int64)
    if TO_LIST:
        target_slot = tl.load(target_slots + i, mask=there, other=0).to(tl.int64)
    mask = there[:, None] & (word < words)[None, :]
    row = tl.load(source + source_slot[:, None] * words + word[None, :], mask=mask)
    tl.store(target + target_slot[:, None] * words + word[None, :], row, mask=mask)


@triton.jit(do_not_specialize=["bags", "here", "shift"])
def pool(
    weights,
    slots,
    bag_begin,
    sample_weights,
    out,
    argmax,
    bags,
    here,
    shift,
    dim: tl.constexpr,
    stride: tl.constexpr,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    KEEP_ARGMAX: tl.constexpr,
    ELSEWHERE: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """out[b] = sum, mean or maximum of the rows of bag b, in order; empty bags give zeros."""
    bag = tl.program_id(0) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = (column < dim)[None, :]
    begin = tl.load(bag_begin + bag, mask=bag < bags, other=0)
    length = tl.load(bag_begin + bag + 1, mask=bag < bags, other=0) - begin
    result = _nothing(BAGS, COLUMNS)
    winner = tl.full([BAGS, COLUMNS], -1, tl.int32)
    count = tl.zeros([BAGS], tl.int32)
    # The loads of AHEAD occurrences do not wait for the sums before them.
    for first in range(0, tl.max(length), AHEAD):
        for step in tl.static_range(AHEAD):
            k = first + step
            at = begin + k
            pooled = k < length
            slot = tl.load(slots + at, mask=pooled, other=PADDING)
            pooled &= slot != PADDING
            mask = pooled[:, None] & in_row
            row = _at(slot, stride, here, shift, ELSEWHERE)
            x = tl.load(weights + row[:, None] + column[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            if HAS_WEIGHTS:
                x *= tl.load(sample_weights + at, mask=pooled, other=1.0).to(tl.float32)[:, None]
            if MODE == MAX:
                wins = pooled[:, None] & ((count == 0)[:, None] | (x > result))
                result = tl.where(wins, x, result)
                winner = tl.where(wins, at.to(tl.int32)[:, None], winner)
            else:
                result = tl.where(pooled[:, None], result + x, result)
            count += pooled.to(tl.int32)
    result = tl.where((count > 0)[:, None], result, 0.0)
    if MODE == MEAN:
        size = tl.where(count > 0, count, 1).to(tl.float32)[:, None]
        result = tl.div_rn(result, tl.broadcast_to(size, [BAGS, COLUMNS]))
    place = bag.to(tl.int64)[:, None] * dim + column[None, :]
    mask = (bag < bags)[:, None] & in_row
    tl.store(out + place, nearest(result, out.dtype.element_ty), mask=mask)
    if KEEP_ARGMAX:
        tl.store(argmax + place, winner, mask=mask)


@triton.jit
def _halve(lanes, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, WIDTH] -> [ROWS, WIDTH / 2]: lane l plus lane l + WIDTH / 2."""
    pairs = tl.permute(tl.reshape(lanes, [ROWS, 2, WIDTH // 2]), [0, 2, 1])
    low, high = tl.split(pairs)
    return low + high


@triton.jit
def _total(lanes, ROWS: tl.constexpr):
    """Sum of sixteen lanes [ROWS, 16] -> [ROWS], in the order of the reference."""
    lanes = _halve(lanes, ROWS, 16)
    lanes = _halve(lanes, ROWS, 8)
    lanes = _halve(lanes, ROWS, 4)
    low, high = tl.split(lanes)
    return low + high


@triton.jit(do_not_specialize=["occurrences", "here", "shift"])
def sample_weight_gradients(
    weights,
    slots,
    bag_of,
    grad,
    out,
    occurrences,
    here,
    shift,
    dim: tl.constexpr,
    stride: tl.constexpr,
    ELSEWHERE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out[i] = dot(grad[bag of i], row of i); 0 for padding."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = i < occurrences
    slot = tl.load(slots + i, mask=there, other=PADDING)
    bag = tl.load(bag_of + i, mask=there, other=0).to(tl.int64)
    pooled = there & (slot != PADDING)
    row = _at(slot, stride, here, shift, ELSEWHERE)
    lane = tl.arange(0, LANES)
    lanes = tl.zeros([ROWS, LANES], tl.float32)
    for first in range(0, dim, LANES):
        column = first + lane
        mask = pooled[:, None] & (column < dim)[None, :]
        g = tl.load(grad + bag[:, None] * dim + column[None, :], mask=mask, other=0.0)
        w = tl.load(weights + row[:, None] + column[None, :], mask=mask, other=0.0)
        product = g.to(tl.float32) * w.to(tl.float32)
        lanes = tl.where((column < dim)[None, :], lanes + product, lanes)
    total = _total(lanes, ROWS)
    tl.store(out + i, nearest(total, out.dtype.element_ty), mask=there)


@triton.jit
def _term(
    at,
    here,
    column,
    count,
    csr_bags,
    csr_occurrences,
    grad,
    sample_weights,
    bag_scale,
    argmax,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BY_COUNT: tl.constexpr,
):
    """What occurrences `at` of rows add to their gradients: scale * grad[bag] [ROWS, COLUMNS]."""
    bag = tl.load(csr_bags + at, mask=here, other=0).to(tl.int64)
    place = bag[:, None] * dim + column[None, :]
    mask = here[:, None] & (column < dim)[None, :]
    term = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_WEIGHTS or MODE == MAX:
        occurrence = tl.load(csr_occurrences + at, mask=here, other=0)
    if HAS_WEIGHTS or MODE == MEAN or BY_COUNT:
        scale = tl.full(at.shape, 1.0, tl.float32)
        if HAS_WEIGHTS:
            scale *= tl.load(sample_weights + occurrence, mask=here, other=1.0).to(tl.float32)
        if MODE == MEAN:
            scale *= tl.load(bag_scale + bag, mask=here, other=1.0)
        if BY_COUNT:
            one = tl.full(at.shape, 1.0, tl.float32)
            scale *= tl.div_rn(one, tl.maximum(count, 1).to(tl.float32))
        term = scale[:, None] * term
    if MODE == MAX:
        won = tl.load(argmax + place, mask=mask, other=-1) == occurrence[:, None]
        term = tl.where(won, term, 0.0)
    return term


@triton.jit
def _gradient(
    sum,
    start,
    begin,
    count,
    column,
    csr_bags,
    csr_occurrences,
    grad,
    sample_weights,
    bag_scale,
    argmax,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BY_COUNT: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """The gradient of rows: `sum`, and on it the occurrences from number `start` on, in order."""
    # The loads of AHEAD occurrences do not wait for the sums before them.
    for first in range(start, tl.max(count), AHEAD):
        for step in tl.static_range(AHEAD):
            k = first + step
            here = k < count
            term = _term(
                begin + k, here, column, count, csr_bags, csr_occurrences, grad, sample_weights,
                bag_scale, argmax, dim, MODE, HAS_WEIGHTS, BY_COUNT,
            )  # fmt: skip
            sum = tl.where(here[:, None], sum + term, sum)
    return sum


@triton.jit
def sum_gradients(
    which,
    csr_begin,
    csr_bags,
    csr_occurrences,
    grad,
    sample_weights,
    bag_scale,
    argmax,
    out,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BY_COUNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """out[i] = gradient of unique row which[i], where it occurs often: few columns a program."""
    i = tl.program_id(0) + tl.arange(0, 1)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    u = tl.load(which + i)
    begin = tl.load(csr_begin + u)
    count = tl.load(csr_begin + u + 1) - begin
    sum = _nothing(1, COLUMNS)
    whole = tl.max(count) // AHEAD * AHEAD
    always = tl.full([1], 1, tl.int1)
    for first in range(0, whole, AHEAD):
        for step in tl.static_range(AHEAD):
            sum += _term(
                begin + (first + step), always, column, count, csr_bags, csr_occurrences, grad,
                sample_weights, bag_scale, argmax, dim, MODE, HAS_WEIGHTS, BY_COUNT,
            )  # fmt: skip
    sum = _gradient(
        sum, whole, begin, count, column, csr_bags, csr_occurrences, grad, sample_weights,
        bag_scale, argmax, dim, MODE, HAS_WEIGHTS, BY_COUNT, 1,
    )  # fmt: skip
    place = i.to(tl.int64)[:, None] * dim + column[None, :]
    tl.store(out + place, sum, mask=(column < dim)[None, :])


@triton.jit
def _mean_square(g, dim: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean of the squares over the columns of each row, summed in lanes as the reference does."""
    lane = tl.arange(0, LANES)
    lanes = tl.zeros([ROWS, LANES], tl.float32)
    if COLUMNS == LANES:
        lanes = tl.where((lane < dim)[None, :], g * g, lanes)
    else:
        for first in range(0, dim, LANES):
            column = tl.broadcast_to((first + lane)[None, :], [ROWS, LANES])
            part = tl.gather(g, column, 1)
            lanes = tl.where(column < dim, lanes + part * part, lanes)
    return tl.div_rn(_total(lanes, ROWS), tl.full([ROWS], dim, tl.float32))


@triton.jit
def _optimize(
    w,
    g,
    state,
    numbers,
    there,
    mask,
    column,
    dim: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    DECAYS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weights after a step with gradients `g`; moves the rows' states, which begin at `state`."""
    lr = tl.load(numbers)
    eps = tl.load(numbers + 1)
    state_at = state[:, None] + column[None, :]
    if OPTIMIZER == SGD:
        w = w - lr * g
    elif OPTIMIZER == ADAGRAD:
        s = tl.load(state_at, mask=mask, other=1.0) + g * g
        tl.store(state_at, s, mask=mask)
        w = w - lr * tl.div_rn(g, tl.sqrt_rn(s) + eps)
    elif OPTIMIZER == ROWWISE_ADAGRAD:
        if DECAYS:
            g = g + tl.load(numbers + 5) * w
        s = tl.load(state, mask=there, other=0.0) + _mean_square(g, dim, ROWS, COLUMNS)
        # Of a value a row, several warps hold copies: none may store before all have loaded.
        tl.debug_barrier()
        tl.store(state, s, mask=there)
        multiplier = tl.div_rn(tl.zeros([ROWS], tl.float32) + lr, tl.sqrt_rn(s) + eps)
        w = w - multiplier[:, None] * g
    else:
        m = tl.load(state_at, mask=mask, other=0.0)
        v = tl.load(state_at + dim, mask=mask, other=0.0)
        m = m + (g - m) * tl.load(numbers + 2)
        v = v + (g * g - v) * tl.load(numbers + 3)
        tl.store(state_at, m, mask=mask)
        tl.store(state_at + dim, v, mask=mask)
        w = w - tl.load(numbers + 4) * tl.div_rn(m, tl.sqrt_rn(v) + eps)
    return w


@triton.jit(do_not_specialize=["count", "here", "weight_shift", "state_shift"])
def update(
    weights,
    states,
    slots,
    rows,
    which,
    gradients,
    csr_begin,
    csr_bags,
    csr_occurrences,
    grad,
    sample_weights,
    bag_scale,
    argmax,
    count,
    numbers,
    counters,
    here,
    weight_shift,
    state_shift,
    dim: tl.constexpr,
    weight_stride: tl.constexpr,
    state_stride: tl.constexpr,
    state_offset: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    SUMMED: tl.constexpr,
    MODE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BY_COUNT: tl.constexpr,
    DECAYS: tl.constexpr,
    ELSEWHERE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Sums the gradients of unique rows which[0 .. count) and applies the optimizer, in one pass.

    With SUMMED they are `gradients` [count, dim] instead. What changes from step to step is in
    memory, so that a graph of launches can be replayed: `numbers` are lr, eps, 1 - beta1,
    1 - beta2, Adam's step size, weight decay (float32); `counters` the key of the table's random
    words, the step's low word, its high one in place.
    """
    i, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    there = i < count
    mask = there[:, None] & (column < dim)[None, :]
    u = tl.load(which + i, mask=there, other=0)
    slot = tl.load(slots + u, mask=there, other=0)
    row = _at(slot, weight_stride, here, weight_shift, ELSEWHERE)
    weight_at = weights + row[:, None] + column[None, :]
    state_at = states + _at(slot, state_stride, here, state_shift, ELSEWHERE) + state_offset

    w = tl.load(weight_at, mask=mask, other=0.0).to(tl.float32)
    if SUMMED:
        g = tl.load(
            gradients + i.to(tl.int64)[:, None] * dim + column[None, :], mask=mask, other=0.0
        )
    else:
        begin = tl.load(csr_begin + u, mask=there, other=0)
        occurs = tl.load(csr_begin + u + 1, mask=there, other=0) - begin
        g = _gradient(
            _nothing(ROWS, COLUMNS), 0, begin, occurs, column, csr_bags, csr_occurrences, grad,
            sample_weights, bag_scale, argmax, dim, MODE, HAS_WEIGHTS, BY_COUNT, AHEAD,
        )  # fmt: skip

    w = _optimize(
        w, g, state_at, numbers, there, mask, column, dim, OPTIMIZER, DECAYS, ROWS, COLUMNS,
    )  # fmt: skip

    if weights.dtype.element_ty == tl.float32:
        tl.store(weight_at, w, mask=mask)
    else:
        halves = random_halves(tl.load(rows + u, mask=there, other=0), counters, ROWS, COLUMNS // 8)
        if weights.dtype.element_ty == tl.bfloat16:
            tl.store(weight_at, round_bfloat16(w, halves), mask=mask)
        else:
            tl.store(weight_at, round_float16(w, halves), mask=mask)
