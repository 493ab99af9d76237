"""Long work before a launch: building environments, fetching weights.

Each piece is a process that may outlive the agent. Replicas that need the same piece share it; a lock held by the
working process makes agents that share a folder share it, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Literal

from worker import environments, weights
from worker.environments.build import NICE
from worker.files import read_tail
from worker.processes import engine_environment, launch
from worker.runtimes.base import MARKER_AGENT, EnvironmentSpec, WeightsSpec
from worker.spec import EnvironmentReport, Progress
from worker.state import MISSING, Prepared


class _Job:
    """A running or finished piece of work."""

    def __init__(self, process: subprocess.Popen[bytes] | None, log: Path, lock: IO[str] | None = None) -> None:
        self.process = process
        self.log = log
        self.lock = lock
        self.error = ""

    def cancel(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.release()

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


class Preparation:
    """The environments and weights of one agent."""

    def __init__(self, *, folder: Path, root: Path, models: Path) -> None:
        self.folder, self.root, self.models = folder, root, models
        self._environments: dict[str, _Job] = {}
        self._weights: dict[WeightsSpec, _Job] = {}

    # ------------------------------------------------------------ environments
    def environment(self, spec: EnvironmentSpec | None) -> Prepared:
        """Where the environment stands; None needs nothing and is ready."""
        if spec is None:
            return Prepared(state="ready")
        path = environments.environment_path(self.root, spec.name)
        job = self._environments.get(spec.name)
        if job is None or job.process is None:
            if job is not None and job.error:
                return Prepared(state="failed", error=job.error)
            return Prepared(state="ready", path=path) if environments.is_ready(path) else MISSING
        status = environments.read_status(path)
        if job.process.poll() is None:
            return Prepared(state="working", progress=status.progress if status else Progress(step="start build"))
        job.process = None
        if environments.is_ready(path):
            return Prepared(state="ready", path=path)
        job.error = (status.error if status else "") or f"The build ended without a result: see {job.log}."
        return Prepared(state="failed", error=job.error)

    def build_environment(self, spec: EnvironmentSpec) -> None:
        """Start building, unless it is being built. Forgets an earlier failure. Raises OSError."""
        job = self._environments.get(spec.name)
        if job is not None and job.process is not None:
            return
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        argv = (sys.executable, "-m", "worker.environments.build", "--root", str(self.root), "--name", spec.name)
        log = self.folder / f"build-{spec.name}.log"
        log.unlink(missing_ok=True)
        self._environments[spec.name] = _Job(launch(argv, env=self._env({}), cwd=self.folder, log=log), log)

    def environment_reports(self) -> tuple[EnvironmentReport, ...]:
        """The environments that were asked for here or lie ready."""
        reports = []
        for name in sorted(environments.RECIPES):
            seen = self.environment(EnvironmentSpec(name=name))
            if seen.state == "missing" and name not in self._environments:
                continue
            state: Literal["missing", "building", "ready", "failed"] = (
                "building" if seen.state == "working" else seen.state
            )
            reports.append(EnvironmentReport(name=name, state=state, detail=seen.error, progress=seen.progress))
        return tuple(reports)

    # ------------------------------------------------------------ weights
    def weights(self, spec: WeightsSpec | None) -> Prepared:
        """Where the weights stand; None needs nothing and is ready."""
        if spec is None:
            return Prepared(state="ready")
        job = self._weights.get(spec)
        if job is not None and job.process is not None:
            if job.process.poll() is None:
                return Prepared(state="working", progress=weights.read_progress(spec, read_tail(job.log)))
            self._finish_weights(spec, job, job.process.returncode)
        if job is not None and job.error:
            return Prepared(state="failed", error=job.error)
        try:
            path = weights.fetched(spec, self.models)
        except weights.WeightsError as error:
            return Prepared(state="failed", error=str(error))
        return Prepared(state="ready", path=path) if path else MISSING

    def fetch_weights(self, spec: WeightsSpec, environment: Path | None) -> None:
        """Start fetching, unless another process does. Forgets an earlier failure. Raises WeightsError, OSError."""
        job = self._weights.get(spec)
        if spec.kind == "path" or (job is not None and job.process is not None):
            return
        plan = weights.fetch_plan(spec, models=self.models, environment=environment)
        self.models.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (self.models / f".{plan.result.name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A fetcher of an agent that died still works: this is asked again until it ends.
            lock.close()
            return
        log = self.models / f".{plan.result.name}.log"
        log.unlink(missing_ok=True)
        if plan.is_folder:
            shutil.rmtree(weights.part_folder(plan.result), ignore_errors=True)
        # The fetcher inherits the lock: it holds as long as it works, also beyond this agent's end.
        argv = ("nice", "-n", str(NICE), *plan.argv)
        process = launch(argv, env=self._env(plan.env), cwd=self.models, log=log, keep=(lock.fileno(),))
        self._weights[spec] = _Job(process, log, lock)

    def _finish_weights(self, spec: WeightsSpec, job: _Job, code: int) -> None:
        job.process = None
        result = weights.result_path(spec, self.models)
        part = weights.part_folder(result)
        if code == 0 and spec.kind == "tiny" and part.is_dir():
            shutil.rmtree(result, ignore_errors=True)
            part.rename(result)
        job.error = weights.explain_failure(spec, read_tail(job.log)) if code else ""
        job.release()

    # ------------------------------------------------------------ both
    def forget_failures(self, environment: EnvironmentSpec | None, spec: WeightsSpec | None) -> None:
        """A replica begins: what failed before is tried again for it, those that waited for it have failed with it."""
        if environment is not None and (job := self._environments.get(environment.name)) and job.process is None:
            del self._environments[environment.name]
        if spec is not None and (job := self._weights.get(spec)) and job.process is None:
            del self._weights[spec]

    def cancel_unwanted(self, names: set[str], specs: set[WeightsSpec]) -> None:
        """End work that no order asks for any more."""
        for name in [n for n, job in self._environments.items() if job.process is not None and n not in names]:
            self._environments.pop(name).cancel()
        for spec in [s for s, job in self._weights.items() if job.process is not None and s not in specs]:
            self._weights.pop(spec).cancel()

    def _env(self, extra: dict[str, str]) -> dict[str, str]:
        marks = {MARKER_AGENT: str(self.folder)}
        return engine_environment(os.environ, extra | marks, is_fetching=True)
