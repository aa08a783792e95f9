"""Benchmarks: ipyfleet and its peers, measured side by side in one run.

``python -m benchmarks`` from the root of the repository runs them; ``benchmarks/README.md`` says
how to read what it prints. What belongs where:

* ``peers/``: one file per system, all behind the interface of :mod:`benchmarks.peers.base`;
* ``figures/``: what is measured, one file per theme;
* :mod:`benchmarks.worker`: the process in which one peer is measured once;
* :mod:`benchmarks.driver`: starts these processes in turn and cleans up behind them;
* :mod:`benchmarks.records`, :mod:`benchmarks.report`, :mod:`benchmarks.plot`: results and how they
  are shown.

Linux only: processes are found and weighed through ``/proc``.
"""
