"""docs/configuration.md says what the code reads."""

from pathlib import Path

from bedplate.kernel.reference import reference
from bedplate.kernel.settings import Settings, environment_names

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_the_page_names_every_setting_once_with_its_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    for name, info in Settings.model_fields.items():
        shown = " or ".join(f"`{each}`" for each in environment_names()[name].split(", "))
        [row] = [row for row in rows if row.startswith(f"| {shown} |")]
        assert str(info.description).replace("|", "\\|") in row
    assert len(rows) == len(Settings.model_fields)


def test_the_page_tells_no_secret_and_no_path_of_this_machine(tmp_path: Path) -> None:
    assert str(Path.home()) not in reference()
    assert str(Path.cwd()) not in reference()
