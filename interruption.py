"""Stopping on a signal: at the next batch, with everything closed, and with its exit code."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

from distributed import rank, world


class Stopped(KeyboardInterrupt):
    """A run that a signal stopped; it goes on with --resume `folder`."""

    def __init__(self, signum, folder):
        super().__init__(signum, str(folder))
        self.signum, self.folder = signum, str(folder)


@contextlib.contextmanager
def stop_requests(folder, agree=lambda signum, final: signum):
    """Yield a function that raises Stopped once SIGINT or SIGTERM has come; a second ends at once.

    Of several processes, all stop where one got a signal: `agree(signum, final)` is what they
    agree on. torchrun sends them every signal that it gets, Ctrl-C thus twice, and ends them itself
    where they take long.

    The handlers that were there come back afterwards. Only the main thread can have any: in others
    nothing is caught.
    """
    received = []

    def note(signum, frame):
        if received and world() == 1:
            os._exit(128 + signum)
        received.append(signum)
        if rank() == 0 and len(received) == 1 and not multiprocessing.parent_process():
            more = b"; once more ends at once" if world() == 1 else b""
            with contextlib.suppress(OSError):  # nobody may read, or the disk be full
                os.write(2, b"\nstopping at the next batch" + more + b"\n")  # print may be busy

    def check(final=False):
        if signum := agree(received[0] if received else 0, final):
            raise Stopped(signum, folder)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    before = {s: handler for s, handler in before.items() if handler != signal.SIG_IGN}
    for signum in before:  # one that is ignored, as in a job of the background, stays so
        signal.signal(signum, note)
    try:
        yield check
        check(final=True)  # one that came after the last batch
    finally:
        # of several processes those that stop do not listen again: a second Ctrl-C is on its way
        for signum, handler in before.items() if world() == 1 or not received else ():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def end_with_parent():
    """End this process when the one that started it is gone, however that ended.

    A process of a pool waits for work for ever, one of torchrun trains on.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()

    def watch():
        if parent:
            parent.join()
        while not parent and os.getppid() == number:
            time.sleep(1)
        os._exit(1)  # the checkpoints on the disk are whole at every moment

    threading.Thread(target=watch, daemon=True).start()
