"""Values that cannot be used stop at once, with the key, the value, the bound and the remedy."""

import pytest
from pydantic import Field

from synthmri import params
from synthmri.errors import UserError


class Example(params.Section):
    epochs: int = Field(ge=1, le=10)
    rate: float = Field(gt=0)
    pair: tuple[float, float] = (0.0, 1.0)


def read(tmp_path, text, section="example"):
    (tmp_path / "params.yaml").write_text(text)
    return params.read(tmp_path / "params.yaml", section, Example)


def test_reads_a_section(tmp_path):
    assert read(tmp_path, "example: {epochs: 3, rate: 1, pair: [2, 3]}") == Example(epochs=3, rate=1.0, pair=(2.0, 3.0))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("example: {epochs: 0, rate: 1.0}", ["example.epochs = 0", "greater than or equal to 1", "params.yaml"]),
        ("example: {epochs: 3, rate: 1e-4}", ["example.rate = '1e-4'", "decimal point", "0.0001"]),
        ("example: {epochs: 3, rate: .nan}", ["example.rate"]),
        ("example: {epochs: '3', rate: 1.0}", ["example.epochs = '3'"]),
        ("example: {epochs: true, rate: 1.0}", ["example.epochs = True"]),
        ("example: {epoch: 3, epochs: 3, rate: 1.0}", ["example.epoch = 3", "unknown key", "write `epochs`"]),
        ("example: {rate: 1.0}", ["example.epochs", "missing"]),
        ("exampel: {epochs: 3, rate: 1.0}", ["`example` is missing", "`exampel`"]),
        ("example: [", ["cannot be read as YAML"]),
        ("just text", ["holds no sections"]),
        ("example: {epochs: 3, rate: 2020-01-01}", ["example"]),
    ],
)
def test_says_what_is_wrong(tmp_path, text, told):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    for part in told:
        assert part in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        params.read(tmp_path / "nowhere.yaml", "example", Example)


def test_sections_are_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path, "example: {epochs: 3, rate: 1.0}").epochs = 4
