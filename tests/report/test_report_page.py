import base64
import hashlib
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from commands import Commands
from PIL import Image
from report_factory import record
from report_page import HOSTILE, edited, experiments, folder, hostile, measured

from cmbench import records
from cmbench.editing import records as edits
from cmbench.errors import WorkError
from cmbench.experiments.manifest import Arm, Manifest, Point, read_all
from cmbench.report import tables
from cmbench.report.grid import preview_path, write_preview
from cmbench.report.page import write_page
from cmbench.report.page_pictures import figures, previews

SHIPPED = Path(__file__).parents[2] / "results" / "shipped"


class Parsed(HTMLParser):
    """The elements of a page, their attributes, and the text of scripts, styles and table rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(page)
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self._inside and self._inside[-1] in self.raw:
            self.raw[self._inside[-1]][-1] += data
        elif ("td" in self._inside or "th" in self._inside) and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def content(self):
        """What the scripts read."""
        place = [attrs.get("id") for tag, attrs in self.elements if tag == "script"].index("data")
        return json.loads(self.raw["script"][place])


def page_of(out: Path, title: str = "A report") -> str:
    found = [one for name in edits.datasets(out) if (one := edits.read(out, name))]
    return write_page(records.read(out), read_all(out), out, title, found)


@pytest.fixture
def out(tmp_path):
    made = measured()
    folder(tmp_path, made)
    experiments(tmp_path, made)
    edits.write(tmp_path, edited())
    return tmp_path


def test_the_same_records_give_the_same_page(out):
    assert page_of(out) == page_of(out)


def test_the_page_loads_nothing(out):
    parsed = Parsed(page_of(out))
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert not [tag for tag, _ in parsed.elements if tag in ("link", "iframe", "object", "embed", "base")]
    assert "url(" not in parsed.raw["style"][0] and "@import" not in parsed.raw["style"][0]
    assert not any("sourceMappingURL" in script for script in parsed.raw["script"])


def test_the_policy_allows_exactly_the_scripts_and_the_style_of_the_page(out):
    parsed = Parsed(page_of(out))
    policy = next(a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    kinds = [a.get("type") for tag, a in parsed.elements if tag == "script"]
    run = [text for text, kind in zip(parsed.raw["script"], kinds, strict=True) if kind is None]
    assert len(run) == 8 and policy.count("sha256-") == len(run) + 1
    for text in [*run, *parsed.raw["style"]]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_hostile_names_stay_text(tmp_path):
    plain, bad = tmp_path / "plain", tmp_path / "bad"
    for one, made in ((plain, measured()), (bad, [*measured(), *hostile()])):
        folder(one, made)
        experiments(one, made)
        edits.write(one, edited(HOSTILE if one == bad else "CD"))
    experiments(bad, measured(), HOSTILE)
    clean, parsed = Parsed(page_of(plain)), Parsed(page_of(bad, HOSTILE))

    def count(page, tag):
        return sum(one == tag for one, _ in page.elements)

    assert count(parsed, "script") == count(clean, "script") and count(parsed, "img") == count(clean, "img")
    assert not [a for _, a in parsed.elements if any(name.startswith("on") for name in a)]
    digits = next(one for one in parsed.content["datasets"] if one["name"] == "digits")
    assert [row["line"] for row in digits["rows"]][-1] == HOSTILE
    assert digits["rows"][-1]["group"] == HOSTILE
    assert parsed.content["experiments"][0]["arms"][0]["label"] == f"{HOSTILE}, l1"
    assert any(HOSTILE in " ".join(row) for row in parsed.rows)
    assert parsed.content["editing"][0]["arms"][0]["label"] == HOSTILE


def test_the_tables_are_those_of_the_table_command(out):
    rows = {tuple(row[1:]) for row in Parsed(page_of(out)).rows}
    for table in tables.build_all(records.read(out)):
        letters = table.letters
        for _, row in table.rows():
            cells = [
                cell.text + "".join(letters[note] for note in cell.notes) for cell in (row.nfe, *row.cells)
            ]
            assert (*cells, *([table.origin(row)] if table.origins else [])) in rows


def test_every_record_stands_in_its_row_with_cost_commit_and_machine(out):
    rows = Parsed(page_of(out)).rows
    for one in records.read(out):
        row = next(row for row in rows if row[1:2] == [one.key])
        assert row[0] == str(one.seed)
        if one.dataset == "digits":
            assert {"0123456789ab", "Test CPU, 1 threads", "2026-01-02T03:04:05+00:00"} <= set(row)
            assert f"{one.cost['training_seconds']:,g}" in row
    page = page_of(out)
    for text in ("fit.steps=400", "points=18", "Python 3.11.7, torch 2.9", "a note"):
        assert text in page


def test_points_are_means_over_seeds_with_their_range(out):
    content = Parsed(page_of(out)).content
    digits = next(one for one in content["datasets"] if one["name"] == "digits")
    row = next(row for row in digits["rows"] if row["line"] == "CD" and row["nfe"] == 2)
    own = [r.metrics["fid"].value for r in records.read(out) if r.method == "cd" and r.nfe == 2]
    figure = row["metrics"]["fid|FD-digits"]
    assert figure["mean"] == pytest.approx(fmean(own)) and (figure["low"], figure["high"]) == (
        min(own),
        max(own),
    )
    assert row["costs"] == {"evaluations": 2.0, "seconds": pytest.approx(2 / 2500), "training": 200.0}
    assert sorted(row["keys"]) == sorted(r.key for r in records.read(out) if r.method == "cd" and r.nfe == 2)


def test_published_figures_are_points_of_the_inception_fid_alone(out):
    content = Parsed(page_of(out)).content
    by_name = {one["name"]: one for one in content["datasets"]}
    assert by_name["digits"]["published"] == []
    paper = {(row["line"], row["nfe"]): row["metrics"] for row in by_name["cifar10"]["published"]}
    assert paper["CD", 1]["fid|FID"]["mean"] == 3.55


def test_curves_of_an_experiment_are_means_at_each_step(out):
    steps, evaluations = Parsed(page_of(out)).content["experiments"]
    assert [arm["label"] for arm in steps["arms"]] == ["CD, l1", "CD, l2"]
    assert steps["arms"][0]["settings"] == ["cd.metric=l1"] and steps["setup"] == ["preset=quick"]
    points = [(point["x"], point["metrics"]["fid|FD-digits"]["mean"]) for point in steps["arms"][0]["points"]]
    assert points == [(step, pytest.approx(5 + 100 / step + 0.05)) for step in (100, 200, 300)]
    assert [point["x"] for point in evaluations["arms"][0]["points"]] == [1, 2]
    assert evaluations["notes"] == ["CD: NFE 8: it could not be made"]


def test_curves_at_several_evaluations_are_told_apart(out):
    arms = [Arm("cd", "CD", "cd", points=tuple(Point(9, r.nfe, r.seed, _path(out, r)) for r in _cd(out)))]
    manifest = Manifest("own", "Own", "", "digits", "step", "fid", tuple(arms))
    content = Parsed(write_page(records.read(out), [manifest], out, "t")).content
    assert [arm["label"] for arm in content["experiments"][0]["arms"]] == ["CD, NFE 1", "CD, NFE 2"]


def test_curves_of_editing_are_means_over_seeds_beside_what_needs_no_network(out):
    (one,) = Parsed(page_of(out)).content["editing"]
    assert [task["id"] for task in one["tasks"]] == ["inpaint", "denoise"]
    assert [(metric["id"], metric["title"], metric["better"]) for metric in one["metrics"]] == [
        ("psnr", "PSNR", "higher"),
        ("frechet", "FD-digits", "lower"),
    ]
    assert [arm["label"] for arm in one["arms"]] == ["CD", "DDIM"]
    points = one["arms"][0]["points"]["inpaint"]
    assert [(point["x"], point["metrics"]["psnr"]["mean"]) for point in points] == [(1, 11.5), (5, 15.5)]
    assert (points[0]["metrics"]["psnr"]["low"], points[0]["metrics"]["psnr"]["high"]) == (11, 12)
    assert points[0]["from"] == ["seeds 0, 1; 10 of 50 images"]
    assert one["from"] == ["commit abcdef012345", "Test CPU, 1 threads"]
    still = {each["label"]: (each["truth"], sorted(each["metrics"])) for each in one["still"]["denoise"]}
    assert still == {"mean of the data": (False, ["frechet", "psnr"]), "the originals": (True, ["frechet"])}


def test_the_tables_of_editing_stand_in_the_page_with_how_it_was_measured(out):
    page = page_of(out)
    rows = Parsed(page).rows
    assert rows.count(["Method", "NFE", "PSNR ↑", "FD-digits ↓", "given max ↓", "s"]) == 2
    assert ["CD", "5", "15.5 ± 0.7", "2 ± 0", "0.25", "1.00"] in rows
    assert ["mean of the data", "", "9", "40", "", ""] in rows
    assert "no weights CD" in page and "as denoise is set" in page and "abcdef012345" in page


def test_editing_alone_is_a_page(tmp_path):
    page = write_page([], [], tmp_path, "t", [edited()])
    assert "Zero-shot editing: Digits" in page and Parsed(page).content["datasets"] == []


def test_a_manifest_of_a_missing_record_is_an_error_that_names_it(out):
    arm = Arm("cd", "CD", "cd", points=(Point(1, 1, 0, "experiments/runs/gone.json"),))
    with pytest.raises(WorkError, match=r"gone\.json"):
        write_page(records.read(out), [Manifest("a", "A", "", "digits", "step", "fid", (arm,))], out, "t")


def _cd(out):
    return [one for one in records.read(out) if one.method == "cd" and one.dataset == "digits"]


def _path(out, one):
    return records.record_path(out, one).relative_to(out).as_posix()


def _tiles(uri):
    kind, _, content = uri.partition(";base64,")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_previews_keep_their_pixels_where_there_is_room(out):
    made = [one for one in records.read(out) if one.dataset == "digits"]
    shown = previews(made, out / "previews", 1_000_000)
    assert shown.samples == 64 and not shown.remark and set(shown.pictures) == {one.key for one in made}
    kind, tiles = _tiles(shown.pictures[made[0].key])
    stored = np.asarray(Image.open(preview_path(out / "previews", made[0])))
    assert kind == "data:image/png" and np.array_equal(tiles, stored)


@pytest.mark.parametrize("budget", [260_000, 100_000, 45_000, 12_000, 100])
def test_previews_shrink_to_their_budget_and_say_so(tmp_path, budget):
    made = [record("cd", 1, seed) for seed in range(4)]
    for one in made:
        noise = np.random.default_rng(one.seed).integers(0, 256, (64, 16, 16, 3), np.uint8)
        write_preview(preview_path(tmp_path, one), noise)
    shown = previews(made, tmp_path, budget)
    assert sum(map(len, shown.pictures.values())) <= budget
    assert shown.remark
    assert bool(shown.pictures) == (budget > 100)


def test_pictures_that_are_too_many_leave_the_page_under_six_megabytes(tmp_path):
    made = [record("cd", 1, seed) for seed in range(12)]
    for one in made:
        records.write(tmp_path, one)
        noise = np.random.default_rng(one.seed).integers(0, 256, (64, 64, 64, 3), np.uint8)
        write_preview(preview_path(tmp_path / "previews", one), noise)
    (tmp_path / "figures").mkdir()
    for name in ("one", "two", "three"):
        Image.effect_noise((1500, 1500), 99).save(tmp_path / "figures" / f"{name}.png")
    page = page_of(tmp_path)
    assert 4_000_000 < len(page.encode()) < 6_000_000
    assert (
        "To keep the page small: the first" in page and "Left out to keep the page small: three, two" in page
    )


def test_figures_are_the_smaller_of_png_and_svg_within_the_budget(tmp_path):
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    Image.effect_noise((90, 90), 90).save(tmp_path / "b.png")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    shown, left = figures(tmp_path, 1_000_000)
    assert [(one.name, one.uri[:14]) for one in shown] == [
        ("a", "data:image/svg"),
        ("b", "data:image/png"),
    ] and not left
    shown, left = figures(tmp_path, 1000)
    assert [one.name for one in shown] == ["a"] and left == ["b"]


def test_the_vendored_library_is_the_one_that_its_index_names():
    vendor = files("cmbench") / "assets" / "report" / "vendor"
    index = json.loads((vendor / "index.json").read_text())
    for name, entry in index.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == entry["sha256"]
        assert "MIT License" in (vendor / entry["licence_file"]).read_text()
        assert f"v{entry['version']}" in (vendor / name).read_text()[:200]


def test_the_shipped_results_make_a_page_of_less_than_six_megabytes():
    made = records.read(SHIPPED)
    page = page_of(SHIPPED, "Digits")
    content = Parsed(page).content
    assert len(page.encode()) < 6_000_000
    assert len(content["pictures"]) == len(made) and len(content["editing"]) == 2
    assert sum(len(row["keys"]) for one in content["datasets"] for row in one["rows"]) == len(made)


def test_the_command_writes_the_page_and_imports_no_torch(out, tmp_path):
    code = (
        "import sys\nfrom cmbench.cli import main\ntry: main(['report', '--out', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\nprint('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    made = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines() == [str(out / "report.html"), "LIGHT"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page == page_of(out, "Few-step image generators, measured")


def test_the_command_takes_a_data_set_a_title_and_a_file(out, capsys):
    ended = Commands(capsys)(
        "report",
        "--out",
        out,
        "--dataset",
        "cifar10",
        "--title",
        "Mine & yours",
        "--to",
        out / "sub" / "x.html",
    )
    page = (out / "sub" / "x.html").read_text(encoding="utf-8")
    assert ended.status == 0 and "<h1>Mine &amp; yours</h1>" in page
    assert [one["name"] for one in Parsed(page).content["datasets"]] == ["cifar10"]
    assert Parsed(page).content["experiments"] == [] and Parsed(page).content["editing"] == []


def test_nothing_measured_is_one_line(tmp_path, capsys):
    ended = Commands(capsys)("report", "--out", tmp_path)
    assert ended.status == 2 and "no records" in ended.error and not (tmp_path / "report.html").exists()
