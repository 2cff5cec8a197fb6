"""The loop with real descriptors: triggers, order, other threads, and an asyncio loop as its guest. No server.

Long: one class, which is a loop, a selector, and safe to hand from thread to thread.
"""

import asyncio
import contextlib
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from epollard.net.loop import EDGE, IN, ONESHOT, OUT, TICK, Loop
from harness import WAIT, wait_for


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends that do not block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    wait_for(lambda: loop.turn(0) or condition())


def quiet(loop: Loop, seen: list[int], turns: int = 3) -> bool:
    """A few turns without waiting add nothing to `seen`."""
    before = len(seen)
    for _ in range(turns):
        loop.turn(0)
    return len(seen) == before


# --- Triggers --------------------------------------------------------------------------------------------------------


def test_a_level_triggered_event_repeats(loop, pair):
    """Unread bytes are reported in each turn until they are read."""
    ours, theirs = pair
    seen: list[int] = []
    loop.watch(ours.fileno(), IN, seen.append)
    assert quiet(loop, seen)
    theirs.send(b"ab")
    for count in 1, 2, 3:
        loop.turn(0)
        assert seen == [IN] * count
    ours.recv(2)
    assert quiet(loop, seen)


def test_an_edge_triggered_event_comes_once(loop, pair):
    """Unread bytes are not reported again, until more bytes come or `rewatch` asks for them."""
    ours, theirs = pair
    seen: list[int] = []
    loop.watch(ours.fileno(), IN | EDGE, seen.append)
    theirs.send(b"a")
    loop.turn(0)
    assert seen == [IN]
    assert quiet(loop, seen)
    theirs.send(b"b")
    loop.turn(0)
    assert seen == [IN] * 2
    assert quiet(loop, seen)
    loop.rewatch(ours.fileno(), IN | EDGE)
    loop.turn(0)
    assert seen == [IN] * 3


def test_a_one_shot_event_needs_another_rewatch(loop, pair):
    """After one event nothing is reported, not even new bytes, until `rewatch`."""
    ours, theirs = pair
    seen: list[int] = []
    loop.watch(ours.fileno(), IN | ONESHOT, seen.append)
    theirs.send(b"a")
    loop.turn(0)
    assert seen == [IN]
    theirs.send(b"b")
    assert quiet(loop, seen)
    loop.rewatch(ours.fileno(), IN | ONESHOT)
    loop.turn(0)
    assert seen == [IN] * 2
    assert quiet(loop, seen)


def test_the_mask_is_what_is_reported(loop, pair):
    """Readable and writable are separate; a hang-up is reported even with an empty mask."""
    ours, theirs = pair
    seen: list[int] = []
    loop.watch(ours.fileno(), OUT, seen.append)
    loop.turn(0)
    assert seen == [OUT]
    loop.rewatch(ours.fileno(), IN | OUT)
    theirs.send(b"a")
    loop.turn(0)
    assert seen == [OUT, IN | OUT]
    loop.rewatch(ours.fileno(), 0)
    assert quiet(loop, seen)
    theirs.close()
    loop.turn(0)
    assert seen[2:] == [select.EPOLLHUP]


# --- Handlers --------------------------------------------------------------------------------------------------------


def test_a_descriptor_has_one_watch(loop, pair):
    """A second watch is an error and leaves the first as it was."""
    ours, theirs = pair
    seen: list[int] = []
    loop.watch(ours.fileno(), IN, seen.append)
    with pytest.raises(FileExistsError):
        loop.watch(ours.fileno(), IN, lambda events: seen.append(-1))
    theirs.send(b"a")
    loop.turn(0)
    assert seen == [IN]


def test_a_handler_is_changed_without_asking_epoll(loop, pair):
    """`rehandle` replaces the handler, and the events stay the same."""
    ours, theirs = pair
    first: list[int] = []
    second: list[int] = []
    loop.watch(ours.fileno(), IN, first.append)
    theirs.send(b"a")
    loop.turn(0)
    assert first == [IN]
    loop.rehandle(ours.fileno(), second.append)
    loop.turn(0)
    assert (first, second) == ([IN], [IN])


def test_unwatch_works_while_another_process_holds_the_file(loop, pair):
    """The trap: epoll follows the open file, not the descriptor. The supervisor holds each listener, too."""
    ours, theirs = pair
    seen: list[int] = []
    other = os.dup(ours.fileno())
    try:
        loop.watch(ours.fileno(), IN, seen.append)
        loop.unwatch(ours.fileno())
        theirs.send(b"a")
        assert quiet(loop, seen)
        loop.watch(ours.fileno(), IN, seen.append)
        loop.turn(0)
        assert seen == [IN]
    finally:
        os.close(other)


def test_a_reused_number_is_another_descriptor(loop):
    """Closed and forgotten, then opened as another file: only the new handler is called, and only for the new file."""
    old, old_peer = socket.socketpair()
    number = old.fileno()
    heard: list[str] = []
    loop.watch(number, IN, lambda events: heard.append("old"))
    loop.forget(number)
    old.close()
    new, new_peer = socket.socketpair()
    with old_peer, new, new_peer:
        if new.fileno() != number:
            os.dup2(new.fileno(), number)
        loop.watch(number, IN, lambda events: heard.append("new"))
        with contextlib.suppress(OSError):
            old_peer.send(b"a")
        loop.turn(0)
        assert heard == []
        new_peer.send(b"a")
        loop.turn(0)
        assert heard == ["new"]
        if new.fileno() != number:
            os.close(number)


def test_a_descriptor_closed_in_the_same_batch_is_not_handled(loop):
    """Two are ready, and the handler that is called first closes the other descriptor, whose handler is then not called."""
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def handler(mine: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            called.append(mine)
            loop.forget(pairs[mine][0].fileno())
            loop.forget(pairs[1 - mine][0].fileno())
            pairs[1 - mine][0].close()

        return ready

    with contextlib.ExitStack() as stack:
        for index, (ours, theirs) in enumerate(pairs):
            stack.enter_context(ours)
            stack.enter_context(theirs).send(b"a")
            loop.watch(ours.fileno(), IN, handler(index))
        loop.turn(0)
        assert len(called) == 1


def test_an_interrupted_batch_is_finished(loop):
    """If a handler leaves by an exception, no event is lost: `finish_turn` handles the rest, also edge-triggered ones."""
    pairs = [socket.socketpair() for _ in range(5)]
    called: list[int] = []

    class LeaveError(Exception):
        pass

    def handler(index: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            called.append(index)
            if len(called) in (1, 3):
                raise LeaveError

        return ready

    with contextlib.ExitStack() as stack:
        for index, (ours, theirs) in enumerate(pairs):
            stack.enter_context(ours)
            stack.enter_context(theirs).send(b"a")
            loop.watch(ours.fileno(), IN | EDGE, handler(index))
        loop.post(called.append, -1)
        with pytest.raises(LeaveError):
            loop.turn(0)
        assert len(called) == 1
        with pytest.raises(LeaveError):
            loop.finish_turn()
        assert len(called) == 3
        loop.finish_turn()
        assert sorted(called) == [-1, *range(5)]
        assert called[-1] == -1


# --- Time and other threads ------------------------------------------------------------------------------------------


def test_ticks_come_once_a_second(loop):
    """The first turn ticks, and the next tick comes a second later; a turn without a timeout ends with the next tick."""
    ticks: list[float] = []
    loop.on_tick = lambda: ticks.append(time.monotonic())
    for _ in range(10):
        loop.turn(0)
    assert len(ticks) == 1
    while len(ticks) < 2:
        loop.turn()
    assert TICK <= ticks[1] - ticks[0] < TICK + WAIT / 20


def test_a_timeout_is_kept(loop):
    """A turn waits for its timeout and not for the tick. Zero and negative timeouts do not wait."""
    loop.turn(0)
    start = time.monotonic()
    loop.turn(-1)
    loop.turn(0)
    loop.turn(0.05)
    assert 0.05 <= time.monotonic() - start < TICK / 2 + WAIT / 20


def test_before_each_wait(loop):
    """`on_turn` is called once in each turn, before the wait: the place to write lines that the last turn gathered."""
    order: list[str] = []
    loop.on_turn = lambda: order.append("turn")
    loop.post(order.append, "posted")
    loop.turn(0)
    loop.turn(0)
    assert order == ["turn", "posted", "turn"]


def test_a_callback_posted_by_a_callback_waits_for_the_next_turn(loop):
    """A callback that posts itself again does not keep the loop from its descriptors."""
    count: list[int] = []

    def again() -> None:
        count.append(0)
        loop.post(again)

    loop.post(again)
    for turns in 1, 2, 3:
        start = time.monotonic()
        loop.turn(TICK)
        assert len(count) == turns
        assert time.monotonic() - start < TICK / 2 + WAIT / 20


def test_callbacks_of_other_threads_are_all_called(loop):
    """Thousands from several threads at once, while the loop waits: none is lost, and those of one thread are in order."""
    seen: list[tuple[int, int]] = []
    posts = 2000

    def post(thread: int) -> None:
        for number in range(posts):
            loop.post(lambda *arguments: seen.append(arguments), thread, number)

    threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WAIT
    while len(seen) < posts * len(threads) and time.monotonic() < deadline:
        loop.turn()
    for thread in threads:
        thread.join()
    for number in range(len(threads)):
        assert [post for thread, post in seen if thread == number] == list(range(posts))


def test_a_post_ends_the_wait(loop):
    """While the loop sleeps, a callback that another thread posts is called at once, not at the next tick."""
    loop.turn(0)
    main = threading.get_native_id()
    called: list[float] = []
    delays: list[float] = []
    for _ in range(3):
        ready = threading.Event()

        def post(ready: threading.Event = ready) -> None:
            ready.wait()
            while not _sleeps(main):
                pass
            loop.post(lambda posted: called.append(time.monotonic() - posted), time.monotonic())

        thread = threading.Thread(target=post)
        thread.start()
        ready.set()
        while len(called) == len(delays):
            loop.turn()
        delays.append(called[-1])
        thread.join()
    assert min(delays) < TICK / 4


def _sleeps(thread: int) -> bool:
    """Whether a thread of this process waits in the kernel (proc_pid_stat(5))."""
    with open(f"/proc/self/task/{thread}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def test_run_ends_when_it_is_stopped(loop):
    """`stopped` is seen after the turn that set it."""
    loop.post(lambda: setattr(loop, "stopped", True))
    loop.run()
    assert loop.stopped


def test_close_closes_the_descriptors():
    """The epoll and the eventfd are closed, and a second close does no harm."""
    before = set(os.listdir("/proc/self/fd"))
    loop = Loop()
    loop.close()
    loop.close()
    assert set(os.listdir("/proc/self/fd")) == before


# --- selectors.BaseSelector ------------------------------------------------------------------------------------------


def test_it_is_a_selector_like_the_standard_one(loop, pair):
    """Keys, events and errors equal those of `selectors.EpollSelector`, step by step.

    Long: one history, in which each step starts from the state that the step before has left.
    """
    ours, theirs = pair
    with selectors.EpollSelector() as standard:

        def both(call: Callable[[selectors.BaseSelector], object]) -> object:
            results = []
            for selector in loop, standard:
                try:
                    results.append(call(selector))
                except Exception as error:
                    results.append(type(error))
            assert results[0] == results[1]
            return results[0]

        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        both(lambda selector: selector.register(ours, read | write, "data"))
        assert both(lambda selector: selector.select(0))
        assert both(lambda selector: selector.register(ours, read)) is KeyError
        assert both(lambda selector: selector.register(theirs, 0)) is ValueError
        assert both(lambda selector: selector.register(theirs, 8)) is ValueError
        assert both(lambda selector: selector.register(-1, read)) is ValueError
        assert both(lambda selector: selector.get_key(theirs)) is KeyError
        assert both(lambda selector: selector.unregister(theirs)) is KeyError
        assert both(lambda selector: selector.modify(theirs, read)) is KeyError
        both(lambda selector: selector.modify(ours, read, "other"))
        assert both(lambda selector: selector.select(0)) == []
        theirs.send(b"a")
        assert both(lambda selector: selector.select(0))
        both(lambda selector: selector.modify(ours, read, "same events"))
        assert both(lambda selector: selector.select(0))
        both(lambda selector: selector.modify(ours, write, "same events"))
        both(lambda selector: selector.get_key(ours))
        both(lambda selector: selector.get_key(ours.fileno()))
        both(lambda selector: dict(selector.get_map().items()))
        both(lambda selector: (selector.get_map()[ours], selector.get_map().get(theirs)))
        ours.recv(1)
        both(lambda selector: selector.modify(ours, read))
        theirs.close()
        assert both(lambda selector: selector.select(0))
        both(lambda selector: selector.modify(ours, write))
        assert both(lambda selector: selector.select(0))
        both(lambda selector: selector.unregister(ours))
        both(lambda selector: selector.select(0))
        both(lambda selector: selector.register(ours, read))
        ours.close()
        both(lambda selector: selector.get_key(ours).data)
        both(lambda selector: selector.unregister(ours).data)
        both(lambda selector: dict(selector.get_map()))


def test_our_handlers_are_not_keys_of_the_guest(loop, pair):
    """`select` calls our handlers and returns only the guest's keys."""
    ours, theirs = pair
    seen: list[int] = []
    key = loop.register(theirs, selectors.EVENT_WRITE)
    loop.watch(ours.fileno(), IN, seen.append)
    theirs.send(b"a")
    assert loop.select(0) == [(key, selectors.EVENT_WRITE)]
    assert seen == [IN]
    assert list(loop.get_map()) == [theirs.fileno()]
    with pytest.raises(KeyError):
        loop.get_key(ours)


# --- asyncio as a guest ----------------------------------------------------------------------------------------------


def run(main) -> object:
    """Run a coroutine function on an asyncio loop that is a guest of ours. Its argument is our loop."""
    loop = Loop()

    async def bounded() -> object:
        async with asyncio.timeout(WAIT):
            return await main(loop)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(loop)) as runner:
        return runner.run(bounded())


def test_asyncio_streams():
    """A server and many clients of asyncio, more bytes than a socket takes at once, and the close of both ends."""

    async def main(loop: Loop) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def ask(number: int) -> bytes:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            data = bytes([number]) * 300_000
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert answer == data
            return answer

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            answers = await asyncio.gather(*map(ask, range(10)))
        assert len(answers) == 10

    run(main)


def test_asyncio_executor_and_threads():
    """`run_in_executor`, `to_thread` and `call_soon_threadsafe` wake the loop."""

    async def main(loop: Loop) -> None:
        running = asyncio.get_running_loop()
        assert await running.run_in_executor(None, lambda: threading.current_thread() is threading.main_thread()) is False
        assert await asyncio.gather(*(asyncio.to_thread(pow, 2, number) for number in range(20))) == [2**n for n in range(20)]
        woken = asyncio.Event()
        thread = threading.Thread(target=running.call_soon_threadsafe, args=(woken.set,))
        thread.start()
        await woken.wait()
        thread.join()

    run(main)


def test_asyncio_subprocess():
    """A child's pipes and its exit status."""

    async def main(loop: Loop) -> None:
        code = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)
        out, _ = await child.communicate(b"hello")
        assert out == b"HELLO"
        assert child.returncode == 3

    run(main)


def test_asyncio_signals():
    """A signal handler runs as a callback of the loop, even if the loop was asleep."""

    async def main(loop: Loop) -> None:
        running = asyncio.get_running_loop()
        heard = asyncio.Event()
        running.add_signal_handler(signal.SIGUSR2, heard.set)
        running.call_later(0.01, os.kill, os.getpid(), signal.SIGUSR2)
        await heard.wait()
        assert running.remove_signal_handler(signal.SIGUSR2)

    run(main)


def test_asyncio_readers_and_writers():
    """`add_reader` and `add_writer` on one descriptor; the writer is removed first, then the reader."""

    async def main(loop: Loop) -> None:
        running = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            readable, writable = asyncio.Event(), asyncio.Event()
            running.add_reader(ours, readable.set)
            running.add_writer(ours, writable.set)
            await writable.wait()
            assert not readable.is_set()
            assert running.remove_writer(ours)
            theirs.send(b"a")
            await readable.wait()
            assert running.remove_reader(ours)
            assert not running.remove_reader(ours)
            assert ours.fileno() not in loop.get_map()

    run(main)


def test_asyncio_timers():
    """Timers shorter and longer than a tick fire in order and on time, and ticks continue."""

    async def main(loop: Loop) -> None:
        ticks: list[float] = []
        loop.on_tick = lambda: ticks.append(time.monotonic())
        order: list[int] = []
        start = time.monotonic()

        async def sleep(number: int, delay: float) -> None:
            await asyncio.sleep(delay)
            assert time.monotonic() - start >= delay
            order.append(number)

        await asyncio.gather(sleep(3, 1.1 * TICK), sleep(2, 0.05), sleep(1, 0.01), sleep(0, 0))
        assert order == [0, 1, 2, 3]
        assert ticks

    run(main)


def test_our_handlers_next_to_asyncio():
    """While asyncio runs, our handlers on the same epoll get their events, may start tasks, and tasks may post to our loop."""

    async def main(loop: Loop) -> None:
        running = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        done: asyncio.Future[str] = running.create_future()
        tasks = []

        async def answer(data: bytes) -> None:
            await asyncio.sleep(0)
            loop.post(done.set_result, data.decode())

        def ready(events: int) -> None:
            tasks.append(running.create_task(answer(ours.recv(100))))

        with ours, theirs:
            loop.watch(ours.fileno(), IN | EDGE, ready)
            _, writer = await asyncio.open_connection(sock=theirs)
            writer.write(b"hello")
            assert await done == "hello"
            loop.unwatch(ours.fileno())
            writer.close()
            await writer.wait_closed()

    run(main)


def test_asyncio_leaves_nothing():
    """After the guest has ended, none of its descriptors and keys is left."""
    before = set(os.listdir("/proc/self/fd"))
    loops = []

    async def main(loop: Loop) -> None:
        loops.append(loop)
        await asyncio.sleep(0)
        assert len(loop.get_map()) == 1  # asyncio's own pipe

    run(main)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not loops[0].get_map()
