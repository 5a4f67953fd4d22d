"""What an exported adapter says of the base model that it belongs on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from engine.models.hub import split_ref
from engine.models.source import ModelSource

HUB = "huggingface.co"
CARD = """\
---
library_name: peft
{front}---

# {title}

An adapter with its task head, trained by PEFTscope (run {run}). It belongs on this base model and on no other:

- model: {base}
- where: {where}
- sha256 of its weights: {sha256}
- classes, in order: {labels}

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(
    "{load}", num_labels={count}, dtype="float32"{revision}
)
model = PeftModel.from_pretrained(base, "folder of this file").eval()
```
"""


def hub_name(source: ModelSource) -> tuple[str, str | None]:
    """The name under which a hub has the base, and its commit where it is known; empty where none has it."""
    if source.origin == "hub":
        return split_ref(source.id)[0], source.revision or None
    place = urlparse(source.url)
    return (place.path.strip("/"), None) if place.netloc == HUB else ("", None)


def name_base(folder: Path, source: ModelSource, title: str, run: str, labels: Sequence[str]) -> None:
    """Put the base's name into the configuration of an exported adapter, and a card beside it.

    A base that no hub has keeps an empty name: a folder of this machine would mean nothing elsewhere, and a bare
    word would be looked for on the hub. The card then says where it is.

    Args:
        folder: of the export.
        source: the base model.
        title: of the method.
        run: its id.
        labels: names of the classes.
    """
    name, revision = hub_name(source)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    places = {
        "assets": f"comes with PEFTscope, in assets/models/{source.id}",
        "folder": f"the folder {source.folder.name} of the machine on which it was trained",
    }
    card = CARD.format(
        front=f"base_model: {name}\n" if name else "",
        title=title,
        run=run,
        base=source.title,
        where=places.get(source.origin, source.url or f"https://{HUB}/{name}"),
        sha256=source.sha256,
        labels=", ".join(json.dumps(label, ensure_ascii=False) for label in labels),
        load=name or "folder of the base model",
        count=len(labels),
        revision=f', revision="{revision}"' if revision else "",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
