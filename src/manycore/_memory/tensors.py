"""PyTorch's tensors in messages.

    a message for one reader (a queue's item, a connection's)     as PyTorch registers it: moved into shared memory
    any other, a tensor in shared memory                          a handle: reader and sender see the same numbers
    any other, a tensor of this process                           a copy: its bytes, out of band where they are many

What PyTorch registers with `ForkingPickler` can be loaded once. A function's globals, the arguments of all workers, or
a task that is tried again are loaded as often as need be.

torch is imported by those who have it already, or are sent something of it.

Invariants:
    a handle is good for as long as the sender, or whoever holds the same storage there, keeps it
    what is not a plain tensor in memory (sparse, quantised, of a device, a subclass) is PyTorch's business, but not
        the storages that it is made of
If a process dies: as for any descriptor that was sent (`segment.send_fd`).
"""

from __future__ import annotations

import os
import sys
from _pickle import PickleBuffer

from manycore._memory.segment import receive_fd, send_fd

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["REDUCERS"]


def _reduce_tensor(value: Any, registered: Callable[[Any], Any]) -> Any:
    """How a `torch.Tensor` is pickled for any number of readers.

    Args:
        value: The tensor.
        registered: What PyTorch does.

    Raises:
        RuntimeError: Something computed it that can be differentiated, as PyTorch says.
    """
    torch = sys.modules["torch"]
    ours = (
        value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized)
        and not (value.requires_grad and not value.is_leaf)
    )
    if not ours or value.is_shared():
        return registered(value)
    flat, stride = value.detach().resolve_conj().resolve_neg(), None
    if not flat.is_contiguous():
        storage = flat.untyped_storage()
        if flat.storage_offset() == 0 and flat.numel() * flat.element_size() == storage.nbytes():
            stride = flat.stride()  # all of it in another order: transposed, channels last
            flat = flat.as_strided((flat.numel(),), (1,))
        else:
            flat = flat.contiguous()
    try:
        data = flat.reshape(-1).view(torch.uint8).numpy()
    except RuntimeError:  # PyTorch was built without NumPy
        return registered(value)
    return _tensor, (PickleBuffer(data), value.dtype, tuple(value.shape), stride, value.requires_grad)


def _tensor(data: Any, dtype: Any, shape: tuple[int, ...], stride: tuple[int, ...] | None, differentiates: bool) -> Any:
    import torch

    view = memoryview(data)
    if view.readonly:  # a tensor cannot be
        data = bytearray(view)
    made = torch.frombuffer(data, dtype=dtype) if view.nbytes else torch.empty(0, dtype=dtype)
    made = made.view(shape) if stride is None else made.as_strided(shape, stride)
    return made.requires_grad_() if differentiates else made


def _reduce_storage(value: Any, registered: Callable[[Any], Any]) -> Any:
    """How a `torch.UntypedStorage` is pickled for any number of readers. Arguments as for `_reduce_tensor`."""
    if value.device.type != "cpu" or not value.nbytes():
        return registered(value)
    torch = sys.modules["torch"]
    if not value.is_shared():
        flat = torch.empty(0, dtype=torch.uint8).set_(value)
        try:
            return _storage, (PickleBuffer(flat.numpy()),)
        except RuntimeError:
            return registered(value)
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return registered(value)
    fd, size = value._share_fd_cpu_()  # which stays open as long as the storage does
    status = os.fstat(fd)
    return _shared_storage, (type(value), send_fd(fd, value, size), (status.st_dev, status.st_ino), size)


def _storage(data: Any) -> Any:
    import torch

    view = memoryview(data)
    return torch.frombuffer(bytearray(view) if view.readonly else data, dtype=torch.uint8).untyped_storage()


class _Descriptor:
    """What `rebuild_storage_fd` takes: somebody who gives a descriptor away."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def detach(self) -> int:
        return self._fd


def _shared_storage(kind: Any, handle: Any, inode: tuple[int, int], size: int) -> Any:
    from torch.multiprocessing.reductions import rebuild_storage_fd

    return rebuild_storage_fd(kind, _Descriptor(receive_fd(handle, inode)), size)


REDUCERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "Tensor": _reduce_tensor,
    "UntypedStorage": _reduce_storage,
}
