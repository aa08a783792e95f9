import pytest


def test_imports_run_here_and_there(rc, capsys):
    """What the block imports is imported on the engines, too, and told."""
    view = rc[:]
    with view.sync_imports():
        import colorsys
        import json.decoder
    assert colorsys.__name__ == "colorsys"
    assert json.decoder
    assert capsys.readouterr().out == (
        "importing colorsys on engine(s)\nimporting json.decoder on engine(s)\n"
    )
    assert view["colorsys.__name__"] == ["colorsys"] * 2
    assert view["json.decoder.__name__"] == ["json.decoder"] * 2


def test_names_of_a_module(rc, capsys):
    """``from … import`` works, with several names."""
    with rc[:].sync_imports():
        from operator import add, mul
    assert add(1, 1) == mul(1, 2)
    assert capsys.readouterr().out == "importing add,mul from operator on engine(s)\n"
    assert rc[0]["mul(2, 3)"] == 6


def test_import_as(rc, capsys):
    """``import … as`` binds the same name on the engines."""
    with rc[:].sync_imports():
        import os.path as osp
        import string as st
        from operator import neg as minus
    assert osp.sep
    assert st.digits
    assert minus(1) == -1
    assert capsys.readouterr().out.splitlines() == [
        "importing os.path as osp on engine(s)",
        "importing string as st on engine(s)",
        "importing neg as minus from operator on engine(s)",
    ]
    assert rc[:]["minus(4), st.digits[0], osp.sep"] == [(-4, "0", "/")] * 2


def test_quiet_and_importer(rc, capsys):
    """``quiet=True`` says nothing; `importer` is the same with defaults."""
    with rc[:].sync_imports(quiet=True):
        import colorsys
    assert colorsys
    assert capsys.readouterr().out == ""
    with rc[:].importer:
        import colorsys
    assert "colorsys" in capsys.readouterr().out


def test_imports_around_the_block_do_not_count(rc, capsys):
    """Only imports of the block itself are done on the engines, not those of what it calls."""
    import keyword

    def inner():
        import tokenize

        return tokenize

    with rc[:].sync_imports():
        inner()
        import colorsys
    import token

    assert keyword
    assert token
    assert colorsys
    assert capsys.readouterr().out == "importing colorsys on engine(s)\n"


def test_module_level_block(rc, capsys):
    """The block may be at the top of a module or cell."""
    code = "with view.sync_imports():\n    import numbers as n, colorsys\n"
    exec(compile(code, "<cell>", "exec"), {"view": rc[:]})
    assert "importing numbers as n on engine(s)\nimporting colorsys" in capsys.readouterr().out
    assert rc[0]["n.__name__"] == "numbers"


def test_failed_import_is_the_users_error(rc, capsys):
    """An import that fails here raises here and does nothing there."""
    with pytest.raises(ImportError), rc[:].sync_imports():
        import no_such_module  # noqa: F401
    assert capsys.readouterr().out == ""


def test_local_false_is_refused(rc):
    """``local=False`` names the way to go."""
    with pytest.raises(NotImplementedError, match="execute"):
        rc[:].sync_imports(local=False)
