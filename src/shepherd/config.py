"""What every table of settings is made of, for the run file, a site's policy and the plug-ins' own keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

# strict: `rounds = true` and `rounds = "3"` are mistakes, not 1 and 3; a whole number is a float
PositiveInt = Annotated[int, Strict(), Field(gt=0)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0.0)]
Share = Annotated[float, Strict(), Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Strict(), Field(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Strict(), Field(ge=0.0, lt=1.0)]


class Table(BaseModel):
    """A table of the run file: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class PartTable(BaseModel):
    """`name` finds the module; the other keys are that module's own `Config`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    name: str
