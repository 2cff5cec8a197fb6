"""The event loop: one `select.epoll` and a table of handlers. Knows no HTTP and no application.

Handlers are plain callables, found by descriptor and registered with raw epoll masks, so that level-triggered, edge-triggered
and one-shot are all possible. The object is also a `selectors.BaseSelector`: an asyncio loop that has it as its selector is a
guest on this epoll.

Only one thread turns the loop at a time, but not always the same one (see wsgi/threads.py): a handler may leave by an exception
in the middle of a batch of events, and the thread that turns the loop next handles the rest of the batch.
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

# Events taken from the kernel at once. Few, so that an event that arrives meanwhile does not wait behind a thousand others.
BATCH: Final = 128
TICK: Final = 1.0  # seconds

Handler = Callable[[int], object]


class Loop(selectors.BaseSelector):
    """One epoll. Create it after the fork: epoll watches open files, not descriptors, and would report those of the parent."""

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
        self.waited = 0.0  # seconds that the loop has waited since it was made
        self.busy_since = 0.0  # time.monotonic() at the end of the last wait; 0 during one
        self.on_tick: Callable[[], object] = lambda: None  # once a second
        self.on_turn: Callable[[], object] | None = None  # before each wait
        self.on_error: Callable[[Exception], object] = _raise  # a handler (now dropped) or posted callback raised
        self.stopped = False
        self.watch(self._eventfd, IN, self._on_eventfd)

    # Handlers by descriptor.

    def watch(self, fd: int, mask: int, handler: Handler) -> None:
        """Call `handler(events)` for events of `fd`. `FileExistsError`: it is watched already (epoll_ctl(2))."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def rewatch(self, fd: int, mask: int) -> None:
        """Change the mask. Also with the same mask, what is ready now is reported again, even if edge-triggered or one-shot."""
        self._epoll.modify(fd, mask)

    def rehandle(self, fd: int, handler: Handler) -> None:
        """Change the handler and nothing else, without a system call."""
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget `fd` before it is closed. Needed if another process has the same file open: epoll would still report it."""
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
            wait = 0  # the tick may have woken tasks of a guest, which must not wait for an event
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
        """Handle the events that are left of the batch, then call the posted callbacks."""
        handlers = self._handlers
        for fd, events in self._batch:
            # An earlier handler may have closed this descriptor. Its number may have been reused, which handlers tolerate.
            try:
                handler = handlers[fd]
            except KeyError:
                continue
            try:
                handler(events)
            except Exception as error:
                # A level-triggered event would raise the same error for ever, so the descriptor is dropped.
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
        """Call `callback` in this turn or the next. Any thread may call this and `wake`, and no other method."""
        self._posted.append((callback, arguments))
        self.wake()

    def wake(self) -> None:
        """End the wait in progress, or the next one."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._eventfd, 1)

    def _on_eventfd(self, events: int) -> None:
        os.eventfd_read(self._eventfd)
        self._woken = False  # before the posted callbacks run: a callback that is posted from here on must wake the loop again

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
        """Turn once. Returns those of the guest's keys that are ready (see `selectors.BaseSelector.select`)."""
        self._ready = []
        self.turn(timeout)
        return self._ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """The guest's keys: iteration yields descriptors, a lookup accepts file objects as well."""
        return _Keys(self)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """The guest's key of a file object. Raises `KeyError`."""
        try:
            return self._keys[_descriptor(fileobj)]
        except (KeyError, ValueError):
            for key in self._keys.values():
                if key.fileobj is fileobj:  # it is closed already, so it no longer has a descriptor
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
            pass  # it is closed, so epoll has forgotten it

    def _guest(self, key: selectors.SelectorKey) -> Handler:
        def ready(events: int) -> None:
            # As in `selectors.EpollSelector`, an error or a hang-up is readiness for both.
            mask = (selectors.EVENT_READ if events & ~OUT else 0) | (selectors.EVENT_WRITE if events & ~IN else 0)
            if mask & key.events:
                self._ready.append((key, mask & key.events))

        return ready


def _raise(error: Exception) -> None:
    raise error


class _Keys(Mapping[Any, selectors.SelectorKey]):
    """The result of `get_map`. From Python 3.13 on asyncio looks up socket objects in it, not only descriptors."""

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
