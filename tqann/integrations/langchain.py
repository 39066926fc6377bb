"""A LangChain vector store over a `TurboQuantIndex`."""

# ruff: noqa: A002, ARG002 - argument names are those of LangChain

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise ImportError(
        f"tqann.integrations.langchain needs langchain-core 1.0 or later: pip install 'tqann[langchain]' ({error})",
        name="langchain_core",
    ) from error

from .records import RecordStore

__all__ = ["TurboQuantVectorStore"]

Filter = Callable[[Document], bool] | dict[str, Any]
_FILE = "store.json"


class TurboQuantVectorStore(VectorStore):
    """Documents found by compressed embeddings, in memory, with saving to a folder.

    Adding a document under an id that is there replaces it. A `filter` of the searches is a function from Document
    to bool, or a dictionary of metadata that must be equal.

    Parameters
    ----------
    embedding : Embeddings
    bits : float
        Bits per dimension of the code.
    metric : str
        "cosine", "ip" or "l2". Scores of the searches are similarities, or squared distances (smallest best) for "l2".
    **options
        Other arguments of `tqann.TurboQuantIndex` but `d`: plan, refine_bits, threads, ...

    Examples
    --------
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> from tqann.integrations.langchain import TurboQuantVectorStore
    >>> store = TurboQuantVectorStore(DeterministicFakeEmbedding(size=64), bits=4)
    >>> store.add_texts(["a", "b"], ids=["1", "2"])
    ['1', '2']
    >>> [document.page_content for document in store.similarity_search("a", k=1)]
    ['a']
    """

    def __init__(
        self, embedding: Embeddings, *, bits: float = 4, metric: str = "cosine", **options: Any
    ) -> None:
        self._embedding = embedding
        self._store = RecordStore({"bits": bits, "metric": metric, **options})

    def __len__(self) -> int:
        return len(self._store)

    def __bool__(self) -> bool:
        return True

    @property
    def embeddings(self) -> Embeddings:
        """The embedding given."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and store texts; return their ids, made where none are given. Other keywords are ignored."""
        texts = list(texts)
        return self.add_embeddings(texts, self._embedding.embed_documents(texts), metadatas, ids=ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, with the embedding's asynchronous method."""
        texts = list(texts)
        return self.add_embeddings(texts, await self._embedding.aembed_documents(texts), metadatas, ids=ids)

    def add_embeddings(
        self,
        texts: Sequence[str],
        embeddings: Any,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Store texts with embeddings made elsewhere, float [n, d]; return their ids."""
        metadatas = [{}] * len(texts) if metadatas is None else metadatas
        ids = [None] * len(texts) if ids is None else ids
        for name, values in (("metadatas", metadatas), ("ids", ids)):
            if len(values) != len(texts):
                raise ValueError(f"{name} must be as many as texts, {len(texts)}, got {len(values)}")
        names = [id_ or str(uuid.uuid4()) for id_ in ids]
        records = [
            {"text": text, "metadata": dict(metadata)}
            for text, metadata in zip(texts, metadatas, strict=True)
        ]
        self._store.put(names, embeddings, records)
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents, all of them without `ids`; unknown ids count nothing. Other keywords are ignored."""
        if ids is None:
            self._store.clear()
        else:
            self._store.remove(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents under `ids` that are there, in that order."""
        return [_document(id_, self._store.record(id_)) for id_ in ids if id_ in self._store]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents nearest to a text."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the k documents nearest to a text, with their scores."""
        embedding = self._embedding.embed_query(query)
        return self.similarity_search_with_score_by_vector(embedding, k, filter=filter)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents nearest to an embedding."""
        found = self.similarity_search_with_score_by_vector(embedding, k, filter=filter)
        return [document for document, _ in found]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the k documents nearest to an embedding, with their scores."""
        found = self._store.search(embedding, k, _keep(filter))
        return [(_document(hit.id, hit.record), hit.distance) for hit in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return k of the `fetch_k` documents nearest to a text, chosen to differ.

        `lambda_mult` from 0 to 1 weighs nearness against difference.
        """
        embedding = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, filter=filter)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for an embedding; documents compare as their codes have them."""
        found = self._store.search(embedding, max(k, fetch_k), _keep(filter))
        if not found:
            return []
        query = np.asarray(embedding, dtype=np.float32)
        chosen = maximal_marginal_relevance(query, [hit.vector.tolist() for hit in found], lambda_mult, k)
        return [_document(found[i].id, found[i].record) for i in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> TurboQuantVectorStore:
        """Return a store of texts; keywords are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the documents to `folder`, as JSON and an index file; at any moment one complete state is there."""
        self._store.save(Path(folder) / _FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], embedding: Embeddings) -> TurboQuantVectorStore:
        """Return the store that `save` wrote, to be asked through `embedding`; nothing in the files is executed."""
        store = cls(embedding)
        store._store = RecordStore.load(Path(folder) / _FILE)
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        metric = self._store.index.metric
        if metric == "l2":
            return lambda score: _between_0_and_1(self._euclidean_relevance_score_fn(max(score, 0.0) ** 0.5))
        return _between_0_and_1


def _between_0_and_1(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _document(id_: str, record: dict[str, Any]) -> Document:
    return Document(id=id_, page_content=record["text"], metadata=dict(record["metadata"]))


def _keep(wanted: Filter | None) -> Callable[[str, Any], bool] | None:
    if wanted is None:
        return None
    if callable(wanted):
        return lambda id_, record: wanted(_document(id_, record))
    if not isinstance(wanted, dict):
        raise TypeError(
            f"filter must be a function of a Document or a dictionary, got {type(wanted).__name__}"
        )
    items = wanted.items()
    return lambda _, record: all(
        key in record["metadata"] and record["metadata"][key] == value for key, value in items
    )
