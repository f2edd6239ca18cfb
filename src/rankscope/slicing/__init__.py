"""A model becomes sub-networks at named cut points; patches and sketches restrict its input."""

from rankscope.slicing.blocked import derivative_ends, failing_module, unmoved
from rankscope.slicing.called import called
from rankscope.slicing.capture import CallKey, Capture, capture
from rankscope.slicing.columns import (
    All,
    Columns,
    ColumnsByShape,
    ColumnsLike,
    Patch,
    Positions,
    Sketch,
    as_columns,
)
from rankscope.slicing.cut_points import (
    CUT_POINT_WORDS,
    CutPointsLike,
    LayerTable,
    check_names,
    layers,
    on_this_path,
    select,
)
from rankscope.slicing.example import example_sample
from rankscope.slicing.guard import (
    evaluation_mode,
    full_precision,
    measuring,
    mode_facts,
    no_script,
    observing,
    weights_with_numbers,
)
from rankscope.slicing.mixing import Stretch
from rankscope.slicing.module_calls import ModuleCall, Trace
from rankscope.slicing.precision import LowerPrecision, without_casts
from rankscope.slicing.reader import Samples, read_samples
from rankscope.slicing.same import on_a_gpu, same_at_once, same_memory, same_numbers, version_of
from rankscope.slicing.sample import Sample, call_model
from rankscope.slicing.state import ModelState, guarded, outside_transforms
from rankscope.slicing.trace import trace

__all__ = [
    "CUT_POINT_WORDS",
    "All",
    "CallKey",
    "Capture",
    "Columns",
    "ColumnsByShape",
    "ColumnsLike",
    "CutPointsLike",
    "LayerTable",
    "LowerPrecision",
    "ModelState",
    "ModuleCall",
    "Patch",
    "Positions",
    "Sample",
    "Samples",
    "Sketch",
    "Stretch",
    "Trace",
    "as_columns",
    "call_model",
    "called",
    "capture",
    "check_names",
    "derivative_ends",
    "evaluation_mode",
    "example_sample",
    "failing_module",
    "full_precision",
    "guarded",
    "layers",
    "measuring",
    "mode_facts",
    "no_script",
    "observing",
    "on_a_gpu",
    "on_this_path",
    "outside_transforms",
    "read_samples",
    "same_at_once",
    "same_memory",
    "same_numbers",
    "select",
    "trace",
    "unmoved",
    "version_of",
    "weights_with_numbers",
    "without_casts",
]
