"""What an exported folder says of itself: its prompts as JSON, and a card with code that asks the model."""

from __future__ import annotations

import json
from typing import Any

from dti_pipeline.artifacts import Manifest
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training.report import TrainReport

PROMPT = "dti_prompt.json"
BASE, ADAPTER = "base", "adapter"
#: Line of the code that says where the folder is.
HERE = 'FOLDER = Path(".")  # this folder'

_PROMPTS = """import json
from pathlib import Path

import torch
{imports}

{here}
ASKS = json.loads((FOLDER / "dti_prompt.json").read_text())
tokenizer = AutoTokenizer.from_pretrained({base})
{model}
{head}

def text_of(item_id="", item_text="", **columns):
    item_text = item_text.strip() or f"item {{item_id}}"
    return ASKS["template"].format(item_id=item_id, item_text=item_text, **columns).strip()


def tokens_of(text):
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found[: ASKS["max_text_tokens"]]


def prompt(history, candidate, user=""):
    \"\"\"Token ids. history: (text, label) pairs, oldest first, label 0 or 1.\"\"\"
    ids = ASKS["prefix_tokens"] + tokens_of(user)
    for text, label in history[max(0, len(history) - ASKS["context"]) :]:
        ids += tokens_of(text) + [ASKS["label_tokens"][label]]
    return ids + tokens_of(candidate) + [ASKS["sum_token"]]


@torch.no_grad()
def probability(history, candidate, user=""):
    ids = torch.tensor([prompt(history, candidate, user)])
{score}
    return torch.sigmoid(yes - no).item()
"""
_VERBALISER = """    no, yes = model(ids).logits[0, -1, ASKS["label_tokens"]].double()"""
_FRESH = """    state = {decoder}(ids).last_hidden_state[0, -1]
    no, yes = (HEAD["weight"] @ state + HEAD["bias"]).double()"""


def prompts(manifest: Manifest[TrainReport], model: CTRModel, words: dict[str, str]) -> dict[str, Any]:
    """How the model is asked, for a program. ``words``: the tokenizer's of [SUM], yes and no."""
    texts, special = manifest.report.texts, manifest.report.network["special"]
    return {
        "format": 1,
        "context": model.context,
        "template": texts.template,
        "user_template": texts.user_template,
        "prefix_tokens": list(texts.prefix_tokens),
        "max_text_tokens": texts.max_text_tokens,
        "label_tokens": [special["no"], special["yes"]],
        "label_words": [words["no"], words["yes"]],
        "sum_token": special["sum"],
        "sum_word": words["sum"],
        "head": "fresh" if model.head is not None else "verbaliser",
    }


def code(asks: dict[str, Any], apart: bool) -> str:
    """Python that asks the folder, without this package: ``probability(history, candidate, user)``."""
    fresh = asks["head"] == "fresh"
    base = f'FOLDER / "{BASE}"' if apart else "FOLDER"
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    loaded = f"model = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.float32).eval()"
    if apart:
        imports.insert(0, "from peft import PeftModel")
        loaded += f'\nmodel = PeftModel.from_pretrained(model, FOLDER / "{ADAPTER}").eval()'
    if fresh:
        imports.insert(len(imports) - 1, "from safetensors.torch import load_file")
    decoder = "model.get_base_model().get_decoder()" if apart else "model.get_decoder()"
    return _PROMPTS.format(
        imports="\n".join(imports),
        here=HERE,
        base=base,
        model=loaded,
        head='HEAD = load_file(FOLDER / "head.safetensors")\n' if fresh else "",
        score=_FRESH.format(decoder=decoder) if fresh else _VERBALISER,
    )


def card(asks: dict[str, Any], paradigm: str, apart: bool, dtype: str, compared: str) -> str:
    """README.md of the folder."""
    engines = _NO_ENGINES if asks["head"] == "fresh" else _engines(asks["label_tokens"], apart, dtype)
    return _CARD.format(
        library="peft" if apart else "transformers",
        paradigm=paradigm,
        compared=compared,
        file=PROMPT,
        most=asks["max_text_tokens"],
        no=asks["label_tokens"][0],
        yes=asks["label_tokens"][1],
        sum=asks["sum_token"],
        context=asks["context"],
        opening=_opening(asks),
        template=asks["template"],
        code=code(asks, apart),
        engines=engines,
    )


def _opening(asks: dict[str, Any]) -> str:
    said = f"It opens with {len(asks['prefix_tokens'])} fixed tokens. " if asks["prefix_tokens"] else ""
    if asks["user_template"] is not None:
        said += f"The user's text is `{asks['user_template']}`, filled in and stripped; empty where all values are. "
    return said


def _engines(labels: list[int], apart: bool, dtype: str) -> str:
    """The section about engines that score labels."""
    lora = f" --enable-lora --lora-modules ctr=FOLDER/{ADAPTER}" if apart else ""
    asked = {"query": "IDS_OF_HISTORY", "items": "[IDS_OF_CANDIDATE]"}

    def curl(address: str, **more: Any) -> str:
        body = json.dumps(asked | more)
        body = body.replace('"IDS_OF_HISTORY"', "IDS_OF_HISTORY").replace('"[IDS_OF_CANDIDATE]"', "[IDS_OF_CANDIDATE]")
        return f"curl http://localhost:{address} -H 'Content-Type: application/json' -d '{body}'"

    no, yes = labels
    named = {"model": "ctr"} if apart else {}
    lines = [
        f"vllm serve FOLDER{f'/{BASE}' if apart else ''} --dtype {dtype}{lora}",
        curl("8000/generative_scoring", label_token_ids=[yes, no], **named),
    ]
    if not apart:
        lines += [
            f"python -m sglang.launch_server --model-path FOLDER --dtype {dtype}",
            curl("30000/v1/score", label_token_ids=[no, yes], apply_softmax=True),
        ]
    return _ENGINES.format(commands="\n".join(lines))


_CARD = """---
library_name: {library}
tags: [click-through-rate]
---

# P(click) of an item, given a user's history

A causal language model trained by `{paradigm}` (dti-pipeline). {compared}

## A prompt

```text
[prefix] [user] text label text label .. text [SUM]
```

Without the spaces, as token ids, in one piece; `{file}` has its parts. Each text is made into tokens by itself,
without special tokens, and cut at {most}. A label is one token: no {no}, yes {yes}; [SUM] is {sum}. The last {context}
interactions of the history stand in it, oldest first. {opening}An item's text is `{template}`, filled in.
The answer is the share of yes in the softmax over both labels, behind [SUM].

Every label of the history must be known, and each of its items must have been shown when the labels before it were:
what else `dti score` takes (labels that are null, rows of one moment) is no plain prompt.

## Code

```python
{code}```

`probability([(text_of("12", "A title"), 1), (text_of("9", "Another"), 0)], text_of("3", "A third"))`

{engines}"""
_ENGINES = """## Other engines

Not run where this was written.

```sh
{commands}
```

IDS_OF_HISTORY are the ids up to the last label, IDS_OF_CANDIDATE those of the candidate's text and [SUM]. Give ids,
not text: a tokenizer may join what stands side by side. vLLM answers with the first label's share, SGLang with both.
Neither may cut a prompt: let the engine's longest input be longer than yours. (vLLM takes adapters above rank 16 with
`--max-lora-rank` only.)
"""
_NO_ENGINES = """## Other engines

The head is a linear layer of its own (`head.safetensors`, row 0: no, row 1: yes), which vLLM and SGLang do not read. A
model trained with `model.head: verbaliser` can be asked there.
"""
