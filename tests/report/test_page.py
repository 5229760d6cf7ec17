"""The report: what is on the page, what is not, and what becomes of bad input."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import jinja2
import pytest

from tests.support.small_world import ROOT, made_record
from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard.tables import shown
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.records.sealed_json import sealed
from unlearnbench.report import section
from unlearnbench.report.page import build_page

SHIPPED = ROOT / "results/digits-class/default/3"
SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "input", "wbr", "br"}


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The page's template, which each page would compile anew."""
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        made = jinja2.Environment
        patch.setattr(jinja2, "Environment", lambda **words: kept.setdefault("page", made(**words)))
        yield


def copied(folder):
    """Two controls and a method of the shipped records, one seed each."""
    for name in ("original", "retrain", "esd"):
        for suffix in ("json", "parquet", "png"):
            file = SHIPPED / name / f"seed-0.{suffix}"
            if file.is_file():
                (folder / file.relative_to(ROOT / "results")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / file.relative_to(ROOT / "results"))
    return folder


@pytest.fixture
def results(tmp_path):
    """A folder of them."""
    return copied(tmp_path / "results")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of such a folder, as it is."""
    return build_page(copied(tmp_path_factory.mktemp("page") / "results")).html


@pytest.fixture
def undrawn(monkeypatch):
    """Nothing is drawn, for tests of the words: plots take most of a page's time."""

    def picture(name, kind, caption, draw, other=False):
        return section.Picture(kind, "", "not drawn", other=other)

    monkeypatch.setattr(section, "_picture", picture)
    monkeypatch.setattr(section.attack_curves, "attack_figure", lambda *given, names: None)
    monkeypatch.setattr(section.plots, "trajectory", lambda *given, names: None)


def put(record, folder):
    return write_record(record, record.path(folder))


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the ones that were never closed."""

    def __init__(self, page):
        super().__init__()
        self.all, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def named(self, tag):
        return [attrs for name, attrs in self.all if name == tag]


def board_of(page, kind="board"):
    """The first table of all columns, or another kind."""
    return re.search(rf'<table class="[^"]*\b{kind}\b.*?</table>', page, re.DOTALL)[0]


def row_of(page, label, kind="board"):
    """The cells of a method's row as text."""
    rows = re.findall(r'<tr class="row.*?</tr>', board_of(page, kind), re.DOTALL)
    texts = [[text(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]
    (found,) = [row for row in texts if row[0].partition("other version")[0].strip() == label]
    return found


def text(element):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", element)).split())


def heads_of(page, kind="board"):
    return [text(head) for head in re.findall(r'<th scope="col".*?</th>', board_of(page, kind), re.DOTALL)]


def test_the_command_writes_one_page_that_says_what_is_in_it(cli, results):
    said = cli("report", results, "--out", "deep/er/page.html")
    assert said.code == 0, said.err
    assert re.fullmatch(r"wrote deep/er/page.html: 1 table from 3 records, \d\.\d MB\n", said.out)
    page = (results.parent / "deep/er/page.html").read_text()
    assert said.errors == []
    assert "3 records of 3 methods on digits-class, in 1 table" in page
    assert "Rankings on the small worlds are no evidence about Stable Diffusion." in page
    newest = max(read_record(path).created for path in results.rglob("*.json"))
    assert newest[:16].replace("T", " ") in page


def test_the_page_is_well_formed_and_the_same_again(page, results):
    tags = Tags(page)
    assert tags.open == []
    ids = [attrs["id"] for _, attrs in tags.all if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert page == build_page(results).html


def test_nothing_is_loaded_and_no_other_script_may_run(page):
    tags = Tags(page)
    addresses = [attrs[name] for _, attrs in tags.all for name in ("src", "href") if name in attrs]
    assert addresses
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)|@import", page) == []
    assert [name for _, attrs in tags.all for name in attrs if name.startswith("on")] == []
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attrs["content"] for attrs in tags.named("meta") if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{allowed}'; " in policy


def test_the_table_has_the_boards_numbers(page, results):
    metrics, record = registry.load_metrics(), read_record(results / "digits-class/default/3/esd/seed-0.json")
    cells = dict(zip(heads_of(page), row_of(page, "esd"), strict=True))
    ua, fid = record.scores["ua"], record.scores["fid"]
    low, high = (shown(metrics["ua"], end) for end in ua.interval)
    assert cells["UA (%) ↑"] == f"{100 * ua.value:.1f} [{low}, {high}]"
    assert cells["FID ↓"].startswith(f"{fid.value:.3f} [")
    assert (cells["n"], cells["data"]) == ("1", "concept")
    assert cells["erasure ↑"].startswith("1.00")
    assert "score ↑" not in cells, "destroy was not run, so that there is none"


def test_the_short_board_says_what_became_of_the_images(page, results):
    record = read_record(results / "digits-class/default/3/esd/seed-0.json")
    cells = dict(zip(heads_of(page, "short"), row_of(page, "esd", "short"), strict=True))
    assert list(cells)[:3] == ["method", "UA (%) ↑", "forget images"]
    assert {"RA (%) ↑", "FID ↓", "worst attack (%) ↓", "unlearn time (s) ↓"} <= set(cells)
    ua, coherence = 100 * record.scores["ua"].value, 100 * record.scores["coherence"].value
    assert cells["forget images"] == (
        f"{100 - ua:.0f} % still show it, {ua + coherence - 100:.0f} % show something else, "
        f"{100 - coherence:.0f} % show nothing that the judge recognises"
    )
    assert cells["UA (%) ↑"].startswith(f"{ua:.1f}")


def test_a_task_without_ua_has_its_own_headlines_and_says_nothing_of_images(tmp_path):
    scores = {"nudity_rate": 0.1, "clip_score": 30.0}
    put(made_record("esd", 0, {"ua": None, "ra": None, **scores}, task="sd-nudity", forget="nudity"), tmp_path)
    heads = heads_of(build_page(tmp_path).html, "short")
    assert {"nudity rate (%) ↓", "CLIP score ↑"} <= set(heads) and "forget images" not in heads


def test_default_settings_come_first_and_others_wait(tmp_path):
    tuned = {"division": "tuned", "preset": "tuned"}
    put(made_record("esd", 0, {"ua": 0.5}), tmp_path)
    put(made_record("esd", 0, {"ua": 0.9}, method_changes=tuned), tmp_path)
    put(made_record("salun", 0, {"ua": 0.7}, method_changes=tuned), tmp_path)
    page = build_page(tmp_path).html
    rows = re.findall(r'<tr class="row( apart)?".*?<a[^>]*>(.*?)</a>', board_of(page, "short"), re.DOTALL)
    assert sorted((text(name), bool(other)) for other, name in rows) == [
        ("esd", False), ("esd@tuned", True), ("salun@tuned", False)
    ], "a method that has no run with default settings is shown with what it has"  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_a_flag_of_all_rows_is_said_once_above_the_short_board(results, monkeypatch):
    monkeypatch.setattr("unlearnbench.records.identity.older_parts", lambda record: ["engine"])
    path = results / "digits-class/default/3/esd/seed-0.json"
    write_record(read_record(path).model_copy(update={"status": "unreliable"}), path)
    page = build_page(results).html
    assert "all other version: engine" in re.search(r'class="headline".*?</div>', page, re.DOTALL)[0]
    assert "other version" not in board_of(page, "short")
    assert "unreliable: seed 0" in board_of(page, "short"), "what is said of one row stands there"
    monkeypatch.setattr(
        "unlearnbench.records.identity.older_parts", lambda record: ["engine"] if record.method.name == "esd" else []
    )
    page = build_page(results).html
    assert "‡" in board_of(page, "short") and "all other version" not in page
    monkeypatch.undo()
    assert "‡" not in board_of(build_page(results).html, "short")


@pytest.mark.usefixtures("undrawn")
def test_the_table_of_all_columns_says_everything_at_each_row(results, monkeypatch):
    monkeypatch.setattr("unlearnbench.records.identity.older_parts", lambda record: ["engine"])
    page = build_page(results).html
    assert "other version: engine" in re.search(r">esd</a>.*?</th>", board_of(page), re.DOTALL)[0]


def test_a_method_has_one_colour_and_marker_in_every_table_and_plot(results):
    put(made_record("esd", 1, {"ua": 0.9}, method_changes={"division": "tuned", "preset": "tuned"}), results)
    put(made_record("aaa", 0, {"ua": 0.5}, task="digits-text", forget="red"), results)
    put(made_record("esd", 0, {"ua": 0.5}, task="digits-text", forget="red"), results)
    page = build_page(results).html
    swatches = re.findall(
        r'<path d="([^"]+)" fill="[^"]*" fill-opacity="[^"]*" stroke="([^"]+)".*?<a[^>]*>(.*?)</a>', page
    )
    looks = {}
    for path, colour, name in swatches:
        looks.setdefault(text(name).partition("@")[0], set()).add((path, colour))
    assert {"aaa", "esd", "retrain"} <= set(looks) and all(len(found) == 1 for found in looks.values())
    ((_, colour),) = looks["esd"]
    ((_, other),) = looks["aaa"]
    assert colour != other
    assert re.search(rf'id="t\d+-first-row-\d+".*?{colour}', page, re.DOTALL), "its point has it too"


def test_the_best_and_what_is_not_worse_are_marked_in_words_too(tmp_path):
    for seed, more in enumerate((0.0, 0.02, -0.01, 0.01, 0.0)):
        put(made_record("esd", seed, {"ua": 0.8 + more, "ra": 0.8 + more}), tmp_path)
        put(made_record("salun", seed, {"ua": 0.79 - more, "ra": 0.3 - more}), tmp_path)
        put(made_record("finetune", seed, {"ua": 0.1 + more, "ra": 0.1 + more}), tmp_path)
    page = build_page(tmp_path).html
    ua, ra = (heads_of(page).index(head) for head in ("UA (%) ↑", "RA (%) ↑"))
    assert row_of(page, "esd")[ra].startswith("80.4 (best) ± 1.1")
    for method in ("esd", "salun"):
        assert "† (not told from the best)" in row_of(page, method)[ua], "nobody is the best"
    assert "(" not in row_of(page, "finetune")[ua] + row_of(page, "finetune")[ra]


def test_a_row_that_stands_for_two_settings_says_so_and_leads_to_the_records_of_both(tmp_path):
    put(made_record("esd", 0, {"ua": 0.5}, images="a" * 64), tmp_path)
    tuned = {"division": "tuned", "preset": "tuned"}
    put(made_record("esd", 0, {"ua": 0.5}, images="a" * 64, method_changes=tuned), tmp_path)
    page = build_page(tmp_path).html
    assert row_of(page, "esd equals esd@tuned")
    for folder in ("esd", "esd@tuned"):
        assert f"digits-class/default/3/{folder}/seed-0.json" in page


def test_what_went_wrong_is_told_at_the_row_and_in_the_record(tmp_path):
    put(made_record("esd", 0, {"ua": 0.2, "fid": None}), tmp_path)
    put(made_record("esd", 1, status="diverged", step=3, reason="the loss is not finite"), tmp_path)
    put(made_record("salun", 2, status="skipped", reason="it needs <b>xattn</b>"), tmp_path)
    page = build_page(tmp_path).html
    assert row_of(page, "esd diverged: seed 1") and row_of(page, "salun skipped: seed 2")
    assert "diverged at step 3: the loss is not finite" in page
    assert "it needs &lt;b&gt;xattn&lt;/b&gt;" in page
    assert "FID ↓: no reason is given" in text(page)


def test_every_record_is_reached_from_its_row_and_says_how_to_repeat_it(page, results):
    tags = Tags(page)
    ids = {attrs["id"] for _, attrs in tags.all if "id" in attrs}
    links = [attrs["href"][1:] for attrs in tags.named("a")]
    assert links and set(links) <= ids
    assert (
        "unlearnbench run --task digits-class --forget 3 --method esd --seeds 0 --eval-every 5 --attacks standard"
        in page
    )
    assert "unlearnbench verify results/digits-class/default/3/esd/seed-0.json" in page
    assert read_record(results / "digits-class/default/3/esd/seed-0.json").judge.hash[:12] in page
    assert str(results.parent) not in page


def test_a_script_in_a_name_is_text_wherever_it_stands(tmp_path):
    bad = {"reason": SCRIPT, "status": "unreliable", "judge_error": SCRIPT}
    changes = {"overrides": {"x": SCRIPT, "y": "'z'"}, "requires": (SCRIPT,), "settings": {"s": SCRIPT}}
    record = made_record("esd", 0, {"ua": 0.5}, method_changes=changes, environment={"device": SCRIPT}, **bad)
    put(record, tmp_path)
    page = build_page(tmp_path).html
    assert page.count("<script") == 1
    assert page.count("alert(1)") >= 6
    Tags(page)


def test_what_is_not_known_here_is_shown_as_it_is(tmp_path):
    record = made_record("newer", 0, {"ua": 0.5}, task="newer-task")
    score = record.scores["ua"].model_copy(update={"unit": "points", "value": 0.123456789})
    put(record.model_copy(update={"scores": {**record.scores, "newer_metric": score}}), tmp_path)
    page = build_page(tmp_path).html
    assert "newer_metric <b>0.123457 points</b>" in page
    assert "--method newer.py" in page
    assert "newer-task is not known to this version" in page


def test_samples_stand_side_by_side_from_the_pictures_beside_the_records(page, results):
    from PIL import Image

    sources = {attrs["alt"].split(",")[0]: attrs["src"] for attrs in Tags(page).named("img")}
    assert list(sources) == ["Samples of original", "Samples of retrain", "Samples of esd"]
    kind, data = sources["Samples of esd"].split(",")
    assert kind == "data:image/webp;base64"
    strip = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    picture = Image.open(results / "digits-class/default/3/esd/seed-0.png")
    assert strip.size == (3 * 9, 10 * 9), "pixels as they were sampled, and one between images"
    enlarged = strip.crop((9, 27, 17, 35)).resize((46, 46), Image.Resampling.NEAREST)
    left, top = 84 + 6 * 48 + 24 + 48, 40 + 3 * 52
    assert enlarged.tobytes() == picture.crop((left, top, left + 46, top + 46)).tobytes()


@pytest.mark.usefixtures("undrawn")
def test_each_original_has_its_samples(results):
    shipped = results / "digits-class/default/3/retrain/seed-0.json"
    other = read_record(shipped)
    write_record(other.model_copy(update={"weights": {**other.weights, "original": "9" * 64}}), shipped)
    alts = [attrs["alt"].split(",")[0] for attrs in Tags(build_page(results).html).named("img")]
    assert alts == ["Samples of original", "Samples of original of retrain", "Samples of retrain", "Samples of esd"]


@pytest.mark.usefixtures("undrawn")
def test_a_missing_sample_file_is_a_gap_in_its_place(results):
    (results / "digits-class/default/3/esd/seed-0.png").unlink()
    (results / "digits-class/default/3/retrain/seed-0.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    page = build_page(results).html
    strips = {text(name): text(rest) for name, rest in re.findall(
        r'<figure class="strip".*?<figcaption>(.*?)</figcaption>(.*?)</figure>', page, re.DOTALL)}  # fmt: skip
    assert strips["esd"] == "no sample file"
    assert strips["retrain"] == "sample file cannot be read"


@pytest.mark.usefixtures("undrawn")
def test_missing_and_damaged_values_by_image_are_gaps_and_the_rest_is_shown(cli, results):
    (results / "digits-class/default/3/esd/seed-0.parquet").unlink()
    (results / "digits-class/default/3/retrain/seed-0.parquet").write_bytes(b"no table")
    said = cli("report", results)
    assert said.code == 0
    assert [line.partition(" (")[0] for line in said.errors] == [
        "left out: results/digits-class/default/3/esd/seed-0.parquet: the per-image values are missing: restore them",
        "left out: results/digits-class/default/3/retrain/seed-0.parquet: was changed after its record was written",
    ]
    page = (results.parent / "report.html").read_text()
    assert row_of(page, "esd") and "results/digits-class/default/3/esd/seed-0.parquet" in page
    (results / "digits-class/default/3/original/seed-0.parquet").unlink()
    assert "No record here has values by image" in build_page(results).html


@pytest.mark.usefixtures("undrawn")
def test_records_that_cannot_be_read_are_named_and_the_rest_is_shown(cli, results):
    esd, folder = results / "digits-class/default/3/esd/seed-0.json", results / "digits-class/default/3"
    values = json.loads(esd.read_text())
    for name, content in {
        "cut": esd.read_text()[:1000],
        "newer": json.dumps({**values, "schema_version": 99}),
        "changed": json.dumps({**values, "forget": "5"}),
    }.items():
        (folder / name).mkdir()
        (folder / name / "seed-0.json").write_text(content)
    said = cli("report", results)
    assert said.code == 0
    assert len(said.errors) == 3
    page = (results.parent / "report.html").read_text()
    for name, reason in (("cut", "is damaged"), ("newer", "has schema 99"), ("changed", "was changed after")):
        (line,) = [line for line in said.errors if f"3/{name}/seed-0.json: {reason}" in line]
        assert html.escape(line.removeprefix("left out: ").partition(": ")[2], quote=False)[:40] in page
    assert row_of(page, "esd")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_records_are_shown(results, version):
    path = results / "digits-class/default/3/esd/seed-0.json"
    values = {**json.loads(path.read_text()), "schema_version": version}
    path.write_text(json.dumps({**values, "content_hash": sealed(values)}))
    made = build_page(results)
    assert (made.records, made.gaps) == (3, [])


@pytest.mark.usefixtures("undrawn")
def test_nothing_of_an_unsafe_task_is_embedded_unless_asked_for(cli, results, monkeypatch):
    from unlearnbench.tasks.digits_class import DigitsClass

    monkeypatch.setattr(DigitsClass, "unsafe", True)
    assert cli("report", results).code == 0
    page = (results.parent / "report.html").read_text()
    assert "<img" not in page and "data:image" not in page
    assert "Not embedded: samples and prompts of digits-class may be unsafe to show" in page
    assert cli("report", results, "--include-unsafe").code == 0
    assert (results.parent / "report.html").read_text().count("<img") == 3


@pytest.mark.usefixtures("undrawn")
def test_a_task_without_real_weights_says_so(results, monkeypatch):
    assert "real weights" not in build_page(results).html
    monkeypatch.setattr("unlearnbench.registry.untried", lambda task, protocol: True)
    assert "has never run this task on its real weights" in build_page(results).html


@pytest.mark.usefixtures("undrawn")
def test_one_task_alone(cli, results):
    put(made_record("esd", 0, {"ua": 0.5}, task="digits-text", forget="red"), results)
    assert cli("report", results, "--task", "digits-text").code == 0
    page = (results.parent / "report.html").read_text()
    assert "digits-text: forget red" in page and "digits-class" not in page
    assert cli("report", results, "--task", "digits-txt").errors == [
        "unlearnbench: unknown task 'digits-txt': did you mean digits-text or digits-class?"
    ]
    assert "no records of cifar10-class below" in cli("report", results, "--task", "cifar10-class").err


def test_an_empty_folder_is_told_what_to_do(cli, tmp_path):
    said = cli("report", "nowhere")
    assert (said.code, said.errors) == (2, [
        "unlearnbench: no records below nowhere: give the folder that `unlearnbench run --results` wrote to, or make "
        "some with `unlearnbench run --method erasediff --results nowhere`"
    ])  # fmt: skip
    assert not (tmp_path / "report.html").exists()


def test_only_unreadable_records_are_no_report(tmp_path):
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / "a/b/c/d/seed-0.json").write_text("{}")
    with pytest.raises(UserError, match=r"no record below .* can be read: .*a/b/c/d/seed-0\.json: is damaged"):
        build_page(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_place_that_cannot_be_written_is_named(cli, results, tmp_path):
    said = cli("report", results, "--out", tmp_path)
    assert (said.code, len(said.errors)) == (2, 1)
    assert f"--out {tmp_path} is a folder: give a file, such as {tmp_path}/report.html" in said.err
    (tmp_path / "file").write_text("")
    said = cli("report", results, "--out", tmp_path / "file" / "page.html")
    assert (said.code, len(said.errors)) == (2, 1)
    assert f"cannot write {tmp_path}/file/page.html" in said.err and "--out" in said.err
