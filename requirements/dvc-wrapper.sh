#!/bin/sh
# `dvc`, installed by `make setup` as .venv/bin/dvc. DVC lives in an environment of its own (requirements/dvc.txt says
# why); its stages call `dti`, which lives in this one: PATH leads them there even where nothing was activated.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH="$here:$PATH" exec "$here/../../.venv-dvc/bin/dvc" "$@"
