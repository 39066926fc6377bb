"""The LlamaIndex store, after the tests that LlamaIndex has for its own in-memory store."""

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tqann import IndexFileError
from tqann.integrations.llama_index import TurboQuantVectorStore

BASE = np.eye(16)


def node(name, embedding, document, **metadata):
    return TextNode(
        id_=name,
        text=f"text of {name}",
        embedding=embedding.tolist(),
        metadata=metadata,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)},
    )


@pytest.fixture(params=["cosine", "ip", "l2"])
def store(request):
    built = TurboQuantVectorStore(bits=8, metric=request.param)
    nodes = [
        node("a", BASE[0], "first", weight=1.0, rank="low", tags=["x", "y"]),
        node("b", BASE[0] + 0.2 * BASE[1], "first", weight=2.0, rank="high"),
        node("c", BASE[2], "second", weight=3.0, rank="high"),
    ]
    assert built.add(nodes) == ["a", "b", "c"]
    return built


def filters(*triples, condition=FilterCondition.AND):
    made = [MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples]
    return MetadataFilters(filters=made, condition=condition)


def ask(store, embedding=BASE[0], k=3, **options):
    return store.query(VectorStoreQuery(query_embedding=embedding.tolist(), similarity_top_k=k, **options))


def test_class():
    assert BasePydanticVectorStore.__name__ in [base.__name__ for base in TurboQuantVectorStore.__mro__]
    assert TurboQuantVectorStore.class_name() == "TurboQuantVectorStore"


def test_query_returns_whole_nodes_best_first(store):
    result = ask(store)
    assert result.ids[:2] == ["a", "b"]
    assert result.similarities == sorted(result.similarities, reverse=True)
    assert [found.node_id for found in result.nodes] == result.ids
    assert result.nodes[0].get_content() == "text of a"
    assert result.nodes[0].metadata == {"weight": 1.0, "rank": "low", "tags": ["x", "y"]}
    assert result.nodes[0].ref_doc_id == "first"
    assert ask(store, k=1).ids == ["a"]


def test_similarity_is_that_of_the_metric():
    store = TurboQuantVectorStore(bits=8)
    store.add([node("a", BASE[0] + BASE[1], "first")])
    assert ask(store).similarities[0] == pytest.approx(0.5**0.5, abs=0.01)


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (filters(("rank", FilterOperator.EQ, "high")), {"b", "c"}),
        (filters(("weight", FilterOperator.GT, 1.0), ("weight", FilterOperator.LT, 3.0)), {"b"}),
        (filters(("weight", FilterOperator.IN, [1.0, 3.0])), {"a", "c"}),
        (filters(("rank", FilterOperator.NE, "high")), {"a"}),
        (filters(("tags", FilterOperator.CONTAINS, "x")), {"a"}),
        (
            filters(
                ("rank", FilterOperator.EQ, "low"),
                ("weight", FilterOperator.EQ, 3.0),
                condition=FilterCondition.OR,
            ),
            {"a", "c"},
        ),
        (filters(("rank", FilterOperator.EQ, "none")), set()),
    ],
)
def test_metadata_filters(store, wanted, ids):
    assert set(ask(store, filters=wanted).ids) == ids
    assert {found.node_id for found in store.get_nodes(filters=wanted)} == ids


def test_restriction_to_nodes_and_documents(store):
    assert ask(store, node_ids=["c", "unknown"]).ids == ["c"]
    assert ask(store, doc_ids=["second"]).ids == ["c"]
    assert ask(store, doc_ids=["second"], node_ids=["a"]).ids == []
    assert [found.node_id for found in store.get_nodes(["c", "unknown", "a"])] == ["c", "a"]


def test_deletion(store):
    store.delete("first")
    assert ask(store).ids == ["c"]
    store.delete("unknown")
    store.delete_nodes(["c"], filters(("rank", FilterOperator.EQ, "low")))
    assert ask(store).ids == ["c"]
    store.delete_nodes(["c", "unknown"])
    assert ask(store).ids == []
    assert ask(store, mode=VectorStoreQueryMode.MMR).ids == []


def test_clear_and_replacement(store):
    store.add([node("a", BASE[5], "third", rank="new")])
    assert ask(store, BASE[5], 1).nodes[0].metadata == {"rank": "new"}
    assert len(store.get_nodes()) == store.client.ntotal == 3
    store.clear()
    assert store.get_nodes() == []


def test_mmr_prefers_what_differs():
    store = TurboQuantVectorStore(bits=8)
    twin, other = BASE[0] + 0.01 * BASE[1], BASE[0] + BASE[2]
    store.add([node("first", BASE[0], "d"), node("twin", twin, "d"), node("other", other, "d")])
    assert set(ask(store, k=2).ids) == {"first", "twin"}
    assert "other" in ask(store, k=2, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.3).ids
    query = VectorStoreQuery(query_embedding=BASE[0].tolist(), similarity_top_k=2, mode="mmr")
    assert set(store.query(query, mmr_threshold=1.0).ids) == {"first", "twin"}


def test_what_is_not_supported_is_named(store):
    with pytest.raises(ValueError, match=r'query\.mode must be "default" or "mmr"'):
        ask(store, mode=VectorStoreQueryMode.SPARSE)
    with pytest.raises(ValueError, match="query_embedding must be given"):
        store.query(VectorStoreQuery(query_str="text"))
    with pytest.raises(ValueError, match="fs must be None or a local file system"):
        store.persist(fs=object())


def test_persistence(store, tmp_path):
    path = tmp_path / "sub" / "store.json"
    store.persist(str(path))
    loaded = TurboQuantVectorStore.from_persist_path(str(path))
    assert ask(loaded).ids == ask(store).ids
    assert ask(loaded).similarities == ask(store).similarities
    assert ask(loaded).nodes == ask(store).nodes
    with pytest.raises(ValueError, match="persist_path must be a file that persist wrote"):
        TurboQuantVectorStore.from_persist_path(str(tmp_path / "none.json"))
    path.write_text("{}")
    with pytest.raises(IndexFileError):
        TurboQuantVectorStore.from_persist_path(str(path))


def test_in_a_vector_store_index(tmp_path):
    store = TurboQuantVectorStore()
    context = StorageContext.from_defaults(vector_store=store)
    nodes = [TextNode(id_=str(n), text=f"text {n}", embedding=BASE[n].tolist()) for n in range(5)]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=MockEmbedding(embed_dim=16))
    found = index.as_retriever(similarity_top_k=2).retrieve("anything")
    assert len(found) == 2
    index.storage_context.persist(str(tmp_path))
    loaded = TurboQuantVectorStore.from_persist_dir(str(tmp_path))
    again = VectorStoreIndex.from_vector_store(loaded, embed_model=MockEmbedding(embed_dim=16))
    assert [hit.node_id for hit in again.as_retriever(similarity_top_k=2).retrieve("anything")] == [
        hit.node_id for hit in found
    ]
