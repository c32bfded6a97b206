from tests.flows.conftest import _isolated  # noqa: F401 - a session fixture: nothing uses the machine's own settings
