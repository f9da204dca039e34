"""Bad input ends in one line that names the file or flag and what to do, never in a traceback."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """What a user gave (a file, a folder, a flag) cannot be used; the message names it and says what to do."""


def exit_on_input_error(main: Callable[[], None]) -> Callable[[], None]:
    """
    Wraps the `main` of a script: an [`InputError`] becomes one line on stderr and exit status 2.

    Args:
        main (`Callable[[], None]`): the script's entry point.

    Returns:
        `Callable[[], None]`: the same entry point, which raises `SystemExit(2)` where `main` raised [`InputError`].
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except InputError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None

    return guarded
