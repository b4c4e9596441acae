"""What the OpenAPI page shows of a request and its answer. :mod:`dti_pipeline.serving.requests` is what checks one."""

from __future__ import annotations

from typing import Any

_TEXT_OR_WHOLE = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
_SECONDS = {"type": "number", "nullable": True, "description": "Unix time in seconds."}
_REQUEST_ID = _TEXT_OR_WHOLE | {"nullable": True}
_ITEM: dict[str, Any] = {
    "item_id": _TEXT_OR_WHOLE,
    "item_text": {"type": "string"},
}
_COLUMNS = {"description": "Columns that the model's template names, by name."}

REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["history", "candidates"],
    "additionalProperties": False,
    "properties": {
        "user_id": _TEXT_OR_WHOLE | {"description": "Returned with the answer."},
        "user": {"type": "object", "description": "Columns that the model's tokens.user_template names."},
        "timestamp": _SECONDS | {"description": "When it is asked; default: after the history."},
        "request_id": _REQUEST_ID | {"description": "Which request this is, where entries of the history say theirs."},
        "state": {
            "type": "string",
            "description": "From the last answer to this user_id: the history has only what happened since.",
        },
        "history": {
            "type": "array",
            "description": "Oldest first. An item is named by item_id, item_text or both.",
            "items": {
                "type": "object",
                "required": ["label"],
                "properties": _ITEM
                | {
                    "label": {
                        "type": "integer",
                        "enum": [0, 1, None],
                        "nullable": True,
                        "description": "What the user did; null while that is not known.",
                    },
                    "timestamp": _SECONDS,
                    "request_id": _REQUEST_ID
                    | {"description": "The request that it was shown in; default: those of one time are one."},
                },
                "additionalProperties": _COLUMNS,
            },
        },
        "candidates": {
            "type": "array",
            "items": {"type": "object", "properties": _ITEM, "additionalProperties": _COLUMNS},
        },
    },
    "example": {
        "user_id": "7",
        "history": [{"item_id": "12", "label": 1}, {"item_text": "A title", "label": 0}],
        "candidates": [{"item_id": "3"}],
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["probabilities"],
    "properties": {
        "user_id": _TEXT_OR_WHOLE,
        "probabilities": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
        "state": {
            "type": "string",
            "description": "Of the user, where the service keeps it (serving.user_states_mib).",
        },
    },
}
ERROR: dict[str, Any] = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
