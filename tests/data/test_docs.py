"""What docs/data.md says is what there is."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from testbed.config.data import Data
from testbed.config.tree import names_in, parse

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_example_is_the_default():
    """The table as it stands there."""
    example = re.search(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert example
    assert parse(Data, tomllib.loads(example[1])["data"], "docs/data.md") == Data()


def test_every_setting_and_every_set_has_its_line():
    """And no line is of a setting that is not there."""
    settings = {
        name
        for line in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", PAGE, re.MULTILINE)
        for name in re.findall(r"\w+", line)
    }
    assert {field.name for field in fields(Data)} <= settings
    assert settings - {field.name for field in fields(Data)} == {*names_in("data"), "stdlib", "bpe"}
