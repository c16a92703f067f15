"""Errors of writing: which place, and what to do."""

import errno
import os
import tempfile

import pytest

from cssr.utils.cli import exit_on_error, run_command
from cssr.utils.files import naming_path, write_atomic


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.ENOSPC, "GiB are free there: make room, or choose another place"),
        (errno.EDQUOT, "GiB are free there: make room, or choose another place"),
        (errno.EROFS, "choose a place that can be written to"),
        (errno.EACCES, "choose a place that can be written to"),
        (errno.ENOTDIR, "choose another place"),
    ],
)
def test_an_error_of_writing_names_the_place_and_the_remedy(number, remedy, tmp_path):
    with pytest.raises(ValueError) as caught, naming_path(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path} cannot be written: {os.strerror(number)} (")
    assert remedy in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_every_command_says_so_of_a_disk_that_takes_no_files(number, tmp_path, capsys):
    """Wherever it is written to: with the name that the error has, or else that of the temporary files."""
    for name in (str(tmp_path / "new" / "a"), None):
        error = OSError(number, os.strerror(number), name)
        with pytest.raises(SystemExit) as end, exit_on_error():
            raise error
        assert end.value.code.startswith(f"error: {name or tempfile.gettempdir()} cannot be written: ")

        def fail(_: list[str], error: OSError = error) -> int:
            raise error

        assert run_command(fail, []) == 2 and capsys.readouterr().err == f"{end.value.code}\n"
        assert "run the same command again" in end.value.code


def test_a_name_that_is_too_long_is_the_place(tmp_path):
    with pytest.raises(ValueError, match="x{300}.* cannot be written: File name too long .choose a shorter name"):
        write_atomic(tmp_path / ("x" * 300), "")


def test_errors_that_are_not_the_system_s_pass(tmp_path):
    with pytest.raises(OSError, match="image file is truncated"), naming_path(tmp_path):
        raise OSError("image file is truncated")
