"""Run the conformance suite on several installed plugins in one process, as importing torch takes seconds.

Reads a list of {name, site, distribution, select} from the file named first and writes, to the file named second,
name → {check: [outcome, text]} for every check that ran, with the exit status under "".
"""

import importlib
import json
import sys
from pathlib import Path

import pytest

from medvid_core import plugins
from medvid_core.testing import subject


class Recorder:
    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("[")[0].replace("::", ".")
        before = self.outcomes.get(name, ["passed", ""])
        if report.failed or (report.skipped and before[0] == "passed"):
            self.outcomes[name] = [report.outcome, str(report.longrepr)]
        else:
            self.outcomes.setdefault(name, before)


def run(job):
    sys.path.insert(0, job["site"])
    importlib.invalidate_caches()
    plugins.registry.cache_clear()
    subject.heavy_after_import.cache_clear()
    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--medvid-plugin", job["distribution"], "-k", job["select"]]
    status = pytest.main(options, plugins=[recorder])
    sys.path.remove(job["site"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_video"]:
        del sys.modules[name]
    return {"": [int(status), ""], **recorder.outcomes}


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps({job["name"]: run(job) for job in jobs}), "utf-8")
