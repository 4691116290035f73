"""What goes to a pipe is not folded to the 80 columns that a pipe does not have."""

from rich.table import Table

from testbed.cli.console import WIDE, console_of


def test_a_pipe_gets_whole_tables_and_may_end(capsys, monkeypatch):
    """Whatever COLUMNS says of the terminal that is elsewhere; and who stops reading ends no run."""
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("a" * 50, "b" * 50)
    console = console_of(WIDE)
    console.print(table)
    assert "b" * 50 in capsys.readouterr().out
    console.on_broken_pipe()
    assert console.quiet
    console_of(WIDE, stderr=True).print("aside")
    assert capsys.readouterr() == ("", "aside\n")
