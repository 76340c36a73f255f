# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The package's log, in which every message with the same arguments appears once a process."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger("selection")


@functools.cache
def info_once(message: str, *args: str) -> None:
    """Logs at INFO, the first time these arguments come."""
    logger.info(message, *args)


@functools.cache
def warn_once(message: str, *args: str) -> None:
    """Logs a warning, the first time these arguments come."""
    logger.warning(message, *args)


_SEEN: set[tuple] = set()


def first_time(*key: object) -> bool:
    """Whether this key has not come before: guards the making of a message."""
    if key in _SEEN:
        return False
    _SEEN.add(key)
    return True


def forget() -> None:
    """Makes every message new again (for tests)."""
    info_once.cache_clear()
    warn_once.cache_clear()
    _SEEN.clear()
