"""The LangChain store: LangChain's own suite, and what it leaves open."""

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")
standard = pytest.importorskip("langchain_tests.integration_tests", reason="needs langchain-tests")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import DeterministicFakeEmbedding  # noqa: E402

from tqann import IndexFileError  # noqa: E402
from tqann.integrations.langchain import TurboQuantVectorStore  # noqa: E402

EMBEDDING = DeterministicFakeEmbedding(size=48)
TEXTS = ["oak", "elm", "ash", "fir", "yew", "box"]


class TestStandard(standard.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return TurboQuantVectorStore(self.get_embeddings())


@pytest.fixture(params=["cosine", "ip", "l2"])
def store(request):
    metadatas = [{"length": 3, "n": n} for n in range(len(TEXTS))]
    return TurboQuantVectorStore.from_texts(
        TEXTS, EMBEDDING, metadatas, ids=[f"id {text}" for text in TEXTS], bits=8, metric=request.param
    )


def contents(documents):
    return [document.page_content for document in documents]


def test_scores_order_and_relevance(store):
    found = store.similarity_search_with_score("ash", k=6)
    assert found[0][0] == Document(id="id ash", page_content="ash", metadata={"length": 3, "n": 2})
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=store._store.index.metric != "l2")
    relevances = [score for _, score in store.similarity_search_with_relevance_scores("ash", k=6)]
    assert all(0 <= relevance <= 1 for relevance in relevances)
    assert relevances == sorted(relevances, reverse=True)
    assert relevances[0] == pytest.approx(1, abs=0.02)


def test_exact_scores_within_the_code():
    store = TurboQuantVectorStore.from_texts(TEXTS, EMBEDDING, bits=8)
    query = np.array(EMBEDDING.embed_query("oak and elm"))
    for document, score in store.similarity_search_with_score("oak and elm", k=6):
        other = np.array(EMBEDDING.embed_query(document.page_content))
        cosine = query @ other / np.linalg.norm(query) / np.linalg.norm(other)
        assert score == pytest.approx(cosine, abs=0.02)


@pytest.mark.parametrize("chosen", [lambda document: document.metadata["n"] == 4, {"n": 4, "length": 3}])
def test_filters(store, chosen):
    assert contents(store.similarity_search("oak", k=3, filter=chosen)) == ["yew"]
    assert contents(store.max_marginal_relevance_search("oak", k=3, filter=chosen)) == ["yew"]
    assert store.similarity_search("oak", filter={"n": 4, "absent": None}) == []
    with pytest.raises(TypeError, match="filter must be a function"):
        store.similarity_search("oak", filter="n == 4")


def test_marginal_relevance_prefers_what_differs():
    store = TurboQuantVectorStore(EMBEDDING, bits=8)
    base = np.eye(16)
    near = base[0] + 0.01 * base[1]
    store.add_embeddings(["first", "twin", "other"], [base[0], near, base[0] + base[2]])
    query = base[0].tolist()
    assert contents(store.similarity_search_by_vector(query, k=2)) == ["first", "twin"]
    chosen = store.max_marginal_relevance_search_by_vector(query, k=2, lambda_mult=0.3)
    assert contents(chosen) == ["first", "other"]


def test_retriever_and_emptying(store):
    assert contents(store.as_retriever(search_kwargs={"k": 1}).invoke("fir")) == ["fir"]
    assert store.delete()
    assert len(store) == 0
    assert store.similarity_search("fir") == store.max_marginal_relevance_search("fir") == []


def test_lengths_must_agree(store):
    with pytest.raises(ValueError, match="metadatas must be as many as texts, 2, got 1"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(ValueError, match="ids must be as many as texts, 1, got 2"):
        store.add_texts(["a"], ids=["1", "2"])
    assert len(store) == len(TEXTS)


def test_saved_store_is_the_same(store, tmp_path):
    store.save(tmp_path / "trees")
    loaded = TurboQuantVectorStore.load(tmp_path / "trees", EMBEDDING)
    assert loaded.similarity_search_with_score("elm", k=6) == store.similarity_search_with_score("elm", k=6)
    assert sorted(path.suffix for path in (tmp_path / "trees").iterdir()) == [".json", ".tqann"]
    (tmp_path / "trees" / "store.json").write_text("{}")
    with pytest.raises(IndexFileError):
        TurboQuantVectorStore.load(tmp_path / "trees", EMBEDDING)
