from __future__ import annotations

from pathlib import Path

from d2ed2q.serve.store import JobStore


def test_another_bound_for_the_doubt_holds_for_what_is_there_already(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    doubts = {"sure": 0.1, "doubtful": 0.3, "refused": 0.5, "of another model": 0.5}
    numbers = {}
    for name, doubt in doubts.items():
        numbers[name] = store.add(name, "http", b"x")[0].id
        store.take()
        model = "old" if "model" in name else "own"
        store.finish(numbers[name], "refused" if doubt > 0.4 else "done", {"model_sha256": model, "doubt": doubt})

    def again(refuse: float | None) -> set[str]:
        count = store.reopen_outdated("own", refuse)
        reopened = {name for name in doubts if store.get(numbers[name]).state == "waiting"}
        assert len(reopened) == count
        for name in reopened:
            store.take()
            store.finish(
                numbers[name],
                "refused" if refuse is not None and doubts[name] > refuse else "done",
                {"model_sha256": "own", "doubt": doubts[name]},
            )
        return reopened

    assert again(0.4) == set()
    assert again(0.2) == {"doubtful"}
    assert again(0.3) == set(), "which was rounded: nobody knows on which side it is"
    assert again(0.6) == {"doubtful", "refused"}
    assert again(0.2) == {"doubtful", "refused"}
    assert again(None) == {"doubtful", "refused"}
