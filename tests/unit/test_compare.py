"""``isthmus compare``: differences by meaning; its page is whole and escaped."""

import json
import re
from pathlib import Path

from click.testing import CliRunner
from lxml import etree

from isthmus.cli.compare import command
from isthmus.cli.heatmap import page
from isthmus.cpu.named import qemu_models
from isthmus.divergence.comparison import Meaning, compare, link, meaning
from isthmus.divergence.finding import Severity
from isthmus.divergence.rules import rules
from isthmus.values import to_json

PHENOM, PENRYN, MILAN, ICELAKE = (
    qemu_models()[name] for name in ("phenom", "Penryn", "EPYC-Milan", "Icelake-Server")
)


def test_what_is_lost_stands_under_what_it_means() -> None:
    there, back = compare([PHENOM, PENRYN]).directions
    assert (there.source, there.destination) == ("phenom", "Penryn")
    subjects = {group: {f.subject for f in found} for group, found in there.groups.items()}
    assert {"rdtscp", "sse4a", "popcnt"} <= subjects[Meaning.INSTRUCTIONS]
    assert "abm" in subjects[Meaning.RESULTS]
    assert "pdpe1gb" in subjects[Meaning.STATE]
    assert {"svm", "npt"} <= subjects[Meaning.NESTED]
    assert Meaning.SECURITY in subjects
    assert "ssse3" in {f.subject for f in back.groups[Meaning.INSTRUCTIONS]}


def test_every_finding_has_one_place_and_a_rule_that_the_docs_tell_of() -> None:
    text = Path("docs/divergences.md").read_text()
    anchors = set(re.findall(r'<a id="([^"]+)">', text))
    assert {rule.id for rule in rules()} == anchors
    for way in compare([MILAN, ICELAKE, PHENOM]).directions:
        for group, found in way.groups.items():
            assert all(meaning(finding) is group for finding in found)
            assert all(link(f.rule).partition("#")[2] in anchors for f in found)


def test_equal_cpus_differ_in_nothing_that_matters() -> None:
    twin = MILAN.replace(name="twin")
    for way in compare([MILAN, twin]).directions:
        assert way.worst in {None, Severity.NOTE}
    assert compare([MILAN, twin]).features == {}


def test_the_page_is_well_formed_and_trusts_no_name() -> None:
    odd = PENRYN.replace(name='<script>alert("x")</script>')
    text = page(compare([PHENOM, odd]))
    assert "<script>" not in text
    tree = etree.fromstring(text, etree.HTMLParser())
    assert len(tree.findall(".//td[@class='cell self']")) == 2
    for anchor in tree.iterfind(".//a"):
        assert tree.find(f".//*[@id='{str(anchor.get('href'))[1:]}']") is not None


def test_a_page_of_many_hosts_stays_light() -> None:
    hosts = [MILAN.replace(name=f"host{number}") for number in range(24)]
    text = page(compare(hosts))
    assert len(text) < 1_000_000
    assert "compare fewer hosts" in text


def test_the_command_prints_json_and_writes_the_page(tmp_path: Path) -> None:
    files = []
    for host in (PHENOM, PENRYN):
        files.append(str(tmp_path / f"{host.name}.json"))
        Path(files[-1]).write_bytes(to_json(host))
    target = tmp_path / "page.html"
    done = CliRunner().invoke(command, [*files, "--json", "--html", str(target)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["hosts"] == ["phenom", "Penryn"]
    assert len(document["directions"]) == 2
    assert "phenom" in target.read_text()
    told = CliRunner().invoke(command, files).output
    assert "instructions lost" in told
    assert "[sse4a]" in told
    assert CliRunner().invoke(command, files[:1]).exit_code == 2
