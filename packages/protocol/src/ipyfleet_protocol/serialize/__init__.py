"""Serialization of data and functions: pickle 5 with large data out of band.

`pack` and `unpack` are for any object (`unpack_many` for many at once), `pack_call`, `pack_items`
and `unpack_call` for the arguments of tasks, `pack_function` and `unpack_function` for the function
of a group. Only peers that trust each other unpack what they send; the controller never does.
"""

from .classes import ClassTable
from .failures import PackError, UnpackError
from .frames import IN_BAND_MAX_BYTES, Packed, unpack, unpack_many
from .functions import PackedFunction, equip_function, pack_function, unpack_function
from .packing import (
    pack,
    pack_call,
    pack_items,
    unpack_call,
    use_cloudpickle,
    use_dill,
    use_pickle,
)
from .prepickled import PrePickled

__all__ = [
    "IN_BAND_MAX_BYTES",
    "ClassTable",
    "PackError",
    "Packed",
    "PackedFunction",
    "PrePickled",
    "UnpackError",
    "equip_function",
    "pack",
    "pack_call",
    "pack_function",
    "pack_items",
    "unpack",
    "unpack_call",
    "unpack_function",
    "unpack_many",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]
