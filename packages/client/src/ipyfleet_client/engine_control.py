"""What a client asks engines and their agents to do, apart from tasks.

What lives here: the part of `Client` about signals, namespaces, stacks, the end of engines and
functions for those that join. What must not: tasks, the hub's records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ipyfleet_client.hub import REQUEST_TIMEOUT_S
from ipyfleet_protocol import messages as m
from ipyfleet_protocol.errors import collect_exceptions
from ipyfleet_protocol.serialize import pack_function

if TYPE_CHECKING:
    from ipyfleet_client.requests import Pending
    from ipyfleet_client.session import Session

ANSWER_S = 1.0
"""How long an engine has to answer itself, before its agent is asked."""

TIMEOUT_S = 10.0


class EngineControls:
    """Requests to engines that work while they are busy."""

    session: Session
    block: bool

    if TYPE_CHECKING:

        @property
        def ids(self) -> list[int]:
            """As `Client.ids`."""

        def close(self) -> None:
            """As `Client.close`."""

    def clear(self, targets: Any = None, block: bool = True) -> Any:
        """Reset the namespace of engines; of all if `targets` is None.

        Waits whatever `self.block` says; if `block` is false, a future is returned.
        """
        return self._control(m.ClearNamespace(), targets, block)

    def send_signal(self, sig: int | str, targets: Any = None, block: bool | None = None) -> Any:
        """Send a signal to the processes of engines, whatever they are doing.

        Args:
            sig: a number, or a name such as "SIGINT".
            targets: the engines; None for all.
            block: whether to wait for the answer; if false, a future is returned.

        Raises:
            ValueError: there is no such signal.
            TypeError: it is neither a number nor a name.
        """
        import signal

        if isinstance(sig, str):
            name = sig if sig.startswith("SIG") else f"SIG{sig}"
            try:
                number = int(signal.Signals[name.upper()])
            except KeyError:
                raise ValueError(f"there is no signal {sig!r}") from None
        elif isinstance(sig, bool) or not isinstance(sig, int):
            raise TypeError(f"a signal is a number or a name (str), not {type(sig).__name__}")
        elif sig != 0 and sig not in set(signal.valid_signals()):
            raise ValueError(f"there is no signal {sig}")
        else:
            number = int(sig)
        return self._control(m.SendSignal(number), targets, block)

    def _control(self, action: m.ControlAction, targets: Any, block: bool | None) -> Any:
        chosen = self.session.link.engines.targets(targets)
        engines = [chosen] if isinstance(chosen, int) else chosen
        return self._answer(self.session.control(engines, action), block)

    def _answer(self, pending: Pending, block: bool | None) -> Any:
        if self.block if block is None else block:
            return self.session.answer(pending, REQUEST_TIMEOUT_S)
        return pending

    def shutdown(
        self,
        targets: Any = "all",
        restart: bool = False,
        hub: bool = False,
        block: bool | None = None,
    ) -> None:
        """Stop engines, and with `hub` the controller.

        Args:
            targets: the engines; "all" or None for all.
            restart: not to be had; use a `Cluster`.
            hub: stop the controller and all engines; this client closes.
            block: whether to wait for the answer.

        Raises:
            NotImplementedError: `restart` was asked for.
        """
        if restart:
            raise NotImplementedError("engines are restarted by the Cluster that started them")
        if hub:
            pending = self.session.request(m.ShutdownCluster(None, hub=True))
            self.session.wait_until(lambda: pending.done() or self.session.closed, 10.0)
            self.close()
            return
        everything = targets is None or (isinstance(targets, str) and targets == "all")
        if everything and not self.ids:
            return
        self._control(m.StopEngine(), targets, block)

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
