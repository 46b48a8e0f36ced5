"""Kernels in the Triton language for one frame of many utterances, on CUDA devices.

A frame is a thousand operations on a few thousand numbers each: PyTorch's kernels, one per operation, take longer to
start than to run. These do the same arithmetic (in float32 inside) in a quarter of the launches. `fused.py` puts them
together, and compares them with PyTorch's before they are used.

With `EARLY` a kernel starts while the one before it still runs (programmatic dependent launch, from compute capability
9.0 on): it fetches its weights and what earlier steps left, and waits before it looks at anything else.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _gelu(x):
    """GELU by its tanh approximation."""
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)


@triton.jit
def _looked_back(
    qkv, row, rows, number, scale,
    INPUTS: tl.constexpr, HEADS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One row of self-attention to the `number` + 1 positions of a step so far, (positions, rows, 3 x inputs)."""
    place, column = tl.arange(0, POSITIONS), tl.arange(0, INPUTS)
    exists = place <= number
    query = tl.load(qkv + (number * rows + row) * 3 * INPUTS + column).to(tl.float32) * scale
    block = qkv + ((place * rows + row) * 3 * INPUTS)[:, None] + column[None, :]
    key = tl.load(block + INPUTS, mask=exists[:, None], other=0.0).to(tl.float32)
    value = tl.load(block + 2 * INPUTS, mask=exists[:, None], other=0.0).to(tl.float32)
    by_head: tl.constexpr = (POSITIONS, HEADS, INPUTS // HEADS)
    scores = tl.sum(tl.reshape(key * query[None, :], by_head), axis=2)
    scores = tl.where(exists[:, None], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    weights = weights / tl.sum(weights, axis=0)[None, :]
    return tl.reshape(tl.sum(weights[:, :, None] * tl.reshape(value, by_head), axis=0), [INPUTS])


@triton.jit(do_not_specialize=["number"])
def few_rows(
    x, matrix, bias, added, out, norm_weight, epsilon, outputs, inputs, x_stride, added_stride, out_stride, number,
    scale,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
    HEADS: tl.constexpr, POSITIONS: tl.constexpr,
    ROWS: tl.constexpr, ROWS_PADDED: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A matrix product for a few rows: reads the matrix once, with norm, bias, GELU, residual or attention around it.

    out = [added +] [gelu] ([norm or attention](x) @ matrix.T + bias); `INPUTS` holds all inputs. With `POSITIONS` its
    input is self-attention to a step's own positions, which programs repeat: another kernel would take longer.
    """
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    has_output, known = output < outputs, column < inputs
    if EARLY:
        gdc_launch_dependents()
    tile = tl.load(
        matrix + output[:, None] * inputs + column[None, :], mask=has_output[:, None] & known[None, :], other=0.0
    )
    shift = tl.zeros([OUTPUTS], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + output, mask=has_output, other=0.0).to(tl.float32)
    if NORM:
        gain = tl.load(norm_weight + column, mask=known, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
    kind = out.dtype.element_ty
    row = tl.arange(0, ROWS_PADDED)
    if NORM:  # of all rows together: they share the waits of a sum over threads
        exists = (row < ROWS)[:, None] & known[None, :]
        rows = tl.load(x + row[:, None] * x_stride + column[None, :], mask=exists, other=0.0).to(tl.float32)
        centred = tl.where(exists, rows - (tl.sum(rows, axis=1) / inputs)[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / inputs
        rows = (centred / tl.sqrt(variance + epsilon)[:, None] * gain[None, :]).to(kind).to(tl.float32)
    for index in tl.static_range(ROWS):
        if NORM:
            part = tl.sum(tl.where(row[:, None] == index, rows, 0.0), axis=0)
        elif POSITIONS:
            part = _looked_back(x, index, ROWS, number, scale, INPUTS, HEADS, POSITIONS).to(kind).to(tl.float32)
        else:
            part = tl.load(x + index * x_stride + column, mask=known, other=0.0).to(tl.float32)
        total = (tl.sum(tile.to(tl.float32) * part[None, :], axis=1) + shift).to(kind).to(tl.float32)
        if GELU:
            total = _gelu(total)
        if ADD:
            residual = tl.load(added + index * added_stride + output, mask=has_output, other=0.0)
            total = total.to(kind).to(tl.float32) + residual.to(tl.float32)
        tl.store(out + index * out_stride + output, total.to(kind), mask=has_output)


@triton.jit
def embed(
    codes, tables, position_table, lengths, out, table_size, width, most_positions,
    TABLES: tl.constexpr, WIDTH: tl.constexpr, LEADS: tl.constexpr,
):  # fmt: skip
    """One slot's newest codes (tables,) to the decoder's input of both of its rows: their mean, and the position."""
    slot = tl.program_id(0)
    if LEADS:  # the first of a step: it lets the next one read ahead, and waits for nothing itself
        gdc_launch_dependents()
    column = tl.arange(0, WIDTH)
    exists = column < width
    kind = out.dtype.element_ty
    total = tl.zeros([WIDTH], tl.float32)
    for table in tl.static_range(TABLES):
        code = tl.load(codes + slot * TABLES + table)
        row = tables + (table * table_size + code) * width + column
        total = (total + tl.load(row, mask=exists, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
    total = (total / TABLES).to(kind).to(tl.float32)
    position = tl.minimum(tl.load(lengths + slot), most_positions - 1)
    total += tl.load(position_table + position * width + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + 2 * slot * width + column, total.to(kind), mask=exists)
    tl.store(out + (2 * slot + 1) * width + column, total.to(kind), mask=exists)


@triton.jit
def attend(
    qkv, keys, values, lengths, out, scale, row_stride, head_stride, head_width, heads, most_positions,
    LENGTH_STRIDE: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Self-attention of one head of one row: books the newest key and value, and looks at all so far."""
    row, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    has_column = column < head_width
    position = tl.minimum(tl.load(lengths + row // 2 * LENGTH_STRIDE), most_positions - 1)
    width = heads * head_width
    of_head = row.to(tl.int64) * row_stride + head * head_stride
    place = tl.arange(0, KEYS)
    block = of_head + place[:, None] * head_width + column[None, :]
    mask = (place < position)[:, None] & has_column[None, :]
    key = tl.load(keys + block, mask=mask, other=0.0)
    value = tl.load(values + block, mask=mask, other=0.0)
    own = qkv + row * 3 * width + head * head_width + column
    query = tl.load(own, mask=has_column, other=0.0).to(tl.float32) * scale
    new_key = tl.load(own + width, mask=has_column, other=0.0)
    new_value = tl.load(own + 2 * width, mask=has_column, other=0.0)
    at = of_head + position * head_width + column
    tl.store(keys + at, new_key, mask=has_column)
    tl.store(values + at, new_value, mask=has_column)
    # Softmax over blocks of keys, beginning with the newest: sums are scaled down whenever a larger score comes.
    largest = tl.sum(query * new_key.to(tl.float32), axis=0)
    total = largest * 0.0 + 1.0
    mixed = new_value.to(tl.float32)
    for start in range(0, position, KEYS):
        if start > 0:
            block = of_head + (start + place)[:, None] * head_width + column[None, :]
            mask = (start + place < position)[:, None] & has_column[None, :]
            key = tl.load(keys + block, mask=mask, other=0.0)
            value = tl.load(values + block, mask=mask, other=0.0)
        exists = start + place < position
        scores = tl.where(exists, tl.sum(key.to(tl.float32) * query[None, :], axis=1), float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=0))
        weights = tl.exp(scores - larger)
        fade = tl.exp(largest - larger)
        total = total * fade + tl.sum(weights, axis=0)
        mixed = mixed * fade + tl.sum(weights[:, None] * value.to(tl.float32), axis=0)
        largest = larger
    tl.store(out + row * width + head * head_width + column, (mixed / total).to(out.dtype.element_ty), mask=has_column)


@triton.jit
def attend_part(
    qkv, keys, values, lengths, parts, sums, scale, row_stride, head_stride, head_width, heads, most_positions,
    PARTS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`attend` by one part of `KEYS` positions, so that few rows keep a GPU busy: their time is flat over position.

    Leaves for each part its weighted sum of values, (rows, parts, width), and of each head the largest score and the
    sum of weights, (rows, parts, heads, 2), for `merge_parts`. The first part has the newest position.
    """
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EARLY:
        gdc_launch_dependents()
    column = tl.arange(0, WIDTH)
    has_column = column < head_width
    position = tl.minimum(tl.load(lengths + row // 2), most_positions - 1)
    width = heads * head_width
    of_head = row.to(tl.int64) * row_stride + head * head_stride
    place = part * KEYS + tl.arange(0, KEYS)
    block = of_head + place[:, None] * head_width + column[None, :]
    exists = place < position
    mask = exists[:, None] & has_column[None, :]
    key = tl.load(keys + block, mask=mask, other=0.0)
    value = tl.load(values + block, mask=mask, other=0.0)
    if EARLY:
        gdc_wait()
    own = qkv + row * 3 * width + head * head_width + column
    query = tl.load(own, mask=has_column, other=0.0).to(tl.float32) * scale
    new_key = tl.load(own + width, mask=has_column, other=0.0)
    new_value = tl.load(own + 2 * width, mask=has_column, other=0.0)
    at = of_head + position * head_width + column
    tl.store(keys + at, new_key, mask=has_column & (part == 0))
    tl.store(values + at, new_value, mask=has_column & (part == 0))
    scores = tl.where(exists, tl.sum(key.to(tl.float32) * query[None, :], axis=1), float("-inf"))
    newest = tl.where(part == 0, tl.sum(query * new_key.to(tl.float32), axis=0), float("-inf"))
    largest = tl.maximum(tl.max(scores, axis=0), newest)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # a part beyond the end has no scores
    weights, own_weight = tl.exp(scores - base), tl.exp(newest - base)
    mixed = tl.sum(weights[:, None] * value.to(tl.float32), axis=0) + own_weight * new_value.to(tl.float32)
    index = row * PARTS + part
    tl.store(parts + index * width + head * head_width + column, mixed, mask=has_column)
    tl.store(sums + 2 * (index * heads + head), largest)
    tl.store(sums + 2 * (index * heads + head) + 1, tl.sum(weights, axis=0) + own_weight)


@triton.jit
def merge_parts(
    parts, sums, out, head_width, heads,
    PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Self-attention of one head of one row from what `attend_part` left of its parts."""
    row, head = tl.program_id(0), tl.program_id(1)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    part, column = tl.arange(0, PARTS_PADDED), tl.arange(0, WIDTH)
    exists, has_column = part < PARTS, column < head_width
    index = row * PARTS + part
    at = sums + 2 * (index * heads + head)
    largest = tl.load(at, mask=exists, other=float("-inf"))
    total = tl.load(at + 1, mask=exists, other=0.0)
    block = parts + ((index * heads + head) * head_width)[:, None] + column[None, :]
    mixed = tl.load(block, mask=exists[:, None] & has_column[None, :], other=0.0)
    fade = tl.exp(largest - tl.max(largest, axis=0))
    result = tl.sum(fade[:, None] * mixed, axis=0) / tl.sum(fade * total, axis=0)
    tl.store(out + (row * heads + head) * head_width + column, result.to(out.dtype.element_ty), mask=has_column)


@triton.jit
def _read(
    slot, query, keys, values, text_mask, prior, prior_active, alignment, out, scale, share, tiny, head_width, text,
    most_text, prior_stride,
    HEADS: tl.constexpr, PRIOR: tl.constexpr, ALIGN: tl.constexpr, TEXT: tl.constexpr, PART: tl.constexpr,
    WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`read_text` of one slot of at most `TEXT` tokens, by `PART` columns of keys and values at a time."""
    place = tl.arange(0, TEXT)
    exists = (place < text) & (tl.load(text_mask + slot * most_text + place, mask=place < text, other=0) != 0)
    factor = tl.full([TEXT], 1.0, tl.float32)
    if PRIOR:
        active = tl.load(prior_active + slot) != 0
        factor = tl.where(active, tl.load(prior + slot * prior_stride + place, mask=exists, other=0.0) + tiny, 1.0)
    followed = tl.zeros([TEXT], tl.float32)
    for head in tl.static_range(HEADS):
        of_head = (slot * HEADS + head) * most_text * head_width
        scores = tl.zeros([TEXT], tl.float32)
        for part in tl.static_range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            mask = exists[:, None] & (column < head_width)[None, :]
            block = of_head + place[:, None] * head_width + column[None, :]
            key = tl.load(keys + block, mask=mask, other=0.0)
            if PART == WIDTH:
                value = tl.load(values + block, mask=mask, other=0.0)
            if EARLY and head == 0 and part == 0:
                gdc_wait()
            asked = tl.load(query + (slot * HEADS + head) * head_width + column, mask=column < head_width, other=0.0)
            scores += tl.sum(key.to(tl.float32) * asked.to(tl.float32)[None, :], axis=1)
        scores = tl.where(exists, scores * scale, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, axis=0))
        weights = weights / tl.sum(weights, axis=0)
        if PRIOR:
            weights = weights * factor
            weights = weights / tl.sum(weights, axis=0)
        followed += weights
        kind = out.dtype.element_ty
        kept = weights.to(kind).to(tl.float32)
        for part in tl.static_range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            has_column = column < head_width
            if PART != WIDTH:
                block = of_head + place[:, None] * head_width + column[None, :]
                value = tl.load(values + block, mask=exists[:, None] & has_column[None, :], other=0.0)
            read = tl.sum(kept[:, None] * value.to(tl.float32), axis=0)
            tl.store(out + (slot * HEADS + head) * head_width + column, read.to(kind), mask=has_column)
    if ALIGN:
        at = alignment + slot * text + place
        followed = followed * share
        if ALIGN == 2:
            followed += tl.load(at, mask=place < text, other=0.0)
        tl.store(at, followed, mask=place < text)


@triton.jit
def read_text(
    query, keys, values, text_mask, prior, prior_active, alignment, out, scale, share, tiny, head_width, text,
    most_text, prior_stride,
    HEADS: tl.constexpr, PRIOR: tl.constexpr, ALIGN: tl.constexpr, SHORT: tl.constexpr, TEXT: tl.constexpr,
    PART: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Cross-attention of one slot: probabilities times the prior, normalised again; adds them to the alignment.

    ALIGN: 1 begins the alignment, 2 adds to it. What is read of the text was there before the step began: with `EARLY`
    it is read ahead, all of a short text.
    """
    slot = tl.program_id(0)
    if EARLY:
        gdc_launch_dependents()
    place = tl.arange(0, TEXT)
    there = tl.load(text_mask + slot * most_text + place, mask=place < text, other=0) != 0
    if tl.max(tl.where(there, place + 1, 0), axis=0) <= SHORT:
        _read(
            slot, query, keys, values, text_mask, prior, prior_active, alignment, out, scale, share, tiny, head_width,
            text, most_text, prior_stride, HEADS, PRIOR, ALIGN, SHORT, WIDTH, WIDTH, EARLY,
        )  # fmt: skip
    else:
        _read(
            slot, query, keys, values, text_mask, prior, prior_active, alignment, out, scale, share, tiny, head_width,
            text, most_text, prior_stride, HEADS, PRIOR, ALIGN, TEXT, PART, WIDTH, EARLY,
        )  # fmt: skip


@triton.jit
def draw(
    logits, forbidden, may_not_end, must_end, cfg_scale, temperature, top_k, noise, table, projected, codes, following,
    qkv, end_token, tokens, noise_stride, code_stride, width,
    FOLLOWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, QKV: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One slot's code: guidance, the end's rules, the top k, and a draw by inverting the cumulative distribution.

    FOLLOWS looks up the local transformer's next input in `table`, for both of the slot's rows, and with QKV (columns)
    that input's queries, keys and values in `projected`.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.program_id(0)
    token = tl.arange(0, TOKENS)
    exists = token < tokens
    nothing = float("-inf")
    with_text = tl.load(logits + 2 * slot * tokens + token, mask=exists, other=0.0).to(tl.float32)
    without = tl.load(logits + (2 * slot + 1) * tokens + token, mask=exists, other=0.0).to(tl.float32)
    scale = tl.load(cfg_scale + slot)
    scores = scale * with_text + (1.0 - scale) * without
    allowed = exists & (tl.load(forbidden + token, mask=exists, other=1) == 0)
    must = tl.load(must_end + slot) != 0
    is_end = token == end_token
    allowed = allowed & (~is_end | (tl.load(may_not_end + slot) == 0)) & (is_end | ~must)
    scores = tl.where(is_end & must, 0.0, tl.where(allowed, scores, nothing))
    scores = tl.where(exists, scores, nothing)
    # The k-th largest score, two bits at a time: integers in the order of the floats, three counts in one sum.
    bits = scores.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    least = tl.full([1], -2147483648, tl.int32)
    wanted = tl.load(top_k + slot)
    for pair in tl.static_range(16):
        unit = 1 << (30 - 2 * pair)
        once = least + unit
        twice = once + unit
        reached = (exists & (order >= once)).to(tl.int64)
        reached += (exists & (order >= twice)).to(tl.int64) << 16
        reached += (exists & (order >= twice + unit)).to(tl.int64) << 32
        counts = tl.sum(reached, axis=0)
        steps = (counts & 0xFFFF >= wanted).to(tl.int32)
        steps += ((counts >> 16) & 0xFFFF >= wanted).to(tl.int32) + (counts >> 32 >= wanted).to(tl.int32)
        least += steps * unit
    scores = tl.where(exists & (order >= least), scores, nothing)
    best = tl.max(scores, axis=0)
    greediest = tl.min(tl.where(scores == best, token, TOKENS), axis=0)
    heat = tl.load(temperature + slot)
    is_greedy = heat <= 0.0
    weights = tl.exp((scores - best) / tl.where(is_greedy, 1.0, heat))
    cumulative = tl.cumsum(weights, axis=0)
    target = tl.load(noise + slot * noise_stride) * tl.max(cumulative, axis=0)
    drawn = tl.minimum(tl.sum((exists & (cumulative <= target)).to(tl.int32), axis=0), tokens - 1)
    code = tl.where(is_greedy, greediest, drawn)
    tl.store(codes + slot * code_stride, code.to(tl.int64))
    if FOLLOWS:
        column = tl.arange(0, WIDTH)
        has_column = column < width
        row = tl.load(table + code * width + column, mask=has_column)
        tl.store(following + 2 * slot * width + column, row, mask=has_column)
        tl.store(following + (2 * slot + 1) * width + column, row, mask=has_column)
        if QKV:
            column = tl.arange(0, QKV)
            has_column = column < 3 * width
            row = tl.load(projected + code * 3 * width + column, mask=has_column)
            tl.store(qkv + 2 * slot * 3 * width + column, row, mask=has_column)
            tl.store(qkv + (2 * slot + 1) * 3 * width + column, row, mask=has_column)


@triton.jit
def follow(
    scores, steps, lengths, attended, visits, near_end, prior, active, is_first, is_last, weights, may_not, must, cut,
    width, most_text, window, epsilon, suppressed, start_step, sink_visits, closed_visits, short_text, tail,
    may_end_steps, must_end_steps, near_first, near_later, forced_cut, limit_last, limit_later, short_sentence,
    ENABLED: tl.constexpr, ENFORCE: tl.constexpr, DISTANCES: tl.constexpr, TEXT: tl.constexpr,
):  # fmt: skip
    """One slot's `AlignmentTracker.update`: what it attends to, its next prior, and what that says of its end."""
    slot = tl.program_id(0)
    place = tl.arange(0, TEXT)
    exists = place < width
    length = tl.load(lengths + slot)
    before = tl.load(attended + slot)
    first = tl.load(is_first + slot) != 0
    last = tl.load(is_last + slot) != 0
    near = tl.load(near_end + slot)
    running = (tl.load(steps + slot) >= start_step) | ~first
    begin = before + (tl.load(visits + slot * most_text + before) >= sink_visits).to(tl.int64)
    end = tl.minimum(begin + window, length - tail)
    inside = exists & (place >= begin) & (place < end)
    score = tl.where(inside, tl.load(scores + slot * width + place, mask=exists, other=0.0), -1.0)
    best = tl.min(tl.where(score == tl.max(score, axis=0), place, TEXT), axis=0).to(tl.int64)
    now = tl.where(running, tl.where(begin < end, best, length - 1), before)
    tl.store(attended + slot, now)
    if ENABLED:
        row = slot * most_text + place
        seen = tl.load(visits + row, mask=exists, other=0) + ((place == now) & running).to(tl.int64)
        tl.store(visits + row, seen, mask=exists & (place == now))
        tl.store(active + slot, running)
        worn = exists & (seen >= closed_visits)
        last_worn = tl.max(tl.where(worn, place, -1), axis=0)
        last_worn_later = tl.max(tl.where(worn & (place >= 1), place, -1), axis=0)
        is_open = (place == tl.maximum(now - 1, 1)) | ((place >= now) & (place <= tl.minimum(now + window, length - 1)))
        is_open = (is_open | (length <= short_text)) & (place > last_worn)
        of_first = tl.where(is_open, 1.0, epsilon)
        distance = tl.minimum(tl.maximum(place - now + 2, 0), DISTANCES - 1)
        of_later = tl.load(weights + distance)
        is_short = length <= short_sentence
        of_later = tl.where(is_short, 1.0, of_later)
        of_later = tl.where((now == 1) & (place == 0) & ~is_short, tl.load(weights), of_later)
        of_later = tl.where(place <= last_worn_later, suppressed, of_later)
        tl.store(prior + row, tl.where(first, of_first, of_later), mask=exists)
        is_near = now >= length - tl.where(first, near_first, near_later)
        near = tl.where(running & ((near > 0) | is_near), near + 1, near)
        tl.store(near_end + slot, near)
        tl.store(cut + slot, ~last & (near >= forced_cut))
        if ENFORCE:
            limit = tl.where(first, may_end_steps, tl.where(last, limit_last, limit_later))
            tl.store(may_not + slot, running & (now < length - tail) & (near <= limit))
            tl.store(must + slot, near >= tl.where(first, must_end_steps, limit_last))
    if not ENABLED:
        tl.store(cut + slot, False)
    if not (ENABLED and ENFORCE):
        tl.store(may_not + slot, False)
        tl.store(must + slot, False)


@triton.jit
def conclude(
    codes, likely, may_not_end, must_end, attended, cut, newest, steps, lengths, told, end_token, code_stride,
    BOOKS: tl.constexpr, BOOKS_PADDED: tl.constexpr, STACKING: tl.constexpr, VOTE: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """One slot's `ModelRunner._conclude`: which frame of the stack ends it, and what the next step begins with.

    VOTE: codebooks that must say so: 0 any, 1 all, 2 the first.
    """
    slot = tl.program_id(0)
    book = tl.arange(0, BOOKS_PADDED)
    exists = book < BOOKS
    may = tl.load(may_not_end + slot) == 0
    must = tl.load(must_end + slot) != 0
    end = tl.full([], STACKING, tl.int64)
    for back in tl.static_range(STACKING):
        frame = STACKING - 1 - back
        code = tl.load(codes + slot * code_stride + frame * BOOKS + book, mask=exists, other=0)
        tl.store(newest + (slot * BOOKS + book) * STACKING + frame, code, mask=exists)
        says = ((tl.load(likely + (slot * STACKING + frame) * BOOKS + book, mask=exists, other=0) != 0) & may) | must
        ended = _vote(says, book, exists, VOTE)
        if SAMPLED:
            ended = ended | _vote(code == end_token, book, exists, VOTE)
        end = tl.where(ended, frame, end)
    tl.store(told + slot * 3, end)
    tl.store(told + slot * 3 + 1, tl.load(attended + slot))
    tl.store(told + slot * 3 + 2, (tl.load(cut + slot) != 0).to(tl.int64))
    tl.store(steps + slot, tl.load(steps + slot) + 1)
    tl.store(lengths + slot, tl.load(lengths + slot) + 1)


@triton.jit
def _vote(says, book, exists, VOTE: tl.constexpr):
    if VOTE == 1:
        return tl.min(tl.where(exists, says.to(tl.int32), 1), axis=0) != 0
    if VOTE == 2:
        return tl.max(tl.where(book == 0, says.to(tl.int32), 0), axis=0) != 0
    return tl.max(tl.where(exists, says.to(tl.int32), 0), axis=0) != 0
