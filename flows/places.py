"""The directories outside the project that Prefect and DVC need, looked at before either is imported.

Without this, Prefect's temporary server fails with pages of warnings after three minutes, and DVC with a traceback.
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
        InputError: a directory cannot be used; names the variable that gives another one.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError("TMPDIR", "no directory for temporary files can be written; set it to one that can") from None
    check_project(root.resolve())
    if not _may_name_a_server(root):
        check_prefect_home()
    check_dvc(root)


def check_project(root: Path) -> None:
    """Raises InputError where DVC or MLflow cannot work in a directory of this name."""
    if "{" in str(root) or "}" in str(root):  # tqdm under DVC takes it for a format
        raise InputError("project", f"the path {str(root)!r} has a brace, and DVC fails there; move the project")
    check_path(root)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        sqlite_uri(root / "mlflow.db")


def check_prefect_home() -> None:
    """Makes Prefect's directory, where the temporary server has its database, and tries to write there.

    Raises:
        InputError: it cannot be written.
    """
    home = _prefect_home().absolute()
    if problem := _why_unwritable(home):
        raise InputError(
            "PREFECT_HOME",
            f"{home}, where Prefect keeps its database, cannot be written ({problem}); "
            "set PREFECT_HOME to a directory that can",
        )
    if "?" in str(home):  # its address is made like MLflow's: see `sqlite_uri`
        raise InputError("PREFECT_HOME", f"{str(home)!r} has a '?', and the address of Prefect's database ends there")
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
    """Whether there is the address of a server, or a file that may give Prefect one: it is asked once it is there."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or _prefect_home() / "profiles.toml")
    return any(os.path.isfile(path) for path in (profiles, root / "prefect.toml", root / ".env"))  # noqa: PTH113


def check_dvc(root: Path) -> None:
    """Looks at DVC's directories: that of its index, and that of the user's settings.

    Raises:
        InputError: the first cannot be written, or the second cannot be read.
    """
    index = _site_cache(root)
    if problem := _why_unwritable(index, mode=0o777):  # users share it, as DVC makes it
        raise InputError(
            "DVC_SITE_CACHE_DIR",
            f"{index}, where DVC keeps its index, cannot be written ({problem}); "
            "set DVC_SITE_CACHE_DIR to a directory that can",
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
            "set DVC_GLOBAL_CONFIG_DIR to a directory that can",
        ) from None


def _site_cache(root: Path) -> Path:
    """The directory of DVC's index, as DVC finds it."""
    if named := os.environ.get("DVC_SITE_CACHE_DIR"):
        return Path(named)
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
        return root / settings.get("core", "site_cache_dir", fallback=str(SITE_CACHE)).strip("\"'")
    except (configparser.Error, UnicodeError):
        return SITE_CACHE  # DVC says what is wrong with its settings


def _why_unwritable(directory: Path, *, mode: int = 0o700) -> str | None:
    """Why no file can be made in the directory, which is made if it is not there; None: one can."""
    try:
        if not directory.is_dir():
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            directory.chmod(mode)  # whatever the umask
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return None
