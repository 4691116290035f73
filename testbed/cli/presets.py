"""`testbed presets`: what can be trained, and how large it is."""

from typing import TypedDict

from rich import box
from rich.markup import escape
from rich.table import Table

from testbed.config import Preset, load_toml, names_in

__all__ = ["PresetLine", "list_presets", "presets_table"]


class PresetLine(TypedDict):
    """A preset in the list."""

    name: str
    parameters: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    context: int
    batch: int
    steps: int
    """The warm start's too."""
    kv_bytes_per_token_and_layer: int
    """In bf16, uncompressed."""
    task: str
    corpus: str | None


def list_presets() -> list[PresetLine]:
    """Every preset in experiments/presets, smallest first."""
    found: list[PresetLine] = []
    for name in names_in("presets"):
        preset = load_toml(Preset, "presets", name)
        model = preset.model
        found.append(
            {
                "name": name,
                "parameters": model.parameters,
                "layers": model.layers,
                "width": model.width,
                "heads": model.heads,
                "kv_heads": model.kv_heads,
                "ffn": model.ffn,
                "vocabulary": model.vocabulary,
                "context": preset.context,
                "batch": preset.batch,
                "steps": preset.warm_steps + preset.steps,
                "kv_bytes_per_token_and_layer": 2 * 2 * model.kv_width,
                "task": preset.data.task,
                "corpus": preset.data.corpus if preset.data.reads_text else None,
            }
        )
    return sorted(found, key=lambda preset: preset["parameters"])


def presets_table(presets: list[PresetLine]) -> Table:
    """For people."""
    table = Table(
        title="what can be trained",
        caption="K,V: bytes of a token in a layer, in bf16, uncompressed. Steps: warm start and context-parallel ones.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("preset", no_wrap=True)
    for column in ("parameters", "layers × width", "heads (K/V)", "context × batch", "steps", "K,V"):
        table.add_column(column, justify="right")
    table.add_column("data")
    for preset in presets:
        corpus = f" on {preset['corpus']}" if preset["corpus"] else ""
        table.add_row(
            escape(preset["name"]),
            _short(preset["parameters"]),
            f"{preset['layers']} × {preset['width']}",
            f"{preset['heads']} ({preset['kv_heads']})",
            f"{preset['context']} × {preset['batch']}",
            str(preset["steps"]),
            f"{preset['kv_bytes_per_token_and_layer']} B",
            escape(preset["task"] + corpus),
        )
    return table


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
