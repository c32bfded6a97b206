"""Schedules of retraining and the promotion rule: the section `retrain` of params.yaml."""

from zoneinfo import available_timezones

from pydantic import Field, field_validator

from tasks.runtime.fields import NAME, Strict


class Schedule(Strict):
    """The times of retraining for the cells with one of the models and benchmarks; an empty list means all."""

    cron: str
    timezone: str = "UTC"
    models: list[str] = Field(default=[])
    benchmarks: list[str] = Field(default=[])

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"must be a name in the time zone database, such as Europe/Berlin, not {value!r}")
        return value


class Promotion(Strict):
    """The settings of `tasks.tracking.promotion.decide`, which decides on test rows if a challenger becomes champion.

    Attributes:
        alpha: the level of the exact McNemar tests, for all decisions on the same test rows together.
        margin: the largest allowed loss of accuracy against the champion, if the challenger is better than the base.
    """

    alpha: float = Field(default=0.05, gt=0, le=1)
    margin: float = Field(default=0.0, ge=0, lt=1)


class Retrain(Strict):
    """Retraining. No result depends on it. `pool` is the work pool of the deployments."""

    pool: str = "dsm"
    schedules: dict[str, Schedule] = Field(default={})
    promotion: Promotion = Promotion()

    @field_validator("schedules")
    @classmethod
    def _are_names(cls, value: dict[str, Schedule]) -> dict[str, Schedule]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a name has letters, digits, - and _ only")
        return value
