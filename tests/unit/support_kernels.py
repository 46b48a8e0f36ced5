"""Runs the engines' kernels on the CPU, by the interpreter of the Triton language, and watches what they touch."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="the Triton language is not installed: `make kernels` runs this")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels are interpreted only with TRITON_INTERPRET=1: `make kernels`", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

#: Relative difference from PyTorch's result that rounding explains.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}

#: Linux's MAP_NORESERVE, which Python's module has from 3.12 on.
NO_RESERVE = 0x4000

Program = tuple[int, int, int]


def every(programs: list[Program]) -> list[Program]:
    """All programs of a launch, in the order of their numbers."""
    return programs


def backwards(programs: list[Program]) -> list[Program]:
    """All, the last first: a program that needs another's result gets a wrong one."""
    return programs[::-1]


def a_few(programs: list[Program]) -> list[Program]:
    """The first, the last and two between: the others differ from them only by where they read and write."""
    return sorted({programs[0], programs[len(programs) // 3], programs[2 * len(programs) // 3], programs[-1]})


@dataclass
class Launch:
    """What the programs of one launch touched, in addresses of elements.

    Attributes:
        name: Of the kernel.
        early: Whether it may start before the launch ahead of it is over.
        stores: By program.
        loads: By program, after it waited for the launch ahead; all of them where there is nothing to wait for.
        ahead: Loads of all programs before they waited.
        waits: How often each program waited.
    """

    name: str
    early: bool
    stores: list[list[np.ndarray]] = field(default_factory=list)
    loads: list[list[np.ndarray]] = field(default_factory=list)
    ahead: list[np.ndarray] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    def written(self, tensor: torch.Tensor) -> torch.Tensor:
        """Which elements of a tensor were stored to, in its shape."""
        where = torch.zeros(tensor.shape, dtype=torch.bool)
        offsets = (_joined(itertools.chain(*self.stores)) - tensor.data_ptr()) // tensor.element_size()
        inside = offsets[(offsets >= 0) & (offsets < tensor.numel())]
        where.view(-1)[torch.from_numpy(inside)] = True
        return where

    def check_programs_are_apart(self) -> None:
        """No program may touch what another stores: on a GPU they run at the same time, in any order."""
        stored = [np.unique(_joined(own)) for own in self.stores]
        owner = np.repeat(np.arange(len(stored)), [len(own) for own in stored])
        addresses = np.concatenate(stored)
        order = np.argsort(addresses, kind="stable")
        addresses, owner = addresses[order], owner[order]
        twice = (addresses[1:] == addresses[:-1]) & (owner[1:] != owner[:-1])
        assert not twice.any(), f"two programs of {self.name} store to the same place"
        for program, loads in enumerate(self.loads):
            read = np.unique(_joined(loads))
            at = np.searchsorted(addresses, read).clip(max=max(len(addresses) - 1, 0))
            if len(addresses):
                foreign = (addresses[at] == read) & (owner[at] != program)
                assert not foreign.any(), f"a program of {self.name} reads what another stores"


class Watch:
    """Replaces the interpreter's launch: chooses programs and their order, and notes what they touch.

    Args:
        choose: From all programs of a launch to those that run, in the order in which they do.
    """

    def __init__(self, choose: Callable[[list[Program]], list[Program]]) -> None:
        self.launches: list[Launch] = []
        self._choose = choose
        #: Addresses that may still be on their way when a launch that may start early starts, as (begin, end) or one
        #: by one: written by those before it, back to the one before the last that waits for all ahead of it.
        self._pending: list[tuple[int, int] | np.ndarray] = []

    @property
    def last(self) -> Launch:
        """The newest launch."""
        return self.launches[-1]

    def run(self, executor: Any, *args: Any, **kwargs: Any) -> None:
        """In place of `GridExecutor.__call__`, whose tensors are on the CPU already."""
        named = {name: value for name, value in kwargs.items() if name in executor.arg_names}
        bound = inspect.getcallargs(executor.fn, *args, **named)
        bound = {
            name: value if name in executor.constexprs else interpreter._implicit_cvt(value)
            for name, value in bound.items()
        }
        launch = Launch(executor.fn.__name__, bool(kwargs.get("launch_pdl")))
        assert launch.early == bool(bound.get("EARLY", False)), f"{launch.name} waits for nothing, or for ever"
        self.launches.append(launch)
        if not launch.early:
            self._pending.clear()
        grid = (*executor.grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*grid)
        for program in self._choose(list(itertools.product(*map(range, grid)))):
            launch.stores.append([])
            launch.loads.append([])
            launch.waits.append(0)
            interpreter.interpreter_builder.set_grid_idx(*program)
            executor.fn(**bound)
            if launch.early:
                assert launch.waits[-1] == 1, f"a program of {launch.name} waits {launch.waits[-1]} times"
        if launch.early:
            self._check_what_is_read_ahead(launch)
        self._pending.append(_joined(itertools.chain(*launch.stores)))

    def wait(self) -> None:
        """In place of `gdc_wait`."""
        self.last.waits[-1] += 1

    def note_load(self, addresses: np.ndarray) -> None:
        """Notes what a program reads."""
        launch = self.last
        launch.loads[-1].append(addresses)
        if launch.early and not launch.waits[-1]:
            launch.ahead.append(addresses)

    def note_store(self, addresses: np.ndarray) -> None:
        """Notes what a program writes."""
        launch = self.last
        assert launch.waits[-1] or not launch.early, f"{launch.name} stores before it has waited"
        launch.stores[-1].append(addresses)

    def note_pytorch(self, outputs: Sequence[torch.Tensor]) -> None:
        """Notes what one of PyTorch's kernels writes; they wait for all that is ahead of them."""
        self._pending = [(out.data_ptr(), out.data_ptr() + _extent(out)) for out in outputs]

    def _check_what_is_read_ahead(self, launch: Launch) -> None:
        ahead = np.unique(_joined(launch.ahead))
        for written in self._pending:
            if isinstance(written, tuple):
                hit = (ahead >= written[0]) & (ahead < written[1])
            else:
                hit = np.isin(ahead, written)
            assert not hit.any(), f"{launch.name} reads ahead what may still be on its way"


@contextlib.contextmanager
def watched(choose: Callable[[list[Program]], list[Program]] = every, early: Sequence[Any] = ()) -> Iterator[Watch]:
    """Interprets what is launched inside.

    Args:
        choose: Which programs run, in what order.
        early: Modules of kernels, whose instructions for an early start become notes; with them, what PyTorch writes in
            between is noted, too.
    """
    watch = Watch(choose)
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def noting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.note_load(pointers.data[mask.data.astype(bool)])
        return load(self, pointers, mask, *rest)

    def noting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.note_store(pointers.data[mask.data.astype(bool)])
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        # The language's names are replaced once for all, its own functions' view of them too; the interpreter would do
        # it again for every function that a kernel calls.
        for function in (_speaks_the_language, tl.zeros.fn):
            stack.callback(interpreter._patch_lang(function).restore)
        patch.setattr(interpreter, "_patch_lang", lambda fn: None)
        patch.setattr(interpreter.GridExecutor, "__call__", lambda executor, *a, **k: watch.run(executor, *a, **k))
        patch.setattr(builder, "create_masked_load", noting_load)
        patch.setattr(builder, "create_masked_store", noting_store)
        for module in early:
            patch.setattr(module, "gdc_wait", watch.wait)
            patch.setattr(module, "gdc_launch_dependents", lambda: None)
        if early:
            stack.enter_context(_Writes(watch))
        yield watch


class _Writes(TorchDispatchMode):
    """Tells what PyTorch's operations write."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(own.alias_info is not None and not own.alias_info.is_write for own in returns)
        if not is_view and "empty" not in func._schema.name:
            outputs = out if isinstance(out, (tuple, list)) else (out,)
            self._watch.note_pytorch([own for own in outputs if isinstance(own, torch.Tensor)])
        return out


def _speaks_the_language() -> Any:
    """A function of a module that imports the language as kernels do, which is what the interpreter looks for."""
    return tl


def _joined(parts: Any) -> np.ndarray:
    parts = [np.asarray(part).reshape(-1).astype(np.int64) for part in parts]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if not tensor.numel():
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def close(ours: torch.Tensor, theirs: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Compares a kernel's result with PyTorch's, both of PyTorch's dtype; `where` tells what was computed."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if where is not None:
        assert where.any()
        ours, theirs = ours[where], theirs[where]
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    assert difference < TOLERANCE[theirs.dtype], f"they differ by {difference:.1e}"


def vast(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros of more elements than 32 bits count, of which only the pages that are touched take memory."""
    size = elements * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)
