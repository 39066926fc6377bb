"""A LlamaIndex vector store over a `TurboQuantIndex`."""

# ruff: noqa: ARG002 - argument names are those of LlamaIndex

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.schema import BaseNode
    from llama_index.core.vector_stores.types import (
        DEFAULT_PERSIST_DIR,
        DEFAULT_PERSIST_FNAME,
        BasePydanticVectorStore,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import (
        build_metadata_filter_fn,
        metadata_dict_to_node,
        node_to_metadata_dict,
    )
except ImportError as error:
    raise ImportError(
        "tqann.integrations.llama_index needs llama-index-core 0.14 or later: "
        f"pip install 'tqann[llama-index]' ({error})",
        name="llama_index",
    ) from error

from tqann.index import TurboQuantIndex

from .records import RecordStore

__all__ = ["TurboQuantVectorStore"]

_DEFAULT_PATH = f"{DEFAULT_PERSIST_DIR}/{DEFAULT_PERSIST_FNAME}"


class TurboQuantVectorStore(BasePydanticVectorStore):
    """Nodes found by compressed embeddings, in memory, with their text and metadata.

    Adding a node under an id that is there replaces it. Queries take the modes "default" and "mmr", metadata filters,
    `node_ids` and `doc_ids`.

    Parameters
    ----------
    bits : float
        Bits per dimension of the code.
    metric : str
        "cosine", "ip" or "l2". Similarities are those of `tqann.TurboQuantIndex.search`; for "l2" the negative squared
        distance, so that larger is nearer.
    **options
        Other arguments of `tqann.TurboQuantIndex` but `d`: plan, refine_bits, threads, ...

    Examples
    --------
    >>> from llama_index.core.schema import TextNode
    >>> from llama_index.core.vector_stores.types import VectorStoreQuery
    >>> from tqann.integrations.llama_index import TurboQuantVectorStore
    >>> store = TurboQuantVectorStore(bits=4)
    >>> nodes = [TextNode(id_=t, text=t, embedding=e) for t, e in (("1", [1.0, 0.0]), ("2", [0.0, 1.0]))]
    >>> store.add(nodes)
    ['1', '2']
    >>> store.query(VectorStoreQuery(query_embedding=[0.9, 0.1], similarity_top_k=1)).ids
    ['1']
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    flat_metadata: bool = False

    _store: RecordStore = PrivateAttr()

    def __init__(self, bits: float = 4, metric: str = "cosine", **options: Any) -> None:
        super().__init__(stores_text=True)
        self._store = RecordStore({"bits": bits, "metric": metric, **options})

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores."""
        return "TurboQuantVectorStore"

    @property
    def client(self) -> TurboQuantIndex:
        """The index of the embeddings; it must not be changed."""
        return self._store.index

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes with embeddings and return their ids. Keywords are ignored, here and below."""
        ids = [node.node_id for node in nodes]
        records = [node_to_metadata_dict(node, flat_metadata=self.flat_metadata) for node in nodes]
        self._store.put(ids, [node.get_embedding() for node in nodes], records)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document."""
        self._store.remove(
            [i for i in self._store.ids() if self._store.record(i)["ref_doc_id"] == ref_doc_id]
        )

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Remove the nodes that are among `node_ids` and pass `filters`, where these are given."""
        self._store.remove(self._chosen(node_ids, filters))

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that are among `node_ids` and pass `filters`, where these are given."""
        return [metadata_dict_to_node(self._store.record(id_)) for id_ in self._chosen(node_ids, filters)]

    def clear(self) -> None:
        """Remove every node."""
        self._store.clear()

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nearest nodes.

        For the mode "mmr" the keyword `mmr_threshold`, or that of the query, weighs nearness against difference, and
        `mmr_prefetch_k` (by default 4 times `similarity_top_k`) nodes are chosen from.
        """
        if query.query_embedding is None:
            raise ValueError("query.query_embedding must be given, got None")
        if query.mode == VectorStoreQueryMode.DEFAULT:
            found = self._store.search(query.query_embedding, query.similarity_top_k, self._keep(query))
            sign = -1 if self._store.index.metric == "l2" else 1
            return VectorStoreQueryResult(
                nodes=[metadata_dict_to_node(hit.record) for hit in found],
                similarities=[sign * hit.distance for hit in found],
                ids=[hit.id for hit in found],
            )
        if query.mode == VectorStoreQueryMode.MMR:
            return self._diverse(query, query.query_embedding, **kwargs)
        raise ValueError(f'query.mode must be "default" or "mmr", got {query.mode.value!r}')

    def persist(self, persist_path: str = _DEFAULT_PATH, fs: Any = None) -> None:
        """Write the nodes to the JSON file `persist_path` and an index file beside it, on a local disk."""
        _check_local(fs)
        self._store.save(persist_path)

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> TurboQuantVectorStore:
        """Return the store that `persist` wrote; nothing in the files is executed."""
        _check_local(fs)
        if not Path(persist_path).is_file():
            raise ValueError(f"persist_path must be a file that persist wrote, got {persist_path!r}")
        loaded = cls()
        loaded._store = RecordStore.load(persist_path)
        return loaded

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str = DEFAULT_PERSIST_DIR, namespace: str = "default", fs: Any = None
    ) -> TurboQuantVectorStore:
        """Return the store that `StorageContext.persist(persist_dir)` wrote."""
        return cls.from_persist_path(
            os.path.join(persist_dir, f"{namespace}__{DEFAULT_PERSIST_FNAME}"), fs=fs
        )

    def _chosen(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[str]:
        passes = build_metadata_filter_fn(self._store.record, filters)
        ids = self._store.ids() if node_ids is None else [i for i in node_ids if i in self._store]
        return [id_ for id_ in ids if passes(id_)]

    def _keep(self, query: VectorStoreQuery) -> Callable[[str, Any], bool] | None:
        # Retrievers of a store with texts pass an empty list for no restriction.
        nodes, documents = set(query.node_ids or ()), set(query.doc_ids or ())
        if not nodes and not documents and query.filters is None:
            return None
        passes = build_metadata_filter_fn(self._store.record, query.filters)
        return lambda id_, record: (
            (not nodes or id_ in nodes)
            and (not documents or record["ref_doc_id"] in documents)
            and passes(id_)
        )

    def _diverse(
        self,
        query: VectorStoreQuery,
        embedding: list[float],
        *,
        mmr_threshold: float | None = None,
        mmr_prefetch_k: int | None = None,
    ) -> VectorStoreQueryResult:
        k = query.similarity_top_k
        found = self._store.search(embedding, max(k, mmr_prefetch_k or 4 * k), self._keep(query))
        records = {hit.id: hit.record for hit in found}
        similarities, chosen = get_top_k_mmr_embeddings(
            embedding,
            [hit.vector.tolist() for hit in found],
            similarity_top_k=k,
            embedding_ids=list(records),
            mmr_threshold=query.mmr_threshold if mmr_threshold is None else mmr_threshold,
        )
        nodes = [metadata_dict_to_node(records[id_]) for id_ in chosen]
        return VectorStoreQueryResult(nodes=nodes, similarities=similarities, ids=chosen)


def _check_local(fs: Any) -> None:
    if fs is not None and type(fs).__name__ != "LocalFileSystem":
        raise ValueError(f"fs must be None or a local file system of fsspec, got {type(fs).__name__}")
