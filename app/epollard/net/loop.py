"""The event loop: one `select.epoll` and a table of handlers. Knows no HTTP and no application.

Handlers are plain callables by descriptor, with raw epoll masks, so that level, edge and one-shot are all expressible. The same
object is a `selectors.BaseSelector`: handed to an asyncio loop it makes that loop a guest on this epoll.

One thread turns the loop at a time, but not always the same one (see threads.py): a handler may leave by an exception with the
batch half done, and whoever turns the loop next goes on with the rest of it.
"""

import os
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP
RDHUP: Final = select.EPOLLRDHUP
EDGE: Final = select.EPOLLET
ONESHOT: Final = select.EPOLLONESHOT

# Events taken from the kernel at once. Few, so that what arrives meanwhile is not behind a thousand others.
BATCH: Final = 128
TICK: Final = 1.0  # seconds

Handler = Callable[[int], object]


class Loop(selectors.BaseSelector):
    """One epoll. Create it after the fork: epoll follows open files, and would see those of the parent."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._handlers: dict[int, Handler] = {}
        self._batch: Iterator[tuple[int, int]] = iter(())
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._next_tick = 0.0
        self.waited = 0.0  # seconds, in all
        self.busy_since = 0.0  # time.monotonic() at the end of the last wait; 0 during one
        self.on_tick: Callable[[], object] = lambda: None  # once a second
        self.on_turn: Callable[[], object] | None = None  # before each wait
        self.on_error: Callable[[Exception], object] = _raise  # a handler raised, and its descriptor is forgotten
        self.stopped = False
        self.watch(self._eventfd, IN, self._on_eventfd)

    # Handlers by descriptor.

    def watch(self, fd: int, mask: int, handler: Handler) -> None:
        """Call `handler(events)` for events of `fd`. `FileExistsError` where it is watched already (epoll_ctl(2))."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def rewatch(self, fd: int, mask: int) -> None:
        """Change the mask. This also asks again: what is ready now is reported, edge-triggered and one-shot too."""
        self._epoll.modify(fd, mask)

    def rehandle(self, fd: int, handler: Handler) -> None:
        """Change the handler and nothing else: no system call."""
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget `fd`, which is still open. Needed where another process holds the same open file: closing would not do it."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Forget `fd`, which is about to be closed by its only holder: epoll notices by itself (epoll(7))."""
        self._handlers.pop(fd, None)

    # Turning.

    def turn(self, timeout: float | None = None) -> None:
        """Wait for events, at most `timeout` seconds and never past the next tick, and handle them."""
        if self.on_turn is not None:
            self.on_turn()
            if self.stopped:
                return
        now = time.monotonic()
        wait = self._next_tick - now
        if wait <= 0:
            self._next_tick = now + TICK
            self.on_tick()
            wait = 0  # what that has set going among a guest's tasks is not to wait for an event
        if timeout is not None and timeout < wait:
            wait = max(timeout, 0)
        if self._posted:
            wait = 0
        self.busy_since = 0.0
        events = self._poll(wait, BATCH)
        self.busy_since = done = time.monotonic()
        self.waited += done - now
        self._batch = iter(events)
        self.finish_turn()

    def finish_turn(self) -> None:
        """Handle what is left of the batch, then what was posted."""
        handlers = self._handlers
        for fd, events in self._batch:
            # A handler earlier in the batch may have closed this descriptor, or even reused its number: handlers bear that.
            try:
                handler = handlers[fd]
            except KeyError:
                continue
            try:
                handler(events)
            except Exception as error:
                # Forgotten, or a level-triggered event would raise it again without end.
                self._drop(fd)
                self.on_error(error)
        posted = self._posted
        for _ in range(len(posted)):
            callback, arguments = posted.popleft()
            try:
                callback(*arguments)
            except Exception as error:
                self.on_error(error)

    def run(self) -> None:
        """Turn until `stopped`."""
        while not self.stopped:
            self.turn()

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call `callback` in this turn or the next. The one method that any thread may call."""
        self._posted.append((callback, arguments))
        self.wake()

    def wake(self) -> None:
        """End the wait under way, or the next one."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._eventfd, 1)

    def _on_eventfd(self, events: int) -> None:
        os.eventfd_read(self._eventfd)
        self._woken = False  # before what was posted is run: what is posted from here on wakes again

    # selectors.BaseSelector, for a guest.

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.register`."""
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self.watch(fd, _mask(events), self._guest(key))
        self._keys[fd] = key
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.modify`."""
        old = self.get_key(fileobj)
        key = selectors.SelectorKey(old.fileobj, old.fd, events, data)
        if events != old.events:
            self.rewatch(old.fd, _mask(events))
        self.rehandle(old.fd, self._guest(key))
        self._keys[old.fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.unregister`."""
        key = self.get_key(fileobj)
        del self._keys[key.fd]
        self._drop(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Turn once; return the guest's own keys that are ready (see `selectors.BaseSelector.select`)."""
        self._ready = []
        self.turn(timeout)
        return self._ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """The guest's keys: iterates over descriptors, found by file objects too."""
        return _Keys(self)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """The guest's key of a file object. `KeyError` where it has none."""
        try:
            return self._keys[_descriptor(fileobj)]
        except (KeyError, ValueError):
            for key in self._keys.values():
                if key.fileobj is fileobj:  # closed already, so it has no descriptor any more
                    return key
            raise KeyError(f"{fileobj!r} is not registered") from None

    def close(self) -> None:
        """Close the epoll and the eventfd."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._eventfd)
        self._handlers.clear()
        self._keys.clear()

    def _drop(self, fd: int) -> None:
        self._handlers.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed meanwhile: epoll has forgotten it

    def _guest(self, key: selectors.SelectorKey) -> Handler:
        def ready(events: int) -> None:
            # As `selectors.EpollSelector` has it: an error or a hang-up is readiness for both.
            mask = (selectors.EVENT_READ if events & ~OUT else 0) | (selectors.EVENT_WRITE if events & ~IN else 0)
            if mask & key.events:
                self._ready.append((key, mask & key.events))

        return ready


def _raise(error: Exception) -> None:
    raise error


class _Keys(Mapping[Any, selectors.SelectorKey]):
    """What `get_map` returns: asyncio looks in it for sockets as they are (from Python 3.13 on)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._loop.get_key(fileobj)

    def __iter__(self) -> Iterator[int]:
        return iter(self._loop._keys)

    def __len__(self) -> int:
        return len(self._loop._keys)


def _descriptor(fileobj: Any) -> int:
    fd = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
    if fd < 0:
        raise ValueError(f"bad file descriptor {fd}")
    return fd


def _mask(events: int) -> int:
    if not events or events & ~(selectors.EVENT_READ | selectors.EVENT_WRITE):
        raise ValueError(f"bad events {events!r}")
    return (IN if events & selectors.EVENT_READ else 0) | (OUT if events & selectors.EVENT_WRITE else 0)
