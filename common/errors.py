"""What the user got wrong is one line on stderr and exit code 2, never a traceback."""

import os
import signal
import sys


class UserError(ValueError):
    """A mistake the user can mend. The message names the flag or file and what would be valid."""


def run(main):
    """Call `main()` as a program: a UserError is one line and exit code 2, Ctrl-C exit code 130."""
    try:
        if callable(signal.getsignal(signal.SIGINT)):  # what it does during the imports ends here
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if hasattr(sys.stdout, "reconfigure"):  # names in letters that the terminal lacks
            sys.stdout.reconfigure(errors="backslashreplace")
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except (UserError, OSError) as error:
        name = getattr(error, "filename", "")
        text = f"{name}: {error.strerror}" if name else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        if name is None and hasattr(sys.stdout, "reconfigure"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try once more, and complain
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
