"""Kernels in the Triton language for what a conformer layer does between its matrix products, on CUDA devices.

A step of one stream is a few thousand operations on a few thousand numbers each: PyTorch's kernels, one per operation,
take far longer to start than to run. These do the same arithmetic (in float32 inside) with one launch where PyTorch
needs five to twenty. `fused.py` puts them together, and compares them with PyTorch's before they are used.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normalised(x, weight, bias, column, exists, width, epsilon):
    """Layer norm of one row, in float32."""
    mean = tl.sum(tl.where(exists, x, 0.0)) / width
    centred = tl.where(exists, x - mean, 0.0)
    variance = tl.sum(centred * centred) / width
    scale = tl.load(weight + column, mask=exists).to(tl.float32)
    shift = tl.load(bias + column, mask=exists).to(tl.float32)
    return centred / tl.sqrt(variance + epsilon) * scale + shift


@triton.jit
def add_and_normalise(
    x, added, factor, weight, bias, epsilon, weight_next, bias_next, epsilon_next, normalised, width,
    TWICE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row: x += factor * added, normalised = norm(x).

    TWICE: x = norm(x + factor * added), normalised = norm_next(x).
    """
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    exists = column < width
    at = row * width + column
    kind = x.dtype.element_ty
    term = tl.load(added + at, mask=exists).to(tl.float32) * factor
    total = (tl.load(x + at, mask=exists).to(tl.float32) + term.to(kind).to(tl.float32)).to(kind).to(tl.float32)
    if TWICE:
        total = _normalised(total, weight, bias, column, exists, width, epsilon).to(kind).to(tl.float32)
        tl.store(x + at, total.to(kind), mask=exists)
        total = _normalised(total, weight_next, bias_next, column, exists, width, epsilon_next)
    else:
        tl.store(x + at, total.to(kind), mask=exists)
        total = _normalised(total, weight, bias, column, exists, width, epsilon)
    tl.store(normalised + at, total.to(kind), mask=exists)


@triton.jit
def attend(
    qkv, keys, values, positions, bias_u, bias_v, slot, first, outputs, out, scale, slot_stride, width, head_width,
    right_reach,
    FRAMES: tl.constexpr, RING: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one frame of one row: its key and value go into the ring; its query over ring and chunk."""
    row, head, frame = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    of_slot = tl.load(slot + row) * slot_stride
    begin = tl.load(first + row)
    end = begin + tl.load(outputs + row)
    column = tl.arange(0, WIDTH)
    has_column = column < head_width
    inside = head * head_width + column
    own = qkv + (row * FRAMES + frame) * 3 * width + inside
    query = tl.load(own, mask=has_column, other=0.0).to(tl.float32)
    place = of_slot + (begin + frame) % RING * width + inside
    tl.store(keys + place, tl.load(own + width, mask=has_column), mask=has_column)
    tl.store(values + place, tl.load(own + 2 * width, mask=has_column), mask=has_column)
    content = query + tl.load(bias_u + inside, mask=has_column, other=0.0).to(tl.float32)
    bent = query + tl.load(bias_v + inside, mask=has_column, other=0.0).to(tl.float32)
    # Softmax over blocks of keys: the sum so far is scaled down whenever a larger score comes (Flash-Attention).
    largest = float("-inf")
    total = 0.0
    mixed = tl.zeros([WIDTH], tl.float32)
    last = begin + FRAMES - 1
    for start in tl.static_range(0, RING, KEYS):
        place = start + tl.arange(0, KEYS)
        in_ring = place < RING
        key_frame = last - ((last - place) % RING + RING) % RING
        visible = in_ring & (key_frame >= 0) & (key_frame < end)
        # The chunk's own keys are read where they come from: other programs are just writing them.
        is_new = (visible & (key_frame >= begin))[:, None] & has_column[None, :]
        is_old = (visible & (key_frame < begin))[:, None] & has_column[None, :]
        new = qkv + ((row * FRAMES + key_frame - begin) * 3 * width)[:, None] + inside[None, :]
        old = of_slot + place[:, None] * width + inside[None, :]
        key = tl.load(keys + old, mask=is_old, other=0.0) + tl.load(new + width, mask=is_new, other=0.0)
        value = tl.load(values + old, mask=is_old, other=0.0) + tl.load(new + 2 * width, mask=is_new, other=0.0)
        distance = begin + frame - key_frame + right_reach
        position = tl.load(
            positions + distance[:, None] * width + inside[None, :], mask=visible[:, None] & has_column[None, :],
            other=0.0,
        )  # fmt: skip
        terms = key.to(tl.float32) * content[None, :] + position.to(tl.float32) * bent[None, :]
        scores = tl.where(visible, tl.sum(terms, axis=1) * scale, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # nothing visible yet
        weights = tl.exp(scores - shift)
        fade = tl.exp(largest - shift)
        total = total * fade + tl.sum(weights, axis=0)
        mixed = mixed * fade + tl.sum(weights[:, None] * value.to(tl.float32), axis=0)
        largest = larger
    at = (row * FRAMES + frame) * width + inside
    tl.store(out + at, (mixed / total).to(out.dtype.element_ty), mask=has_column)


@triton.jit
def convolve(
    gates, time, kernel_weight, kernel_bias, weight, bias, epsilon, slot, first, out, slot_stride, width,
    HAS_BIAS: tl.constexpr, FRAMES: tl.constexpr, TAPS: tl.constexpr, RING: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One frame: gated linear unit, causal depthwise convolution over ring and chunk, layer norm, SiLU.

    `kernel_weight` is (taps, width).
    """
    row, frame = tl.program_id(0), tl.program_id(1)
    of_slot = tl.load(slot + row) * slot_stride
    begin = tl.load(first + row)
    column = tl.arange(0, WIDTH)
    exists = column < width
    kind = out.dtype.element_ty
    total = tl.zeros([WIDTH], tl.float32)
    for back in tl.static_range(TAPS):
        tap = tl.load(kernel_weight + (TAPS - 1 - back) * width + column, mask=exists, other=0.0).to(tl.float32)
        of_chunk = exists & (frame >= back)
        at = gates + (row * FRAMES + frame - back) * 2 * width + column
        linear = tl.load(at, mask=of_chunk, other=0.0).to(tl.float32)
        gate = tl.load(at + width, mask=of_chunk, other=0.0).to(tl.float32)
        gated = (linear * tl.sigmoid(gate)).to(kind)
        if back == 0:
            tl.store(time + of_slot + (begin + frame) % RING * width + column, gated, mask=exists)
        else:
            past = begin + frame - back
            of_ring = exists & (frame < back) & (past >= 0)
            gated += tl.load(time + of_slot + (past + RING) % RING * width + column, mask=of_ring, other=0.0)
        total += tap * gated.to(tl.float32)
    if HAS_BIAS:
        total += tl.load(kernel_bias + column, mask=exists, other=0.0).to(tl.float32)
    total = _normalised(total.to(kind).to(tl.float32), weight, bias, column, exists, width, epsilon)
    total = total.to(kind).to(tl.float32)
    tl.store(out + (row * FRAMES + frame) * width + column, (total * tl.sigmoid(total)).to(kind), mask=exists)


@triton.jit
def few_rows(
    x, matrix, bias, added, out, norm_weight, norm_bias, epsilon, factor, rows, outputs, inputs,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """A matrix product for a few rows: reads the matrix once, with norm, bias, SiLU or residual around it.

    out = [added + factor *] [silu] ([norm](x) @ matrix.T + bias). With NORM, `INPUTS` holds all inputs.
    """
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    has_row, has_output = row < rows, output < outputs
    kind = out.dtype.element_ty
    products = tl.zeros([ROWS, OUTPUTS, INPUTS], tl.float32)
    for start in tl.range(0, inputs, INPUTS):
        known = start + column < inputs
        tile = tl.load(
            matrix + output[:, None] * inputs + start + column[None, :], mask=has_output[:, None] & known[None, :],
            other=0.0,
        )  # fmt: skip
        exists = has_row[:, None] & known[None, :]
        part = tl.load(x + row[:, None] * inputs + start + column[None, :], mask=exists, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.load(norm_weight + column, mask=known, other=0.0).to(tl.float32)
            shift = tl.load(norm_bias + column, mask=known, other=0.0).to(tl.float32)
            centred = tl.where(exists, part - (tl.sum(part, axis=1) / inputs)[:, None], 0.0)
            variance = tl.sum(centred * centred, axis=1) / inputs
            part = centred / tl.sqrt(variance + epsilon)[:, None] * scale[None, :] + shift[None, :]
            part = part.to(kind).to(tl.float32)
        products += part[:, None, :] * tile.to(tl.float32)[None, :, :]
    total = tl.sum(products, axis=2)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=has_output, other=0.0).to(tl.float32)[None, :]
    total = total.to(kind).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    at = row[:, None] * outputs + output[None, :]
    exists = has_row[:, None] & has_output[None, :]
    if ADD:
        total = (total * factor).to(kind).to(tl.float32) + tl.load(added + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(kind), mask=exists)


@triton.jit
def combine(encoded, prediction, frame, out, frames, width, WIDTH: tl.constexpr):
    """The joint's input of one row: its frame's encoding plus its prediction, rectified."""
    row = tl.program_id(0)
    at = tl.minimum(tl.load(frame + row), frames - 1)
    column = tl.arange(0, WIDTH)
    exists = column < width
    heard = tl.load(encoded + (row * frames + at) * width + column, mask=exists).to(tl.float32)
    predicted = tl.load(prediction + row * width + column, mask=exists).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + row * width + column, tl.maximum(heard + predicted, 0.0).to(kind), mask=exists)


@triton.jit
def choose(
    logits, length, frame, symbols, count, unfinished, tokens, frames, probabilities, chosen, emitted,
    blank, capacity, most_symbols, vocabulary,
    SIZE: tl.constexpr,
):  # fmt: skip
    """One row's greedy decision: books the best symbol, or moves on to the next frame."""
    row = tl.program_id(0)
    column = tl.arange(0, SIZE)
    scores = tl.load(logits + row * vocabulary + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
    best = tl.max(scores, axis=0)
    symbol = tl.min(tl.where(scores == best, column, SIZE), axis=0)
    probability = 1.0 / tl.sum(tl.exp(scores - best), axis=0)
    at = tl.load(frame + row)
    end = tl.load(length + row)
    so_far = tl.load(count + row)
    active = at < end
    emit = active & (symbol != blank)
    place = row * capacity + tl.minimum(so_far, capacity - 1)
    tl.store(tokens + place, symbol.to(tl.int64), mask=emit)
    tl.store(frames + place, at, mask=emit)
    tl.store(probabilities + place, probability, mask=emit)
    tl.store(count + row, so_far + emit.to(tl.int64))
    of_frame = tl.where(emit, tl.load(symbols + row) + 1, 0)
    advance = active & ((symbol == blank) | (of_frame >= most_symbols))
    at += advance.to(tl.int64)
    tl.store(frame + row, at)
    tl.store(symbols + row, tl.where(advance, 0, of_frame))
    tl.store(unfinished + row, at < end)
    tl.store(chosen + row, symbol.to(tl.int64))
    tl.store(emitted + row, emit)


@triton.jit
def remember(gates, table, chosen, emitted, hidden, cell, width, FROM_TABLE: tl.constexpr, WIDTH: tl.constexpr):
    """One row's LSTM cell on its gates (input, forget, cell, output), kept if the row emitted.

    FROM_TABLE adds the chosen symbol's row of `table` to the gates: its embedding's part, biases included.
    """
    row = tl.program_id(0)
    emit = tl.load(emitted + row)
    column = tl.arange(0, WIDTH)
    exists = column < width
    own = gates + row * 4 * width + column
    enter = tl.load(own, mask=exists, other=0.0).to(tl.float32)
    forget = tl.load(own + width, mask=exists, other=0.0).to(tl.float32)
    fresh = tl.load(own + 2 * width, mask=exists, other=0.0).to(tl.float32)
    leave = tl.load(own + 3 * width, mask=exists, other=0.0).to(tl.float32)
    if FROM_TABLE:
        of_symbol = table + tl.load(chosen + row) * 4 * width + column
        enter += tl.load(of_symbol, mask=exists, other=0.0).to(tl.float32)
        forget += tl.load(of_symbol + width, mask=exists, other=0.0).to(tl.float32)
        fresh += tl.load(of_symbol + 2 * width, mask=exists, other=0.0).to(tl.float32)
        leave += tl.load(of_symbol + 3 * width, mask=exists, other=0.0).to(tl.float32)
    at = row * width + column
    kind = hidden.dtype.element_ty
    before = tl.load(cell + at, mask=exists, other=0.0).to(tl.float32)
    after = tl.sigmoid(forget) * before + tl.sigmoid(enter) * (2.0 * tl.sigmoid(2.0 * fresh) - 1.0)
    spoken = tl.sigmoid(leave) * (2.0 * tl.sigmoid(2.0 * after) - 1.0)
    tl.store(cell + at, after.to(kind), mask=exists & emit)
    tl.store(hidden + at, spoken.to(kind), mask=exists & emit)
