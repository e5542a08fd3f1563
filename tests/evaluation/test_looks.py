"""A model looks the same in every chart."""

from pathlib import Path

from samout_train.evaluation import LOOKS, looks_of

MODELS = Path(__file__).parents[2] / "conf" / "model"


def test_every_model_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == {path.stem for path in MODELS.glob("*.yaml")}
    assert len({look.color for look in LOOKS.values()}) == len(LOOKS)


def test_a_model_keeps_its_look_beside_any_others() -> None:
    for others in (["gru"], ["a", "b"], ["v8, no decay", "V1"], [*LOOKS]):
        assert looks_of(["v8", *others])["v8"] == looks_of([*others, "v8"])["v8"] == LOOKS["v8"]
    assert looks_of(["v8, no decay"])["v8, no decay"] == looks_of(["model=v8"])["model=v8"] == LOOKS["v8"]


def test_labels_of_one_chart_look_different() -> None:
    labels = ["v8", "v8, slower", "v8, faster", "mine", *LOOKS]
    assert len(set(looks_of(labels).values())) == len(set(labels))
    many = [f"v8, {number}" for number in range(3 * len(LOOKS))]
    assert len(set(looks_of(many).values())) == len(many)
