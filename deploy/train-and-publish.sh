#!/usr/bin/env bash
# From nothing to live packs: train a recipe, export the run, publish the bundle, point `current` at it.
#
# Running it again repeats only what is missing: a killed training goes on, a bundle that is there is not made
# again, and nothing is published over packs that are live. By hand, from the root of the repository:
#
#   MDCTR_STORE=redis://127.0.0.1:6379/0 PYTHON=.venv/bin/python deploy/train-and-publish.sh
#   MDCTR_STORE=redis://127.0.0.1:6379/0 MDCTR_BUNDLE=runs/bundles/current .venv/bin/python -m service run
#
#   MDCTR_STORE  where packs go
#   RECIPE       what to train                    training/recipes/plate_synthetic.yaml
#   RUNS         folder of runs and their data    runs
#   BUNDLES      folder of bundles                $RUNS/bundles
#   PYTHON       an interpreter that has mdctr    python
set -euo pipefail

: "${MDCTR_STORE:?where packs go, such as redis://127.0.0.1:6379/0}"
recipe=${RECIPE:-training/recipes/plate_synthetic.yaml}
runs=${RUNS:-runs}
bundles=${BUNDLES:-$runs/bundles}
python=${PYTHON:-python}

# Named by the recipe's content too: an edited recipe is another run, and its folder is not the old one's.
name=$(basename "$recipe" .yaml)-$(cksum <"$recipe" | cut -d ' ' -f 1)
run=$runs/$name
made=of-$name # a link in $bundles: which bundle this recipe became

say() {
    printf '%s\n' "$*" >&2
}

# Point $bundles/$2 at the bundle $1 in one step: a reader sees the old one or the new one.
link() {
    ln -sfn "$1" "$bundles/.$2.new"
    "$python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$bundles/.$2.new" "$bundles/$2"
}

mkdir -p "$runs" "$bundles"

if [[ ! -f $bundles/$made/manifest.json ]]; then
    say "Training $recipe"
    "$python" -m training fit "$recipe" --out "$run" --data "$runs/data"
    say "Exporting $run"
    output=$("$python" -m export build "$run" --out "$bundles" --data "$runs/data")
    printf '%s\n' "$output"
    bundle=$(basename "${output##*$'\n'}")
    if [[ ! -f $bundles/$bundle/manifest.json ]]; then
        say "The last line of the export names no bundle in $bundles: ${output##*$'\n'}"
        exit 1
    fi
    link "$bundle" "$made"
fi

bundle=$(readlink "$bundles/$made")
publish=("$python" -m export publish "$bundles/$bundle" --store "$MDCTR_STORE")
plan=$("${publish[@]}" --dry-run --json)
missing=$("$python" -c 'import json, sys; print(sum(pack["live"] is None for pack in json.loads(sys.argv[1])))' "$plan")
if [[ $missing != 0 ]]; then
    say "Publishing $bundle"
    "${publish[@]}"
else
    # What was tuned and promoted since would be rolled back.
    say "Every domain of $bundle is live already"
fi
link "$bundle" current
say "$bundles/current is $bundle"
