"""`Grades`: what the number that a label was cut from says beyond the label, such as a rating's stars.

A cumulative model of ordered grades (McCullagh 1980, proportional odds): the logit z of the label,
`grade > h`, moved by an offset c_g is that of `grade > g`, for every other cut g. Offsets are a domain's: how
much more often its training rows are above g than above h, in log odds. So there is nothing to train but z,
and nothing of it in the servable. Rows of unknown grade have their label's loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from service.contract.errors import RunError
from training.data.batches import UNKNOWN, Rows


@dataclass(frozen=True)
class Grades:
    """Cuts between T + 1 grades, without the label's own."""

    weight: float
    """Of the other cuts' loss, their mean; the label's has the rest."""
    cuts: Tensor
    """(T - 1,) int64: a row is above if its grade is."""
    offset: Tensor
    """(D + 1, T - 1) float32; the last row is the general domain's."""

    @classmethod
    def of(cls, rows: Rows, domains: int, weight: float) -> Grades:
        """Offsets of rows (n,) of D domains.

        Raises:
            RunError: rows have no grades, or their label does not follow from these.
        """
        if rows.grade is None:
            raise RunError("the recipe has grades, and the data has none")
        known = rows.grade != UNKNOWN
        grade, label, domain = rows.grade[known], rows.label[known] > 0, rows.domain[known]
        *cuts, _ = torch.unique(grade).tolist() or [UNKNOWN]
        own = [cut for cut in cuts if bool(((grade > cut) == label).all())]
        if len(own) != 1:
            raise RunError("labels do not follow from grades: there is no grade above which all are 1")
        others = torch.tensor([cut for cut in cuts if cut not in own])
        places = [domain == at for at in range(domains)] + [torch.ones_like(label)]
        offset = torch.stack([_offsets(grade[at], label[at], others) for at in places])
        return cls(weight, others.to(grade.device), offset.to(grade.device))

    def loss(self, logit: Tensor, rows: Rows) -> Tensor:
        """(1 - w) BCE(z, y) + w mean over g of BCE(z + c_g, grade > g), for logits z (B,): (B,)."""
        hard = binary_cross_entropy_with_logits(logit, rows.label, reduction="none")
        if rows.grade is None:
            return hard
        above = (rows.grade[:, None] > self.cuts).to(logit.dtype)
        moved = logit[:, None] + self.offset[rows.domain]
        graded = binary_cross_entropy_with_logits(moved, above, reduction="none").mean(1)
        weight = self.weight * (rows.grade != UNKNOWN)
        return (1 - weight) * hard + weight * graded


def _offsets(grade: Tensor, label: Tensor, cuts: Tensor) -> Tensor:
    """(T - 1,) of one domain; 0 without rows. A row is added to either side, as there may be none."""
    above = torch.stack([(grade > cut).sum() for cut in cuts.tolist()])
    return _odds(above, len(grade)) - _odds(label.sum(), len(grade)) if len(grade) else torch.zeros(len(cuts))


def _odds(count: Tensor, of: int) -> Tensor:
    return torch.log((count + 1.0) / (of - count + 1.0))
