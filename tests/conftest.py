"""One thread for matrix products, and the claims of examples/, half of the work, on the second core meanwhile.

The tests' networks are small: on a busy machine the threads of NumPy's matrix products would wait for each other.
"""

import importlib.util
import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before any test imports NumPy
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is born ignoring it


def load_script(path):
    """A script of examples/ as a module; its name is no identifier."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # inspect looks for a class's source there
    spec.loader.exec_module(module)
    return module


def quick_claims(path):
    """(the claims of a script with the small budget, how many axes its figure has); a warning is an error here too."""
    warnings.simplefilter("error")
    found, figure = load_script(path).run(quick=True)
    return found, len(figure.get_axes())


def is_claim(item):
    return item.name.startswith("test_every_claim_holds")


def pytest_collection_modifyitems(items):
    """The tests that only wait for the claims come last."""
    items.sort(key=is_claim)


@pytest.fixture(scope="session", autouse=True)
def quick_claims_of(request):
    """{script: a future of its quick_claims}, of those whose tests were asked for, in one process of their own."""
    paths = [item.callspec.params["path"] for item in request.session.items if is_claim(item)]
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    yield {path: pool.submit(quick_claims, path) for path in paths}
    for worker in multiprocessing.active_children():  # after -x or Ctrl-C nobody wants the rest
        worker.terminate()
    pool.shutdown(cancel_futures=True)
