"""What a run of the tests costs in processor time, and where: said at its end, so that it does not grow unseen."""

import os
from collections import Counter

import pytest

DEFAULT_RUN_SECONDS = 600  # what the tests that are not slow may cost in all: CONTRIBUTING.md
SHOWN = 20


def spent() -> float:
    """Processor seconds of this process and of all its children that have ended."""
    return sum(os.times()[:4])


class CpuSeconds:
    """Counts on each worker, and says the sum where the run was started."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.of_workers = 0.0
        self.by_file: Counter[str] = Counter()
        self.by_test: Counter[str] = Counter()
        self.last = spent()

    def pytest_collection_finish(self) -> None:
        self.last = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        self.last, before = spent(), self.last
        report.cpu_seconds = self.last - before
        return report

    def pytest_runtest_logreport(self, report) -> None:
        # xdist makes the report of a test whose worker has crashed, and has not measured it.
        seconds = getattr(report, "cpu_seconds", 0.0)
        self.by_file[report.nodeid.partition("::")[0]] += seconds
        self.by_test[report.nodeid] += seconds
        listed = None if hasattr(self.config, "workerinput") else self.config.getoption("cpu_seconds")
        if listed and report.when == "teardown":
            with open(listed, "a", encoding="utf-8") as file:
                file.write(f"{self.by_test[report.nodeid]:.3f}\t{report.nodeid}\n")

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["cpu_seconds"] = spent()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        self.of_workers += getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        # Workers have ended by now or have not: they have said themselves what they took.
        total = sum(os.times()[:2]) + self.of_workers if self.of_workers else spent()
        terminalreporter.section("processor seconds")
        terminalreporter.write_line(
            f"{total:.0f} in all, {total - self.by_file.total():.0f} of them to start and to collect "
            f"(the whole default run may take {DEFAULT_RUN_SECONDS}); the dearest files:"
        )
        for path, seconds in self.by_file.most_common(SHOWN):
            terminalreporter.write_line(f"{seconds:7.1f}  {path}")
