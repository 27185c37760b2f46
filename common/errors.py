"""What the user got wrong is one line on stderr and exit code 2, never a traceback."""

import sys


class UserError(ValueError):
    """A mistake the user can mend. The message names the flag or file and what would be valid."""


def run(main):
    """Call `main()` as a program: a UserError is one line and exit code 2, Ctrl-C exit code 130."""
    try:
        sys.exit(main())
    except (UserError, PermissionError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
