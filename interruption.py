"""Stopping on a signal: at the next batch, with everything closed, and with its exit code."""

import contextlib
import os
import signal
import threading


class Stopped(KeyboardInterrupt):
    """A run that a signal stopped; it goes on with --resume `folder`."""

    def __init__(self, signum, folder):
        super().__init__(signum, str(folder))
        self.signum, self.folder = signum, str(folder)


@contextlib.contextmanager
def stop_requests(folder):
    """Yield a function that raises Stopped once SIGINT or SIGTERM has come; a second ends at once.

    The handlers that were there come back afterwards. Only the main thread can have any: in others
    nothing is caught.
    """
    received = []

    def note(signum, frame):
        if received:
            os._exit(128 + signum)
        received.append(signum)
        os.write(2, b"\nstopping at the next batch; once more ends at once\n")  # print may be busy

    def check():
        if received:
            raise Stopped(received[0], folder)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    before = {s: handler for s, handler in before.items() if handler != signal.SIG_IGN}
    for signum in before:  # one that is ignored, as in a job of the background, stays so
        signal.signal(signum, note)
    try:
        yield check
        check()  # one that came after the last batch
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
