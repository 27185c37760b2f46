"""Ctrl-C, SIGTERM and a lost terminal end a training after a step, not in the middle of one."""

import contextlib
import signal

from . import processes

SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]


class Stop:
    """Turns the first signal into a request to finish the step; the second one acts at once."""

    def __init__(self):
        self.signal = 0

    def __enter__(self):
        self.before = {}
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in SIGNALS:
                if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    self.before[number] = signal.signal(number, self.request)
        return self

    def request(self, number, frame):
        self.signal = number
        signal.signal(number, self.before[number])

    def requested(self, device):
        """The number of the signal that any of the processes received, else 0."""
        return int(processes.agree(self.signal, "MAX", device))

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
