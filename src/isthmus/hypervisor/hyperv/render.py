"""A level for Hyper-V, which takes none: it has one switch, and levels as it sees fit.

``Set-VMProcessor -CompatibilityForMigrationEnabled`` hides what differs between CPUs of one maker;
Windows Server 2025 can level to what a cluster has (``-CompatibilityForMigrationMode
CommonClusterFeatureSet``).  (Microsoft Learn, "Processor compatibility mode in Hyper-V": "doesn't
support … different processor manufacturers".)
"""

from isthmus.baseline.level import Baseline
from isthmus.hypervisor.rendering import RenderedFile, Rendering, identifier, mixed_makers

_ALWAYS_HIDDEN = (
    "avx", "avx2", "f16c", "fma", "movbe", "rdrand", "sse4.1", "sse4.2", "sse4a", "ssse3", "popcnt",
)  # fmt: skip
"""What the classic mode hides of every guest, wherever it runs (Microsoft Learn, as above)."""


def render(level: Baseline, name: str) -> Rendering:
    """A PowerShell script for the guests of a pool of one maker."""
    lost = sorted(set(_ALWAYS_HIDDEN) & level.model.features)
    script = "\n".join(
        (
            f"# {name}: guests must be off; run on a host of the cluster",
            "param([Parameter(Mandatory)][string[]] $VMName)",
            "$ErrorActionPreference = 'Stop'",
            "foreach ($vm in $VMName) {",
            "    if ((Get-VM -Name $vm).State -ne 'Off') { throw \"$vm is not off\" }",
            "    Set-VMProcessor -VMName $vm -CompatibilityForMigrationEnabled $true",
            "}",
            "",
        )
    )
    return Rendering(
        platform="hyperv",
        files=(RenderedFile(name=f"{identifier(name)}.ps1", text=script),),
        commands=(
            (
                "Set-VMProcessor -VMName VM -CompatibilityForMigrationEnabled $true "
                "-CompatibilityForMigrationMode CommonClusterFeatureSet   # Windows Server 2025"
            ),
        ),
        notes=(
            "not yet run on a real Hyper-V host",
            "Hyper-V takes no features one by one: before Windows Server 2025 its mode hides "
            + (
                ", ".join(lost) + " of this level as well" if lost else "at least this level's loss"
            ),
        ),
        refusals=mixed_makers(
            level, "Hyper-V", "its compatibility mode is for processors of one manufacturer"
        ),
    )
