"""What a `Cluster` is: its options, what it runs, and its cluster file.

What lives here: the base class with everything about a cluster that is not starting, connecting to
and stopping it. Those are in `cluster`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Any, Self

from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, Float, Instance, Int, List, Unicode, Union, default, validate
from traitlets.config import Config, LoggingConfigurable

from ipyfleet_protocol import paths

from .cluster_file import (
    FORMAT,
    ClusterDict,
    is_running,
    owner_fields,
    read_cluster_file,
    remove_cluster_file,
    write_cluster_file,
)
from .errors import NotRunning
from .launchers.base import ControllerLauncher, EngineLauncher
from .launchers.registry import abbreviate_launcher_class, find_launcher_class
from .logs import cluster_log
from .processes import ProcessRef
from .profile_config import load_profile_config

_ALIASES = {"engines": "engine_launcher_class", "controller": "controller_launcher_class"}
_OWNER_FIELDS = ("host", "hostname", "owner", "supervised", "guarded")
_SETUP_FIRST = {"config", "parent", "log", "load_profile"}


class ClusterDescription(LoggingConfigurable):
    """The options and the parts of a cluster; `Cluster` is the class that users see."""

    n = Int(None, allow_none=True, help="How many engines to start.").tag(config=True)
    profile = Unicode("", help="The name of the IPython profile.").tag(config=True)
    profile_dir = Unicode(help="The profile directory; made absolute.").tag(config=True)
    ipython_dir = Unicode("", help="Where IPython's profiles are.").tag(config=True)
    cluster_id = Unicode(help="The cluster's name in its profile.").tag(config=True)
    cluster_file = Unicode(help="Path of the cluster file; '' for none.")
    controller_ip = Unicode("", help="The IP address on which the controller listens.").tag(
        config=True
    )
    controller_location = Unicode(
        "", help="The address or host name at which other hosts reach the controller."
    ).tag(config=True)
    controller_args = List(Unicode(), help="More arguments for ipcontroller.").tag(config=True)
    engine_args = List(Unicode(), help="More arguments for ipengine.").tag(config=True)
    controller_launcher_class = AnyTrait(
        "local", help="How to start the controller: class, import string or short name."
    ).tag(config=True)
    engine_launcher_class = AnyTrait(
        "local", help="How to start engines: class, import string or short name."
    ).tag(config=True)
    engine_timeout = Float(60, help="Seconds to wait for engines to register.").tag(config=True)
    controller_timeout = Float(60, help="Seconds to wait for the controller to be ready.").tag(
        config=True
    )
    restart_controller = Bool(
        True,
        help="Start a controller that died again; engines and clients go on where they were.",
    ).tag(config=True)
    recover_time = Float(
        30.0, help="Seconds that engines and clients wait for a controller that died."
    ).tag(config=True)
    shutdown_atexit = Bool(True, help="Stop the cluster when this process ends.")
    load_profile = Bool(True, help="Read the profile's ipcluster_config files.")
    log_level = Union([Int(), Unicode()], allow_none=True, default_value=None).tag(config=True)
    delay = Float(0.0, help="Unused; accepted because scripts pass it.").tag(config=True)
    supervised = Bool(False, help="This process does nothing but look after the cluster.")

    controller = Instance(ControllerLauncher, allow_none=True)
    restarts = Int(0, help="How often the controller was started again.")
    is_guarded = Bool(False, help="A controller that ends unasked is started again.")
    engines = Dict(help="The engine sets' launchers, by id.")

    def __init__(self, n: int | None = None, **kwargs: Any) -> None:
        for short, trait in _ALIASES.items():
            if short in kwargs:
                if trait in kwargs:
                    raise TypeError(f"{short}= and {trait}= are two names of one option: give one")
                kwargs[trait] = kwargs.pop(short)
        unknown = [name for name in kwargs if name not in self.trait_names()]
        if unknown:
            raise TypeError(f"Cluster() got an unexpected argument {unknown[0]!r}")
        if n is not None:
            kwargs["n"] = n
        own_log = "log" not in kwargs and kwargs.get("parent") is None
        super().__init__(**{name: kwargs[name] for name in _SETUP_FIRST & kwargs.keys()})
        if own_log:
            self.log = cluster_log()
        if self.load_profile and kwargs.get("parent") is None:
            self._update_config_from_profile(kwargs)
        for name in kwargs.keys() - _SETUP_FIRST:
            setattr(self, name, kwargs[name])
        self._foreign_owner: ClusterDict | None = None

    def _update_config_from_profile(self, kwargs: dict[str, Any]) -> None:
        directory = paths.profile_dir(
            kwargs.get("profile") or None,
            kwargs.get("profile_dir") or None,
            kwargs.get("ipython_dir") or None,
        )
        found = load_profile_config(directory)
        if found:
            found.merge(kwargs.get("config") or Config())
            self.update_config(found)

    @default("profile_dir")
    def _default_profile_dir(self) -> str:
        return str(paths.profile_dir(self.profile or None, None, self.ipython_dir or None))

    @validate("profile_dir")
    def _validate_profile_dir(self, proposal: dict[str, Any]) -> str:
        if not proposal["value"]:
            return self._default_profile_dir()
        return str(paths.profile_dir(profile_dir=proposal["value"]))

    @default("cluster_id")
    def _default_cluster_id(self) -> str:
        return f"{int(time.time())}-{secrets.token_hex(2)}"

    @default("cluster_file")
    def _default_cluster_file(self) -> str:
        return str(paths.cluster_file(Path(self.profile_dir), self.cluster_id))

    @property
    def supervisor(self) -> ProcessRef | None:
        """The ``ipcluster`` process that looks after this cluster, if it is another process."""
        owner = self._foreign_owner
        return ProcessRef.from_dict(owner["owner"]) if owner and owner["supervised"] else None

    @property
    def engine_set(self) -> EngineLauncher | None:
        """The first engine set's launcher, or None: the one set that most clusters have."""
        return next(iter(self.engines.values()), None)

    @property
    def client_connection_file(self) -> Path:
        """The file that a client needs to connect; there once the controller is ready."""
        return paths.connection_file(Path(self.profile_dir), self.cluster_id, "client")

    @property
    def is_running(self) -> bool:
        """Whether any process of the cluster runs."""
        launchers = [self.controller, *self.engines.values()]
        return any(launcher is not None and launcher.is_running for launcher in launchers)

    def __repr__(self) -> str:
        """Show the id, the profile and what runs."""
        fields = [f"cluster_id={self.cluster_id!r}"]
        directory = Path(self.profile_dir)
        if directory.name.startswith("profile_"):
            fields.append(f"profile={directory.name.removeprefix('profile_')!r}")
        else:
            fields.append(f"profile_dir={self.profile_dir!r}")
        if self.controller is not None:
            fields.append(f"controller=<{self.controller.state.value}>")
        if self.engines:
            fields.append(f"engine_sets={list(self.engines)}")
        return f"<{type(self).__name__}({', '.join(fields)})>"

    # -- the cluster file ------------------------------------------------------------------------

    def to_dict(self) -> ClusterDict:
        """Return what the cluster file holds (see `cluster_file`)."""
        content: ClusterDict = {
            "format": FORMAT,
            **(
                self._foreign_owner
                or {
                    **owner_fields(),
                    "supervised": self.supervised,
                    "guarded": self.is_guarded,
                }
            ),
            "cluster": {
                "class": f"{type(self).__module__}.{type(self).__qualname__}",
                "cluster_id": self.cluster_id,
                "profile_dir": self.profile_dir,
                "n": self.n,
            },
            "controller": None,
            "engines": None,
        }
        if self.controller is not None:
            content["controller"] = {
                "class": abbreviate_launcher_class("controller", type(self.controller)),
                "state": self.controller.to_dict(),
                "restarts": self.restarts,
            }
        if self.engines:
            first = next(iter(self.engines.values()))
            content["engines"] = {
                "class": abbreviate_launcher_class("engine", type(first)),
                "sets": {set_id: ln.to_dict() for set_id, ln in self.engines.items()},
            }
        return content

    @classmethod
    def from_dict(cls, content: ClusterDict, **kwargs: Any) -> Self:
        """Return a cluster that another process started. What of it is gone is left out.

        Raises:
            ValueError: `content` is not what `to_dict` makes.
        """
        try:
            fields = content["cluster"]
            kwargs.setdefault("shutdown_atexit", False)
            cluster = cls(
                profile_dir=fields["profile_dir"],
                cluster_id=fields["cluster_id"],
                n=fields.get("n"),
                **kwargs,
            )
            cluster._adopt(content)
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no cluster file's content: {error!r}") from error
        return cluster

    def _adopt(self, content: ClusterDict) -> None:
        if not is_running(content):
            return
        self._foreign_owner = {name: content.get(name, False) for name in _OWNER_FIELDS}
        self.is_guarded = bool(self._foreign_owner["guarded"])
        common = {"parent": self, "cluster_id": self.cluster_id, "profile_dir": self.profile_dir}
        found = content.get("controller")
        if found:
            launcher_class = find_launcher_class("controller", found["class"])
            self.controller_launcher_class = found["class"]
            self.restarts = int(found.get("restarts", 0))
            with contextlib.suppress(NotRunning):
                controller = launcher_class.from_dict(found["state"], **common)
                assert isinstance(controller, ControllerLauncher)
                self.controller = controller
        sets = content.get("engines")
        if sets:
            launcher_class = find_launcher_class("engine", sets["class"])
            self.engine_launcher_class = sets["class"]
            for set_id, state in sets["sets"].items():
                with contextlib.suppress(NotRunning):
                    launcher = launcher_class.from_dict(state, **common)
                    self.engines = {**self.engines, set_id: launcher}

    @classmethod
    def from_file(
        cls,
        cluster_file: str | os.PathLike[str] | None = None,
        *,
        profile: str | None = None,
        profile_dir: str | os.PathLike[str] | None = None,
        ipython_dir: str | os.PathLike[str] | None = None,
        cluster_id: str = "",
        **kwargs: Any,
    ) -> Self:
        """Return a cluster that another process started, for example ``ipcluster start``.

        Args:
            cluster_file: its file; by default it is found through the other arguments.
            profile: its profile's name.
            profile_dir: its profile's directory, instead of the name.
            ipython_dir: where its profile is.
            cluster_id: its name in the profile; by default that of ``ipcluster start``.
            kwargs: further arguments of `Cluster`.

        Raises:
            NoClusterFile: there is no such cluster.
            ValueError: the file is no cluster file.
        """
        if cluster_file is None:
            directory = paths.profile_dir(profile, profile_dir, ipython_dir)
            cluster_file = paths.cluster_file(directory, cluster_id)
        content = read_cluster_file(Path(cluster_file))
        return cls.from_dict(content, cluster_file=str(cluster_file), **kwargs)

    def update_cluster_file(self) -> None:
        """Write the cluster file afresh; remove it when nothing has been started any more."""
        if not self.cluster_file:
            return
        if self.controller is None and not self.engines:
            self.remove_cluster_file()
        else:
            write_cluster_file(Path(self.cluster_file), self.to_dict())

    def remove_cluster_file(self) -> None:
        """Remove the cluster file, if there is one."""
        if self.cluster_file:
            remove_cluster_file(Path(self.cluster_file))
