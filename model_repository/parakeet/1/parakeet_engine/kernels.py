"""Kernels in the Triton language for a step of the recogniser, on CUDA devices.

A step of one stream is a few thousand operations on a few thousand numbers each: PyTorch's kernels, one per operation,
take far longer to start than to run. These do the same arithmetic (in float32 inside) with one launch where PyTorch
needs five to twenty. `fused.py` puts them together, and compares them with PyTorch's before they are used.

With `EARLY` a kernel starts while the one before it still runs (programmatic dependent launch, from compute capability
9.0 on): it fetches its weights, which no kernel writes, and waits before it looks at anything else.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
def mel_bands(
    spectrum, filters, out, bins, all_bins, mels, guard,
    SQUARE: tl.constexpr, ADD: tl.constexpr, BINS: tl.constexpr, MELS: tl.constexpr,
):  # fmt: skip
    """Logarithms of some mel bands of one frame; `spectrum` has real and imaginary parts side by side.

    SQUARE: bands are of the power, else of the magnitude. ADD: the guard is added before the logarithm, else a minimum.
    """
    frame = tl.program_id(0)
    mel = tl.program_id(1) * MELS + tl.arange(0, MELS)
    column = tl.arange(0, BINS)
    known, wanted = column < bins, mel < mels
    at = spectrum + 2 * (frame * all_bins + column)
    real, imaginary = tl.load(at, mask=known, other=0.0), tl.load(at + 1, mask=known, other=0.0)
    power = real * real + imaginary * imaginary
    if not SQUARE:
        power = tl.sqrt(power)
    weights = tl.load(filters + column[:, None] * mels + mel[None, :], mask=known[:, None] & wanted[None, :], other=0.0)
    band = tl.sum(weights * power[:, None], axis=0)
    band = band + guard if ADD else tl.maximum(band, guard)
    tl.store(out + frame * mels + mel, tl.log(band), mask=wanted)


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
    FRAMES: tl.constexpr, RING: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one frame of one row: its key and value go into the ring; its query over ring and chunk.

    What is in the ring before the step began, and the places, are read ahead with `EARLY`.
    """
    row, head, frame = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EARLY:
        gdc_launch_dependents()
    of_slot = tl.load(slot + row) * slot_stride
    begin = tl.load(first + row)
    end = begin + tl.load(outputs + row)
    column = tl.arange(0, WIDTH)
    has_column = column < head_width
    inside = head * head_width + column
    bias_content = tl.load(bias_u + inside, mask=has_column, other=0.0).to(tl.float32)
    bias_position = tl.load(bias_v + inside, mask=has_column, other=0.0).to(tl.float32)
    own = qkv + (row * FRAMES + frame) * 3 * width + inside
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
        old = of_slot + place[:, None] * width + inside[None, :]
        key = tl.load(keys + old, mask=is_old, other=0.0)
        value = tl.load(values + old, mask=is_old, other=0.0)
        distance = begin + frame - key_frame + right_reach
        position = tl.load(
            positions + distance[:, None] * width + inside[None, :], mask=visible[:, None] & has_column[None, :],
            other=0.0,
        )  # fmt: skip
        if start == 0:
            if EARLY:
                gdc_wait()
            query = tl.load(own, mask=has_column, other=0.0).to(tl.float32)
            content, bent = query + bias_content, query + bias_position
            at = of_slot + (begin + frame) % RING * width + inside
            tl.store(keys + at, tl.load(own + width, mask=has_column), mask=has_column)
            tl.store(values + at, tl.load(own + 2 * width, mask=has_column), mask=has_column)
        new = qkv + ((row * FRAMES + key_frame - begin) * 3 * width)[:, None] + inside[None, :]
        key += tl.load(new + width, mask=is_new, other=0.0)
        value += tl.load(new + 2 * width, mask=is_new, other=0.0)
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
def convolve_few_rows(
    gates, time, kernel_weight, kernel_bias, weight, bias, epsilon, slot, first, matrix, matrix_bias, added, out,
    slot_stride, width,
    HAS_BIAS: tl.constexpr, HAS_MATRIX_BIAS: tl.constexpr, FRAMES: tl.constexpr, TAPS: tl.constexpr,
    RING: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row of `convolve` with the matrix product after it and the residual; every program convolves all frames.

    out = added + convolved @ matrix.T + matrix_bias. The ring has room for a chunk beside all that is looked back at,
    so that one program may write frames while others read. What is in it is read ahead with `EARLY`.
    """
    row = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, WIDTH)
    has_output, exists = output < width, column < width
    if EARLY:
        gdc_launch_dependents()
    tile = tl.load(
        matrix + output[:, None] * width + column[None, :], mask=has_output[:, None] & exists[None, :], other=0.0
    )
    shift = tl.zeros([OUTPUTS], tl.float32)
    if HAS_MATRIX_BIAS:
        shift = tl.load(matrix_bias + output, mask=has_output, other=0.0).to(tl.float32)
    ring = time + tl.load(slot + row) * slot_stride + column
    begin = tl.load(first + row)
    kind = out.dtype.element_ty
    for frame in tl.static_range(FRAMES):
        total = tl.zeros([WIDTH], tl.float32)
        for back in tl.static_range(frame + 1, TAPS):
            past = begin + frame - back
            tap = tl.load(kernel_weight + (TAPS - 1 - back) * width + column, mask=exists, other=0.0).to(tl.float32)
            kept = tl.load(ring + (past + RING) % RING * width, mask=exists & (past >= 0), other=0.0)
            total += tap * kept.to(tl.float32)
        if HAS_BIAS:
            total += tl.load(kernel_bias + column, mask=exists, other=0.0).to(tl.float32)
        if EARLY and frame == 0:
            gdc_wait()
        for back in tl.static_range(frame + 1):
            if back < TAPS:
                at = kernel_weight + (TAPS - 1 - back) * width + column
                tap = tl.load(at, mask=exists, other=0.0).to(tl.float32)
                at = gates + (row * FRAMES + frame - back) * 2 * width + column
                linear = tl.load(at, mask=exists, other=0.0).to(tl.float32)
                gate = tl.load(at + width, mask=exists, other=0.0).to(tl.float32)
                gated = (linear * tl.sigmoid(gate)).to(kind)
                if back == 0:
                    at = ring + (begin + frame) % RING * width
                    tl.store(at, gated, mask=exists & (tl.program_id(0) == 0))
                total += tap * gated.to(tl.float32)
        total = _normalised(total.to(kind).to(tl.float32), weight, bias, column, exists, width, epsilon)
        total = total.to(kind).to(tl.float32)
        part = tl.where(exists, total * tl.sigmoid(total), 0.0).to(kind).to(tl.float32)
        summed = (tl.sum(tile.to(tl.float32) * part[None, :], axis=1) + shift).to(kind).to(tl.float32)
        at = (row * FRAMES + frame) * width + output
        summed += tl.load(added + at, mask=has_output, other=0.0).to(tl.float32)
        tl.store(out + at, summed.to(kind), mask=has_output)


@triton.jit
def _normalised_rows(x, weight, bias, known, inputs, epsilon):
    """Layer norm of a few rows, (rows, inputs), in float32; they share the waits of a sum over threads."""
    centred = tl.where(known[None, :], x - (tl.sum(x, axis=1) / inputs)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / inputs
    return centred / tl.sqrt(variance + epsilon)[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def few_rows(
    x, matrix, bias, added, out, norm_weight, norm_bias, epsilon, first_weight, first_bias, first_epsilon, renewed,
    factor, outputs, inputs,
    NORM: tl.constexpr, TWICE: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, ROWS_PADDED: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A matrix product for a few rows: reads the matrix once, with norm, bias, SiLU or residual around it.

    out = [added + factor *] [silu] ([norm](x) @ matrix.T + bias); `INPUTS` holds all inputs.
    TWICE: another norm comes first, and what it makes of x is kept in `renewed`.
    """
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    row = tl.arange(0, ROWS_PADDED)
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
        scale_in = tl.load(norm_weight + column, mask=known, other=0.0).to(tl.float32)
        shift_in = tl.load(norm_bias + column, mask=known, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
    kind = out.dtype.element_ty
    if NORM:
        at = row[:, None] * inputs + column[None, :]
        exists = (row < ROWS)[:, None] & known[None, :]
        rows = tl.load(x + at, mask=exists, other=0.0).to(tl.float32)
        if TWICE:
            first_scale = tl.load(first_weight + column, mask=known, other=0.0).to(tl.float32)
            first_shift = tl.load(first_bias + column, mask=known, other=0.0).to(tl.float32)
            rows = _normalised_rows(rows, first_scale, first_shift, known, inputs, first_epsilon).to(kind)
            tl.store(renewed + at, rows, mask=exists & (tl.program_id(0) == 0))
            rows = rows.to(tl.float32)
        rows = _normalised_rows(rows, scale_in, shift_in, known, inputs, epsilon).to(kind).to(tl.float32)
    for index in tl.static_range(ROWS):
        if NORM:
            part = tl.sum(tl.where(row[:, None] == index, rows, 0.0), axis=0)
        else:
            part = tl.load(x + index * inputs + column, mask=known, other=0.0).to(tl.float32)
        total = (tl.sum(tile.to(tl.float32) * part[None, :], axis=1) + shift).to(kind).to(tl.float32)
        if SILU:
            total = total * tl.sigmoid(total)
        at = index * outputs + output
        if ADD:
            total = (total * factor).to(kind).to(tl.float32)
            total += tl.load(added + at, mask=has_output, other=0.0).to(tl.float32)
        tl.store(out + at, total.to(kind), mask=has_output)


@triton.jit
def combine(encoded, prediction, frame, out, frames, width, WIDTH: tl.constexpr, EARLY: tl.constexpr):
    """The joint's input of one row: its frame's encoding plus its prediction, rectified."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
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
    SIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row's greedy decision: books the best symbol, or moves on to the next frame."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
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
def remember(
    gates, table, chosen, emitted, hidden, cell, width,
    FROM_TABLE: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row's LSTM cell on its gates (input, forget, cell, output), kept if the row emitted.

    FROM_TABLE adds the chosen symbol's row of `table` to the gates: its embedding's part, biases included.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
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
