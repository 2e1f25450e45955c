"""Files that may be damaged in any way: whatever a library raises of one is an error of ours that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import DatasetError, PhospheneError, is_memory, shown


@contextlib.contextmanager
def reading(failed: str, remedy: str, error: type[PhospheneError] = DatasetError) -> Iterator[None]:
    """Inside, a library reads a file from elsewhere; whatever it raises becomes `error`: ``failed (why); remedy``.

    Errors of ours pass, and so does a lack of memory, which is no damage.
    """
    try:
        yield
    except PhospheneError:
        raise
    except Exception as why:  # damage can raise nearly anything
        if is_memory(why):
            raise
        raise error(f"{failed} ({shown(' '.join(str(why).split()), str) or type(why).__name__}); {remedy}") from why
