"""The workflow that checks records: its code is the base branch's, a pull request's files are data, failures end it."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
import yaml

from tests.support.small_world import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/results.yml").read_text())
STEPS = WORKFLOW["jobs"]["records"]["steps"]
RUN = [step["run"] for step in STEPS if "run" in step]
CHECKOUTS = [step["with"] for step in STEPS if step.get("uses", "").startswith("actions/checkout")]
(VALIDATE,) = [text for text in RUN if "unlearnbench validate" in text]


def test_the_code_is_of_the_base_branch_and_the_pull_request_is_data():
    by_path = {each["path"]: each for each in CHECKOUTS}
    assert set(by_path) == {"base", "pr"}
    assert by_path["base"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert all(each["persist-credentials"] is False for each in CHECKOUTS)
    assert not any("submodules" in each for each in CHECKOUTS)
    installed = [line for text in RUN for line in text.splitlines() if "pip " in line]
    assert installed == ["pip install -e ./base"]


def test_nothing_of_the_pull_request_is_run():
    for text in RUN:
        assert not re.search(r"\bcd\b|python|PYTHONPATH|--method|source |\bpr/(?!results)(?=[\w.])", text), text
    assert not any("working-directory" in step for step in STEPS)
    assert "working-directory" not in str(WORKFLOW.get("defaults", ""))


def test_it_may_only_read_and_no_secret_is_given():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in WORKFLOW["jobs"]["records"]
    triggers = WORKFLOW[True]  # YAML reads the key `on` as true
    assert list(triggers) == ["pull_request"]
    text = (ROOT / ".github/workflows/results.yml").read_text()
    assert "secrets." not in text
    untrusted = re.findall(r"\$\{\{(.*?)\}\}", "\n".join(RUN))
    assert untrusted == [], "names and titles of a pull request would be run as shell"


def test_nothing_is_written_and_nothing_goes_on_after_a_failure():
    assert not any("--write" in text for text in RUN)
    assert not any("continue-on-error" in step for step in STEPS)
    assert not any("if" in step for step in STEPS), "every step needs the ones before it to succeed"
    assert not any(re.search(r"\|\| *(true|:)|set \+e", text) for text in RUN)
    upload = next(i for i, step in enumerate(STEPS) if "upload-artifact" in step.get("uses", ""))
    assert upload > next(i for i, step in enumerate(STEPS) if step.get("run") == VALIDATE)


@pytest.mark.skipif(os.name == "nt", reason="the workflow's shell is bash")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ([], ["validate", "pr/results"]),
        (
            ["results/t/default/3/m/seed-0.json", "results/t/default/3/a b/seed-1.json"],
            ["validate", "--strict", "--verify", "5%", "pr/results"],
        ),
    ],
)
def test_a_share_of_the_changed_records_is_verified(tmp_path, changed, words):
    pr, tools = tmp_path / "pr", tmp_path / "bin"
    tools.mkdir()
    (tools / "unlearnbench").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tools / "unlearnbench").chmod(0o755)

    def git(*command):
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *own, *command], cwd=pr, check=True, capture_output=True)

    pr.mkdir()
    git("init")
    old = pr / "results/t/default/3/old/seed-0.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    git("add", "-A")
    git("commit", "-m", "base")
    for name in ("README.md", *changed):
        (pr / name).parent.mkdir(parents=True, exist_ok=True)
        (pr / name).write_text(name)
    git("add", "-A")
    git("commit", "-m", "more")
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", VALIDATE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == words + sorted(f"pr/{name}" for name in changed)


def test_the_page_is_published_from_main_alone_and_by_a_job_that_can_do_nothing_else():
    text = (ROOT / ".github/workflows/pages.yml").read_text()
    pages = yaml.safe_load(text)
    assert list(pages[True]) == ["push"] and pages[True]["push"]["branches"] == ["main"]
    assert pages["permissions"] == {"contents": "read"} and "secrets." not in text
    assert "permissions" not in pages["jobs"]["report"]
    assert pages["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert not any("run" in step for step in pages["jobs"]["publish"]["steps"]), "no code of ours has these permissions"
    uses = [step["uses"] for job in pages["jobs"].values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in uses)


def test_the_published_page_is_the_report_that_the_command_makes():
    steps = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())["jobs"]["report"]["steps"]
    (command,) = [step["run"] for step in steps if "unlearnbench" in step.get("run", "")]
    (upload,) = [step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")]
    assert command == f"unlearnbench report results --out {upload}/index.html"
