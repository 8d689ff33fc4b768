"""The tests of the kernels on this machine's device, in several processes, and a row for each that fails or is skipped.

    python benchmarks/kernel_tests.py [--processes 8]

On a GPU the kernels run on it; without one they run in Triton's interpreter. Left out are tests that compile for GPUs
that are not there, and files whose tests run on the CPU alone. The last row has the counts.
"""

import sys
from collections import Counter

import pytest
from common import PROJECT, Results, command_line, start

FILES = (
    *("tests/kernels/test_blockwise.py", "tests/kernels/test_step_in_triton.py", "tests/kernels/test_choice.py"),
    *("tests/kernels/test_linear_attention.py", "tests/kernels/test_mix_feed_forward.py"),
    *("tests/kernels/test_modulation.py", "tests/model/test_kernels_in_the_network.py"),
)
TINY = ("tests/kernels/test_choice.py",)


class Recorder:
    """A plugin of pytest that keeps what did not pass the moment it is known."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test, and keep it with its reason unless it passed."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[report.outcome] += 1
        if report.outcome != "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext[-600:]
            self.results.add({"test": report.nodeid, "outcome": report.outcome, "reason": reason})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep a file that cannot be collected, or is skipped whole."""
        if report.outcome != "passed":
            self.counts[report.outcome] += 1
            self.results.add({"test": report.nodeid, "outcome": report.outcome, "reason": report.longreprtext[-600:]})


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--processes", type=int, default=8, help="that run tests beside each other (default: 8)")
    arguments = start(parser)
    results = Results("kernel_tests", arguments.out)
    recorder = Recorder(results)
    chosen = [str(PROJECT / path) for path in (TINY if arguments.tiny else FILES)]
    spread = ["-n", str(2 if arguments.tiny else arguments.processes)]
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(PROJECT), "-m", "not ahead_of_time"]
    code = pytest.main([*chosen, *spread, *options], plugins=[recorder])
    results.add({"test": "all", "passed": 0, "failed": 0, "skipped": 0, **recorder.counts, "exit_code": int(code)})
    print(results.path)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
