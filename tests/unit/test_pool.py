"""Pools: hosts join without lowering the level, or not at all; leaving raises it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from isthmus.baseline.arriving import arriving, tolerated
from isthmus.baseline.level import level
from isthmus.baseline.pool import Pool, found, join, raised
from isthmus.cli.level import level as command
from isthmus.cpu.features import FEATURES
from isthmus.cpu.named import qemu_models
from isthmus.errors import InputError
from isthmus.values import from_json, to_json

ROME, MILAN, EPYC = (qemu_models()[name] for name in ("EPYC-Rome", "EPYC-Milan", "EPYC"))
ICELAKE, HASWELL = qemu_models()["Icelake-Server"], qemu_models()["Haswell"]


def test_a_host_that_has_the_level_joins_and_the_level_stays() -> None:
    pool = found("blue", [ROME])
    joining = join(pool, MILAN)
    assert joining.obstacles == ()
    assert joining.pool.level.model == pool.level.model
    assert [host.name for host in joining.pool.hosts] == ["EPYC-Milan", "EPYC-Rome"]
    assert joining.pool.version == 1


def test_a_host_that_would_lower_the_pool_is_refused_by_feature() -> None:
    joining = join(found("blue", [ROME]), EPYC)
    assert any("clwb" in reason and "EPYC lacks it" in reason for reason in joining.obstacles)


def test_a_host_of_the_other_maker_is_refused_for_what_cannot_cross() -> None:
    pool = found("blue", [MILAN])
    joining = join(pool, ICELAKE)
    assert any(reason.startswith("sse4a") for reason in joining.obstacles)
    assert any(reason.startswith("pku") for reason in joining.obstacles)


def test_a_hint_or_a_narrow_difference_that_a_cpu_tolerates_is_no_obstacle() -> None:
    twin = MILAN.replace(name="twin", features=MILAN.features - {"erms", "fsrm"})
    assert join(found("blue", [MILAN]), twin).obstacles == ()


def test_narrow_addresses_and_low_leaves_are_obstacles() -> None:
    wide = MILAN.replace(phys_bits=48)
    narrow = MILAN.replace(name="narrow", phys_bits=40, level=0x7, linear_bits=47)
    reasons = join(found("blue", [wide]), narrow).obstacles
    assert any(reason.startswith("physical addresses") for reason in reasons)
    assert any(reason.startswith("highest basic CPUID leaf") for reason in reasons)


def test_what_translation_covers_does_not_hinder() -> None:
    features = HASWELL.features - {"movbe"}
    poor = HASWELL.replace(name="poor", features=features)
    assert join(found("blue", [HASWELL]), poor).obstacles
    assert join(found("blue", [HASWELL], translate=["movbe"]), poor).obstacles == ()


def test_leaving_raises_the_level_and_names_the_guests_to_power_cycle() -> None:
    pool = found("blue", [EPYC, MILAN])
    raising = raised(pool, ["EPYC"], {"old": 1, "new": 2})
    assert "clwb" in raising.wins
    assert raising.pool.version == 2
    assert raising.power_cycle == ("old",)
    unchanged = raised(pool, [], {"old": 1})
    assert unchanged.wins == ()
    assert unchanged.power_cycle == ()


def test_strange_names_are_told() -> None:
    pool = found("blue", [EPYC])
    with pytest.raises(InputError, match="not in pool"):
        raised(pool, ["nobody"])
    with pytest.raises(InputError, match="no host would be left"):
        raised(pool, ["EPYC"])
    with pytest.raises(InputError, match="already"):
        join(pool, EPYC)
    with pytest.raises(InputError, match="twice"):
        found("blue", [EPYC, EPYC])


def test_a_pool_survives_its_file() -> None:
    pool = found("blue", [EPYC, MILAN], translate=["movbe"])
    assert from_json(to_json(pool), Pool) == pool


def test_the_wider_set_holds_the_narrow_one_and_knows_only_features() -> None:
    for host in (EPYC, MILAN, ICELAKE, HASWELL):
        assert host.features <= arriving(host)
    known = {name for entry in tolerated() for name in (*entry.features, *entry.witness)}
    assert known <= set(FEATURES)
    silent = HASWELL.replace(features=HASWELL.features - {"rtm"} | {"rtm-always-abort"})
    assert "rtm" in arriving(silent)
    assert "rtm" not in arriving(EPYC)


def test_translation_keeps_only_what_some_host_has_and_says_where() -> None:
    poor = HASWELL.replace(name="poor", features=HASWELL.features - {"movbe", "popcnt"})
    baseline = level([HASWELL, poor], translate=["movbe", "sse4a"])
    assert baseline.translated == {"movbe"}
    assert "movbe" in baseline.model.features
    assert "popcnt" not in baseline.model.features
    assert "sse4a" not in baseline.model.features
    assert "with movbe, translated on poor" in baseline.reasons


def test_the_command_keeps_a_pool_in_its_file(tmp_path: Path) -> None:
    for host in (ROME, EPYC, MILAN):
        (tmp_path / f"{host.name}.json").write_bytes(to_json(host))
    file = str(tmp_path / "blue.json")
    run = CliRunner().invoke
    made = run(command, [str(tmp_path / "EPYC-Rome.json"), "--pool", file])
    assert made.exit_code == 0, made.output
    before = Path(file).read_bytes()
    assert run(command, [str(tmp_path / "EPYC.json"), "--pool", file]).exit_code != 0
    refused = run(
        command, ["--pool", file, "--join", str(tmp_path / "EPYC.json")], standalone_mode=False
    )
    assert refused.return_value == 3
    assert Path(file).read_bytes() == before
    dry = run(command, ["--pool", file, "--join", str(tmp_path / "EPYC-Milan.json"), "--dry-run"])
    assert dry.exit_code == 0
    assert Path(file).read_bytes() == before
    run(command, ["--pool", file, "--join", str(tmp_path / "EPYC-Milan.json")])
    names = [host["name"] for host in json.loads(Path(file).read_bytes())["hosts"]]
    assert names == ["EPYC-Milan", "EPYC-Rome"]
    told = run(
        command, ["--pool", file, "--raise", "--leave", "EPYC-Rome", "--guest", "web=1", "--json"]
    )
    assert json.loads(told.output)["power_cycle"] == ["web"]
    assert json.loads(Path(file).read_bytes())["version"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["EPYC.json", "EPYC-Rome.json", "EPYC-Milan.json", "blue.json"]
    )
