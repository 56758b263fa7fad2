"""Short texts: a size limit, and no aliases in YAML."""

import pytest
import yaml
from sparsefleet.workers import LearnJob
from sparsefleet.workers.documents import LARGEST, TooLarge, load_yaml, read_short, read_yaml
from sparsefleet.workers.errors import JobError
from sparsefleet.workers.job import parse_assignment

LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 8)}]\n" for before, now in zip("abcdefghi", "bcdefghij")
)


def test_plain_values_come_out():
    assert load_yaml("a: 1\nb: [2, {c: null}]\nd: '*no alias'") == {"a": 1, "b": [2, {"c": None}], "d": "*no alias"}


def test_a_few_lines_do_not_become_a_billion_values(tmp_path):
    with pytest.raises(yaml.YAMLError, match="aliases"):
        load_yaml(LAUGHS)
    (tmp_path / "job.yaml").write_text(LAUGHS)
    with pytest.raises(JobError, match="aliases") as said:
        LearnJob.from_yaml(tmp_path / "job.yaml")
    assert "\n" not in str(said.value)


def test_yaml_makes_no_objects():
    with pytest.raises(yaml.YAMLError, match="constructor"):
        load_yaml("!!python/object/apply:os.getcwd []")


def test_files_are_read_up_to_a_size(tmp_path):
    whole, larger = tmp_path / "whole.yaml", tmp_path / "larger.yaml"
    whole.write_bytes(b"#" * LARGEST)
    larger.write_bytes(b"#" * (LARGEST + 1))
    assert len(read_short(whole)) == LARGEST and read_yaml(whole) is None
    with pytest.raises(TooLarge, match="more than 1,048,576 bytes"):
        read_short(larger)
    with pytest.raises(JobError, match="more than 1,048,576 bytes"):
        LearnJob.from_yaml(larger)


@pytest.mark.parametrize(("text", "why"), [("[" * 3000, "nests too deeply"), ("2026-13-45", "month")])
def test_what_the_parser_stumbles_over_is_said(tmp_path, text, why):
    with pytest.raises(yaml.YAMLError, match=why):
        load_yaml(text)
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match="is not YAML"):
        LearnJob.from_yaml(tmp_path / "job.yaml")
    with pytest.raises(JobError, match="is not a YAML value"):
        parse_assignment(f"model.x={text}")
