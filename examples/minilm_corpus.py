# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A retrieval task that every machine has: the docstrings of Python's standard library.

A docstring's first sentence is a query; the rest of it is the document to find among all the
others. The files are read, never imported, in sorted order, so that one version of Python
gives one corpus.
"""

import ast
import dataclasses
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

# Test-suites and bundled applications: their docstrings are not about the library.
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3"}
_FIRST_SENTENCE = re.compile(r"(.+?[.!?])\s+(?=[A-Z\"'(`>*\[])(.*)")
_MIN_QUERY_WORDS, _MIN_DOCUMENT_WORDS = 4, 12


@dataclasses.dataclass(frozen=True)
class Corpus:
    """queries[i] is answered by documents[i]."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.queries)

    def sample(self, size: int) -> "Corpus":
        """`size` pairs (all, where there are no more), spread evenly over the corpus."""
        if size >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, size).round().astype(int)
        return Corpus(
            tuple(self.queries[i] for i in chosen), tuple(self.documents[i] for i in chosen)
        )


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """(first sentence, the rest), or None where either is too short to be a query or a document.

    >>> split_docstring("Return the first matching item. The search goes from left to right, "
    ...                 "and it stops at the first item for which the key holds.")[0]
    'Return the first matching item.'
    >>> split_docstring("Too short. Really.") is None
    True
    """
    parts = _FIRST_SENTENCE.match(" ".join(docstring.split()))
    if parts is None:
        return None
    query, document = parts.groups()
    if len(query.split()) < _MIN_QUERY_WORDS or len(document.split()) < _MIN_DOCUMENT_WORDS:
        return None
    return query, document


def _docstrings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if _SKIPPED_FOLDERS.intersection(folders) or any(f.startswith("config-") for f in folders):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a few files are written to be unreadable
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring


def read_corpus(library: str | Path | None = None) -> Corpus:
    """Every usable docstring below `library` (default: this Python's standard library).

    A query or document that was seen before is dropped, so each query has one right answer.
    """
    pairs: dict[str, str] = {}
    documents: set[str] = set()
    for docstring in _docstrings(Path(library or sysconfig.get_paths()["stdlib"])):
        pair = split_docstring(docstring)
        if pair is not None and pair[0] not in pairs and pair[1] not in documents:
            pairs[pair[0]] = pair[1]
            documents.add(pair[1])
    return Corpus(tuple(pairs), tuple(pairs.values()))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Token ids padded to one length. Rows past len(rows) are padding: they stand for no text."""

    ids: np.ndarray  # int32 [B, L]
    mask: np.ndarray  # int32 [B, L], 1 on real tokens; a padding row has its first token only
    rows: np.ndarray  # which texts these are


def make_batches(
    texts: Sequence[str], tokenizer: Path, *, batch_tokens: int, lengths: Sequence[int]
) -> list[Batch]:
    """Batches of `batch_tokens` tokens each, texts of like length together.

    There are len(lengths) shapes in all, so XLA compiles few programs, and every batch has the same
    number of tokens, so a linear layer sees one M. Longer texts are cut at the largest length.
    """
    lengths = sorted(lengths)
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(lengths[-1])
    tokens = [encoding.ids for encoding in encoder.encode_batch(list(texts))]
    batches = []
    for shorter, length in zip([0, *lengths[:-1]], lengths, strict=True):
        members = [i for i, ids in enumerate(tokens) if shorter < len(ids) <= length]
        size = max(1, batch_tokens // length)
        for start in range(0, len(members), size):
            rows = np.array(members[start : start + size])
            ids = np.zeros((size, length), np.int32)
            mask = np.zeros((size, length), np.int32)
            mask[:, 0] = 1
            for r, row in enumerate(rows):
                ids[r, : len(tokens[row])] = tokens[row]
                mask[r, : len(tokens[row])] = 1
            batches.append(Batch(ids, mask, rows))
    return batches


def hits(queries: np.ndarray, documents: np.ndarray, k: int) -> float:
    """The share of queries whose own document is among the k nearest. Both are [n, d], unit rows.

    >>> hits(np.eye(3), np.eye(3), 1)
    1.0
    """
    scores = queries @ documents.T
    own = np.diagonal(scores)[:, None]
    return float(np.mean((scores > own).sum(1) < k))
