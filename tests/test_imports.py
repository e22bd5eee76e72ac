"""What importing costs and changes: shown in fresh processes outside the repository."""

import json
import subprocess
import sys
import textwrap

import pytest

WITHOUT_TRITON = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def fresh(code: str, folder, *options: str) -> str:
    """What the code prints in a new interpreter; warnings are errors."""
    command = [sys.executable, "-W", "error", *options, "-c", textwrap.dedent(code)]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


OBSERVED = """
    import json, sys
    import torch
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(event) if event.startswith("socket.") else None)
    heavy = {"triton", "open_clip", "timm", "segment_anything", "torchvision", "transformers", "huggingface_hub", "PIL"}
    loaded = lambda: sorted(heavy & {name.split(".")[0] for name in sys.modules})
    seen = {}
    import s2clip
    seen["names"] = sorted(dir(s2clip))
    from s2clip import ops
    seen["after ops"] = loaded()
    from s2clip import Method, Segmenter
    seen["after the segmenter"] = [loaded(), torch.cuda.is_initialized()]
    seen["exported"] = [Segmenter.__name__, Method.__name__, ops.__name__]
    try:
        s2clip.segmenters
    except AttributeError as error:
        seen["unknown"] = str(error)
    seen["sockets"] = [event for event in opened if event != "socket.gethostname"]  # which asks nobody outside
    ops.spatial_entropy(torch.randn(1, 2, 3, 4))
    seen["kernels"] = sorted(name for name in sys.modules if name.startswith("s2clip.kernels."))
    print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """What one fresh process saw, since each costs the import of torch."""
    return json.loads(fresh(OBSERVED, tmp_path_factory.mktemp("observed")))


def test_loads_no_kernel_no_model_library_and_no_gpu(observed):
    assert observed["after ops"] == []
    assert observed["after the segmenter"] == [["PIL"], False]


def test_cpu_tensors_load_no_kernel(observed):
    definitions = ["precision", "reference", "reference_components"]  # torch alone
    assert observed["kernels"] == [f"s2clip.kernels.{name}" for name in definitions]


def test_opens_no_socket(observed):
    assert observed["sockets"] == []


def test_public_names(observed):
    assert observed["names"] == ["Method", "Result", "Segmenter", "__version__", "ops"]
    assert observed["exported"] == ["Segmenter", "Method", "s2clip.ops"]
    assert observed["unknown"] == "module 's2clip' has no attribute 'segmenters'"


def test_package_alone_does_not_even_load_torch(tmp_path):
    code = "import s2clip, sys; print(s2clip.__version__ != '', 'torch' in sys.modules)"
    assert fresh(code, tmp_path) == "True False"
    reader = "import s2clip.cluster.files, s2clip.cluster.pool, sys; print('torch' in sys.modules)"
    assert fresh(reader, tmp_path) == "False"  # of a cluster: it starts in a second, and takes no half a gigabyte


def test_changes_no_global_state(tmp_path):
    code = """
        import importlib, locale, logging, os, random, signal, sys, warnings
        import numpy, torch, torchvision, open_clip, timm, segment_anything  # not ours to answer for

        def state():
            return {
                "default dtype": torch.get_default_dtype(),
                "grad mode": torch.is_grad_enabled(),
                "threads": torch.get_num_threads(),
                "matmul precision": torch.get_float32_matmul_precision(),
                "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
                "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "random": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
                "logging": (logging.root.level, list(logging.root.handlers)),
                "warnings": (list(warnings.filters), warnings.showwarning),
                "environment": (dict(os.environ), os.getcwd(), list(sys.path)),
                "hooks": (sys.excepthook, signal.getsignal(signal.SIGINT), locale.setlocale(locale.LC_ALL)),
            }

        for module in ("s2clip", "s2clip.ops", "s2clip.segmenter"):
            before = state()
            importlib.import_module(module)
            after = state()
            print(module, [name for name in before if before[name] != after[name]])
    """
    assert fresh(code, tmp_path).split("\n") == ["s2clip []", "s2clip.ops []", "s2clip.segmenter []"]


def test_ops_work_without_triton(tmp_path):
    code = WITHOUT_TRITON + textwrap.dedent("""
        import torch
        from s2clip import ops
        query = torch.randn(1, 2, 5, 16)
        ops.recombined_attention(query, query, query)
        ops.affinity_attention(torch.randn(1, 4, 4, 8), torch.randn(1, 2, 2, 8))
        labels, count = ops.label_components(torch.randint(0, 3, (1, 8, 8)))
        scores = ops.class_scores(torch.randn(1, 3, 4, 4), (8, 8))
        ops.classify_pixels(torch.randn(1, 3, 4, 4), (8, 8))
        regions = ops.measure_components(labels, labels * 0, scores, count=count)
        ops.merge_masks(torch.randn(1, 4, 4), [0], [0], scores, labels, input_size=(8, 8), padded_size=8)
        print(ops.spatial_entropy(scores).isfinite().all().item(), len(regions.area) == int(count))
    """)
    assert fresh(code, tmp_path) == "True True"


def test_nothing_named_kernels_at_the_top_level(tmp_path):
    code = """
        import importlib.util
        print(importlib.util.find_spec("s2clip.kernels.reference") is not None)
        spec = importlib.util.find_spec("kernels")
        print(spec is not None and "s2clip" in str(spec.submodule_search_locations))
    """
    assert fresh(code, tmp_path).split("\n") == ["True", "False"]


def test_an_old_path_names_the_new_one(tmp_path):
    code = """
        from s2clip.moved import MOVED
        for old, new in MOVED.items():
            whole = "from {} import {}".format(*old.rsplit(".", 1))
            for statement in (f"import {old}", f"from {old} import something", whole):
                try:
                    exec(statement)
                    print(statement, "went through")
                except ImportError as error:
                    assert new in str(error), (statement, error)
            for module in new.split(" and "):
                exec(f"import {module}")
    """
    assert fresh(code, tmp_path) == ""


def test_the_readers_still_answer_at_their_old_places(tmp_path):
    code = """
        import warnings
        from s2clip.moved import FORWARDED
        for old, new in FORWARDED.items():
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                exec(f"import {old} as before, {new} as now")
            assert before is now and now.__spec__.name == new, (before, now)
            assert any(issubclass(one.category, DeprecationWarning) and new in str(one.message) for one in said)
    """
    assert fresh(code, tmp_path) == ""


def test_figures_are_drawn_under_a_backend_that_is_not_here(tmp_path):
    code = """
        import os
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        from s2clip.analysis.plots.style import new_figure
        new_figure(1, 1).savefig("one.png")
        print(os.environ["MPLBACKEND"])
    """
    assert fresh(code, tmp_path) == "module://matplotlib_inline.backend_inline"
    assert (tmp_path / "one.png").stat().st_size > 0


def test_a_user_without_a_home_is_told_where_weights_were_looked_for(tmp_path):
    code = """
        import os, pwd
        from unittest import mock
        for name in ("HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        with mock.patch("pwd.getpwuid", side_effect=KeyError("no account")):
            from s2clip.backbones.vfm import load_vfm
            from s2clip.errors import WeightsError
            from s2clip.words.text_cache import default_folder
            print(default_folder())
            try:
                load_vfm("dino-s16", local_files_only=True)
            except WeightsError as error:
                print("looked in" in str(error))
    """
    assert fresh(code, tmp_path) == "None\nTrue"
    assert not list(tmp_path.iterdir())
