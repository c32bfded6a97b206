"""Names and states of runs in Prefect."""

import re

import pytest


@pytest.mark.usefixtures("_prefect")
def test_a_run_names_cell_and_day_and_ctrl_c_cancels_it() -> None:
    from prefect import flow, get_client

    from flows.run_states import cancelled_by_ctrl_c, with_day

    def ends(error: type[BaseException]) -> tuple[str, str]:
        """Name and state of the run of a flow that ends with this."""

        @flow(
            name=error.__name__,
            flow_run_name=with_day("{model} on {benchmark}"),
            on_crashed=[cancelled_by_ctrl_c],
            validate_parameters=False,
        )
        def inner(model: str, benchmark: str) -> None:
            raise error

        @flow(name=f"outer {error.__name__}", on_crashed=[cancelled_by_ctrl_c])
        def outer() -> None:
            inner("tiny", "reviews")

        with pytest.raises(error):
            outer()
        with get_client(sync_client=True) as client:
            runs = client.request("POST", "/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 2}).json()
        (of_inner,) = (run for run in runs if " on " in run["name"])
        assert len({run["state_name"] for run in runs}) == 1
        return of_inner["name"], of_inner["state_name"]

    name, state = ends(KeyboardInterrupt)
    assert re.fullmatch(r"tiny on reviews, \d{4}-\d\d-\d\d", name)
    assert state == "Cancelled"
    assert ends(SystemExit)[1] == "Crashed"
