"""The forms that a model's execution plan allows a step to be computed in."""

from __future__ import annotations

from functools import cache, partial

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.network.compilation import compile_parts, uncompile
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training import sharding
from dti_pipeline.training.fallback import Form
from dti_pipeline.training.graphed import GraphedRunner
from dti_pipeline.training.runner import EagerRunner, StepRunner

GRAPH, COMPILED, EAGER = "a CUDA graph", "compiled layers", "layers that are not compiled"
PORTABLE = "torch's own attention"
#: Choices of an execution plan that end with a form.
LOST_WITH = {
    GRAPH: ("cuda_graph",),
    COMPILED: ("compiled_layers", "compiled_surroundings"),
    EAGER: ("attention_kernel", "sum_kernel"),
}


def forms_of(model: CTRModel, optimizer: Optimizer, accelerator: Accelerator, settings: TrainingConfig) -> list[Form]:
    """The forms of ``model``'s plan, the fastest first."""
    sharded = isinstance(model, FSDPModule)
    runner = partial(EagerRunner, model, optimizer, accelerator, settings.max_gradient_norm)
    plain = runner()  # before a trial: a sharded model whose forward pass broke off has other parameters for a while

    @cache  # a graph that could not be had leaves the layers compiled
    def compile_layers() -> None:
        sharding.compile_layers(model) if sharded else compile_parts(model)

    def graphed() -> StepRunner:
        compile_layers()
        return GraphedRunner(model, runner(compiled=True))

    def compiled() -> StepRunner:
        compile_layers()
        return plain

    def eager() -> StepRunner:
        if model.plan.compiled_layers:
            sharding.uncompile_layers(model) if sharded else uncompile(model)
        return plain

    def portable() -> StepRunner:
        for name in LOST_WITH[EAGER]:
            model.plan = model.plan.without(name, "a kernel could not be used")
        return eager()

    forms = [Form(GRAPH, graphed)] if model.plan.cuda_graph else []
    once = accelerator.device.type == "cuda"  # on a CPU every batch has its own sizes anyway
    forms += [Form(COMPILED, compiled, pads_targets=once)] if model.plan.compiled_layers else []
    forms.append(Form(EAGER, eager))
    return [*forms, Form(PORTABLE, portable)] if model.plan.attention_kernel else forms
