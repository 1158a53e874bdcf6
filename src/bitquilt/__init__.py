"""bitquilt: mixed-precision GGUF and MLX models of an exact size, running in stock engines.

The functions do what the command line does; each takes a config, or the config's fields as keyword
arguments::

    import bitquilt

    result = bitquilt.quantize("demo", bits=4.5, to="both", output="out")
    config = bitquilt.QuantizeConfig(size="600MB", search=bitquilt.SearchConfig(method="knapsack"))
    result = bitquilt.quantize("facebook/MobileLLM-R1-950M", config)

Everything that they take, return or raise can be imported from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitquilt.runtime.lazy import lazily

if TYPE_CHECKING:
    from bitquilt.allocation.plan import Plan as Plan
    from bitquilt.allocation.plan import Space as Space
    from bitquilt.allocation.plan import plan as plan
    from bitquilt.allocation.racing import Difference as Difference
    from bitquilt.allocation.selection import Ranking as Ranking
    from bitquilt.allocation.space import Candidate as Candidate
    from bitquilt.base_pipeline import quantize_base as quantize_base
    from bitquilt.calibration.text_budget import TextBudget as TextBudget
    from bitquilt.config import AllocationConfig as AllocationConfig
    from bitquilt.config import ImatrixConfig as ImatrixConfig
    from bitquilt.config import PlanConfig as PlanConfig
    from bitquilt.config import QuantizeConfig as QuantizeConfig
    from bitquilt.config import SearchConfig as SearchConfig
    from bitquilt.converted.plan_base import BasePlan as BasePlan
    from bitquilt.converted.plan_base import plan_base as plan_base
    from bitquilt.converted.quantize_base import ConvertedResult as ConvertedResult
    from bitquilt.errors import EngineCrashedError as EngineCrashedError
    from bitquilt.errors import EngineMissingError as EngineMissingError
    from bitquilt.errors import PartlyRefusedError as PartlyRefusedError
    from bitquilt.errors import UserError as UserError
    from bitquilt.evaluation.compare import evaluate as evaluate
    from bitquilt.evaluation.config import BenchConfig as BenchConfig
    from bitquilt.evaluation.config import EvalConfig as EvalConfig
    from bitquilt.evaluation.config import PairConfig as PairConfig
    from bitquilt.evaluation.config import TraceConfig as TraceConfig
    from bitquilt.evaluation.figures import DomainFigures as DomainFigures
    from bitquilt.evaluation.pair import DraftGain as DraftGain
    from bitquilt.evaluation.pair import PairResult as PairResult
    from bitquilt.evaluation.pair import measure_pair as measure_pair
    from bitquilt.evaluation.results import Comparison as Comparison
    from bitquilt.evaluation.results import EngineCheck as EngineCheck
    from bitquilt.evaluation.results import Evaluation as Evaluation
    from bitquilt.evaluation.results import FileResult as FileResult
    from bitquilt.evaluation.results import NoiseFloor as NoiseFloor
    from bitquilt.evaluation.results import TextSample as TextSample
    from bitquilt.evaluation.speed import BenchResult as BenchResult
    from bitquilt.evaluation.speed import Load as Load
    from bitquilt.evaluation.speed import Speed as Speed
    from bitquilt.evaluation.speed import bench as bench
    from bitquilt.evaluation.wikitext import ConfidenceFigures as ConfidenceFigures
    from bitquilt.evaluation.wikitext import WikitextFigures as WikitextFigures
    from bitquilt.evaluation.wikitext import WithError as WithError
    from bitquilt.forecast.disk import DiskUse as DiskUse
    from bitquilt.forecast.estimate import Forecast as Forecast
    from bitquilt.forecast.estimate import estimate as estimate
    from bitquilt.gguf.imatrix import ImportanceEntry as ImportanceEntry
    from bitquilt.gguf.imatrix import ImportanceMatrix as ImportanceMatrix
    from bitquilt.metrics.kl import Estimate as Estimate
    from bitquilt.metrics.teacher import Figures as Figures
    from bitquilt.metrics.teacher import HeldOutFigures as HeldOutFigures
    from bitquilt.models.checkpoint import Finding as Finding
    from bitquilt.models.inspection import Inspection as Inspection
    from bitquilt.models.inspection import ModelPart as ModelPart
    from bitquilt.models.inspection import inspect as inspect
    from bitquilt.pipeline import quantize as quantize
    from bitquilt.pipeline import search as search
    from bitquilt.report.result import Output as Output
    from bitquilt.report.result import QuantizeResult as QuantizeResult
    from bitquilt.report.result import SearchResult as SearchResult
    from bitquilt.runtime.hardware import Hardware as Hardware
    from bitquilt.runtime.job import ExpectedStage as ExpectedStage
    from bitquilt.runtime.progress import Progress as Progress
    from bitquilt.runtime.progress import Silent as Silent
    from bitquilt.streaming.make_imatrix import make_imatrix as make_imatrix
    from bitquilt.streaming.quantize_gguf import GgufPlan as GgufPlan
    from bitquilt.streaming.quantize_gguf import GgufResult as GgufResult
    from bitquilt.streaming.quantize_gguf import plan_gguf_files as plan_gguf_files
    from bitquilt.streaming.quantize_gguf import quantize_gguf as quantize_gguf
    from bitquilt.targets.base import Target as Target
    from bitquilt.targets.engine_check import EngineExcerpt as EngineExcerpt
    from bitquilt.targets.layout import Layout as Layout
    from bitquilt.tasks.choices import ChoiceScore as ChoiceScore
    from bitquilt.tasks.config import TaskConfig as TaskConfig
    from bitquilt.tasks.run import ModelScores as ModelScores
    from bitquilt.tasks.run import TaskResults as TaskResults
    from bitquilt.tasks.run import run_tasks as run_tasks
    from bitquilt.tasks.scores import Metric as Metric
    from bitquilt.tasks.scores import ProblemComparison as ProblemComparison
    from bitquilt.tasks.scores import ProblemScore as ProblemScore
    from bitquilt.trimming.config import TrimConfig as TrimConfig
    from bitquilt.trimming.trim import TokensPerByte as TokensPerByte
    from bitquilt.trimming.trim import TrimResult as TrimResult
    from bitquilt.trimming.trim import trim_vocabulary as trim_vocabulary

__version__ = "0.2.0"

_HOMES = {
    "AllocationConfig": "bitquilt.config",
    "BasePlan": "bitquilt.converted.plan_base",
    "BenchConfig": "bitquilt.evaluation.config",
    "BenchResult": "bitquilt.evaluation.speed",
    "PairConfig": "bitquilt.evaluation.config",
    "PairResult": "bitquilt.evaluation.pair",
    "Candidate": "bitquilt.allocation.space",
    "ChoiceScore": "bitquilt.tasks.choices",
    "Comparison": "bitquilt.evaluation.results",
    "ConfidenceFigures": "bitquilt.evaluation.wikitext",
    "Difference": "bitquilt.allocation.racing",
    "DiskUse": "bitquilt.forecast.disk",
    "DraftGain": "bitquilt.evaluation.pair",
    "DomainFigures": "bitquilt.evaluation.figures",
    "EngineCheck": "bitquilt.evaluation.results",
    "ConvertedResult": "bitquilt.converted.quantize_base",
    "EngineCrashedError": "bitquilt.errors",
    "EngineExcerpt": "bitquilt.targets.engine_check",
    "EngineMissingError": "bitquilt.errors",
    "Estimate": "bitquilt.metrics.kl",
    "EvalConfig": "bitquilt.evaluation.config",
    "Evaluation": "bitquilt.evaluation.results",
    "ExpectedStage": "bitquilt.runtime.job",
    "Figures": "bitquilt.metrics.teacher",
    "FileResult": "bitquilt.evaluation.results",
    "Finding": "bitquilt.models.checkpoint",
    "Forecast": "bitquilt.forecast.estimate",
    "GgufPlan": "bitquilt.streaming.quantize_gguf",
    "GgufResult": "bitquilt.streaming.quantize_gguf",
    "Hardware": "bitquilt.runtime.hardware",
    "HeldOutFigures": "bitquilt.metrics.teacher",
    "ImatrixConfig": "bitquilt.config",
    "ImportanceEntry": "bitquilt.gguf.imatrix",
    "ImportanceMatrix": "bitquilt.gguf.imatrix",
    "Inspection": "bitquilt.models.inspection",
    "Layout": "bitquilt.targets.layout",
    "Load": "bitquilt.evaluation.speed",
    "Metric": "bitquilt.tasks.scores",
    "ModelPart": "bitquilt.models.inspection",
    "ModelScores": "bitquilt.tasks.run",
    "NoiseFloor": "bitquilt.evaluation.results",
    "Output": "bitquilt.report.result",
    "PartlyRefusedError": "bitquilt.errors",
    "Plan": "bitquilt.allocation.plan",
    "PlanConfig": "bitquilt.config",
    "ProblemComparison": "bitquilt.tasks.scores",
    "ProblemScore": "bitquilt.tasks.scores",
    "Progress": "bitquilt.runtime.progress",
    "QuantizeConfig": "bitquilt.config",
    "QuantizeResult": "bitquilt.report.result",
    "Ranking": "bitquilt.allocation.selection",
    "SearchConfig": "bitquilt.config",
    "SearchResult": "bitquilt.report.result",
    "Silent": "bitquilt.runtime.progress",
    "Space": "bitquilt.allocation.plan",
    "Speed": "bitquilt.evaluation.speed",
    "Target": "bitquilt.targets.base",
    "TaskConfig": "bitquilt.tasks.config",
    "TaskResults": "bitquilt.tasks.run",
    "TextBudget": "bitquilt.calibration.text_budget",
    "TextSample": "bitquilt.evaluation.results",
    "TokensPerByte": "bitquilt.trimming.trim",
    "TraceConfig": "bitquilt.evaluation.config",
    "TrimConfig": "bitquilt.trimming.config",
    "TrimResult": "bitquilt.trimming.trim",
    "UserError": "bitquilt.errors",
    "WikitextFigures": "bitquilt.evaluation.wikitext",
    "WithError": "bitquilt.evaluation.wikitext",
    "bench": "bitquilt.evaluation.speed",
    "measure_pair": "bitquilt.evaluation.pair",
    "estimate": "bitquilt.forecast.estimate",
    "evaluate": "bitquilt.evaluation.compare",
    "inspect": "bitquilt.models.inspection",
    "make_imatrix": "bitquilt.streaming.make_imatrix",
    "plan": "bitquilt.allocation.plan",
    "plan_base": "bitquilt.converted.plan_base",
    "plan_gguf_files": "bitquilt.streaming.quantize_gguf",
    "quantize": "bitquilt.pipeline",
    "quantize_base": "bitquilt.base_pipeline",
    "quantize_gguf": "bitquilt.streaming.quantize_gguf",
    "run_tasks": "bitquilt.tasks.run",
    "search": "bitquilt.pipeline",
    "trim_vocabulary": "bitquilt.trimming.trim",
}
"""Public name → the module that defines it."""

__all__ = ["__version__", *_HOMES]


__getattr__, __dir__ = lazily(__name__, _HOMES)
