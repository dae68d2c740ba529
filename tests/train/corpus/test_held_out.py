"""What is held out is known by its id."""

from zh_modernbert.train.corpus.held_out import is_held_out


def test_held_out_documents_are_one_share_by_id_alone():
    documents = [{"id": f"article/{i}", "source": source} for source in ("a", "b") for i in range(5000)]
    held_out = [is_held_out(document["id"], 0.02) for document in documents]
    assert held_out[:5000] == held_out[5000:]
    assert 150 < 2 * sum(held_out[:5000]) < 250
    assert not any(is_held_out(document["id"], 0.0) for document in documents)
