"""What the settings say of the specimen beyond its type, checked against its reporting system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.errors import SettingError

if TYPE_CHECKING:
    from aggregators import Supplied
    from wsi_chat.settings import Settings
    from wsi_chat.terminology import System


def check_preparation(settings: Settings, system: System) -> None:
    """Raises SettingError where the settings name a preparation that the system has no minimum for."""
    known = [minimum.preparation for minimum in system.adequacy.minima if minimum.preparation != "any"]
    if settings.preparation is not None and settings.preparation not in known:
        way_out = f"Use one of: {', '.join(known)}." if known else f"Leave it out: {system.name} does not ask for it."
        raise SettingError(f"--preparation {settings.preparation!r} is not known.", hint=way_out)


def what_was_supplied(settings: Settings, system: System) -> Supplied:
    """What the settings say of the specimen beyond its type. Raises SettingError as `check_preparation`."""
    from aggregators import Supplied

    check_preparation(settings, system)
    preparation = settings.preparation or system.preparation_of(settings.specimen)
    return Supplied(preparation=preparation, reduced_minimum=settings.reduced_minimum, age=settings.age)
