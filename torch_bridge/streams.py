# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Who waits for whom, and how long memory is kept, where tensors and arrays share it.

JAX takes readiness from a stream of its own, so that one waits for torch's current stream
(`joined_stream`); torch's streams wait for JAX by way of DLPack, and JAX in turn for those that
read what it made (`reading_stream`). All of it happens on the device. What is given away is kept
until it has been read: `retired` takes (device, tensor) or (event, array), and one thread lets go.
"""

import atexit
import contextlib
import ctypes
import functools
import queue
import threading
import time

import jax
import torch


def keeps_current_device(function):
    """`function`, after which torch's current device is what it was.

    JAX leaves the device it worked on current in the thread that called it (0.11.2, seen with two
    H200s on 2026-11-28), and torch takes what is current for its own choice. It does so when it
    computes, when it starts (the last device is current then), and when it frees a program.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        before = _current_device()
        try:
            return function(*args, **kwargs)
        finally:
            _make_current(before)

    return call


@contextlib.contextmanager
def working_on(device: torch.device):
    """JAX works on this torch device by default; torch's current device stays what it was."""
    before = _current_device()
    try:
        with jax.default_device(jax_device(device)):
            yield
    finally:
        _make_current(before)


def _current_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _make_current(device: int | None) -> None:
    if device is not None and torch.cuda.current_device() != device:
        torch.cuda.set_device(device)


@functools.cache
def jax_device(device: torch.device) -> jax.Device:
    """The JAX device that is this torch device: on CUDA the one of the same local number.

    Raises:
      ValueError: JAX does not have it in this process.
    """
    index = 0 if device.type == "cpu" else device.index or 0
    try:
        candidates = jax.local_devices(backend=device.type)
    except RuntimeError as e:
        raise ValueError(
            f"device: a tensor on {device} needs JAX's {device.type} backend, which is not here "
            f"({e}); install jax[cuda13], and let JAX_PLATFORMS, if it is set, name {device.type}"
        ) from None
    for candidate in candidates:
        if device.type == "cpu" or candidate.local_hardware_id == index:
            return candidate
    raise ValueError(f"device: JAX does not see {device}; it has {candidates}")


@functools.cache
def is_first(device: torch.device) -> bool:
    """Whether JAX uses this device when nobody says which; then nothing has to be said."""
    return jax_device(device) == jax.local_devices()[0]


_local = threading.local()


def joined_stream(device: torch.device) -> int | None:
    """A stream of JAX's that waits for torch's current one; JAX takes readiness from no other.

    None on a CPU. One for all tensors of a call, and one event for all calls of a thread: a wait
    is for the event's last record, and between a thread's record and wait no other thread's comes.
    """
    if device.type != "cuda":
        return None
    stream = jax_device(device).get_stream_for_external_ready_events()
    events = _local.__dict__.setdefault("events", {})
    event = events.get(device)
    if event is None:
        event = events[device] = torch.cuda.Event()
    theirs = _external_stream(stream, device)
    handle = torch._C._cuda_getCurrentRawStream(device.index)
    event.record(_current_stream(handle, device))
    event.wait(theirs)
    readers = _readers.get(device, ())
    if len(readers) > 1 or (readers and handle not in readers):
        # What they have read by now may be given to somebody else from now on.
        for other, reader in list(readers.items()):
            if other != handle and not _captures(other):
                readers.pop(other, None)  # first: who reads from here on is noted again
                event.record(reader)
                event.wait(theirs)
    return stream


# Streams that were given results of JAX. When a tensor over one goes, its memory is JAX's again at
# once, while its stream may still have to read it: JAX's next work waits for all of these.
_readers: dict[torch.device, dict[int, torch.cuda.Stream]] = {}


def reading_stream(device: torch.device) -> int:
    """Torch's current stream, in DLPack's numbers, noted as one that reads what JAX has made."""
    handle = torch._C._cuda_getCurrentRawStream(device.index)
    readers = _readers.get(device)
    if readers is None:
        readers = _readers.setdefault(device, {})
    if handle not in readers:
        stream = _current_stream(handle, device)
        if handle == 0 or stream.stream_id != handle:  # else not torch's own: it may go any time
            readers[handle] = stream
    return handle or 1  # torch's default stream is CUDA's legacy one, which DLPack calls 1


def _captures(handle: int) -> bool:
    """Whether a CUDA graph is being captured from a stream, or of all streams."""
    status = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status))
    return code != 0 or status.value != 0


@functools.lru_cache(256)
def _current_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    """Torch's current stream, whose handle this is; to ask for the object takes 4 us each time."""
    return torch.cuda.current_stream(device)


@functools.cache
def _external_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.ExternalStream(handle, device)


# When an array over a tensor's memory goes, JAX may still be about to read it: its computations run
# behind the host, and JAX gives the memory back at once. So the tensor is kept, and one thread lets
# go of it when everything that JAX had been given by then is done. Likewise an array whose memory
# torch is copying: it is kept until the copy is done.
retired: queue.SimpleQueue = queue.SimpleQueue()  # its put may be called from a finalizer


@functools.cache
def start_reaper() -> None:
    thread = threading.Thread(target=_reap, name="torch_bridge-reaper", daemon=True)
    thread.start()

    # A daemon thread that waits inside JAX while the interpreter goes takes the process with it.
    def stop():
        retired.put(None)
        thread.join(timeout=30)

    atexit.register(stop)


def _reap() -> None:
    # What this thread asks of CUDA must not end a graph capture in another: mode 2 is "relaxed".
    with contextlib.suppress(OSError):
        mode = ctypes.byref(ctypes.c_int(2))
        ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(mode)
    tick, zero = jax.jit(lambda x: x + 1), functools.cache(lambda d: jax.device_put(0, d))
    stopping = False
    while not stopping:
        items = [retired.get()]
        while not retired.empty():  # one wait for all that came meanwhile
            items.append(retired.get())
        stopping = None in items
        items = [item for item in items if item is not None]
        for event in [after for after, _ in items if isinstance(after, torch.cuda.Event)]:
            while not event.query():
                time.sleep(0.0005)
        # A device runs what it is given in order, so this is done when all before it is.
        devices = {after for after, _ in items if not isinstance(after, torch.cuda.Event)}
        jax.block_until_ready([tick(zero(device)) for device in devices])
        items.clear()  # here and not at the next round, which may be long after
