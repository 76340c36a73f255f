# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Selection asks the environment at each call: tests start with none of its variables set."""

import os

import pytest

from selection import log
from selection.lists import BACKEND_VARIABLE


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No VLLM_* variable, no backend, and a log that has said nothing yet."""
    for name in list(os.environ):
        if name.startswith("VLLM_") or name == BACKEND_VARIABLE:
            monkeypatch.delenv(name)
    log.forget()
    yield
    log.forget()
