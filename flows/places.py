"""Checks of the directories outside the project that Prefect and DVC need, before either is imported.

Without these checks, Prefect's temporary server fails after three minutes with pages of warnings, and DVC with a
traceback.
"""

import configparser
import os
import tempfile
from pathlib import Path

from tasks.runtime.errors import InputError
from tasks.tracking.database import check_path, sqlite_uri

SITE_CACHE = Path("/var/tmp/dvc")  # DVC's own default on Linux


def check_places(root: Path) -> None:
    """Tries to write where a run of the project in `root` will write.

    Raises:
        InputError: a directory cannot be used; the message names the variable that sets another one.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError(
            "TMPDIR", "no directory for temporary files can be written; set it to a writable directory"
        ) from None
    check_project(root.resolve())
    if not _may_name_a_server(root):
        check_prefect_home()
    check_dvc(root)


def check_project(root: Path) -> None:
    """Raises InputError if DVC or MLflow cannot work in a directory of this name."""
    if "{" in str(root) or "}" in str(root):  # tqdm, which DVC uses, reads the path as a format string
        raise InputError("project", f"the path {str(root)!r} has a brace, which DVC does not support; move the project")
    check_path(root)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        sqlite_uri(root / "mlflow.db")


def check_prefect_home() -> None:
    """Creates Prefect's directory, where the temporary server keeps its database, and tries to write there.

    Raises:
        InputError: the directory or the database cannot be written.
    """
    home = _prefect_home().absolute()
    if problem := _why_unwritable(home):
        raise InputError(
            "PREFECT_HOME",
            f"{home}, where Prefect keeps its database, cannot be written ({problem}); "
            "set PREFECT_HOME to a writable directory",
        )
    if "?" in str(home):  # the database's address is built like MLflow's: see `sqlite_uri`
        raise InputError(
            "PREFECT_HOME", f"{str(home)!r} has a '?', which the address of Prefect's database cannot contain"
        )
    database = home / "prefect.db"
    if database.exists() and not os.access(database, os.W_OK):
        raise InputError("PREFECT_HOME", f"{database} cannot be written; set PREFECT_HOME to another directory")


def _prefect_home() -> Path:
    try:
        return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    except RuntimeError:
        raise InputError(
            "HOME", "is not set, and this user has no home directory; set HOME, or PREFECT_HOME for Prefect's database"
        ) from None


def _may_name_a_server(root: Path) -> bool:
    """Whether the address of a server is set, or a file exists from which Prefect may read one.

    Prefect itself is asked for the address later, after it is imported.
    """
    if os.environ.get("PREFECT_API_URL"):
        return True
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or _prefect_home() / "profiles.toml")
    return any(os.path.isfile(path) for path in (profiles, root / "prefect.toml", root / ".env"))  # noqa: PTH113


def check_dvc(root: Path) -> None:
    """Checks DVC's directories: the one of its index, and the one of the user's settings.

    Raises:
        InputError: the first cannot be written, or the second cannot be read.
    """
    index = _site_cache(root)
    if problem := _why_unwritable(index, mode=0o777):  # DVC's own mode: users share the directory
        raise InputError(
            "DVC_SITE_CACHE_DIR",
            f"{index}, where DVC keeps its index, cannot be written ({problem}); "
            "set DVC_SITE_CACHE_DIR to a writable directory",
        )
    own = Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or f"{os.environ.get('XDG_CONFIG_HOME') or '~/.config'}/dvc")
    try:
        own = own.expanduser()
        (own / "config").open().close()
    except (FileNotFoundError, RuntimeError):  # no settings, or no home directory
        pass
    except OSError as error:
        raise InputError(
            "DVC_GLOBAL_CONFIG_DIR",
            f"{own}, where DVC looks for the user's settings, cannot be read ({error.strerror}); "
            "set DVC_GLOBAL_CONFIG_DIR to a readable directory",
        ) from None


def _site_cache(root: Path) -> Path:
    """The directory of DVC's index, by DVC's own rules."""
    if named := os.environ.get("DVC_SITE_CACHE_DIR"):
        return Path(named)
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
        return root / settings.get("core", "site_cache_dir", fallback=str(SITE_CACHE)).strip("\"'")
    except (configparser.Error, UnicodeError):
        return SITE_CACHE  # DVC reports the error in its settings


def _why_unwritable(directory: Path, *, mode: int = 0o700) -> str | None:
    """The reason why no file can be created in the directory; None if it can. A missing directory is created."""
    try:
        if not directory.is_dir():
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            directory.chmod(mode)  # mkdir applies the umask
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return None
