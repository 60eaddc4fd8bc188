"""Heads that begin as linear probes: fine-tuning then starts where probing ends, LP-FT (Kumar et al., 2022,
https://arxiv.org/abs/2202.10054, section 4)."""

from dataclasses import dataclass, replace

import numpy as np

from medssl.evals.metrics.metrics import Floats
from medssl.evals.task_types.base import Y
from medssl.scoring import probes
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource


@dataclass(frozen=True)
class ProbeHead:
    """A linear head with the predictions of a probe.

    features: (N, dim) float32 of the labelled scans. weight (outputs, dim), bias (outputs,): float64, the scores that
    `TargetLoss` takes are features @ weight.T + bias.
    """

    features: np.ndarray
    weight: Floats
    bias: Floats


def fit_head(
    source: FeatureSource, splits: EvalSplits, rows: np.ndarray, budget: str, seed: int, device: str
) -> ProbeHead:
    """Return the probe of the training scans at positions `rows`, its penalty chosen as for the row of the linear probe.

    For survival it is the Cox model of `medssl survive`. An ordinal head has other scores than the proportional odds of
    `medssl probe`: its probe is a logistic regression for each level, on the scans that reach it.

    Raises UserError as `probes.linear` does.
    """
    kind, train, width = splits.target.kind, splits.train, splits.target.width

    def recoded(y: Y) -> Y:
        return kind.head_target(y, width)[1]

    target = replace(splits.target, task=kind.head_target(train.y, width)[0])
    train_y, val_y = replace(train, y=recoded(train.y)), replace(splits.val, y=recoded(splits.val.y))
    asked = replace(splits, target=target, train=train_y, val=val_y)
    ((probe,),) = probes.linear(source, asked, [], subsets={budget: [rows]}, seed=seed, device=device).values()
    assert probe.weight_bias is not None  # these probes are linear
    weight, bias = kind.head(*probe.weight_bias, train.y[rows])
    return ProbeHead(source(train.store, train.rows)[rows], weight, bias)
