"""Plans and runs a recipe from Python.  usage: run_recipe.py [RECIPE [BUILD_DIR]]"""

from __future__ import annotations

import sys

import pipeline
from pipeline.errors import PipelineError, QualityGateError
from pipeline.progress import Lines

RECIPE = sys.argv[1] if len(sys.argv) > 1 else "configs/demo.yaml"
BUILD_DIR = sys.argv[2] if len(sys.argv) > 2 else "build"

try:
    recipe = pipeline.load_recipe(RECIPE)
    plan = pipeline.plan(recipe, BUILD_DIR)
    for stage in plan.stages:
        print(f"{stage.stage.name:<11} {stage.status:<7} {stage.reason}")
    for finding in plan.findings:
        print(f"{finding.severity}: {finding.what}")

    result = pipeline.run(recipe, BUILD_DIR, progress=Lines(sys.stderr))
except QualityGateError as error:
    sys.exit(f"the quality gate is closed: {error}")
except PipelineError as error:
    sys.exit(f"error: {error}")

quality = result.stages["evaluate"].artifact
if quality is not None:
    print(f"perplexity: {quality.facts['perplexity']['value']:.4f}")
print(f"outputs: {result.outputs}")
