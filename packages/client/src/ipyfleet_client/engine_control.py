"""What a client asks engines and their agents to do, apart from tasks.

What lives here: the part of `Client` about stacks and about functions for engines that join. What
must not: tasks, the hub's records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import collect_exceptions
from ipyfleet_protocol.serialize import pack_function

if TYPE_CHECKING:
    from ipyfleet_client.session import Session

ANSWER_S = 1.0
"""How long an engine has to answer itself, before its agent is asked."""

TIMEOUT_S = 10.0


class EngineControls:
    """Requests to engines that work while they are busy."""

    session: Session

    def engine_stacks(self, targets: Any = None) -> dict[int, str]:
        """Return what the threads of engines are doing, without stopping them.

        An engine's second thread tells the stacks. Where C code holds the GIL it cannot; then the
        engine's agent has the process write them in a signal handler, innermost frame first and
        without lines of source.

        Args:
            targets: the engines; None for all.

        Returns:
            The Python stacks of all threads, as text, by engine id.

        Raises:
            EngineError: an engine is gone, or cannot answer and has no agent.
            TimeoutError: neither it nor its agent answers.
        """
        chosen = self.session.link.engines.targets(targets)
        engines = [chosen] if isinstance(chosen, int) else list(chosen)
        stacks, errors = self._ask_stacks(engines, m.DumpStacks(), ANSWER_S)
        silent = [engine for engine in engines if engine not in stacks]
        if silent and not errors:
            more, errors = self._ask_stacks(silent, m.DumpStacks(native=True), TIMEOUT_S)
            stacks |= more
            silent = [engine for engine in silent if engine not in stacks]
        if errors:
            raise errors[0] if len(errors) == 1 else _joined(errors)
        if silent:
            raise TimeoutError(f"engines {silent} and their agents do not answer")
        return {engine: stacks[engine] for engine in engines}

    def _ask_stacks(
        self, engines: Sequence[int], action: m.DumpStacks, timeout_s: float
    ) -> tuple[dict[int, str], list[BaseException]]:
        pending = self.session.control(engines, action)
        self.session.wait_until(pending.done, timeout_s)
        contents = dict(pending.contents)
        return {engine: text.decode() for engine, text in contents.items()}, pending.errors

    def on_engine_start(
        self, function: Callable[[], Any] | None, name: str | None = None
    ) -> Callable[[], Any] | None:
        """Have every engine that joins from now on call a function before its first task.

        Engines that have joined already do not call it. It is kept, pickled, by the controller for
        as long as that runs. What it raises is in the engine's log, and the engine goes on. Can be
        used as a decorator.

        Args:
            function: called without arguments; ``async def`` is awaited. None to take back what was
                registered as `name`.
            name: a function with the name of another takes its place; default: the function's own.

        Returns:
            The function.
        """
        if function is None:
            if name is None:
                raise TypeError("which function is to be taken back is said by name=")
            call = m.StartCall(name, [])
        else:
            packed = pack_function(function)
            frames = [bytes(frame) for frame in packed.frames]
            call = m.StartCall(name or packed.function.name, frames)
        self.session.answer(self.session.request(m.OnEngineStart(call)), TIMEOUT_S)
        return function


def _joined(errors: list[BaseException]) -> BaseException:
    try:
        collect_exceptions(errors, "engine_stacks")
    except Exception as error:  # noqa: BLE001 - it raises what is to be returned
        return error
    return errors[0]
