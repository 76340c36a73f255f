# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Records, results files, tables and pictures, from records made up here."""

import io
import json

import pytest

from benchmarks import report
from benchmarks.suites import CEILINGS, Cell

pytest.importorskip("rich")
H200 = CEILINGS["NVIDIA H200"]


def record(cell, us, peers, **more):
    return report.make_record(
        cell, kernel="k", config="c", us=us, peers=peers, rel_err=0.00163, ceilings=H200, **more
    )


@pytest.fixture
def records():
    return [
        record(Cell("fp8", 1, 4096, 4096), 5.0, {"a": 10.0, "b": 8.0}),
        record(Cell("fp8", 16, 4096, 4096), 5.0, {"a": 5.0}, others={"tensorwise": 1.0}),
        record(Cell("fp8", 4096, 4096, 4096), 100.0, {"a": 95.0}),
        record(Cell("w4a16", 1, 4096, 4096, 128), None, {"m": 9.0}, failed={"ours": "E: no"}),
        record(Cell("quantize-fp8-token", 256, None, 8192), 4.0, {"v": 5.5}),
    ]


HEAD = report.header("python -m benchmarks --suite smoke", "NVIDIA H200", "580", {"jax": "0.11.2"})


def test_record_fields_and_ratio(records):
    first = records[0]
    fields = (
        "family kernel config m n k group us tflops gbps floor_us peers ratio_to_best_peer rel_err"
    )
    assert list(first) == fields.split()
    assert first["ratio_to_best_peer"] == 1.6  # the best of the eligible peers over ours
    assert first["tflops"] == pytest.approx(2 * 4096 * 4096 / 5 / 1e6, abs=0.1)
    assert records[1]["ratio_to_best_peer"] == 1.0  # tensorwise is shown, not counted
    assert records[1]["other_peers"] == {"tensorwise": 1.0}


def test_a_failed_cell_keeps_its_reason_and_has_no_time(records):
    failed = records[3]
    assert failed["us"] is None and failed["ratio_to_best_peer"] is None
    assert failed["failed"] == {"ours": "E: no"} and failed["peers"] == {"m": 9.0}


def test_save_and_load_give_the_same_records(tmp_path, records):
    path = tmp_path / "deep" / "r.json"
    report.save(path, HEAD, records)
    assert report.load(path) == (HEAD, records)
    assert set(json.loads(path.read_text())) == {"header", "records"}
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]  # nothing half written stays


def test_header_says_how_to_repeat_it():
    assert set(HEAD) >= {"commit", "device", "driver", "versions", "date", "command", "ceilings"}
    assert HEAD["ceilings"]["read_gbps"] == 4372.0


def test_merge_replaces_cells_measured_again(records):
    again = record(Cell("fp8", 1, 4096, 4096), 4.0, {"a": 8.0})
    new = record(Cell("fp8", 2, 4096, 4096), 4.0, {"a": 8.0})
    merged = report.merge(records, [again, new])
    assert len(merged) == len(records) + 1
    assert merged[0] is again and merged[-1] is new


def test_summary_groups_and_averages(records):
    rows = {(r["family"], r["where"]): r for r in report.summary(records)}
    decode = rows["fp8", "1<=M<=16"]
    assert decode["cells"] == 2 and decode["failed"] == 0
    assert decode["ratio"] == pytest.approx((1.6 * 1.0) ** 0.5) and decode["worst"] == 1.0
    assert rows["w4a16", "1<=M<=16"]["failed"] == 1
    assert rows["w4a16", "1<=M<=16"]["ratio"] is None
    assert rows["quantize-fp8-token", "all"]["ratio"] == pytest.approx(1.375)
    assert rows["fp8", "M>=513"]["share"] == pytest.approx(0.8715, rel=0.01)


@pytest.mark.parametrize("m, where", [(1, "1<=M<=16"), (17, "17<=M<=64"), (513, "M>=513")])
def test_buckets(m, where):
    assert report.bucket(m) == where


def test_tables_show_every_cell(records):
    from rich.console import Console

    out = io.StringIO()
    report.print_tables(records, Console(file=out, width=160))
    text = out.getvalue()
    assert "E: no" in text and "4096x4096" in text and "K=8192" in text
    assert "1.60" in text and "geometric means" in text


def test_swept_cells_show_their_own_best(records):
    from rich.console import Console

    records[0] |= {"best_us": 4.0, "best_config": "Config(7)", "configs": 12}
    out = io.StringIO()
    report.print_tables(records, Console(file=out, width=200))
    assert "1.25x of Config(7)" in out.getvalue()


def test_readme_is_rewritten_between_its_markers(tmp_path, records):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(readme, [(HEAD, records)])
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| fp8 |  | 3 | 1.26 (1.00) |" in text
    assert "(1 failed)" in text
    assert f"commit {HEAD['commit']}" in text
    assert "NVIDIA H200, driver 580" in text and "`python -m benchmarks --suite smoke`" in text
    report.write_readme(readme, [(HEAD, records)])
    assert readme.read_text() == text  # a second run changes nothing


def test_a_note_in_the_header_reaches_the_readme(records):
    noted = report.readme_table([(HEAD | {"note": "changed since"}, records)])
    assert "(changed since): `" in noted
    assert "changed since" not in report.readme_table([(HEAD, records)])


def test_the_larger_file_has_the_word_in_the_readme(records):
    small = [dict(records[0], us=1.0, ratio_to_best_peer=99.0)]
    text = report.readme_table([(HEAD, small), (HEAD | {"commit": "later"}, records)])
    assert "99" not in text and "commit later" in text


def test_the_commit_is_unknown_outside_a_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit() == "unknown"


@pytest.mark.parametrize("text", ["none", f"{report.END}\n{report.BEGIN}", report.BEGIN * 2])
def test_readme_without_its_markers_is_refused(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="expected one"):
        report.write_readme(readme, [])
    assert readme.read_text() == text


def test_readme_without_results_says_so():
    assert "make bench" in report.readme_table([])


def test_pictures_of_both_kinds(tmp_path, records):
    pytest.importorskip("matplotlib")
    for name, chosen in (("gemm", records[:3]), ("quantize", records[4:])):
        path = tmp_path / f"{name}.png"
        report.draw_roofline(chosen, path, "NVIDIA H200")
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    report.draw_roofline(records[3:4], tmp_path / "empty.png", "Some GPU")
    assert (tmp_path / "empty.png").exists()
