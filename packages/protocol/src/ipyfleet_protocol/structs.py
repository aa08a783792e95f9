"""The bases of everything on the wire.

What lives here: `Part` and `Message`, which `messages.py` and `questions.py` build on.
"""

from __future__ import annotations

import msgspec


class Part(msgspec.Struct, array_like=True, forbid_unknown_fields=False):
    """Base of the parts of messages.

    Fields are positional on the wire; a new one goes to the end and has a default.
    """


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=False):
    """Base of all messages. The tag, the class's name, is the first element on the wire."""
