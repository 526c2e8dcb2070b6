import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in `tmp_path`, with a git that knows who commits."""

    def run_in_folder(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env={
                "PATH": f"{SCRIPTS}:/usr/local/bin:/usr/bin:/bin",
                "HOME": str(tmp_path),
                "GIT_AUTHOR_NAME": "t",
                "GIT_AUTHOR_EMAIL": "t@localhost",
                "GIT_COMMITTER_NAME": "t",
                "GIT_COMMITTER_EMAIL": "t@localhost",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run_in_folder


@pytest.fixture
def contract(tmp_path: Path, run: Run) -> Path:
    """A repository that holds the contract as its only commit; gives the path of a message in it."""
    for name in ("protos", "vendor"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "contract"]):
        assert run("git", *arguments).returncode == 0
    return tmp_path / "protos/couponmesh/type/v1/money.proto"


def without_amount(message: Path) -> None:
    lines = message.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "amount_minor = 2" not in line]
    assert len(kept) == len(lines) - 1
    message.write_text("".join(kept), encoding="utf-8")


@pytest.mark.parametrize("tag", ["v9.9.9", None], ids=["last tag", "recorded baseline"])
def test_a_removed_field_breaks_the_contract(contract: Path, run: Run, tag: str | None) -> None:
    if tag:
        assert run("git", "tag", tag).returncode == 0
    else:
        assert run(sys.executable, ROOT / "tools/breaking.py", "--record").returncode == 0
    against = f"against tag {tag}" if tag else "against protos/baseline.binpb"
    before = run(sys.executable, ROOT / "tools/breaking.py")
    assert (before.returncode, before.stdout.startswith(against)) == (0, True), before.stdout + before.stderr
    without_amount(contract)
    after = run(sys.executable, ROOT / "tools/breaking.py")
    assert after.returncode != 0
    assert 'Previously present field "2" with name "amount_minor" on message "Money" was deleted' in after.stdout


def test_a_missing_baseline_fails_instead_of_being_skipped(contract: Path, run: Run) -> None:
    (contract.parents[3] / "baseline.binpb").unlink()
    assert run(sys.executable, ROOT / "tools/breaking.py").returncode != 0


def test_a_new_field_breaks_nobody(contract: Path, run: Run) -> None:
    assert run("git", "tag", "v9.9.9").returncode == 0
    text = contract.read_text(encoding="utf-8")
    contract.write_text(text.replace("message Money {", "message Money {\n  string note = 3;"), encoding="utf-8")
    assert run(sys.executable, ROOT / "tools/breaking.py").returncode == 0


@pytest.mark.parametrize(
    ("module", "line", "contract_name"),
    [
        ("coupon_svc/domain/terms.py", "import grpc", "the domain does no I/O"),
        ("coupon_svc/domain/terms.py", "import coupon_svc.app", "never upwards"),
        ("coupon_svc/app/ports.py", "from couponmesh.type.v1 import money_pb2", "generated code is imported"),
        ("coupon_svc/app/ports.py", "import risk_svc.config", "no service imports another"),
        ("meshkit/errors.py", "import risk_svc.config", "the runtime imports no service"),
    ],
)
def test_a_forbidden_import_is_refused(tmp_path: Path, run: Run, module: str, line: str, contract_name: str) -> None:
    packages = ("meshkit", "coupon_svc", "risk_svc", "settle_svc", "campaign_svc", "meshctl")
    for package in packages:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    checked = run(SCRIPTS / "lint-imports", "--no-cache")
    assert checked.returncode != 0
    broken = [row for row in checked.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(contract_name in row for row in broken), checked.stdout
    importer = module.removesuffix(".py").replace("/", ".")
    imported = line.removeprefix("from ").removeprefix("import ").replace(" import ", ".")
    assert f"{importer} -> {imported} (" in checked.stdout


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cd " + "/root" + "/x", "a path of one machine"),
        ("see https://" + "pypi.org/simple", "the address of a package host"),
        ("<" * 7 + " HEAD", "a leftover of a merge"),
        ("[page](docs/gone.md#part)", "a link to nowhere: docs/gone.md"),
        ("word ", "white space at the end of the line"),
    ],
)
def test_text_that_ties_to_a_machine_is_refused(tmp_path: Path, run: Run, text: str, problem: str) -> None:
    assert run("git", "init", "-q").returncode == 0
    (tmp_path / "note.md").write_text(f"fine: https://example.com/work/root\n{text}\n", encoding="utf-8")
    checked = run(sys.executable, ROOT / "tools/check_text.py")
    assert (checked.returncode, checked.stdout) == (1, f"note.md:2: {problem}\n")


def test_a_run_without_an_executed_test_fails(tmp_path: Path, run: Run) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import pytest\n\n@pytest.mark.skip(reason='for the report')\ndef test_skipped():\n    pass\n", encoding="utf-8"
    )
    ran = run(sys.executable, "-m", "pytest", "-q", "--junit-xml=report.xml", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    summed_up = run(sys.executable, ROOT / "tools/test_summary.py", "report.xml")
    assert (summed_up.returncode, summed_up.stderr) == (1, "no test was executed\n")
    assert run(sys.executable, ROOT / "tools/test_summary.py", "missing.xml").returncode == 1


def test_set_up_is_instant_when_nothing_is_missing() -> None:
    # Twice: the first run may have something to do.
    for _ in range(2):
        done = subprocess.run(
            [ROOT / "tools/setup.sh", "--python-only"], capture_output=True, text=True, check=True, timeout=100
        )
    assert done.stdout == ""
